"""Runs resume, refuse what does not belong to them, and end with the same records however often they were stopped."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import ddviz
from ddviz import experiment, runfolder
from ddviz.bench import prepare
from ddviz.config import RunConfig
from ddviz.errors import InputError, ResourceError
from ddviz.records import ABSTAIN, read_records, read_rows
from ddviz.sampling import side_by_side
from ddviz.sigma import SOLVERS, Solver

SMALL = {"max_images": 7, "n": 200, "n0": 20, "iterations": 3, "samples": 2, "search_batch": 3, "dtype": "float32"}


def small(tmp_path: Path, **changes: object) -> RunConfig:
    return RunConfig(**{**SMALL, "run_root": str(tmp_path / "runs"), **changes})  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, str]:
    """A run's files without the seconds that it took, which no two runs share."""
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".tsv")}
    for name in {"certificates.tsv", "sigmas.tsv"} & texts.keys():
        texts[name] = "\n".join(line.rsplit("\t", 1)[0] for line in texts[name].splitlines())
    return texts


def test_a_run_certifies_both_ways_and_writes_the_files_it_promises(tmp_path):
    result = ddviz.run(small(tmp_path))
    assert list(result.runs) == ["fixed", "data-dependent"]
    fixed, found = result.runs.values()
    assert sorted(files(fixed.folder)) == ["certificates.tsv", "config.json", "records.tsv"]
    assert sorted(files(found.folder)) == ["certificates.tsv", "config.json", "records.tsv", "sigmas.tsv"]
    for run in (fixed, found):
        assert [record.idx for record in run.records] == list(range(7))
        assert read_records(run.folder / "records.tsv") == run.records
        assert [record.label for record in run.records] == [result.images.labels[i] for i in range(7)]
        assert run.costs["images"] == "7"
    assert {record.sigma for record in fixed.records} == {torch.tensor(0.12).item()}
    assert len({record.sigma for record in found.records}) > 1
    assert found.memory_cases["new"] == "7" and fixed.answers == [] and fixed.records == fixed.certificates


def test_a_second_call_computes_nothing_and_changes_no_byte(tmp_path, monkeypatch):
    first = ddviz.run(small(tmp_path))
    before = [{p.name: p.read_bytes() for p in run.folder.glob("*.*")} for run in first.runs.values()]
    monkeypatch.setattr(experiment, "certify", None)
    monkeypatch.setattr(experiment, "search", None)
    again = ddviz.run(small(tmp_path))
    assert [{p.name: p.read_bytes() for p in run.folder.glob("*.*")} for run in again.runs.values()] == before


BUDGETS = {"staged": {"budget": "staged"}, "decide": {"budget": "decide", "target_radius": 0.2}}


@pytest.mark.parametrize(
    ("stop_after", "budget"), [*((after, {}) for after in range(7)), (2, BUDGETS["staged"]), (5, BUDGETS["decide"])]
)
def test_a_run_stopped_after_any_image_ends_as_an_unbroken_one(tmp_path, monkeypatch, stop_after, budget):
    whole = ddviz.run(small(tmp_path / "whole", method="ds", **budget)).runs["data-dependent"]
    certify, calls = experiment.certify, []

    def interrupted(*args, **kwargs):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(kwargs["index"])
        return certify(*args, **kwargs)

    broken = small(tmp_path / "broken", method="ds", **budget)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment, "certify", interrupted)
        ddviz.run(broken)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "certify", lambda *a, **k: calls.append(k["index"]) or certify(*a, **k))
        resumed = ddviz.run(broken).runs["data-dependent"]
    assert calls == list(range(7))  # nothing twice
    assert files(resumed.folder) == files(whole.folder)


def test_torn_lines_of_a_killed_run_are_done_again(tmp_path):
    whole = ddviz.run(small(tmp_path / "whole", method="ds")).runs["data-dependent"]
    torn = ddviz.run(small(tmp_path / "torn", method="ds")).runs["data-dependent"]
    for name, keep in (("certificates.tsv", 0.35), ("sigmas.tsv", 0.7)):
        data = (torn.folder / name).read_bytes()
        (torn.folder / name).write_bytes(data[: int(len(data) * keep)])
    (torn.folder / "records.tsv").unlink()
    ddviz.run(small(tmp_path / "torn", method="ds"))
    assert files(torn.folder) == files(whole.folder)


