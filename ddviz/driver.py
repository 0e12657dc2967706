"""Whole studies: the notebooks of a plan, executed one by one, each in a folder of its own; finished ones are skipped.

<run_root>/<preset>/<run>/
    job.json           what the run is, the command that makes it alone, how it ended and how long it took
    <notebook>.ipynb   as executed: with its figures, or with the traceback
    ...                the folders of records that it made
"""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
import psutil
from jupyter_core.utils import ensure_event_loop
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from ddviz import plan
from ddviz.errors import InputError
from ddviz.estimate import estimate
from ddviz.overview import Overview, Progress, told
from ddviz.plan import PlannedRun
from ddviz.records import write_atomically
from ddviz.runfolder import Folder
from ddviz.settings import Settings

_EVERY = 2.0  # seconds between two looks at a running notebook
_MAY_CHANGE = {"data_root", "download", "max_images", "method"}  # a run that has ended goes on with these
_GRACE = 15.0  # seconds that an interrupted notebook has to end by itself


@dataclass(frozen=True, kw_only=True)
class Experiments(Settings):
    """Which plan to execute, and where: the parameters of `notebooks/experiments.ipynb`.

    preset: a name of `plan.presets` or a YAML file of your own. only: patterns of runs' names, comma-separated; "" all.
    n, max_images: instead of the plan's; 0 and -1 leave these.
    """

    preset: str = "smoke"
    only: str = ""
    n: int = 0
    max_images: int = -1
    data_root: str = ""
    checkpoints: str = "checkpoints"
    device: str = "auto"
    run_root: str = "runs/experiments"
    dry_run: bool = False

    @property
    def planned(self) -> tuple[str, list[PlannedRun]]:
        """What the plan says of itself, and its runs.

        Raises: InputError naming the run that cannot be.
        """
        given = {name: getattr(self, name) for name in ("n", "max_images", "data_root", "device")}
        overrides = {name: value for name, value in given.items() if value != getattr(Experiments, name)}
        return plan.read(
            self.preset, run_root=self.run_root, checkpoints=self.checkpoints, overrides=overrides, only=self.only
        )

    def _check(self) -> None:
        self._check_least({"n": 0, "max_images": -1})
        self._check_device(self.device)
        _ = self.planned


def found(settings: Experiments) -> Overview:
    """The runs of a plan as they stand, with the cost of those that are not done as estimated on this device."""
    about, runs = settings.planned
    progress = [Progress(run) for run in runs]
    waiting = [each for each in progress if not _is_done(each)]
    for each in tqdm(waiting, "estimating", mininterval=_EVERY, unit="run", ncols=100, file=sys.stdout):
        try:
            each.expected = estimate(each.run)
        except InputError as error:  # such as data that are missing: the run itself will say so
            each.unknown = str(error)
    return Overview(about, progress)


def _is_done(progress: Progress) -> bool:
    """Whether a run has ended well; if so it is marked."""
    job = _job(progress)
    if job.get("state") != "done" or not progress.notebook.exists() or not progress.identity.items() <= job.items():
        return False
    progress.state, progress.seconds = "done", job.get("seconds", 0.0)
    progress.certificates = job.get("certificates", 0)
    return True


def execute(study: Overview, show: Callable[[Overview], object] = lambda _: None) -> None:
    """Execute what is not done of a plan, one notebook after the other; one that fails does not stop the others.

    Interrupted or killed anywhere, the same call goes on: a notebook that was running resumes from its records. show:
    called every few seconds and whenever a run ends.

    Raises: InputError where the notebooks are not found, ResourceError where another process executes the same plan.
    """
    source = notebooks_folder()
    with Folder(study.progress[0].run.folder.parent).locked():
        for number, progress in enumerate(study.progress, start=1):
            run = progress.run
            if _is_done(progress):
                continue
            lost = {each.run.name for each in study.lost}
            if missing := [name for name in run.needs if name in lost]:
                progress.state, progress.message = "left out", f"it needs the network of {', '.join(missing)}"
            else:
                _make(progress, source / f"{run.notebook}.ipynb", lambda: show(study))
            ended = f"{progress.state} after {told(progress.seconds)}"
            why = f": {progress.message.rstrip('.')}" if progress.message else ""
            print(f"{number} of {len(study.progress)}, {run.name}, {ended}{why}. {study}.", flush=True)
            show(study)


