"""The driver: order, failures that stop nobody, what is skipped and what is not, told and kept."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from ddviz import InputError, ResourceError, driver
from ddviz.estimate import Estimate
from ddviz.overview import Overview, told
from ddviz.runfolder import Folder

TABLE = """
about: Three.
runs:
  - {name: train, notebook: train, parameters: {ds: false, epochs: 1}}
  - {name: trained, notebook: certify, parameters: {checkpoint: "run:train", max_images: 4, n: 200}}
  - {name: other, notebook: certify, parameters: {max_images: 4, n: 200, method: fixed}}
"""


class FakePapermill:
    """Stands in for papermill: notes what it is given, fails where it is told to."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.failing: dict[str, Exception] = {}

    def execute_notebook(self, source: str, output: str, **settings) -> None:
        name = Path(output).parent.name
        self.made.append(name)
        assert Path(source).name == Path(output).name and Path(source).exists()
        assert Path(settings["parameters"]["run_root"]).name == name
        nbformat.write(nbformat.v4.new_notebook(), output)
        if name in self.failing:
            raise self.failing[name]
        run = Path(output).parent / "run"
        run.mkdir(exist_ok=True)
        (run / "certificates.tsv").write_text("idx\n1\n2\n")


@pytest.fixture
def fake(monkeypatch) -> FakePapermill:
    fake = FakePapermill()
    monkeypatch.setattr(papermill, "execute_notebook", fake.execute_notebook)
    return fake


@pytest.fixture
def settings(tmp_path) -> driver.Experiments:
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    return driver.Experiments(preset=str(path), run_root=str(tmp_path / "runs"))


def states(study: Overview) -> list[str]:
    return [each.state for each in study.progress]


def executed(settings: driver.Experiments) -> Overview:
    study = driver.found(settings)
    driver.execute(study)
    return study


def failed(name: str, value: str) -> PapermillExecutionError:
    return PapermillExecutionError(1, 1, "source", name, value, ["the traceback"])


def test_all_runs_are_made_in_order_and_told(fake, settings, capsys):
    study = executed(settings)
    assert fake.made == ["train", "trained", "other"] and states(study) == ["done"] * 3
    assert "2 of 3, trained, done after 0 s. 1 waiting, 2 done; about" in capsys.readouterr().out
    assert str(study) == "3 done" and study.seconds_left == 0
    job = json.loads((study.progress[1].run.folder / "job.json").read_text())
    assert (job["state"], job["certificates"], job["notebook"]) == ("done", 2, "certify")
    assert job["command"].startswith("papermill notebooks/certify.ipynb out.ipynb -p checkpoint ")


def test_what_is_done_is_not_done_again(fake, settings):
    executed(settings)
    assert states(driver.found(settings)) == ["done"] * 3
    executed(settings)
    assert fake.made == ["train", "trained", "other"]


def test_more_images_and_lost_notebooks_make_a_run_again(fake, settings, tmp_path):
    study = executed(settings)
    (tmp_path / "mine.yaml").write_text(
        TABLE.replace("method: fixed", "method: ds, max_images: 9").replace(
            "max_images: 4, n: 200, method", "n: 200, method"
        )
    )
    study.progress[0].notebook.unlink()
    assert states(driver.found(settings)) == ["waiting", "done", "waiting"]
    (study.progress[1].run.folder / "job.json").write_text('{"state": "do')  # torn
    assert states(driver.found(settings)) == ["waiting"] * 3
    assert states(executed(settings)) == ["done"] * 3


def test_a_finished_run_with_other_settings_is_left_as_it_is(fake, settings, tmp_path):
    study = executed(settings)
    kept = {path: path.read_bytes() for path in study.progress[2].run.folder.rglob("*") if path.is_file()}
    (tmp_path / "mine.yaml").write_text(TABLE.replace("n: 200, method", "n: 300, method"))
    again = executed(settings)
    assert states(again) == ["done", "done", "failed"] and len(fake.made) == 3
    assert "holds a finished run with other settings (n was 200, is 300). Set them back" in again.progress[2].message
    assert kept == {path: path.read_bytes() for path in kept}


def test_a_running_job_tells_what_it_is(fake, settings, monkeypatch):
    """A report may be made meanwhile: it must know what the folder holds."""
    seen = []
    make = fake.execute_notebook

    def look(source: str, output: str, **given) -> None:
        seen.append(json.loads((Path(output).parent / "job.json").read_text()))
        make(source, output, **given)

    monkeypatch.setattr(papermill, "execute_notebook", look)
    executed(settings)
    assert [(job["state"], job["notebook"]) for job in seen] == [
        ("running", name) for name in ("train", "certify", "certify")
    ]


