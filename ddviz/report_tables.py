"""The tables of the report: finished runs beside the paper's tables 1 to 4, and what is gained beside its gains."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ddviz import paper, report
from ddviz.datasets import user_path
from ddviz.errors import InputError
from ddviz.paper import Published, Runs
from ddviz.report import SEARCH, SHARED, Finished, Search
from ddviz.settings import Settings
from ddviz.smoothing import smoothing_for
from ddviz.tables import Row, Table

_DATASETS = {"cifar10": "CIFAR-10", "imagenet": "ImageNet"}
_NOTE = "NOTE.md"
_ERRORS = "± is one standard error over the images (of a share: half the longer side of its Wilson interval of two)"
_LEGEND = (
    "Below them the paper's numbers (N = 100,000; ? cannot be read in our copy; best over {scale} {sigmas}, its DS "
    "rows over K, too) and ours less the paper's: ▲ above, ▼ below by more than two of our standard errors, ≈ neither. "
    "The paper's own uncertainty is not in this, and its networks and images may be others."
)


@dataclass(frozen=True, kw_only=True)
class Report(Settings):
    """What to report on: the parameters of `notebooks/report.ipynb`, folders all.

    results: of finished runs, at any depth. iterations_results, grid_results: of the ablations, "" for those in it.
    export: where tables and figures are written to, "" for nowhere.
    """

    results: str = "results/cifar10"
    iterations_results: str = ""
    grid_results: str = ""
    export: str = ""

    def _check(self) -> None:
        named = {name: getattr(self, name) for name in ("results", "iterations_results", "grid_results")}
        for name, folder in named.items():
            if (folder or name == "results") and not (folder and user_path(folder).is_dir()):
                raise InputError(
                    f"expected {name} to be a folder of finished runs, got {folder!r}, which is none. Make runs with "
                    "certify.ipynb, or choose another folder."
                )
        if self.export and user_path(self.export).is_file():
            raise InputError(f"expected export to be a folder, got the file {self.export!r}. Choose another name.")


@dataclass(frozen=True)
class Section:
    """The runs of one training method on one data set, norm and architecture."""

    runs: tuple[Finished, ...]

    @property
    def first(self) -> Finished:
        """A run, of which data set, norm, model and method are those of all."""
        return self.runs[0]

    @property
    def method(self) -> str:
        """The training method, as the paper calls it."""
        return report.SHOWN.get(self.first.method, self.first.method)

    @property
    def published(self) -> dict[str, Published]:
        """The paper's rows of this method, by name."""
        rows = paper.published(self.first.dataset, self.first.norm)
        return {name: row for name, row in rows.items() if name.split("-")[0] == self.method}

    @property
    def names(self) -> list[str]:
        """Rows in order: each of the paper's, found or not, those of other solvers below it, then the others."""
        found = {run.name: run.row for run in self.runs}
        ours = [name for row in self.published for name in (row, *(name for name in found if found[name] == row))]
        return list(dict.fromkeys([*ours, *found]))

    def of(self, name: str) -> Runs:
        """Records of one row by noise scale, of which there may be none."""
        return {run.sigma: run.records for run in self.runs if run.name == name}

    def paper_row(self, name: str) -> Published | None:
        """The row of the paper that a row of ours belongs to."""
        return self.published.get(next((run.row for run in self.runs if run.name == name), name))

    @property
    def sigmas(self) -> list[float]:
        """All noise scales."""
        return sorted({run.sigma for run in self.runs})

    @property
    def scale(self) -> str:
        """What the noise scale is called."""
        return smoothing_for(self.first.norm).scale_name

    @property
    def where(self) -> str:
        """Data set, architecture and norm, for titles."""
        return f"{_DATASETS.get(self.first.dataset, self.first.dataset)} ({self.first.model}, {self.first.norm})"

    @property
    def title(self) -> str:
        """Of the table."""
        number = next((f"Table {row.table}: " for row in self.published.values()), "")
        return f"{number}{self.method} on {self.where}"

    def key(self, kind: str) -> str:
        """The name of a file."""
        return _key(kind, self.first.method, *report.group(self.first))


def _key(*parts: str) -> str:
    return re.sub(r"[^\w.]+", "-", "-".join(parts))


def sections(runs: Sequence[Finished]) -> list[Section]:
    """Runs in the order of `report.search`, one section a data set, norm, architecture and training method."""
    return [Section(tuple(members)) for _, members in groupby(runs, lambda run: (*report.group(run), run.method))]


def opening(results: str, found: Search) -> str:
    """Markdown: the report's title with its data sets, what the folder's NOTE.md say, and the runs left out."""
    places = groupby(sections(found.runs), lambda section: section.where)
    title = "; ".join(f"{place}: {', '.join(section.method for section in members)}" for place, members in places)
    title = title or "Ablations alone"
    root = user_path(results).absolute()
    parents = {parent for run in found.runs for parent in run.found.path.absolute().parents}
    inside = sorted(parent for parent in parents if parent == root or root in parent.parents)
    notes = [path.read_text(encoding="utf-8").strip() for folder in inside if (path := folder / _NOTE).exists()]
    parts = [f"# {title}", *dict.fromkeys(notes)]
    if found.left_out:
        parts.append("\n".join(["Left out:", "", *(f"- {told}" for told in found.left_out)]))
    return "\n\n".join(parts)


