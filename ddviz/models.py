"""Base classifiers: the package's own weights, the checkpoints of the field as they are, and a self-test.

Foreign checkpoints are pickles, and pickles are code: they are read with `weights_only=True`, never run.
"""

import argparse
import copy
import hashlib
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ddviz.datasets import user_path
from ddviz.errors import InputError, ResourceError
from ddviz.networks import ARCHITECTURES, MEAN_STD, Normalize

WEIGHTS = Path(__file__).parent / "weights"
DIGITS_SIGMAS = (0.12, 0.25, 0.5)
"""Noise levels of the digits networks in the package."""

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "none": None,
    **MEAN_STD,
    **{f"{name}-center": (mean, (1.0,) * len(mean)) for name, (mean, _) in MEAN_STD.items()},
}
"""What is done to pixels before the network, by name; "-center" only subtracts the mean (some SmoothAdv networks)."""

_HARMLESS: list = [argparse.Namespace]  # training scripts store their arguments; a Namespace runs nothing


@dataclass(frozen=True)
class BaseClassifier:
    """A network that takes pixels in [0, 1] and returns logits, and what is known of it."""

    network: nn.Module
    name: str
    arch: str
    normalize: str
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hash of architecture, normalisation and weights: the identity of the model in a run's config."""
        return digest(self.network, f"{self.arch}/{self.normalize}")


def digest(network: nn.Module, salt: str = "") -> str:
    """SHA-256 of a network's parameters, buffers and printed structure, shortened to 16 hexadecimal digits."""
    sha = hashlib.sha256(f"{salt}\n{network}".encode())
    for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
        sha.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def load(
    dataset: str, *, checkpoint: str | Path = "", arch: str = "", normalize: str = "auto", sigma: float = 0.25
) -> BaseClassifier:
    """The base classifier for a data set: from a checkpoint file, or the default one where none is named.

    Defaults: digits, the package's network trained at the noise level nearest to `sigma`; imagenet, torchvision's
    published ResNet-50 (downloaded on first use). arch "" and normalize "auto" are read off the checkpoint.

    Raises: InputError where there is no default, or the file is missing, damaged or does not fit.
    """
    if checkpoint:
        return from_checkpoint(checkpoint, dataset=dataset, arch=arch, normalize=normalize)
    if arch or normalize != "auto":
        raise InputError(
            "arch and normalize describe a checkpoint, and none is named. Set checkpoint, or leave them out."
        )
    if dataset == "digits":
        level = min(DIGITS_SIGMAS, key=lambda trained: abs(trained - sigma))
        return from_checkpoint(WEIGHTS / f"digits_cnn_sigma{level}.safetensors", dataset=dataset)
    if dataset == "imagenet":
        return _torchvision_resnet50()
    raise InputError(
        f"there is no default network for {dataset!r}. Name one with checkpoint=FILE: a checkpoint of "
        "locuslab/smoothing, smoothing-adversarial, MACER or DDRS, a state dict, or a .safetensors file."
    )


def from_checkpoint(path: str | Path, *, dataset: str = "", arch: str = "", normalize: str = "auto") -> BaseClassifier:
    """Load a checkpoint of the field as it is.

    Understood: `arch` + `state_dict` (locuslab/smoothing, smoothing-adversarial, DDRS), `net` (MACER), plain state
    dicts, safetensors; `DataParallel` prefixes and a normalise layer in front are taken off.

    Raises: InputError naming what did not fit.
    """
    if arch and arch not in ARCHITECTURES:
        raise InputError(f"expected arch to be one of {', '.join(ARCHITECTURES)}, got {arch!r}.")
    path = user_path(path)
    content, metadata = _read(path)
    state, container = _state_dict(content, path)
    found_arch, prefix, state = _match(state, arch or metadata.get("arch", ""), path)
    if normalize == "auto":
        normalize = metadata.get("normalize") or _normalization(found_arch, container, prefix, dataset)
    if normalize not in NORMALIZATIONS:
        raise InputError(f"expected normalize to be auto or one of {', '.join(NORMALIZATIONS)}, got {normalize!r}.")
    network = ARCHITECTURES[found_arch](num_classes=len(state["fc.weight"]))
    network.load_state_dict(state)
    return BaseClassifier(
        network=_with_normalization(network, normalize),
        name=_name(path),
        arch=found_arch,
        normalize=normalize,
        metadata=metadata,
    )


