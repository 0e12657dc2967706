"""Plans: tables of runs, each a notebook with its parameters, read from YAML and checked before anything is loaded.

    about: one line
    shared: {n: 1000}                     # parameters of every run whose notebook knows them
    runs:
      - name: "{method}-{sigma}"          # of the run's folder; braces are filled from `over`
        notebook: certify
        over: {method: [cohen, macer], sigma: [0.12, 0.25]}  # every combination is a run
        parameters: {checkpoint: "zoo:digits-cnn-{method}-{sigma}-fs", sigma: "{sigma}"}
        labels: {method: "{method}"}      # for the report, where the checkpoint's name does not tell

A checkpoint (or init) "run:NAME" is the network that an earlier run with train.ipynb leaves; `needs: [NAME, ...]` names
more such runs. {checkpoints} in a text is the user's folder of networks, {folder} that of the plan's runs.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ddviz.ablation import Ablation, Study
from ddviz.config import RunConfig
from ddviz.datasets import user_path
from ddviz.errors import InputError
from ddviz.grids import GridStudy
from ddviz.iterations import IterationStudy
from ddviz.networks import ARCHITECTURES
from ddviz.recipe import DEFAULT_ARCH, Recipe
from ddviz.settings import Settings
from ddviz.trainfolder import TrainFolder

NOTEBOOKS: dict[str, type[Settings]] = {
    "certify": RunConfig,
    "train": Recipe,
    "ablation_solvers": Study,
    "ablation_iterations": IterationStudy,
    "ablation_grid": GridStudy,
}
"""What a run may be, and the settings that check its parameters."""

PRESETS = Path(__file__).parent / "data" / "presets"
_KEYS = {"name", "notebook", "over", "parameters", "labels", "needs"}
_RUN = "run:"


@dataclass(frozen=True)
class PlannedRun:
    """One notebook to execute.

    folder: of everything that it leaves. needs: runs whose networks it takes. arch: of the network, as far as the plan
    tells.
    """

    name: str
    notebook: str
    parameters: Mapping[str, Any]
    labels: Mapping[str, str]
    settings: Settings
    folder: Path
    needs: tuple[str, ...] = ()
    arch: str = ""

    @property
    def command(self) -> str:
        """The command that makes this run alone."""
        given = [f"-p {name} {shlex.quote(str(value))}" for name, value in self.parameters.items() if value != ""]
        return " ".join([f"papermill notebooks/{self.notebook}.ipynb out.ipynb", *given])


def presets() -> list[str]:
    """Names of the plans in the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read(
    preset: str, *, run_root: str, checkpoints: str = "", overrides: Mapping[str, Any] | None = None, only: str = ""
) -> tuple[str, list[PlannedRun]]:
    """What a plan says of itself, and its runs in order; each has a folder of its name in run_root/<preset>.

    preset: a name of `presets` or a YAML file. overrides: parameters for every run whose notebook knows them. only:
    patterns of names, comma-separated, of which one must fit; runs that those need are there too.

    Raises: InputError naming the run and what is wrong with it.
    """
    path = user_path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    plan = _parsed(path, preset)
    root = user_path(run_root) / path.stem
    runs: dict[str, PlannedRun] = {}
    for number, row in enumerate(plan.get("runs") or [], start=1):
        _check_row(row, f"{path}, run {number}")
        for filled in _combinations(row, {"checkpoints": checkpoints, "folder": str(root)}, f"{path}, run {number}"):
            run = _planned(filled, plan.get("shared") or {}, overrides or {}, root, runs, path)
            runs[run.name] = run
    if not runs:
        raise InputError(f"expected runs in {path}, found none.")
    return str(plan.get("about", path.stem)), _selected(runs, only)