def levels(section: Section) -> Table:
    """One of tables 1 to 4: certified accuracy and ACR of each row, best over sigma, beside the paper's."""
    radii = report.radii_of(section.runs)
    rows = []
    for name in section.names:
        own = section.of(name)
        notes = (_list(own), several(f"{len(records):,}" for records in own.values()), _n(section, name, own))
        rows.append(Row(name, paper.levels(own, radii, section.paper_row(name)), notes))
    said = f"Certified accuracy in percent at each radius ({_unit(section)}), and ACR, each the best over"
    have = {name: list(section.of(name)) for name in section.names}
    caption = [f"{said} the row's {section.scale}s. {_ERRORS}.", *_beside([section], have)]
    number = next((f"table{row.table}" for row in section.published.values()), "table")
    return _table(section.key(number), section.title, caption, radii, section.scale, rows, [section])


def gains(every: Sequence[Section]) -> list[Table]:
    """What is gained over fixed sigma beside what the paper gains, a table a data set, norm and architecture."""
    groups = groupby(every, lambda section: report.group(section.first))
    return [table for _, members in groups if (table := _gains(list(members))).rows]


def _gains(members: list[Section]) -> Table:
    radii = report.radii_of([run for section in members for run in section.runs])
    rows, have = [], {}
    for section in members:
        base = section.method
        before = section.of(base)
        for name in section.names:
            after = section.of(name)
            if not after or name == base or name.endswith(", fixed"):
                continue
            cells = paper.gains(before, after, radii, [section.paper_row(base), section.paper_row(name)])
            sigmas, images = paper.in_common(before, after)
            have[name] = sigmas
            sides = [_n(section, side, sigmas) for side in (name, base)]
            notes = (_list(sigmas), f"{len(images):,}" if images else "-", " against ".join(dict.fromkeys(sides)))
            rows.append(Row(f"{name} over {section.method}", cells, notes))
    first = members[0]
    caption = [
        f"Certified accuracy gained over fixed {first.scale}, in points at each radius ({_unit(first)}), and ACR "
        f"gained: best over {first.scale} less best over {first.scale}, image by image, over the {first.scale}s and "
        "images that both have. ± is one standard error of the paired difference, for shares at least that of one "
        "image in all.",
        *_beside(members, have),
    ]
    title = f"Gains on {first.where}"
    return _table(_key("gains", *report.group(first.first)), title, caption, radii, first.scale, rows, members)


def _table(
    key: str,
    title: str,
    caption: list[str],
    radii: Sequence[float],
    scale: str,
    rows: list[Row],
    members: Sequence[Section],
) -> Table:
    runs = [run for section in members for run in section.runs]
    caption.append(f"Settings: {report.circumstances([run.config for run in runs], SHARED + SEARCH)}.")
    columns = (*report.header(radii), "ACR")
    commands = tuple(dict.fromkeys(run.command for run in runs if run.command))
    return Table(key, title, " ".join(caption), columns, (scale, "images", "N"), tuple(rows), commands)


def _beside(members: Sequence[Section], have: Mapping[str, Sequence[float]]) -> list[str]:
    """What the caption says of the paper's numbers, and of its noise scales that rows of ours lack; or nothing."""
    first = members[0]
    if not any(section.published for section in members):
        return []
    wanted = paper.SIGMAS[first.first.dataset, first.first.norm]
    lacks = {name: [sigma for sigma in wanted if sigma not in sigmas] for name, sigmas in have.items()}
    missing = "; ".join(f"{name} at {_list(sigmas)}" for name, sigmas in lacks.items() if sigmas)
    said = [f"Ours is not over the same {first.scale}s: there is no {missing}."] if missing else []
    if more := sorted({sigma for sigmas in have.values() for sigma in sigmas} - set(wanted)):
        said.append(f"Ours is over {first.scale} {_list(more)} as well.")
    return [_LEGEND.format(scale=first.scale, sigmas=_list(wanted)), *said]


def _unit(section: Section) -> str:
    return f"{section.first.norm}, [0,1]-pixel units"


def _n(section: Section, name: str, sigmas: Iterable[float]) -> str:
    return several(f"{run.n:,}" for run in section.runs if run.name == name and run.sigma in sigmas)


def _list(sigmas: Iterable[float]) -> str:
    return ", ".join(f"{sigma:g}" for sigma in sigmas) or "-"


def several(texts: Iterable[str]) -> str:
    """Texts without repetitions, "-" for none."""
    return " or ".join(dict.fromkeys(texts)) or "-"
