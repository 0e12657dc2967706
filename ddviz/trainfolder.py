"""The folder of a training run.

config.json           everything that decides the weights
checkpoint.pt         all that a killed run needs to go on, written whole
history.tsv           loss, accuracies and the spread of sigma_x, a line an epoch
<name>.safetensors    the result in float16, with its recipe
"""

import io
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddviz.checkpoints import first_line
from ddviz.errors import InputError
from ddviz.records import format_row, write_atomically
from ddviz.runfolder import Folder

SIGMA_EDGES = [2 ** (step / 10) for step in range(-20, 21)]
"""Edges of the bins that count noise scales, in units of sigma_0: a tenth of an octave each."""


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean loss, accuracy of test images without and under noise of scale sigma_0, spread of sigma_x.

    sigma_counts: training images in each bin of SIGMA_EDGES; those beyond count in the outermost.
    """

    epoch: int
    loss: float
    clean_accuracy: float
    noisy_accuracy: float
    sigma_counts: list[int]


def sigma_counts(sigma: Tensor, sigma_0: float) -> list[int]:
    """Noise scales (N,) in each bin of SIGMA_EDGES."""
    edges = torch.tensor(SIGMA_EDGES[1:-1], device=sigma.device)
    bins = torch.bucketize(sigma / sigma_0, edges, right=True)
    return torch.bincount(bins, minlength=len(SIGMA_EDGES) - 1).tolist()


@dataclass(frozen=True)
class TrainFolder(Folder):
    """Files of one training run."""

    @property
    def checkpoint(self) -> Path:
        """State of the run at the last checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def weights(self) -> Path:
        """The finished network."""
        return self.path / f"{self.path.name}.safetensors"

    def begun(self) -> bool:
        return self.checkpoint.exists() or self.weights.exists()

    def save(self, state: dict[str, Any], history: Sequence[Epoch]) -> None:
        """Write a checkpoint and the history."""
        columns = ["epoch", "loss", "clean_accuracy", "noisy_accuracy", "sigma_counts"]
        lines = [[*list(asdict(epoch).values())[:-1], " ".join(map(str, epoch.sigma_counts))] for epoch in history]
        write_atomically(self.path / "history.tsv", "".join(map(format_row, [columns, *lines])))
        file = io.BytesIO()
        torch.save({**state, "history": [asdict(epoch) for epoch in history]}, file)
        write_atomically(self.checkpoint, file.getvalue())

    def load(self) -> tuple[dict[str, Any], list[Epoch]] | None:
        """The last checkpoint's state and history, None where there is none.

        Raises: InputError for a damaged file.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            return state, [Epoch(**epoch) for epoch in state.pop("history")]
        except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{self.checkpoint} is damaged ({first_line(error)}). Remove {self.path} to train anew."
            ) from error