def notebooks_folder() -> Path:
    """Where the notebooks are: beside the package in a clone, or in the folder that is worked in.

    Raises: InputError where there are none.
    """
    places = [Path(__file__).parents[1] / "notebooks", Path("notebooks"), Path()]
    for place in places:
        if all((place / f"{name}.ipynb").exists() for name in plan.NOTEBOOKS):
            return place
    raise InputError(
        f"expected {', '.join(plan.NOTEBOOKS)}.ipynb in one of {', '.join(map(str, places))}. Use a clone."
    )


def _make(progress: Progress, notebook: Path, show: Callable[[], object]) -> None:
    """Execute one notebook in a kernel of its own, and note how it ended."""
    run, began = progress.run, time.monotonic()
    if changed := _changed_since_done(progress):
        progress.state = "failed"
        progress.message = (
            f"{run.folder} holds a finished run with other settings ({changed}). Set them back, give the run another "
            "name or run_root, or remove the folder"
        )
        return  # what is there stays as it is
    progress.state, progress.message = "running", ""
    _note(progress)
    with _in_background(notebook, progress.notebook, run) as ended:
        while not ended.done():
            wait([ended], timeout=_EVERY)
            progress.seconds, progress.certificates = time.monotonic() - began, _certificates(run.folder)
            show()
    error = ended.exception()
    if isinstance(error, PapermillExecutionError):
        progress.state, progress.message = "failed", f"{error.ename}: {error.evalue}".strip()
    elif error:  # whatever befell this notebook, the next one may be well
        progress.state, progress.message = "failed", f"{type(error).__name__}: {error}".strip()
    else:
        progress.state = "done"
    progress.certificates = _certificates(run.folder)
    _note(progress)


def _note(progress: Progress) -> None:
    """Write job.json; a report takes the runs in a folder for what it says, also while they are made."""
    job = progress.identity | {
        "name": progress.run.name,
        "command": progress.run.command,
        "state": progress.state,
        "message": progress.message,
        "seconds": round(progress.seconds, 1),
        "certificates": progress.certificates,
    }
    write_atomically(progress.job, json.dumps(job, indent=2) + "\n")


def _changed_since_done(progress: Progress) -> str:
    """The settings that differ from those of a run that has ended well, "" for none or where none has."""
    job = _job(progress)
    if job.get("state") != "done":
        return ""
    old, new = job.get("parameters", {}), progress.run.parameters
    names = [name for name in {**old, **new} if old.get(name) != new.get(name) and name not in _MAY_CHANGE]
    return ", ".join(f"{name} was {old.get(name, 'its default')}, is {new.get(name, 'its default')}" for name in names)


def _job(progress: Progress) -> dict[str, Any]:
    try:
        job = json.loads(progress.job.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not begun, or damaged: the notebook finds what it has done by itself
        return {}
    return job if isinstance(job, dict) else {}


@contextmanager
def _in_background(notebook: Path, output: Path, run: PlannedRun) -> Iterator[Future]:
    """papermill on a thread of its own. Where we are interrupted, its kernel is, too, and at last killed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    before = set(_kernels())
    pool = ThreadPoolExecutor(1, "ddviz-notebook")
    ended = pool.submit(_papermill, notebook, output, run)
    try:
        yield ended
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):
            for kernel in set(_kernels()) - before if not ended.done() else ():
                kernel.send_signal(number)
            wait([ended], timeout=_GRACE)
        pool.shutdown(wait=False)


def _papermill(notebook: Path, output: Path, run: PlannedRun) -> None:
    loop = ensure_event_loop()  # what papermill awaits with; nobody else would close this thread's
    quiet = ["--log-level=CRITICAL"]  # a kernel would tell on our output that it listens and that it is asked to end
    given = {"parameters": dict(run.parameters), "progress_bar": False, "extra_arguments": quiet}
    try:
        papermill.execute_notebook(str(notebook), str(output), **given)
    finally:
        loop.close()


def _kernels() -> list[psutil.Process]:
    """Kernels that this process has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


def _certificates(folder: Path) -> int:
    """Certificates in a folder of run folders, as far as they are written."""
    return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in folder.rglob("certificates.tsv"))
