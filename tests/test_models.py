"""The field's checkpoints load as they are; damaged, foreign and dangerous files and unfit networks are named."""

import argparse
import builtins
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50

from ddviz import datasets, models
from ddviz.errors import InputError
from ddviz.models import NORMALIZATIONS, BaseClassifier, digest, from_checkpoint, self_test
from ddviz.networks import ARCHITECTURES, MEAN_STD, FromProbabilities, Normalize

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, Tensor]
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CIFAR10, IMAGENET = Normalize(*MEAN_STD["cifar10"]), Normalize(*MEAN_STD["imagenet"])


@cache
def state_of(arch: str) -> State:
    """Random weights of an architecture, with BatchNorm statistics far from 0 and 1. Shared: not to be changed."""
    noise = torch.Generator().manual_seed(0)
    state = ARCHITECTURES[arch]().state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            random = torch.rand(value.shape, generator=noise)
            if value.ndim > 1:
                state[key] = (random - 0.5) * (12 / value[0].numel()) ** 0.5
            else:
                state[key] = 0.6 * random + (0.5 if key.endswith(("running_var", "weight")) else -0.3)
    return state


def prefixed(arch: str, prefix: str) -> State:
    return {prefix + key: value for key, value in state_of(arch).items()}


MEANS = {"none": (0, 0, 0), "cifar10": (0.4914, 0.4822, 0.4465), "imagenet": (0.485, 0.456, 0.406)}
STDS = {"cifar10": (0.2023, 0.1994, 0.2010), "imagenet": (0.229, 0.224, 0.225)}  # else 1


def normalized(x: Tensor, normalize: str) -> Tensor:
    mean, std = MEANS[normalize.removesuffix("-center")], STDS.get(normalize, (1, 1, 1))
    return (x - torch.tensor(mean)[None, :, None, None]) / torch.tensor(std)[None, :, None, None]


