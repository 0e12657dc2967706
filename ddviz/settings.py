"""What all settings have in common: frozen dataclasses of plain values, checked before anything is loaded."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import torch

from ddviz.datasets import DATASETS, user_path
from ddviz.errors import InputError

_MARK = "_ddviz_guarded"
Number = TypeVar("Number", int, float)


class Settings:
    """Base of the settings dataclasses; a subclass checks its own values in `_check`.

    papermill and users are forgiven an int for a float, and a whole float (1e5) for an int. Fields that are named in
    `_lists` are numbers separated by commas; one alone may be a number, as which papermill reads it.
    """

    _lists: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        self._check_types()
        self._check()

    def _check(self) -> None:
        raise NotImplementedError

    @classmethod
    def from_namespace(cls, namespace: dict[str, object]) -> Self:
        """Settings from a notebook's variables; a plain value under an unknown name is refused.

        papermill only warns of an unknown `-p` name. Run again in the same kernel, only names that look like a
        parameter's are refused: by then the namespace holds the reader's own.

        Raises: InputError naming the parameter.
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        plain = (str, int, float, bool, list, dict, tuple, type(None))
        rerun = _MARK in namespace
        unknown = [
            name
            for name, value in namespace.items()
            if not name.startswith("_") and isinstance(value, plain) and name not in (*known, "In", "Out")
        ]
        for name in unknown:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.8 if rerun else 0.6)
            if near or not rerun:
                hint = f" Did you mean {near[0]}?" if near else ""
                raise InputError(f"unknown parameter {name}.{hint} Known: {', '.join(known)}.")
        settings = cls(**{name: namespace[name] for name in known if name in namespace})
        namespace[_MARK] = True
        return settings

    def _check_types(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                value = float(value)
            elif field.type is int and type(value) is float and value.is_integer():
                value = int(value)
            elif isinstance(value, Path if field.name not in self._lists else int | float) and field.type is str:
                value = str(value)
            elif type(value) is not field.type:
                kind = getattr(field.type, "__name__", field.type)
                raise InputError(f"expected {field.name} to be {kind}, got {value!r} ({type(value).__name__}).")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"expected {field.name} to be a finite number, got {value}.")
            object.__setattr__(self, field.name, value)

    def _check_choices(self, choices: Mapping[str, Iterable[str]]) -> None:
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(choice or '""' for choice in allowed)
                raise InputError(f"expected {name} to be one of {shown}, got {getattr(self, name)!r}.")

    def _check_least(self, least: Mapping[str, float]) -> None:
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"expected {name} >= {low}, got {getattr(self, name)}.")

    def _numbers(self, name: str, kind: type[Number], least: float) -> list[Number]:
        """The numbers in a field that lists them, ascending, each once."""
        text = getattr(self, name)
        try:
            numbers = sorted({kind(part) for part in text.split(",")})
        except ValueError:
            raise InputError(f'expected {name} to be numbers separated by commas ("1,2,4"), got {text!r}.') from None
        if not numbers[0] >= least:
            raise InputError(f"expected {name} >= {least:g}, got {numbers[0]:g}.")
        return numbers

    def _check_sigma(self, sigma: float) -> None:
        if sigma <= 0:
            raise InputError(f"expected sigma > 0, a noise scale in [0,1]-pixel units, got {sigma:g}.")

    def _check_clamp(self, clamp: float) -> None:
        if not 0 < clamp < 0.5:
            raise InputError(f"expected clamp in (0, 0.5), got {clamp:g}.")

    def _bounds(self, **bounds: float) -> dict[str, float]:
        """The bounds of a search that are set; 0 leaves the solver's own."""
        return {name: bound for name, bound in bounds.items() if bound}

    def _check_dataset(self, dataset: str) -> None:
        if dataset not in DATASETS and not user_path(dataset).is_dir():
            near = difflib.get_close_matches(dataset, DATASETS, 1)
            raise InputError(
                f"expected dataset to be one of {', '.join(DATASETS)}, or a folder of class folders, got "
                f"{dataset!r}." + (f" Did you mean {near[0]}?" if near else "")
            )

    def _check_device(self, device: str) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise InputError(f"expected device to be auto, cpu, cuda or cuda:N, got {device!r}.")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError("expected device to be cpu or auto: torch sees no CUDA device here, got 'cuda'.")


def torch_device(device: str) -> torch.device:
    """The device that a setting names; auto is CUDA where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
