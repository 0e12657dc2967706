"""How far the runs of a plan are: what each has cost and will cost, and how it ended."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from ddviz import analysis, plan
from ddviz.errors import InputError
from ddviz.estimate import NOTHING, Estimate
from ddviz.plan import PlannedRun
from ddviz.report import JOB

State = Literal["waiting", "running", "done", "failed", "left out"]
_MARKS: dict[State, str] = {
    "waiting": "",
    "running": "▶ running",
    "done": "✓ done",
    "failed": "✗ failed",
    "left out": "✗ left out",
}


@dataclass
class Progress:
    """A run, how far it is, and how it ended. seconds: of the last session. certificates: made, of those expected.

    unknown: why its cost is not known, "" where it is.
    """

    run: PlannedRun
    expected: Estimate = NOTHING
    state: State = "waiting"
    seconds: float = 0.0
    certificates: int = 0
    message: str = ""
    unknown: str = ""

    @property
    def job(self) -> Path:
        """The file that tells how it ended."""
        return self.run.folder / JOB

    @property
    def notebook(self) -> Path:
        """The executed notebook."""
        return self.run.folder / f"{self.run.notebook}.ipynb"

    @property
    def identity(self) -> dict[str, object]:
        """What a finished run must have been, to count as this one."""
        return {"notebook": self.run.notebook, "parameters": dict(self.run.parameters), "labels": dict(self.run.labels)}


@dataclass(frozen=True)
class Overview:
    """All runs of a plan."""

    about: str
    progress: Sequence[Progress]

    def __getitem__(self, state: State) -> list[Progress]:
        return [each for each in self.progress if each.state == state]

    @property
    def lost(self) -> list[Progress]:
        """The runs that failed, and those that needed them."""
        return [*self["failed"], *self["left out"]]

    @property
    def total(self) -> Estimate:
        """What is expected of all runs that are not done."""
        return sum((each.expected for each in self.progress if each.state != "done"), NOTHING)

    @property
    def seconds_left(self) -> float:
        """Time to go: the estimates, corrected by how the runs of this session did against theirs."""
        made = [each for each in self["done"] if each.expected.seconds]
        factor = (60 + sum(p.seconds for p in made)) / (60 + sum(p.expected.seconds for p in made))
        running = sum(max(0.0, factor * each.expected.seconds - each.seconds) for each in self["running"])
        return running + factor * sum(each.expected.seconds for each in self["waiting"])

    def __str__(self) -> str:
        counts = [f"{len(self[state])} {state}" for state in _MARKS if self[state]]
        left = self.seconds_left
        until = (datetime.now() + timedelta(seconds=left)).strftime("%a %H:%M" if left < 5 * 86_400 else "%d %B %Y")
        return ", ".join(counts) + (f"; about {told(left)} left, until {until}" if left else "")

    def table(self) -> str:
        """Markdown: how far each run is."""
        rows = {
            each.run.name: {
                "notebook": each.run.notebook,
                "state": _MARKS[each.state],
                "certificates": f"{each.certificates:,} of {each.expected.certificates:,}"
                if each.state == "running" and each.expected.certificates
                else "",
                "time": told(each.seconds) if each.seconds else "",
                "expected": told(each.expected.seconds) if each.expected.seconds else "",
            }
            for each in self.progress
        }
        return f"**{self.about}** {self}.\n\n{analysis.markdown(rows)}"

    def plan_table(self) -> str:
        """Markdown: what each run that is not done would cost, and which weights are missing."""
        rows = {each.run.name: _cost_cells(each) for each in self.progress}
        known = "all that are known" if any(each.unknown for each in self.progress) else "all that are not done"
        rows[known] = {"notebook": "", **_told_cost(self.total)}
        missing = plan.weights_needed([each.run for each in self.progress])
        lines = [f"- missing: `{name}`" for name in missing]
        lines += [f"- {each.run.name} is not known: {each.unknown}" for each in self.progress if each.unknown]
        return "\n".join([f"**{self.about}**\n\n{analysis.markdown(rows)}\n", *lines])

    def failures(self) -> str:
        """Markdown: what failed, why, and where the traceback is."""
        return "\n".join(f"- **{each.run.name}**: {each.message} (`{each.notebook}`)" for each in self.lost)

    @property
    def report_command(self) -> str:
        """The command that reports on all runs."""
        root = self.progress[0].run.folder.parent
        out, results, export = (shlex.quote(str(path)) for path in (root / "report.ipynb", root, root / "report"))
        return f"papermill notebooks/report.ipynb {out} -p results {results} -p export {export}"

    def raise_failures(self) -> None:
        """End with an error where something failed, for scripts that ask.

        Raises: InputError naming how many, and where to look.
        """
        if lost := self.lost:
            names = ", ".join(each.run.name for each in lost)
            raise InputError(f"expected all runs to succeed, {len(lost)} of {len(self.progress)} did not: {names}.")


def _cost_cells(progress: Progress) -> dict[str, str]:
    cost = _told_cost(progress.expected)
    if progress.state == "done" or progress.unknown:
        cost = dict.fromkeys(cost, "") | {"time here": "?" if progress.unknown else _MARKS["done"]}
    return {"notebook": progress.run.notebook, **cost}


def _told_cost(cost: Estimate) -> dict[str, str]:
    return {
        "certificates": f"{cost.certificates:,}" if cost.certificates else "",
        "network evaluations": told_count(cost.evaluations),
        "time here": told(cost.seconds),
    }


def told_count(number: int) -> str:
    """A number for people."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:,}"


def told(seconds: float) -> str:
    """A time for people."""
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"