def test_a_failure_stops_only_what_needs_it_and_is_tried_again(fake, settings, capsys):
    fake.failing["train"] = failed("InputError", "expected sigma > 0, got -1.")
    study = executed(settings)
    assert states(study) == ["failed", "left out", "done"] and fake.made == ["train", "other"]
    assert "1 of 3, train, failed after 0 s: InputError: expected sigma > 0, got -1." in capsys.readouterr().out
    lines = study.failures().splitlines()
    assert lines[0].startswith("- **train**: InputError: expected sigma > 0, got -1. (`") and "train.ipynb" in lines[0]
    assert lines[1].startswith("- **trained**: it needs the network of train")
    with pytest.raises(InputError, match="expected all runs to succeed, 2 of 3 did not: train, trained"):
        study.raise_failures()
    fake.failing.clear()
    again = executed(settings)
    assert fake.made == ["train", "other", "train", "trained"] and states(again) == ["done"] * 3
    again.raise_failures()


def test_an_unforeseen_error_stops_nobody_else(fake, settings):
    fake.failing["trained"] = RuntimeError("the kernel died")
    study = executed(settings)
    assert states(study) == ["done", "failed", "done"]
    assert study.progress[1].message == "RuntimeError: the kernel died"


def test_two_drivers_do_not_meet(fake, settings, monkeypatch):
    monkeypatch.setattr("ddviz.runfolder._LOCK_WAIT", 0)
    study = driver.found(settings)
    with Folder(study.progress[0].run.folder.parent).locked(), pytest.raises(ResourceError, match="another process"):
        driver.execute(study)
    assert fake.made == []


def test_what_another_session_has_done_meanwhile_is_not_done_again(fake, settings):
    before = driver.found(settings)
    executed(settings)
    driver.execute(before)
    assert states(before) == ["done"] * 3 and len(fake.made) == 3


def test_an_interrupt_ends_the_running_notebook_and_keeps_the_rest(settings, tmp_path):
    """A real kernel, in which a real notebook runs; its plan goes on afterwards."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "runs:\n  - {name: long, notebook: certify, parameters: {n: 50000, max_images: 0, method: fixed}}\n"
    )
    study, seen = driver.found(settings), []

    def show(now: Overview) -> None:
        if now.progress[0].certificates and not seen:
            seen.extend(kernel.pid for kernel in driver._kernels())
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            driver.execute(study, show)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(seen) == 1
    until = time.monotonic() + 20
    while driver._kernels() and time.monotonic() < until:
        time.sleep(0.1)
    assert driver._kernels() == [] and json.loads(study.progress[0].job.read_text())["state"] == "running"
    assert states(driver.found(settings)) == ["waiting"]
    assert 0 < driver._certificates(study.progress[0].run.folder) < 597


def test_the_plan_tells_costs_and_what_is_missing(settings, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        TABLE + "  - {name: mine, notebook: certify, parameters: {checkpoint: nowhere.pth, max_images: 4}}\n"
    )
    table = driver.found(settings).plan_table()
    rows = {
        line.split("**")[1]: [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table.splitlines()
        if "| **" in line
    }
    assert rows["other"][:3] == ["certify", "4", "1,200"]
    assert rows["all that are not done"][1] == "20"
    assert table.endswith("- missing: `nowhere.pth`")
    (tmp_path / "empty").mkdir()
    path.write_text(f"runs:\n  - {{name: mine, notebook: certify, parameters: {{dataset: {tmp_path}/empty}}}}\n")
    table = driver.found(settings).plan_table()
    assert "| **mine** | certify |  |  | ? |" in table and "all that are known" in table
    assert "- mine is not known: " in table


@pytest.mark.parametrize(
    ("seconds", "said"), [(5, "5 s"), (119, "119 s"), (120, "2.0 min"), (7200, "2.0 h"), (200_000, "2.3 days")]
)
def test_times_are_told_in_the_unit_that_fits(seconds, said):
    assert told(seconds) == said


def test_the_time_left_learns_from_the_runs_so_far(fake, settings):
    study = driver.found(settings)
    one, two, _ = study.progress
    for each in study.progress:
        each.expected = Estimate(0, 0, 600.0)
    assert study.seconds_left == 1800
    one.state, one.seconds = "done", 1260.0  # (1260 + 60) / (600 + 60) = 2
    two.state, two.seconds = "running", 300.0
    assert study.seconds_left == pytest.approx(2 * 600 - 300 + 2 * 600)


def test_parameters_are_checked_before_anything_is_loaded(tmp_path):
    with pytest.raises(InputError, match="expected preset to be one of"):
        driver.Experiments(preset="none")
    with pytest.raises(InputError, match="unknown parameter prest"):
        driver.Experiments.from_namespace({"prest": "smoke"})
    with pytest.raises(InputError, match="expected max_images >= -1"):
        driver.Experiments(max_images=-2)
