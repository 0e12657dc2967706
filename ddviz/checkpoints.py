"""Reading the checkpoint files of the field: which weights they hold, and of which architecture.

Foreign checkpoints are pickles, and pickles are code: they are read with `weights_only=True`, never run.
"""

import argparse
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ddviz.errors import InputError
from ddviz.networks import ARCHITECTURES

_HARMLESS: list = [argparse.Namespace]  # training scripts store their arguments; a Namespace runs nothing


def read(path: Path) -> tuple[dict, dict[str, str]]:
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
        raise InputError(f"{path} is truncated or is no checkpoint ({first_line(error)}). Fetch it again.") from error
    except Exception as error:  # a damaged file can lead its reader anywhere
        raise InputError(f"{path} is truncated or is no checkpoint ({first_line(error)}). Fetch it again.") from error
    if not isinstance(content, Mapping):
        raise InputError(f"expected {path} to hold a state dict, got a {type(content).__name__}.")
    return dict(content), {}


def _names_code(name: str) -> bool:
    """Whether a refused name is one that a pickle would run, and not the first half of one in a truncated file."""
    module, _, attribute = name.rpartition(".")
    loaded = sys.modules.get(module or "builtins")
    return bool(attribute) and (loaded is None or hasattr(loaded, attribute))


def first_line(error: Exception) -> str:
    """The first line of a foreign error, short enough to quote."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def state_dict(content: Mapping, path: Path) -> tuple[dict[str, Tensor], str]:
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


def match(state: dict[str, Tensor], arch: str, path: Path) -> tuple[str, str, dict[str, Tensor]]:
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