def written_out(state: State, x: Tensor) -> Tensor:
    """Logits of a ResNet of basic blocks: no module of the package or of torchvision takes part."""

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    if "bn1.weight" in state:
        x = F.relu(norm(conv(x, "conv1", 1), "bn1"))
    else:
        x = F.max_pool2d(F.relu(conv(x, "conv1", 2)), 3, stride=2, padding=1)
    for name in dict.fromkeys(".".join(key.split(".")[:2]) for key in state if key.startswith("layer")):
        stride = 2 if name in ("layer2.0", "layer3.0", "layer4.0") else 1
        y = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
        y = norm(conv(y, f"{name}.conv2", 1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in state:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def logits(base: BaseClassifier, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return base.network(x)


def cohen(arch: str, prefix: str = "1.") -> dict[str, object]:
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"epoch": 90, "arch": arch, "state_dict": prefixed(arch, prefix), "optimizer": optimizer}


def kuangliu() -> State:
    names = {"downsample": "shortcut", "fc": "linear"}
    return {".".join(names.get(p, p) for p in k.split(".")): v for k, v in state_of("cifar_resnet18").items()}


LAYOUTS: dict[str, tuple[str, Callable[[], object], str]] = {
    "cohen-20": ("cifar_resnet20", lambda: cohen("cifar_resnet20"), "cifar10"),
    "cohen-110": ("cifar_resnet110", lambda: cohen("cifar_resnet110"), "cifar10"),
    "cohen-wrapped": ("cifar_resnet20", lambda: cohen("cifar_resnet20", "module.1."), "cifar10"),
    "macer": ("cifar_resnet110", lambda: {"net": state_of("cifar_resnet110"), "epoch": 440}, "none"),
    "macer-parallel": ("cifar_resnet20", lambda: {"net": prefixed("cifar_resnet20", "module.")}, "none"),
    "ddrs": ("ddrs_resnet18", lambda: {"state_dict": state_of("ddrs_resnet18"), "epoch": 90}, "cifar10"),
    "kuangliu": ("cifar_resnet18", kuangliu, "cifar10"),
    "wrapper": ("cifar_resnet20", lambda: {"state_dict": prefixed("cifar_resnet20", "model.module.")}, "cifar10"),
    "compiled": ("cifar_resnet20", lambda: {"net": prefixed("cifar_resnet20", "1._orig_mod.")}, "cifar10"),
    "plain": ("cifar_resnet20", lambda: state_of("cifar_resnet20"), "cifar10"),
    "args": ("cifar_resnet20", lambda: cohen("cifar_resnet20") | {"args": argparse.Namespace(gpu=None)}, "cifar10"),
}


@pytest.mark.parametrize(("arch", "make", "normalize"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_checkpoints_of_the_field_give_the_logits_of_a_network_written_out(arch, make, normalize, tmp_path):
    torch.save(make(), tmp_path / "best-0.25.pth")
    base = models.load("cifar10", checkpoint=tmp_path / "best-0.25.pth")
    assert (base.arch, base.normalize, base.name) == (arch, normalize, "best-0.25")
    expected = written_out(state_of(arch), normalized(X, normalize))
    assert expected.std() > 0.05  # the logits tell images and classes apart
    torch.testing.assert_close(logits(base), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("said_by", ["argument", "safetensors"])
def test_the_normalisation_that_is_said_is_used(said_by, normalize, tmp_path):
    path = tmp_path / f"net.{said_by}"
    metadata = {"arch": "cifar_resnet20", "normalize": normalize, "sigma": "0.25"}
    if said_by == "argument":
        torch.save(cohen("cifar_resnet20"), path)
        base = models.load("cifar10", checkpoint=path, normalize=normalize)
    else:
        save_file(state_of("cifar_resnet20"), path, metadata)
        base = models.load("cifar10", checkpoint=path)
        assert base.metadata == metadata
    expected = written_out(state_of("cifar_resnet20"), normalized(X, normalize))
    torch.testing.assert_close(logits(base), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "cifar_resnet110"}, "holds a digits_cnn, not a cifar_resnet110. Set arch=digits_cnn"),
        ({"arch": "resnet51"}, "arch to be one of digits_cnn, .*, got 'resnet51'"),
        ({"normalize": "mnist"}, "normalize to be auto or one of none, cifar10, .*, got 'mnist'"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message, tmp_path):
    torch.save(SMALL, tmp_path / "c.pth")
    assert models.load("digits", checkpoint=tmp_path / "c.pth", arch="digits_cnn").arch == "digits_cnn"
    with pytest.raises(InputError, match=message):
        models.load("digits", checkpoint=tmp_path / "c.pth", **settings)
    with pytest.raises(InputError, match=message):
        from_checkpoint(tmp_path / "c.pth", **settings)


@pytest.mark.parametrize("settings", [{"arch": "cifar_resnet20"}, {"normalize": "none"}])
@pytest.mark.parametrize("dataset", ["digits", "imagenet"])
def test_settings_of_a_checkpoint_without_a_checkpoint_are_refused(dataset, settings):
    with pytest.raises(InputError, match="describe a checkpoint, and none is named"):
        models.load(dataset, **settings)


def test_a_checkpoint_that_is_called_as_all_others_is_known_by_its_folder(tmp_path):
    path = tmp_path / "noise_0.25" / "checkpoint.pth.tar"
    path.parent.mkdir()
    torch.save(SMALL, path)
    assert from_checkpoint(path).name == "noise_0.25-checkpoint"


def test_an_unknown_normalisation_in_the_metadata_is_named(tmp_path):
    save_file(SMALL, tmp_path / "c.safetensors", {"arch": "digits_cnn", "normalize": "mnist"})
    with pytest.raises(InputError, match="mnist"):
        from_checkpoint(tmp_path / "c.safetensors")


SMALL = state_of("digits_cnn")
LESS = {key: value for key, value in SMALL.items() if key != "fc.bias"}


@pytest.mark.parametrize(
    ("content", "arch", "message"),
    [
        (LESS, "", r"digits_cnn, the nearest.*: parameters 1 missing \(fc.bias\)\. Known"),
        (SMALL | {"a.scale": torch.ones(1)}, "", r"digits_cnn.*: parameters 1 unexpected \(a.scale\)\."),
        (SMALL | {"features.0.weight": torch.ones(32, 3, 3, 3)}, "", r"1 of another shape \(features.0.weight\)\."),
        (LESS | {"a": torch.ones(1)}, "", r"1 missing \(fc.bias\); 1 unexpected \(a\)"),
        (LESS, "resnet50", r"does not fit resnet50: parameters 3\d\d missing \(bn1.bias, .* \.\.\."),
        ({"fc1.weight": torch.ones(2, 2)}, "", "no last layer called fc or linear among fc1.weight"),
        ([1, 2], "", "to hold a state dict, got a list"),
        (torch.ones(3), "", "to hold a state dict, got a Tensor"),
        ({"epoch": 3, "best": 0.5}, "", "expected weights under state_dict or net in .*, found epoch, best"),
        ({}, "", "expected weights under state_dict or net in .*, found nothing"),
        ({"state_dict": {0: torch.ones(3)}}, "", "c.pth"),
        ({"fc.weight": torch.tensor(1.0)}, "", "c.pth"),
    ],
)
def test_weights_that_do_not_fit_are_named(content, arch, message, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(InputError, match=message):
        from_checkpoint(tmp_path / "c.pth", arch=arch)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_called_so_at_every_length(kind, tmp_path):
    path = tmp_path / ("c.safetensors" if kind == "safetensors" else "c.pth")
    if kind == "safetensors":
        save_file(SMALL, path)
    else:  # what PyTorch wrote before 1.6, and so the checkpoints of 2019, is not a zip file
        torch.save({"epoch": 9, "state_dict": SMALL}, path, _use_new_zipfile_serialization=kind == "zip")
    assert from_checkpoint(path).arch == "digits_cnn"
    whole = path.read_bytes()
    for length in (*range(0, 3000, 37), len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"c\.\w+ is truncated or is no checkpoint .* Fetch it again"):
            from_checkpoint(path)


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
@pytest.mark.parametrize(
    "text",
    ["", "idx\tlabel\n0\t7\n", "<!DOCTYPE html>\n<html>", "version https://git-lfs", "error code: 1", "abc", "q"],
)
def test_text_is_no_checkpoint(text, name, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{re.escape(name)} is truncated or is no checkpoint"):
        from_checkpoint(tmp_path / name)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint file at .*none.pth, found nothing there"):
        models.load("digits", checkpoint=tmp_path / "none.pth")
    with pytest.raises(InputError, match="found a folder there"):
        models.load("digits", checkpoint=tmp_path)


class RunsCode:
    def __init__(self, *call: object):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("wrapped", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("call", ["os.mkdir", "builtins.exec", "subprocess.call"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(call, wrapped, tmp_path):
    touched = tmp_path / "touched"
    danger = {
        "os.mkdir": RunsCode(os.mkdir, str(touched)),
        "builtins.exec": RunsCode(builtins.exec, f"import os; os.mkdir({str(touched)!r})"),
        "subprocess.call": RunsCode(subprocess.call, ["mkdir", str(touched)]),
    }[call]
    pickle.loads(pickle.dumps(danger))
    assert touched.exists()  # it is dangerous indeed
    touched.rmdir()
    content, path = {"state_dict": {**SMALL, "extra": danger}}, tmp_path / "c.pth"
    if wrapped == "bare pickle":
        path.write_bytes(pickle.dumps(danger, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=wrapped == "zip")
    with pytest.raises(InputError, match=r"c.pth holds more than weights \(.*\), which could run code") as refusal:
        from_checkpoint(path)
    assert not touched.exists()
    assert call.split(".")[-1] in str(refusal.value)


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save(ARCHITECTURES["digits_cnn"](), tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"more than weights \(ddviz.networks.DigitsCNN\).* save its state_dict alone"):
        from_checkpoint(tmp_path / "c.pth")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    test = datasets.load("digits")
    return test.images(test.indices), torch.tensor(test.labels)


@pytest.mark.parametrize(
    ("sigma", "level", "accuracy"), [(0.12, "0.12", 0.85), (0.25, "0.25", 0.85), (0.5, "0.5", 0.6), (9, "0.5", 0.6)]
)
def test_the_digits_networks_know_their_digits(sigma, level, accuracy, digits):
    base = models.load("digits", sigma=sigma)
    assert (base.name, base.arch, base.normalize) == (f"digits-cnn-cohen-{level}-fs", "digits_cnn", "none")
    x, labels = digits
    assert (logits(base, x).argmax(1) == labels).float().mean() > accuracy
    self_test(base, x, labels, 10)


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        ("softmax", "ends in a softmax: .*wrap the network: ddviz.FromProbabilities"),
        ("classes", "expected 12 classes .*got a network with 10"),
        ("shape", r"cannot take images of shape \(597, 3, 8, 8\): .* Is it meant for this data set"),
        ("nan", "returns NaN or infinity for clean images"),
        ("tuple", r"logits of shape \(597, 10\), got tuple"),
        ("neighbours", "answers an image differently when others stand beside it"),
        ("one image", r"logits of shape \(597, 10\), got \(1, 10\)"),
    ],
)
def test_self_test_names_the_usual_mistakes(breakage, message, digits):
    x, labels = digits
    base = models.load("digits")
    if breakage == "nan":
        next(base.network.parameters()).data[0] = torch.nan
    inner = base.network

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> object:
            out = inner(x)
            relative = out - out.mean(0)
            faults = {"softmax": out.softmax(1), "tuple": (out, x), "one image": out[:1], "neighbours": relative}
            return faults.get(breakage, out)

    broken = replace(base, network=Broken())
    images = x.expand(-1, 3, -1, -1) if breakage == "shape" else x
    with pytest.raises(InputError, match=message):
        self_test(broken, images, labels, 12 if breakage == "classes" else 10)
    if breakage == "softmax":
        self_test(replace(base, network=FromProbabilities(broken.network)), x, labels, 10)


def blues(*values: float) -> Tensor:
    """Images (B, 3, 4, 4) that differ in blue alone."""
    x = torch.full((len(values), 3, 4, 4), 0.5)
    x[:, 2] = torch.tensor(values)[:, None, None]
    return x


def bluer_than(level: float) -> nn.Sequential:
    """Class 1 where blue, as it reaches the linear layer, exceeds a level on average."""
    linear = nn.Linear(48, 2)
    linear.weight.data = torch.zeros(2, 3, 16).index_fill(1, torch.tensor(2), 1 / 16).flatten(1)
    linear.weight.data[0] *= -1
    linear.bias.data = torch.tensor([level, -level])
    return nn.Sequential(nn.Flatten(), linear)


def based(network: nn.Module, normalize: str) -> BaseClassifier:
    return BaseClassifier(models.with_normalization(network, normalize), "blue", "", normalize)


@pytest.mark.parametrize(
    ("trained", "given", "level", "values"),
    [
        ("cifar10", "none", 0.0, (0.43, 0.42, 0.46, 0.47)),  # CIFAR-10's mean of blue is 0.4465
        ("none", "cifar10", 0.2, (0.1, 0.15, 0.25, 0.3)),
        ("none", "imagenet", 0.2, (0.1, 0.15, 0.25, 0.3)),
        # ImageNet's is 0.406: with CIFAR-10's a part of the images is right, yet ImageNet's is the one to name
        ("imagenet", "none", 0.0, (0.37, 0.38, 0.38, 0.39, 0.40, 0.43, 0.43, 0.46, 0.46, 0.46)),
    ],
)
def test_self_test_finds_the_missing_normalisation(trained, given, level, values):
    x, labels = blues(*values), torch.tensor([0] * (len(values) // 2) + [1] * (len(values) // 2))
    network = bluer_than(level)
    self_test(based(network, trained), x, labels, 2)
    message = rf"correctly with normalize={given} and 100% with normalize={trained}: .* Set normalize={trained};"
    with pytest.raises(InputError, match=message):
        self_test(based(network, given), x, labels, 2)


@pytest.mark.parametrize("kind", ["plain", "in place", "normalized", "normalized, several layers"])
def test_self_test_leaves_a_users_own_network_and_images_as_they_are(kind):
    identity = nn.Conv2d(3, 3, 1)
    identity.weight.data, identity.bias = torch.eye(3)[:, :, None, None], None
    before = {"in place": [nn.Hardtanh(0.0, 0.42, inplace=True)], "normalized": [IMAGENET]}.get(kind, [])
    if kind.endswith("layers"):
        before = [IMAGENET, identity]
    own = nn.Sequential(*before, *bluer_than(0.0 if IMAGENET in before else 0.4)).train()
    x = blues(0.38, 0.39, 0.43)
    self_test(BaseClassifier(own, "own", "", "as given"), x, torch.tensor([0, 0, 1]), 2)
    assert torch.equal(x, blues(0.38, 0.39, 0.43))
    assert all(module.training for module in own.modules())


def test_the_digest_is_the_identity_of_weights_architecture_and_normalisation():
    network = ARCHITECTURES["cifar_resnet20"]()
    base = BaseClassifier(network, "name", "cifar_resnet20", "none")
    other = ARCHITECTURES["cifar_resnet20"]()
    other.load_state_dict(network.state_dict())
    assert base.digest == replace(base, network=other, name="renamed").digest
    buffers = dict(other.named_buffers())
    buffers["layer3.2.bn2.running_var"][5] += 1e-6
    changed = [replace(base, network=other), replace(base, arch="other"), replace(base, normalize="cifar10")]
    changed += [replace(base, network=FromProbabilities(network)), replace(base, network=nn.Sequential(network))]
    assert len({one.digest for one in (base, *changed)}) == 6


def test_the_digest_of_a_users_own_network_sees_its_normalisation():
    network = bluer_than(0.0)
    digests = {digest(nn.Sequential(normalize, network)) for normalize in (CIFAR10, IMAGENET)}
    assert len(digests) == 2


def test_the_digest_is_the_same_in_another_process():
    code = "import ddviz; print(ddviz.models.load('digits').digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == models.load("digits").digest


@pytest.mark.parametrize("dataset", ["cifar100", "my/folder"])
def test_without_a_default_network_a_checkpoint_is_asked_for(dataset):
    with pytest.raises(InputError, match=rf"no default network for '{dataset}'. Name one with checkpoint=zoo:NAME"):
        models.load(dataset)


@pytest.fixture(scope="module")
def imagenet() -> nn.Module:
    network = resnet50().eval()
    network.load_state_dict(state_of("resnet50"))
    return network


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A state dict as torchvision publishes it."""
    path = tmp_path_factory.mktemp("published") / "resnet50.pth"
    torch.save(state_of("resnet50"), path)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Where torchvision keeps what it downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"


def test_an_imagenet_checkpoint_has_dataparallel_inside(imagenet, tmp_path):
    torch.save(cohen("resnet50", "1.module."), tmp_path / "c.pth")
    base = from_checkpoint(tmp_path / "c.pth")
    assert (base.arch, base.normalize) == ("resnet50", "imagenet")
    with torch.no_grad():
        torch.testing.assert_close(logits(base), imagenet(normalized(X, "imagenet")))


def test_imagenet_default_is_torchvisions_resnet50_with_a_note_on_noise(hub, imagenet, published, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, *_, **__: os.link(published, path))
    base = models.load("imagenet")
    assert hub.exists() and base.normalize == "imagenet"
    assert any("not trained with noise" in note and "checkpoint" in note for note in base.notes)
    with torch.no_grad():
        torch.testing.assert_close(logits(base), imagenet(normalized(X, "imagenet")))
    assert models.load("imagenet", checkpoint=hub).digest == base.digest


@pytest.mark.parametrize(
    "outcome",
    [URLError("no route"), TimeoutError("slow"), RuntimeError("invalid hash value"), b"PK\x03\x04 half", b""],
    ids=str,
)
def test_imagenet_offline_says_what_to_fetch_and_where_to_put_it(outcome, hub, published, monkeypatch):
    def download(url, path, *_, **__):
        if isinstance(outcome, Exception):
            raise outcome
        Path(path).write_bytes(outcome)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(InputError, match=r"https://download\.pytorch\.org/") as refusal:
        models.load("imagenet")
    assert hub.name in str(refusal.value) and str(hub.parent) in str(refusal.value)
    hub.unlink(missing_ok=True)
    os.link(published, hub)  # do as it says
    assert models.load("imagenet").arch == "resnet50"
