"""Training settings are checked before anything is loaded, named by what they make, and told as a command."""

import math
import shlex
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from test_config import assert_parameters_are_fields

from ddviz import __main__ as command_line
from ddviz.errors import InputError
from ddviz.objectives import GaussianAugmentation, Macer, SmoothAdv
from ddviz.recipe import Recipe
from ddviz.schedules import SCHEDULES

TRAIN = Path(__file__).parents[1] / "notebooks" / "train.ipynb"


def test_the_notebook_s_parameters_are_the_fields_with_their_defaults_types_and_comments():
    assert_parameters_are_fields(TRAIN, Recipe)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"objektive": "macer"}, r"unknown parameter objektive\. Did you mean objective\?"),
        ({"objective": "trades"}, "expected objective to be one of gaussian, smoothadv, macer, got 'trades'"),
        ({"attack": "fgsm"}, "expected attack to be one of pgd, ddn"),
        ({"schedule": "linear"}, "expected schedule to be one of one-cycle, step, cosine"),
        ({"dataset": "mnist"}, "expected dataset to be one of digits, cifar10, imagenet"),
        ({"dtype": "float16"}, "expected dtype to be one of auto, float32, bfloat16, got 'float16'"),
        ({"sigma": -0.1}, "expected sigma > 0"),
        ({"lr": 0.0}, "expected lr > 0, got 0"),
        ({"lr": math.nan}, "expected lr to be a finite number, got nan"),
        ({"epochs": 0}, "expected epochs >= 1, got 0"),
        ({"samples": 0}, "expected samples >= 1"),
        ({"attack_steps": 0}, "expected attack_steps >= 1"),
        ({"clamp": 0.6}, "expected clamp in"),
        ({"warmup": 100}, "expected warmup < epochs with ds, got 100 and 100"),
        ({"ds": True, "sigma": 0.5, "sigma_max": 0.4}, "expected sigma_min <= sigma <= sigma_max, got 0.01, 0.5, 0.4"),
        ({"warmup": -2}, "expected warmup >= -1"),
        ({"iterations": 0}, "expected iterations >= 1"),
        ({"device": "cpu:foo"}, "expected device to be auto, cpu, cuda or cuda:N"),
        ({"seed": 2**63}, "expected seed < 2"),
        ({"name": "../x"}, "expected name to be that of a new folder in run_root"),
        ({"name": ".."}, "expected name to be that of a new folder in run_root"),
        ({"ds": "yes"}, r"expected ds to be bool, got 'yes' \(str\)"),
    ],
)
def test_what_cannot_be_is_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        Recipe.from_namespace(parameters)


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({}, "digits-cnn-cohen-0.25-ds2"),
        (
            {"dataset": "cifar10", "objective": "smoothadv", "sigma": 0.5},
            "cifar10-resnet20-smoothadv-0.5-ds2",
        ),
        ({"dataset": "cifar10", "arch": "cifar_resnet18", "ds": False}, "cifar10-resnet18-cohen-0.25-fs"),
        ({"dataset": "imagenet", "objective": "macer"}, "imagenet-resnet50-macer-0.25-ds2"),
        ({"norm": "l1"}, "digits-cnn-yang-0.25-ds2"),
        ({"name": "mine"}, "mine"),
    ],
)
def test_a_recipe_is_named_by_what_it_makes(settings, title):
    assert Recipe(**settings).title == title


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dataset": "cifar10", "objective": "macer", "samples": 4, "macer_lambda": 6.0, "augment": False},
        {
            "ds": True,
            "warmup": 3,
            "init": "zoo:digits-cnn-cohen-0.25-fs",
            "compile": True,
            "sigma": 0.123456789,
            "note": "- not 'so' quick",
        },
    ],
)
def test_the_command_of_a_recipe_makes_it_again(settings, monkeypatch):
    made = []

    def train(recipe: Recipe):
        made.append(recipe)
        raise InputError("far enough")

    monkeypatch.setattr(command_line, "train", train)
    python, *arguments = shlex.split(Recipe(**settings, data_root="here").command)
    assert (python, arguments[:2]) == ("python", ["-m", "ddviz"])
    assert command_line.main(arguments[2:]) == 2
    assert made == [Recipe(**settings)]


def test_a_mistake_on_the_command_line_ends_with_one_line(capsys):
    assert command_line.main(["train", "--sigma", "-1"]) == 2
    assert capsys.readouterr().err == "InputError: expected sigma > 0, a noise scale in [0,1]-pixel units, got -1.\n"
    with pytest.raises(SystemExit):
        command_line.main(["train", "--sigmas", "1"])


def test_objectives_are_given_their_settings():
    recipe = {"samples": 3, "epsilon": 0.5, "attack": "ddn", "attack_steps": 4, "attack_warmup": 5, "macer_lambda": 6.0}
    assert Recipe(**recipe).make_objective() == GaussianAugmentation(samples=3)
    expected = SmoothAdv(samples=3, epsilon=0.5, attack="ddn", steps=4, warmup=5)
    assert Recipe(objective="smoothadv", **recipe).make_objective() == expected
    expected = Macer(samples=3, lam=6.0, gamma=2.0, beta=4.0)
    assert Recipe(objective="macer", gamma=2.0, beta=4.0, **recipe).make_objective() == expected


def test_every_setting_that_changes_the_weights_decides():
    spare = {
        "note",
        "data_root",
        "download",
        "run_root",
        "name",
        "device",
        "compile",
        "workers",
        "checkpoint_steps",
        "eval_images",
    }
    assert {field.name for field in fields(Recipe)} - set(Recipe().deciding) == spare
    assert Recipe().deciding.items() <= asdict(Recipe()).items()
    searching = {"warmup", "iterations", "search_lr", "search_samples", "clamp", "sigma_min", "sigma_max"}
    assert set(Recipe().deciding) - set(Recipe(ds=False).deciding) == searching


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_schedules_stay_within_the_highest_rate_and_end_low(name):
    rates = [SCHEDULES[name](step / 300) for step in range(301)]
    assert max(rates) == pytest.approx(1) and min(rates) >= 0 and rates[-1] < 0.0011


def test_schedules_at_known_points():
    assert [SCHEDULES["step"](p) for p in (0, 0.33, 0.34, 0.67)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [SCHEDULES["one-cycle"](p) for p in (0, 0.25, 0.625, 1)] == pytest.approx([0.04, 1, 0.5, 0], abs=1e-9)
    assert [SCHEDULES["cosine"](p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0], abs=1e-9)
