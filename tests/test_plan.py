"""Plans: what a table of runs becomes, and what is refused before anything is loaded."""

import shlex
from pathlib import Path

import pytest

from ddviz import InputError, RunConfig, plan
from ddviz.grids import GridStudy
from ddviz.iterations import IterationStudy
from ddviz.recipe import Recipe

TABLE = """
about: two methods
shared: {n: 500, epochs: 3}
runs:
  - name: train-{sigma}
    notebook: train
    over: {sigma: [0.12, 0.25]}
    parameters: {sigma: "{sigma}", ds: false}
  - name: "{method}-{sigma}"
    notebook: certify
    over: {method: [cohen, macer], sigma: [0.12, 0.25]}
    parameters: {checkpoint: "{checkpoints}/{method}.pth", sigma: "{sigma}", n: 1000}
    labels: {method: "{method}", training: fs}
  - name: trained-0.25
    notebook: certify
    parameters: {checkpoint: "run:train-0.25", max_images: 7}
"""


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    return path


def read(path: Path, **settings) -> dict[str, plan.PlannedRun]:
    return {run.name: run for run in plan.read(str(path), run_root="runs", **settings)[1]}


def test_every_combination_is_a_run_with_values_of_their_type(table):
    runs = read(table, checkpoints="nets")
    assert list(runs) == [
        *("train-0.12", "train-0.25", "cohen-0.12", "cohen-0.25", "macer-0.12", "macer-0.25", "trained-0.25")
    ]
    run = runs["macer-0.25"]
    assert isinstance(run.settings, RunConfig) and isinstance(runs["train-0.12"].settings, Recipe)
    assert (run.settings.sigma, run.settings.checkpoint, run.settings.n) == (0.25, "nets/macer.pth", 1000)
    assert run.labels == {"method": "macer", "training": "fs"}
    assert run.folder == Path("runs/mine/macer-0.25") and run.settings.run_root == str(run.folder)


def test_shared_parameters_reach_the_notebooks_that_know_them_and_overrides_win(table):
    runs = read(table, overrides={"n": 300, "max_images": 5})
    assert {run.parameters.get("n") for run in runs.values() if run.notebook == "certify"} == {300}
    assert runs["train-0.12"].parameters.get("epochs") == 3 and "n" not in runs["train-0.12"].parameters
    assert runs["trained-0.25"].parameters["max_images"] == 5
    assert read(table)["trained-0.25"].parameters["n"] == 500


def test_a_run_takes_the_network_of_another_one(table):
    run = read(table)["trained-0.25"]
    weights = "runs/mine/train-0.25/digits-cnn-cohen-0.25-fs/digits-cnn-cohen-0.25-fs.safetensors"
    assert run.needs == ("train-0.25",) and Path(run.parameters["checkpoint"]) == Path(weights)


def test_patterns_choose_runs_with_what_they_need(table):
    assert list(read(table, only="trained*, macer-0.1?")) == ["train-0.25", "macer-0.12", "trained-0.25"]
    with pytest.raises(InputError, match="to fit the names of some runs, got 'nothing'"):
        read(table, only="nothing")


def test_the_command_says_everything(table):
    words = shlex.split(read(table)["macer-0.25"].command)
    assert words[:3] == ["papermill", "notebooks/certify.ipynb", "out.ipynb"]
    given = dict(zip(words[4::3], words[5::3], strict=True))
    assert set(words[3::3]) == {"-p"} and given["sigma"] == "0.25" and given["run_root"] == "runs/mine/macer-0.25"