def self_test(base: BaseClassifier, images: Tensor, labels: Tensor, num_classes: int) -> None:
    """Find the usual mistakes on some images (B, C, H, W) with labels (B,), before hours are spent on them.

    Raises: InputError naming a wrong input shape or class count, NaN, a softmax inside the network, or a normalisation
    under which the network does far worse than under another.
    """
    network = copy.deepcopy(base.network).eval()
    logits = checked_logits(network, images, num_classes)
    accuracy = _accuracy(logits, labels)
    alone, beside = checked_logits(network, images[:1], num_classes)[0], logits[0]
    if (alone - beside).abs().max() > 0.05 * logits.abs().max():
        raise InputError(
            "the network answers an image differently when others stand beside it, or by chance: it is no function "
            "of the image, and nothing can be certified. In eval mode, use BatchNorm's running statistics and no "
            "dropout."
        )
    inner = network
    if isinstance(inner, nn.Sequential) and isinstance(next(iter(inner), None), Normalize):
        inner = nn.Sequential(*list(inner)[1:])
    family = base.normalize.removesuffix("-center")
    rivals = {}
    for other, mean_std in NORMALIZATIONS.items():
        if other == base.normalize or (mean_std is not None and len(mean_std[0]) != images.shape[1]):
            continue
        if family in MEAN_STD and other not in ("none", family, f"{family}-center"):
            continue  # the two data sets' constants are so close that one passes for the other
        with torch.no_grad():
            rivals[other] = _accuracy(_with_normalization(inner, other).to(images.device)(images.clone()), labels)
    best = max(rivals, key=lambda other: rivals[other], default="")
    if best and rivals[best] > accuracy + 0.25:
        raise InputError(
            f"{base.name} classifies {accuracy:.0%} of {len(images)} clean images correctly with "
            f"normalize={base.normalize} and {rivals[best]:.0%} with normalize={best}: it seems to have been trained "
            f"with that. Set normalize={best}; in Python, put ddviz.networks.Normalize in front of the network."
        )


def checked_logits(network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    """Logits (B, num_classes) of a network in eval mode, or an InputError that says what is wrong with it."""
    for module in network.modules():
        if isinstance(module, Normalize) and len(module.mean) != images.shape[1]:
            raise InputError(
                f"expected images of {len(module.mean)} channels, which the network normalises, got {images.shape[1]}."
            )
    try:
        with torch.no_grad():
            outputs = network(images.clone())  # a network may work in place
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"the device's memory cannot hold the network and {len(images)} images. Free some of it, or set device=cpu."
        ) from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"the network cannot take images of shape {tuple(images.shape)}: {error}. Is it meant for this data set?"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(images):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(f"expected the network to return logits of shape ({len(images)}, {num_classes}), got {got}.")
    if outputs.shape[1] != num_classes:
        raise InputError(
            f"expected {num_classes} classes (those of the data set), got a network with {outputs.shape[1]}. Use the "
            "checkpoint of this data set."
        )
    if not torch.isfinite(outputs).all():
        raise InputError("the network returns NaN or infinity for clean images: its weights seem damaged. Load others.")
    if (outputs >= 0).all() and torch.allclose(
        outputs.sum(1), torch.ones(len(outputs), device=outputs.device), atol=1e-3
    ):
        raise InputError(
            "the network ends in a softmax: its outputs are probabilities, and ddviz applies the softmax itself, "
            "once. Remove the layer, or wrap the network: ddviz.FromProbabilities(network)."
        )
    return outputs


def _read(path: Path) -> tuple[dict, dict[str, str]]:
    """Content and metadata of a checkpoint file."""
    if not path.is_file():
        raise InputError(
            f"expected a checkpoint file at {path}, found {'a folder' if path.is_dir() else 'nothing'} there."
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = str(error).partition("GLOBAL ")[2].split(" ", 1)[0]
        if _names_code(name):
            raise InputError(
                f"{path} holds more than weights ({name}), which could run code when it is loaded. On a machine that "
                "trusts the file, save its state_dict alone (torch.save or safetensors) and load that."
            ) from None
        raise InputError(f"{path} is truncated or is no checkpoint ({_first_line(error)}). Fetch it again.") from error
    except Exception as error:  # a damaged file can lead its reader anywhere
        raise InputError(f"{path} is truncated or is no checkpoint ({_first_line(error)}). Fetch it again.") from error
    if not isinstance(content, Mapping):
        raise InputError(f"expected {path} to hold a state dict, got a {type(content).__name__}.")
    return dict(content), {}


def _name(path: Path) -> str:
    """What to call a checkpoint: its file's name, with the folder's where the field calls every file the same."""
    stem = Path(path.name.removesuffix(".tar")).stem
    return f"{path.resolve().parent.name}-{stem}" if stem in ("checkpoint", "model", "best", "best_model") else stem


def _names_code(name: str) -> bool:
    """Whether a refused name is one that a pickle would run, and not the first half of one in a truncated file."""
    module, _, attribute = name.rpartition(".")
    loaded = sys.modules.get(module or "builtins")
    return bool(attribute) and (loaded is None or hasattr(loaded, attribute))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _state_dict(content: Mapping, path: Path) -> tuple[dict[str, Tensor], str]:
    """The weights in a checkpoint, and the key that held them ("" for a plain state dict)."""
    for container in ("state_dict", "net", "model", "model_state_dict", ""):
        inner = content.get(container) if container else content
        if (
            isinstance(inner, Mapping)
            and inner
            and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in inner.items())
        ):
            return _without_data_parallel(inner), container
    raise InputError(
        f"expected weights under state_dict or net in {path}, found {', '.join(map(str, content)) or 'nothing'}."
    )


