"""certify.ipynb, run as users run it: by papermill, headless, with parameters; killed; misused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import headless
from headless import PLOTLY, outputs

CERTIFY = Path(__file__).parents[2] / "notebooks" / "certify.ipynb"
TINY = {"max_images": 12, "n": 500, "iterations": 4, "search_batch": 5, "dtype": "float32"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    return headless.run("certify.ipynb", tmp_path_factory.mktemp("certify"), **TINY)


def test_all_figures_and_tables_are_stored(executed):
    titles = [figure["layout"]["title"]["text"] for figure in outputs(executed, PLOTLY)]
    assert [title.split(":")[0].split(" (")[0] for title in titles] == [
        "Certified accuracy",
        "Noise scale chosen for each image",
        "Radius of each image",
        "Largest losses",
    ]
    for figure in outputs(executed, PLOTLY)[:3]:
        assert figure["data"] and all(figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis"))
    tables = outputs(executed, "text/markdown")
    assert len(tables) == 4 and sum("| **data-dependent** |" in table for table in tables) == 3
    assert len(json.dumps(executed)) < 1_000_000


def test_progress_is_readable_in_the_log(executed):
    text = "".join(o.get("text", "") for cell in executed.cells for o in cell.get("outputs", []))
    assert "fixed: 100%" in text and "data-dependent: 100%" in text and "12/12" in text and "image/s" in text


def test_a_single_method_has_no_comparison_to_show(tmp_path):
    notebook = headless.run("certify.ipynb", tmp_path, **TINY, run_root=str(tmp_path), method="fixed")
    assert len(outputs(notebook, PLOTLY)) == 1


def start(output: Path, parameters: dict[str, object]) -> subprocess.Popen[bytes]:
    """papermill in a process of its own, which logs beside its output."""
    flags = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", str(CERTIFY), str(output), "--no-progress-bar", *flags]
    with open(output.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=output.parent)


def test_the_help_shows_every_parameter_with_its_comment():
    text = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", str(CERTIFY)], capture_output=True, text=True
    ).stdout
    assert "sigma: float (default 0.12)" in text and "noise scale in [0,1]-pixel units" in text
    assert "run_root: str" in text and "folder of the runs' records" in text


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"datset": "x"}, "InputError: unknown parameter datset. Did you mean dataset?"),
        ({"sigma": -1}, "InputError: expected sigma > 0"),
        ({"n": 10}, "InputError: expected n >= 12 samples, got 10: too few to certify anything"),
        ({"dataset": "cifar10", "data_root": "nowhere"}, "InputError: cifar10 was not found: looked for"),
        ({"checkpoint": "cut.pt"}, "InputError: cut.pt is truncated or is no checkpoint"),
        ({"checkpoint": "other.pt", "arch": "digits_cnn"}, "InputError: other.pt holds a cifar_resnet20, not a digits"),
        (
            {"dataset": "broken", "checkpoint": "other.pt"},
            "InputError: expected pixels in [0, 1], got NaN or infinity in image 0 of broken",
        ),
    ],
)
def test_a_mistake_ends_with_one_message_and_a_failing_exit(tmp_path, mistakes, parameters, message):
    output = mistakes / f"{tmp_path.name}.ipynb"
    assert start(output, {**TINY, **parameters}).wait(300) != 0
    text = output.with_suffix(".log").read_text()
    assert message in text
    assert text.count("InputError: ") == 1 and "ddviz/" not in text.split("Exception encountered")[1]  # no traceback
    assert not (mistakes / "runs").exists()


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a truncated checkpoint, one of another architecture, and a data set whose image holds NaN."""
    import numpy as np
    import torch

    from ddviz.networks import ARCHITECTURES

    folder = tmp_path_factory.mktemp("mistakes")
    torch.save(ARCHITECTURES["cifar_resnet20"]().state_dict(), folder / "other.pt")
    (folder / "cut.pt").write_bytes((folder / "other.pt").read_bytes()[:50_000])
    (folder / "broken" / "zero").mkdir(parents=True)
    np.save(folder / "broken" / "zero" / "0.npy", np.full((3, 32, 32), np.nan, np.float32))
    return folder


def lines(folder: Path) -> list[str]:
    """Whole lines of the certificates so far, without the seconds."""
    path = folder / "certificates.tsv"
    text = path.read_text() if path.exists() else ""
    return [line.rsplit("\t", 1)[0] for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.mark.slow
def test_a_run_killed_several_times_ends_with_the_records_of_an_unbroken_one(tmp_path):
    slow = {"max_images": 40, "n": 20_000, "iterations": 4, "search_batch": 16, "method": "ds", "dtype": "float32"}
    name = "digits-cnn-cohen-0.12-fs-l2-0.12-ds"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = start(tmp_path / "whole.ipynb", {**slow, "run_root": whole})
    assert unbroken.wait(300) == 0
    for kill_at in (3, 17, 30):
        process = start(tmp_path / "broken.ipynb", {**slow, "run_root": broken})
        deadline = time.monotonic() + 120
        while len(lines(broken / name)) <= kill_at:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        kernels = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        if kill_at != 17:  # once the kernel lives on for a moment, as it does when only papermill dies
            for kernel in kernels:
                kernel.kill()
        process.wait()
        assert len(lines(broken / name)) < 41
    final = start(tmp_path / "broken.ipynb", {**slow, "run_root": broken})
    assert final.wait(300) == 0
    assert (broken / name / "records.tsv").read_bytes() == (whole / name / "records.tsv").read_bytes()
    assert lines(broken / name) == lines(whole / name) and len(lines(whole / name)) == 41