def _parsed(path: Path, preset: str) -> dict[str, Any]:
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"expected preset to be one of {', '.join(presets())}, or a YAML file, got {preset!r}."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(plan, dict) or not plan.keys() <= {"about", "shared", "runs"}:
        raise InputError(f"expected about, shared and runs in {path}, and nothing else.")
    shared = plan.get("shared") or {}
    if not (_is_table(shared) and isinstance(plan.get("runs") or [], list)):
        raise InputError(f"expected shared to be a table of parameters in {path}, and runs a list.")
    known = {field.name for kind in NOTEBOOKS.values() for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := shared.keys() - known:
        raise InputError(f"{path}: no notebook has the shared parameter {', '.join(sorted(unknown))}.")
    return plan


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _check_row(row: object, where: str) -> None:
    """Refuse what is no row of a plan, before anything is read from it."""
    if not (_is_table(row) and isinstance(row, dict) and {"name", "notebook"} <= row.keys() <= _KEYS):
        got = ", ".join(map(str, row)) if isinstance(row, dict) else row
        raise InputError(f"{where}: expected name and notebook, with over, parameters, labels, needs, got {got}.")
    for part in ("over", "parameters", "labels"):
        if not _is_table(row.get(part) or {}):
            raise InputError(f"{where}: expected {part} to be a table, such as {{sigma: 0.25}}, got {row[part]!r}.")
    if empty := [name for name, values in (row.get("over") or {}).items() if values == []]:
        raise InputError(f"{where}: expected values to go over for {', '.join(empty)}, got none.")
    if not (isinstance(row["name"], str) and row["name"] and isinstance(row["notebook"], str)):
        raise InputError(f"{where}: expected name and notebook to be text, got {row['name']!r}, {row['notebook']!r}.")
    if not isinstance(row.get("needs", []), list):
        raise InputError(f"{where}: expected needs to be a list of names, got {row['needs']!r}.")
    if "run_root" in (row.get("parameters") or {}):
        raise InputError(f"{where}: every run has a folder of its own name; leave run_root out.")


def _combinations(row: Mapping[str, Any], known: Mapping[str, str], where: str) -> Iterator[dict[str, Any]]:
    """The row for every combination of what it goes over, braces filled; lists are made what they hold."""
    over = {name: each if isinstance(each, list) else [each] for name, each in (row.get("over") or {}).items()}
    rest = {name: value for name, value in row.items() if name != "over"}
    for values in product(*over.values()):
        chosen = dict(zip(over, values, strict=True))
        try:
            yield _filled(rest, {**chosen, **known})
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            names = ", ".join([*over, *known])
            raise InputError(f"{where}: expected {{}} to name one of {names}, got {error}.") from error


def _filled(value: Any, chosen: Mapping[str, Any]) -> Any:
    """A value with its braces filled; a text that is one brace becomes the value itself, a number a number."""
    if isinstance(value, dict):
        return {name: _filled(each, chosen) for name, each in value.items()}
    if not isinstance(value, str):
        return value
    alone = value[1:-1] if value.startswith("{") and value.endswith("}") else ""
    return chosen[alone] if alone in chosen else value.format(**chosen)


def _planned(
    row: Mapping[str, Any],
    shared: Mapping[str, Any],
    overrides: Mapping[str, Any],
    root: Path,
    before: Mapping[str, PlannedRun],
    path: Path,
) -> PlannedRun:
    """A run with its settings checked."""
    name, notebook = str(row["name"]), row["notebook"]
    where = f"{path.name}, run {name}"
    if name in before:
        raise InputError(f"{where}: expected a name of its own, got one that stands above. Name in it what differs.")
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"{where}: expected the name of a new folder.")
    if notebook not in NOTEBOOKS:
        raise InputError(f"{where}: expected notebook to be one of {', '.join(NOTEBOOKS)}, got {notebook!r}.")
    kind, folder = NOTEBOOKS[notebook], root / name
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    parameters = dict(row.get("parameters") or {})
    if unknown := parameters.keys() - known:
        raise InputError(f"{where}: unknown parameter {', '.join(sorted(unknown))}. Known: {', '.join(sorted(known))}.")
    given = dict(shared) | parameters | dict(overrides)
    parameters = {name: value for name, value in given.items() if name in known} | {"run_root": str(folder)}
    labels = {key: str(value) for key, value in (row.get("labels") or {}).items()}
    arch = labels["model"] if labels.get("model") in ARCHITECTURES else ""
    needs = list(row.get("needs", []))
    for other in needs:
        _trains(other, before, where)
    for setting in ("checkpoint", "init"):
        if str(parameters.get(setting, "")).startswith(_RUN):
            needs.append(str(parameters[setting]).removeprefix(_RUN))
            recipe = _trains(needs[-1], before, where)
            parameters[setting] = str(TrainFolder(user_path(recipe.run_root) / recipe.title).weights)
            arch = recipe.arch or DEFAULT_ARCH.get(recipe.dataset, "")
    try:
        settings = kind(**parameters)
    except InputError as error:
        hint = " YAML reads 1e-3 as text: write 0.001." if _is_exponent(given) else ""
        raise InputError(f"{where}: {error}{hint}") from error
    return PlannedRun(name, notebook, parameters, labels, settings, folder, tuple(needs), arch)


def _is_exponent(parameters: Mapping[str, Any]) -> bool:
    texts = [value for value in parameters.values() if isinstance(value, str)]
    return any(re.fullmatch(r"[+-]?\d+e[+-]?\d+", text, re.IGNORECASE) for text in texts)


def _trains(name: str, before: Mapping[str, PlannedRun], where: str) -> Recipe:
    """What an earlier run trains."""
    settings = before[name].settings if name in before else None
    if not isinstance(settings, Recipe):
        raise InputError(f"{where}: expected {name} to be a run above that trains, found none.")
    return settings


def _selected(runs: Mapping[str, PlannedRun], only: str) -> list[PlannedRun]:
    patterns = [pattern.strip() for pattern in only.split(",") if pattern.strip()] or ["*"]
    wanted = {name for name in runs if any(fnmatch(name, pattern) for pattern in patterns)}
    if not wanted:
        raise InputError(f"expected only to fit the names of some runs, got {only!r}. Names: {', '.join(runs)}.")
    for run in reversed([*runs.values()]):  # what a run needs stands above it
        if run.name in wanted:
            wanted.update(run.needs)
    return [run for name, run in runs.items() if name in wanted]


def weights_needed(runs: Sequence[PlannedRun]) -> list[str]:
    """Files of weights that runs name and that are not there; those that a run of the plan makes are left out."""
    files = dict.fromkeys(name for run in runs for name in _weights(run) if not name.startswith(f"{run.folder.parent}"))
    return [name for name in files if not user_path(name).exists()]


def _weights(run: PlannedRun) -> list[str]:
    if isinstance(run.settings, Ablation):
        named = [config.checkpoint for config in run.settings.planned]
    else:
        named = [str(run.parameters.get(setting, "")) for setting in ("checkpoint", "init")]
    return [name for name in named if name and not name.startswith("zoo:")]