def _without_data_parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `module.` that DataParallel puts into keys; use torchvision's names for shortcuts and last layer."""
    renamed = {}
    for key, value in state.items():
        parts = [part for part in key.split(".") if part not in ("module", "_orig_mod")]
        renamed[".".join({"shortcut": "downsample", "linear": "fc"}.get(part, part) for part in parts)] = value
    return renamed


def _match(state: dict[str, Tensor], arch: str, path: Path) -> tuple[str, str, dict[str, Tensor]]:
    """The architecture whose parameters these are, the prefix of wrappers, and the state dict without it."""
    expected = arch if arch in ARCHITECTURES else ""
    first = "fc.weight"
    prefix = next((key.removesuffix(first) for key in state if key == first or key.endswith("." + first)), None)
    if prefix is None:
        raise InputError(
            f"{path}: no last layer called fc or linear among {', '.join(list(state)[:3])} ...: none of the known "
            f"architectures ({', '.join(ARCHITECTURES)}). In Python, build the network yourself and pass it instead "
            "of a checkpoint."
        )
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    num_classes = (*shapes[first], 1)[0]
    wanted = {name: _shapes(name, num_classes) for name in ARCHITECTURES}
    fitting = [name for name in wanted if wanted[name] == shapes]
    if fitting and expected in ("", *fitting):
        return expected or fitting[0], prefix, state
    if fitting:
        raise InputError(f"{path} holds a {fitting[0]}, not a {expected}. Set arch={fitting[0]}, or leave it empty.")
    nearest = expected or max(wanted, key=lambda name: len(wanted[name].items() & shapes.items()))
    missing = [key for key in wanted[nearest] if key not in shapes]
    unexpected = [key for key in shapes if key not in wanted[nearest]]
    reshaped = [key for key in wanted[nearest].keys() & shapes.keys() if wanted[nearest][key] != shapes[key]]
    found = "; ".join(
        f"{len(keys)} {kind} ({', '.join(sorted(keys)[:3])}{' ...' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    )
    raise InputError(
        f"{path} does not fit {nearest}{'' if expected else ', the nearest known architecture'}: parameters {found}. "
        f"Known: {', '.join(ARCHITECTURES)}. In Python, any nn.Module can be passed instead of a checkpoint."
    )


def _shapes(arch: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = ARCHITECTURES[arch](num_classes=num_classes)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _normalization(arch: str, container: str, prefix: str, dataset: str) -> str:
    """The field's convention for a checkpoint that does not say: each project normalises in its own way."""
    family = "imagenet" if arch == "resnet50" else "cifar10"
    if prefix == "1.":  # a normalise layer stands first: locuslab/smoothing, smoothing-adversarial
        return family
    if container == "net" or arch == "digits_cnn":  # MACER trains on pixels as they are
        return "none"
    return dataset if dataset in MEAN_STD else family


def _with_normalization(network: nn.Module, normalize: str) -> nn.Module:
    mean_std = NORMALIZATIONS[normalize]
    return (network if mean_std is None else nn.Sequential(Normalize(*mean_std), network)).eval()


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def _torchvision_resnet50() -> BaseClassifier:
    from torchvision.models import ResNet50_Weights, resnet50

    weights = ResNet50_Weights.IMAGENET1K_V1
    try:
        network = resnet50(weights=weights)
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"torchvision's ResNet-50 could not be fetched from {weights.url} ({error}). Download that file and pass "
            f"its path as checkpoint, or put it into {torch.hub.get_dir()}/checkpoints/."
        ) from error
    note = (
        "torchvision's ResNet-50 was not trained with noise: expect it to abstain on most images. Name a "
        "noise-trained network with checkpoint for radii worth having."
    )
    return BaseClassifier(
        _with_normalization(network, "imagenet"), "torchvision-resnet50", "resnet50", "imagenet", (note,)
    )
