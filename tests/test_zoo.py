"""The zoo: every network tells how it was made, is what it says, and is found by name."""

import shlex

import pytest
import torch

from ddviz import InputError, Recipe, datasets, models
from ddviz import __main__ as command_line
from ddviz.smoothing import SMOOTHINGS


@pytest.mark.parametrize("name", models.zoo())
def test_a_network_of_the_zoo_tells_how_it_was_made(name):
    """Its name, its recipe and its command agree, and the weights are finite."""
    base = models.pretrained(name)
    told = base.metadata
    assert base.digest == models.load(told["dataset"], checkpoint=f"zoo:{name}").digest
    recipe = recipe_of(told["command"])
    assert recipe.title == name
    resolved = {"arch", "normalize", "dtype"}  # told as they were chosen
    assert {key: told[key] for key in recipe.deciding if key not in resolved} == {
        key: str(value) for key, value in recipe.deciding.items() if key not in resolved
    }
    assert all(torch.isfinite(value).all() for value in base.network.state_dict().values())
    assert 0.1 < float(told["noisy_accuracy"]) <= 1 and float(told["seconds"]) > 0
    assert ("JPEG" in told["note"]) == (told["dataset"] == "cifar10") and base.notes == tuple(
        filter(None, [told["note"]])
    )


def recipe_of(command: str) -> Recipe:
    """The recipe that a stored command trains."""
    made: list[Recipe] = []

    def stop(recipe: Recipe):
        made.append(recipe)
        raise InputError("far enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "train", stop)
        command_line.main(shlex.split(command)[3:])
    return made[0]


def test_the_zoo_is_small():
    assert sum(path.stat().st_size for path in models.WEIGHTS.iterdir()) <= 12_000_000


def test_an_unknown_name_of_the_zoo_is_answered_with_near_ones():
    with pytest.raises(
        InputError, match=r"the zoo has no 'digits-cnn-cohen-0\.2-fs'\. Nearest: .*digits-cnn-cohen-0\.25-fs"
    ):
        models.pretrained("digits-cnn-cohen-0.2-fs")
    with pytest.raises(InputError, match="the zoo has no"):
        models.load("digits", checkpoint="zoo:../models")


@pytest.mark.parametrize(("sigma", "level"), [(0.25, 0.25), (0.01, 0.12), (3, 0.5)])
def test_cifar10_has_a_default_network_too(sigma, level):
    base = models.load("cifar10", sigma=sigma)
    assert (base.name, base.normalize) == (f"cifar10-resnet20-cohen-{level:g}-fs", "cifar10")


@pytest.mark.data
def test_the_zoo_s_cifar10_networks_classify_as_they_say(data_root):
    images = datasets.load("cifar10", data_root=data_root, skip=20)
    x, y = images.images(images.indices), torch.tensor([images.labels[i] for i in images.indices])
    for name in models.zoo():
        if name.startswith("cifar10"):
            base = models.pretrained(name)
            noise = SMOOTHINGS[base.metadata["norm"]].fill_(torch.empty_like(x), torch.Generator().manual_seed(0))
            accuracy = (base.network(x + float(base.metadata["sigma"]) * noise).argmax(1) == y).float().mean().item()
            assert accuracy == pytest.approx(float(base.metadata["noisy_accuracy"]), abs=0.06), name
