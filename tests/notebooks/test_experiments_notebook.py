"""experiments.ipynb, run as users run it: killed in the middle, resumed, and reported from its records."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import headless
from headless import NOTEBOOKS, PLOTLY, outputs

import ddviz
from ddviz import driver, plan

SMALL = {"n": 200, "max_images": 10}


def command(root: Path, **parameters: object) -> list[str]:
    given = [word for item in parameters.items() for word in ("-p", *map(str, item))]
    notebooks = [str(NOTEBOOKS / "experiments.ipynb"), str(root / "out.ipynb")]
    return [sys.executable, "-m", "papermill", "--no-progress-bar", *notebooks, *given, "-p", "run_root", str(root)]


def states(root: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["state"] for path in root.glob("smoke/*/job.json")}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the smoke plan, killed once in its second run and made to its end by the same command."""
    root = tmp_path_factory.mktemp("smoke")
    first = subprocess.Popen(command(root, **SMALL), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    second = root / "smoke" / "cohen-0.25"
    while not any(second.rglob("certificates.tsv")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    kernels = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    psutil.wait_procs(kernels, timeout=30)  # they end by themselves, and let go of their folders
    assert states(root) == {"cohen-0.12": "done", "cohen-0.25": "running"}
    before = (root / "smoke" / "cohen-0.12" / "job.json").stat().st_mtime_ns
    subprocess.run(command(root, **SMALL), check=True, timeout=900, stdout=subprocess.DEVNULL)
    assert (root / "smoke" / "cohen-0.12" / "job.json").stat().st_mtime_ns == before, "what was done is left alone"
    return root


@pytest.mark.slow
def test_every_run_is_done_and_told(smoke):
    names = [run.name for run in plan.read("smoke", run_root=str(smoke))[1]]
    assert states(smoke) == dict.fromkeys(names, "done")
    (table,) = [
        text
        for text in outputs(nbformat.read(smoke / "out.ipynb", 4), "text/markdown")
        if "▶" in text or "expected" in text
    ]
    assert f"{len(names)} done" in table and table.count("✓ done") == len(names)


@pytest.mark.slow
def test_the_records_are_those_of_runs_that_nobody_killed(smoke, tmp_path):
    settings = driver.Experiments(preset="smoke", run_root=str(smoke), n=200, max_images=10)
    compared = 0
    for run in settings.planned[1]:
        if run.notebook == "certify" and run.name in ("cohen-0.12", "cohen-0.25", "yang-0.25"):
            again = ddviz.run(replace(run.settings, run_root=str(tmp_path / run.name)))  # type: ignore[type-var]
            for made in again.runs.values():
                kept = run.folder / made.folder.name / "records.tsv"
                assert kept.read_bytes() == (made.folder / "records.tsv").read_bytes()
                compared += 1
    assert compared == 6


@pytest.mark.slow
def test_the_report_renders_from_its_folders(smoke, tmp_path):
    report = headless.run("report.ipynb", tmp_path, results=str(smoke / "smoke"))
    title, gained, levels, steps, searches, _ = outputs(report, "text/markdown")
    assert title.startswith("# digits (cnn, l1): Yang; digits (cnn, l2): Cohen, SmoothAdv, MACER")
    assert all(f"**{name}, halving over" in gained for name in ("Cohen-DS", "SmoothAdv-DS2", "MACER-DS"))
    assert "**Yang-DS over Yang**" in gained and "papermill notebooks/certify.ipynb" in levels
    assert "K = 20**" in steps and "grid, n = 4, 100**" in searches
    assert len(outputs(report, PLOTLY)) == 2 * 4 + 4


def test_a_dry_run_costs_and_makes_nothing(tmp_path):
    notebook = headless.run(
        "experiments.ipynb", tmp_path, preset="paper", dry_run=True, only="cifar10-cohen-*", checkpoints="nets"
    )
    table = outputs(notebook, "text/markdown")[0]
    assert "cifar10-cohen-0.5-ds2" in table and "train-cifar10-cohen-0.5-ds2" in table and "imagenet" not in table
    assert not (tmp_path / "runs").exists()