def test_weights_that_are_missing_are_named(table, tmp_path):
    (tmp_path / "cohen.pth").write_bytes(b"")
    runs = list(read(table, checkpoints=str(tmp_path)).values())
    assert plan.weights_needed(runs) == [f"{tmp_path}/macer.pth"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{name: a, notebook: certfy}", "mine.yaml, run a: expected notebook to be one of certify, train"),
        ("{name: a, notebook: certify, parameters: {sigme: 1}}", "run a: unknown parameter sigme. Known: .*sigma"),
        ("{name: a, notebook: certify, parameters: {sigma: -1}}", "run a: expected sigma > 0"),
        ("{name: a/b, notebook: certify}", "run a/b: expected the name of a new folder"),
        ("{name: .a, notebook: certify}", "run .a: expected the name of a new folder"),
        ("{name: a}", "run 1: expected name and notebook, with over, parameters, labels, needs, got name"),
        ("{name: a, notebook: [certify]}", "run 1: expected name and notebook to be text"),
        ("{name: '', notebook: certify}", "run 1: expected name and notebook to be text, got ''"),
        ("{name: null, notebook: certify}", "run 1: expected name and notebook to be text, got None"),
        ("{name: a, notebook: certify, over: [0.1]}", "run 1: expected over to be a table, .*got"),
        ("{name: a, notebook: certify, over: {sigma: []}}", "run 1: expected values to go over for sigma, got none"),
        ("{name: a, notebook: certify, parameters: [n]}", "run 1: expected parameters to be a table"),
        ("{name: a, notebook: certify, labels: [n]}", "run 1: expected labels to be a table"),
        ("{name: a, notebook: certify, needs: b}", "run 1: expected needs to be a list of names"),
        ("{name: a, notebook: certify, needs: [b]}", "run a: expected b to be a run above that trains"),
        ("{name: a, notebook: certify, 1: 2}", "run 1: expected name and notebook"),
        ("{name: 'a{x.y}', notebook: certify, over: {x: [1]}}", "run 1: expected {} to name one of x"),
        ("{name: a, notebook: certify, parameters: {run_root: b}}", "leave run_root out"),
        ("{name: a, notebook: certify, parameters: {lr: 1e-3}}", "expected lr to be float, .* write 0.001"),
        ("{name: a, notebook: certify, over: {x: [1, 2]}}", "run a: expected a name of its own"),
        ("{name: 'a{y}', notebook: certify, over: {x: [1]}}", "run 1: expected {} to name one of x, .*, got 'y'"),
        ("{name: a, notebook: certify, parameters: {checkpoint: 'run:b'}}", "expected b to be a run above that"),
        ("just text", "run 1: expected name and notebook"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, said):
    path = tmp_path / "mine.yaml"
    path.write_text(f"runs:\n  - {row}\n")
    with pytest.raises(InputError, match=said):
        read(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs: []", "expected runs in .*, found none"),
        ("runs: 5", "expected shared to be a table of parameters in .*, and runs a list"),
        ("shared: [n]\nruns: []", "expected shared to be a table of parameters"),
        ("shared: {max_image: 5}\nruns: []", "no notebook has the shared parameter max_image"),
        ("rums: []", "expected about, shared and runs in .*, and nothing else"),
        ("a: [", "is no YAML"),
        ("- 1", "expected about, shared and runs"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read(path)


def test_an_unknown_preset_is_answered_with_those_that_are_there():
    with pytest.raises(InputError, match="one of cifar10, imagenet, paper, smoke, or a YAML file, got 'smoek'"):
        plan.read("smoek", run_root="runs")


@pytest.mark.parametrize("preset", plan.presets())
def test_the_packages_plans_can_be_read(preset):
    about, runs = plan.read(preset, run_root="runs", checkpoints="nets")
    assert about.endswith(".") and len(runs) > 3
    assert not [name for name in plan.weights_needed(runs) if not name.startswith("nets/imagenet-")]


def test_the_papers_plan_has_the_papers_settings():
    runs = {run.name: run.settings for run in plan.read("paper", run_root="runs", checkpoints="nets")[1]}
    certified = [each for each in runs.values() if isinstance(each, RunConfig)]
    assert {(c.n, c.n0, c.alpha, c.lr, c.clamp) for c in certified} == {(100_000, 100, 0.001, 1e-4, 0.02)}
    assert {c.samples for name, c in runs.items() if "macer" in name and isinstance(c, RunConfig)} == {8}
    assert {c.sigma for c in certified if c.dataset == "cifar10" and c.norm == "l2"} == {0.12, 0.25, 0.5}
    assert {c.sigma for c in certified if c.dataset == "imagenet"} == {0.25, 0.5, 1.0}
    trained = runs["train-cifar10-cohen-0.5-ds2"]
    assert isinstance(trained, Recipe) and (trained.epochs, trained.warmup_epochs, trained.iterations) == (200, 50, 1)
    assert (trained.search_lr, trained.search_samples, trained.clamp) == (1e-4, 1, 0.02)
    assert {c.iterations for c in certified} == {900}
    assert {c.sigma for c in certified if c.norm == "l1"} == {0.25, 0.5, 1.0}
    macer = runs["train-cifar10-macer-0.25-fs"]
    assert isinstance(macer, Recipe)
    assert (macer.samples, macer.macer_lambda, macer.gamma, macer.epochs) == (16, 12.0, 8.0, 200)
    tuned = [each for name, each in runs.items() if name.startswith("train-imagenet")]
    assert {(each.epochs, each.warmup_epochs, each.iterations) for each in tuned} == {(30, 0, 1)}  # type: ignore[attr-defined]
    steps, grid = runs["iterations-cifar10-smoothadv-0.12-ds2"], runs["grid-cifar10-smoothadv"]
    assert isinstance(steps, IterationStudy) and isinstance(grid, GridStudy)
    assert (steps.samples, steps.lr, steps.clamp, steps.n, max(steps.to_run)) == (1, 1e-4, 0.02, 100_000, 900)
    assert (grid.grid_samples, grid.evaluations, grid.samples, grid.grid_max) == ("1,2,4,10", "200", 1, 1.0)


def test_the_papers_grid_waits_for_its_networks():
    runs = plan.read("paper", run_root="runs", only="grid-*")[1]
    assert [run.notebook for run in runs] == ["train"] * 3 + ["ablation_grid"]
    assert plan.weights_needed(runs) == []
    tuned = plan.read("paper", run_root="runs", checkpoints="nets", only="train-imagenet-cohen-0.5-ds2")[1]
    assert plan.weights_needed(tuned) == ["nets/imagenet-cohen-0.5.pth.tar"]