def test_more_images_extend_a_run_and_fewer_read_a_part(tmp_path):
    ddviz.run(small(tmp_path, method="fixed", max_images=3))
    grown = ddviz.run(small(tmp_path, method="fixed", max_images=7)).runs["fixed"]
    whole = ddviz.run(small(tmp_path / "whole", method="fixed")).runs["fixed"]
    assert grown.records == whole.records
    assert len(ddviz.run(small(tmp_path, method="fixed", max_images=2)).runs["fixed"].records) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 300}, "^n was 200 when .* and is 300 now"),
        ({"alpha": 0.01}, "^alpha was 0.001"),
        ({"seed": 1}, "^seed was 0"),
        ({"batch": 32}, "^batch was 64"),
        ({"dtype": "bfloat16"}, "^dtype was 'float32'"),
        ({"skip": 2}, "^skip was 1"),
        ({"budget": "staged"}, "^budget was its default when .* and is 'staged' now"),
    ],
)
def test_a_changed_setting_is_refused_by_name(tmp_path, change, message):
    ddviz.run(small(tmp_path, method="fixed"))
    with pytest.raises(InputError, match=message):
        ddviz.run(small(tmp_path, method="fixed", **change))


def test_another_network_of_the_same_name_is_refused(tmp_path):
    config = small(tmp_path, method="fixed")
    network = ddviz.models.load("digits").network
    ddviz.run(config, network=network)
    with torch.no_grad():
        network.fc.bias += 1  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match=r"^model was"):
        ddviz.run(config, network=network)


class Threshold(torch.nn.Module):
    """Holds a number that no parameter tells."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.flatten(1).mean(1) - self.threshold
        return torch.stack([score, -score, *[torch.full_like(score, -9)] * 8], 1)


def test_another_network_of_the_same_parameters_is_refused(tmp_path):
    config = small(tmp_path, method="fixed")
    ddviz.run(config, network=Threshold(0.3))
    with pytest.raises(InputError, match=r"^model was"):
        ddviz.run(config, network=Threshold(0.32))


class InPlace(torch.nn.Module):
    """Normalises in place what it is given."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.5
        x /= 0.5
        return self.network(x * 0.5 + 0.5)


def test_a_network_that_works_in_place_is_certified_on_the_image_itself(tmp_path):
    network = ddviz.models.load("digits").network
    x = ddviz.datasets.load("digits").image(3)
    before = x.clone()
    own, same = (ddviz.certify(net, x, 0.25, n=500) for net in (network, InPlace(network)))
    assert torch.equal(x, before) and abs(own.count - same.count) <= 2
    records = [
        ddviz.run(small(tmp_path / name, method="ds"), network=net).runs["data-dependent"].records
        for name, net in (("own", network), ("in place", InPlace(network)))
    ]
    assert all(abs(a.sigma - b.sigma) < 1e-4 and abs(a.count - b.count) <= 2 for a, b in zip(*records, strict=True))


def test_a_network_whose_answers_depend_on_the_batch_is_refused(tmp_path):
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(64, track_running_stats=False), torch.nn.Linear(64, 10)
    )
    with pytest.raises(InputError, match=r"nothing can be certified|cannot take images"):
        ddviz.run(small(tmp_path), network=network)


def test_search_settings_do_not_bind_the_fixed_run(tmp_path):
    ddviz.run(small(tmp_path))
    again = ddviz.run(small(tmp_path, method="fixed", iterations=9, search_batch=2, samples=1))
    assert len(again.runs["fixed"].records) == 7
    with pytest.raises(InputError, match=r"^samples was"):
        ddviz.run(small(tmp_path, method="ds", samples=1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_shares_of_a_search_make_the_scales_of_the_whole(tmp_path, solver):
    """Whatever the number of cores; and the evaluations are noted."""
    config = small(tmp_path, solver=solver, dtype="float32", max_images=7)
    bench = prepare(config)
    first, *others = (
        experiment.search(replace(bench, sampler=replace(bench.sampler, workers=workers)), bench.images.indices)
        for workers in (1, 2, 3)
    )
    for other in others:
        assert torch.equal(other.sigma, first.sigma) and torch.equal(other.chosen, first.chosen)
    assert first.evaluations == config.make_solver().planned
    ddviz.run(config)
    rows = read_rows(bench.folder("ds").sigmas)
    assert {int(row["evaluations"]) for row in rows} == {config.make_solver().planned}


def test_an_interrupt_stops_all_shares_of_a_search(tmp_path, monkeypatch):
    config = small(tmp_path, solver="ascent", iterations=10_000, dtype="float32")
    bench = prepare(config)
    bench = replace(bench, sampler=replace(bench.sampler, workers=2))
    image = type(bench).image

    def interrupted(self, index):
        if index == 1:
            raise KeyboardInterrupt
        return image(self, index)

    monkeypatch.setattr(type(bench), "image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment.search(bench, bench.images.indices)
    began = time.monotonic()
    side_by_side(2, lambda: None, lambda: None)  # the pool is free again
    assert time.monotonic() - began < 30  # 10,000 steps take minutes


def test_settings_bind_only_once_something_is_certified(tmp_path, monkeypatch):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match=r"search_batch 3 does not fit"):
        patch.setattr(Solver, "__call__", out_of_memory)
        ddviz.run(small(tmp_path, method="ds"))
    assert len(ddviz.run(small(tmp_path, method="ds", search_batch=2)).runs["data-dependent"].records) == 7


def test_an_image_of_another_size_is_named_before_it_is_certified(tmp_path):
    images = ddviz.datasets.load("digits", max_images=7)
    odd = replace(images, read=lambda i: images.read(i)[:, : 7 if i == 5 else 8])
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 10))
    with pytest.raises(InputError, match=r"one size, got \(1, 8, 8\) \(image 0\) and \(1, 7, 8\) \(image 5\)"):
        ddviz.run(small(tmp_path, method="fixed"), network=network, images=odd)


