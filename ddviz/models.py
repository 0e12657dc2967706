"""Base classifiers: the package's zoo, the checkpoints of the field as they are, and a self-test."""

import copy
import difflib
import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from ddviz import checkpoints
from ddviz.datasets import user_path
from ddviz.errors import InputError, ResourceError
from ddviz.networks import ARCHITECTURES, MEAN_STD, Normalize
from ddviz.records import write_atomically

WEIGHTS = Path(__file__).parent / "weights"
ZOO = "zoo:"
"""What stands before a name of the zoo where a checkpoint file could be named too."""
_DEFAULT = r"{}-\w+-cohen-([\d.]+)-fs"  # names of the networks that stand in where none is named

NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "none": None,
    **MEAN_STD,
    **{f"{name}-center": (mean, (1.0,) * len(mean)) for name, (mean, _) in MEAN_STD.items()},
}
"""What is done to pixels before the network, by name; "-center" only subtracts the mean (some SmoothAdv networks)."""


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
    """The base classifier for a data set: from a checkpoint file or "zoo:<name>", or the default where none is named.

    Defaults: digits and cifar10, the zoo's network that Cohen et al.'s method trained at the noise level nearest to
    `sigma`; imagenet, torchvision's published ResNet-50 (downloaded on first use). arch "" and normalize "auto" are
    read off the checkpoint.

    Raises: InputError where there is no default, or the file is missing, damaged or does not fit.
    """
    if str(checkpoint).startswith(ZOO):
        checkpoint = _zoo_file(str(checkpoint).removeprefix(ZOO))
    if checkpoint:
        return from_checkpoint(checkpoint, dataset=dataset, arch=arch, normalize=normalize)
    if arch or normalize != "auto":
        raise InputError(
            "arch and normalize describe a checkpoint, and none is named. Set checkpoint, or leave them out."
        )
    default = re.compile(_DEFAULT.format(re.escape(dataset)))
    if levels := {float(found[1]): name for name in zoo() if (found := default.fullmatch(name))}:
        return pretrained(levels[min(levels, key=lambda level: abs(level - sigma))])
    if dataset == "imagenet":
        return _torchvision_resnet50()
    raise InputError(
        f"there is no default network for {dataset!r}. Name one with checkpoint=zoo:NAME (ddviz.models.zoo() lists "
        "them) or checkpoint=FILE: a checkpoint of "
        "locuslab/smoothing, smoothing-adversarial, MACER or DDRS, a state dict, or a .safetensors file."
    )


def zoo() -> list[str]:
    """Names of the networks in the package: <data set>-<network>-<method>-<noise scale>-<fs or ds2>."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def pretrained(name: str) -> BaseClassifier:
    """A network of the zoo; its metadata tell recipe, accuracies and the command that makes it.

    Raises: InputError for a name that is not in the zoo.
    """
    return from_checkpoint(_zoo_file(name))


def _zoo_file(name: str) -> Path:
    names = zoo()
    if name not in names:
        near = difflib.get_close_matches(name, names, 3, cutoff=0.3)
        hint = f" Nearest: {', '.join(near)}." if near else ""
        raise InputError(f"the zoo has no {name!r}.{hint} ddviz.models.zoo() lists all.")
    return WEIGHTS / f"{name}.safetensors"


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a network's weights, without its normalise layer, as safetensors with what is known of it.

    They are rounded to float16, except for a tensor with numbers beyond its range.
    """
    inner = network[1] if isinstance(network, nn.Sequential) and normalization_of(network) else network
    state = {key: value.detach().cpu().contiguous() for key, value in inner.state_dict().items()}
    small = {key: value.half() for key, value in state.items() if value.is_floating_point()}
    state |= {key: value for key, value in small.items() if value.isfinite().all()}
    write_atomically(path, save(state, dict(metadata)))


def normalization_of(network: nn.Module) -> str:
    """The name of the normalisation in front of a network, as `with_normalization` put it there; else ""."""
    if not (isinstance(network, nn.Sequential) and len(network) == 2 and isinstance(first := network[0], Normalize)):
        return ""
    found = (tuple(first.mean.flatten().tolist()), tuple(first.std.flatten().tolist()))
    return next((name for name, known in NORMALIZATIONS.items() if known and np.allclose(found, known, atol=1e-6)), "")


def from_checkpoint(path: str | Path, *, dataset: str = "", arch: str = "", normalize: str = "auto") -> BaseClassifier:
    """Load a checkpoint of the field as it is.

    Understood: `arch` + `state_dict` (locuslab/smoothing, smoothing-adversarial, DDRS), `net` (MACER), plain state
    dicts, safetensors; `DataParallel` prefixes and a normalise layer in front are taken off.

    Raises: InputError naming what did not fit.
    """
    if arch and arch not in ARCHITECTURES:
        raise InputError(f"expected arch to be one of {', '.join(ARCHITECTURES)}, got {arch!r}.")
    path = user_path(path)
    content, metadata = checkpoints.read(path)
    state, container = checkpoints.state_dict(content, path)
    found_arch, prefix, state = checkpoints.match(state, arch or metadata.get("arch", ""), path)
    if normalize == "auto":
        normalize = metadata.get("normalize") or _normalization(found_arch, container, prefix, dataset)
    if normalize not in NORMALIZATIONS:
        raise InputError(f"expected normalize to be auto or one of {', '.join(NORMALIZATIONS)}, got {normalize!r}.")
    network = ARCHITECTURES[found_arch](num_classes=len(state["fc.weight"]))
    network.load_state_dict(state)
    return BaseClassifier(
        network=with_normalization(network, normalize),
        name=_name(path),
        arch=found_arch,
        normalize=normalize,
        notes=(metadata["note"],) if metadata.get("note") else (),
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
            rivals[other] = _accuracy(with_normalization(inner, other).to(images.device)(images.clone()), labels)
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


def _name(path: Path) -> str:
    """What to call a checkpoint: its file's name, with the folder's where the field calls every file the same."""
    stem = Path(path.name.removesuffix(".tar")).stem
    return f"{path.resolve().parent.name}-{stem}" if stem in ("checkpoint", "model", "best", "best_model") else stem


def _normalization(arch: str, container: str, prefix: str, dataset: str) -> str:
    """The field's convention for a checkpoint that does not say: each project normalises in its own way."""
    family = "imagenet" if arch == "resnet50" else "cifar10"
    if prefix == "1.":  # a normalise layer stands first: locuslab/smoothing, smoothing-adversarial
        return family
    if container == "net" or arch == "digits_cnn":  # MACER trains on pixels as they are
        return "none"
    return dataset if dataset in MEAN_STD else family


def with_normalization(network: nn.Module, normalize: str) -> nn.Module:
    """The network behind its normalise layer, a name of NORMALIZATIONS; in eval mode."""
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
        with_normalization(network, "imagenet"), "torchvision-resnet50", "resnet50", "imagenet", (note,)
    )