def test_other_images_are_refused(tmp_path):
    config, images = small(tmp_path, method="fixed"), ddviz.datasets.load("digits", max_images=7)
    ddviz.run(config, images=images)
    others = replace(images, read=lambda i: 1 - images.read(i))
    with pytest.raises(InputError, match="image 0 of digits is not the one that was certified in"):
        ddviz.run(config, images=others)


def test_damaged_and_missing_configs_are_named(tmp_path):
    config = small(tmp_path, method="fixed")
    folder = ddviz.run(config).runs["fixed"].folder
    (folder / "config.json").write_text('{"n": ')
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        ddviz.run(config)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"expected .*config\.json beside the results"):
        ddviz.run(config)


def test_two_processes_cannot_write_one_run(tmp_path, monkeypatch):
    config = small(tmp_path, method="fixed")
    folder = ddviz.run(config).runs["fixed"].folder
    monkeypatch.setattr(runfolder, "_LOCK_WAIT", 0.05)
    with FileLock(folder / ".lock"), pytest.raises(ResourceError, match="another process is writing"):
        ddviz.run(config)


def test_the_config_tells_what_decided_the_result(tmp_path):
    folder = ddviz.run(small(tmp_path, method="fixed", sigma=0.25)).runs["fixed"].folder
    stored = json.loads((folder / "config.json").read_text())
    assert folder.name == "digits-cnn-cohen-0.25-fs-l2-0.25-fixed"
    assert (
        stored["checkpoint"] == "digits-cnn-cohen-0.25-fs" and stored["device"] == "cpu" and len(stored["model"]) == 16
    )
    assert not {"data_root", "run_root", "max_images"} & stored.keys()


def test_l1_and_grid_run_too(tmp_path):
    result = ddviz.run(small(tmp_path, norm="l1", solver="grid", iterations=10, samples=4))
    assert len(result.runs["data-dependent"].records) == 7
    assert all(record.radius <= 2 * record.sigma for run in result.runs.values() for record in run.records)


def test_a_run_that_decides_has_one_radius_and_says_what_it_drew(tmp_path):
    config = small(tmp_path, n=20_000, budget="decide", target_radius=0.3)
    result = ddviz.run(config)
    fixed, found = result.runs.values()
    assert {record.radius for record in fixed.records} == {0.0, 0.3}
    assert all((record.predict == ABSTAIN) == (record.radius == 0) for record in fixed.records)
    assert {record.radius for record in found.certificates} == {0.0, 0.3}
    drawn = [record.n for record in fixed.records]
    assert max(drawn) < 20_000 and len(set(drawn)) > 1
    assert fixed.costs["samples an image"] == f"{sum(drawn) / 7:,.0f}"
    stored = json.loads((fixed.folder / "config.json").read_text())
    assert (stored["budget"], stored["target_radius"]) == ("decide", 0.3)
    with pytest.raises(InputError, match=r"^target_radius was 0\.3 when .* and is 0\.1 now"):
        ddviz.run(replace(config, target_radius=0.1))


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        (range(100), ["The 100 images are of 3 of the 10 classes alone", "Set skip=4 to spread"]),
        (range(0, 400, 4), []),
        (range(30), ["The 30 images are of 1 of the 10 classes alone", "Set skip=13 to spread"]),
        (range(0, 400, 40), []),  # so few tell nothing
        (range(400), []),
    ],
)
def test_images_of_few_classes_are_noted(tmp_path, indices, said):
    """A folder's images lie in class order: the first hundred are no sample of all."""
    digits = ddviz.datasets.load("digits")
    ordered = replace(digits, labels=[i // 40 for i in range(400)], indices=indices, read=lambda _: digits.image(0))
    notes = prepare(small(tmp_path), images=ordered).base.notes
    told = [note for note in notes if "classes alone" in note]
    assert len(told) == bool(said) and all(part in told[0] for part in said)
