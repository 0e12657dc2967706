"""The training loop and its checkpoint: Algorithm 2 of arXiv 2012.04351 around any objective.

All randomness is named by (seed, epoch) or (seed, step), so that a killed run goes on from its checkpoint as if nothing
had happened, and several processes train as one would on the same batches. (Several on CPUs do not share BatchNorm's
statistics, for torch cannot; on GPUs they do.)
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ddviz.batches import Share, Source, augmented, epoch_order
from ddviz.errors import InputError, explained_memory_errors
from ddviz.noise import NoiseKey, NoiseStream, Stage
from ddviz.objectives import Batch, Objective
from ddviz.recipe import Recipe
from ddviz.schedules import SCHEDULES
from ddviz.smoothing import smoothing_for
from ddviz.trainfolder import Epoch, TrainFolder, sigma_counts

_MOMENTUM = 0.9
_PROGRESS_EVERY = 5  # seconds


class Precision(nn.Module):
    """A network as it is trained: its convolutions in lower precision, logits in float32."""

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.network, self._device, self._dtype = network, device.type, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
            return self.network(x.contiguous(memory_format=torch.channels_last)).float()


@dataclass(frozen=True)
class Lessons:
    """What is trained on, and some test images to watch progress with; all on the device.

    labels: (N,) of the source's rows. test: (M, C, H, W), test_labels: (M,).
    """

    source: Source
    labels: Tensor
    test: Tensor
    test_labels: Tensor


class Trainer:
    """A network in training, with everything that its checkpoint holds."""

    def __init__(self, recipe: Recipe, model: Precision, images: int, device: torch.device, share: Share):
        self.recipe, self.device, self.share = recipe, device, share
        self.smoothing, self.search = smoothing_for(recipe.norm), recipe.make_search()
        if share.world > 1 and device.type == "cuda":
            model.network = nn.SyncBatchNorm.convert_sync_batchnorm(model.network)
        if recipe.compile:
            model.compile()
        self.model = model
        self.parallel: nn.Module = DistributedDataParallel(model) if share.world > 1 else model
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise InputError("expected a network with parameters to train, got none.")
        self.optimizer = torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=_MOMENTUM,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        self.steps_per_epoch = images // recipe.batch  # the images left over change with the order
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step = 0
        self.sigma = torch.full((images,), recipe.sigma, device=device)
        self.moved = torch.zeros(images, dtype=torch.bool, device=device)  # by this process, since all agreed
        self.loss = torch.zeros((), device=device)  # summed over the epoch's steps
        self.history: list[Epoch] = []
        self.seconds = 0.0
        self._since = time.perf_counter()

    def run(self, lessons: Lessons, objective: Objective, folder: TrainFolder, on_epoch: Callable[[], object]) -> None:
        """Train from where the state stands to the end, with a checkpoint after every epoch and some steps between."""
        self._since = time.perf_counter()
        with self._progress() as progress:
            while self.step < self.steps:
                epoch, first = divmod(self.step, self.steps_per_epoch)
                size = self.recipe.batch
                order = epoch_order(len(self.sigma), seed=self.recipe.seed, epoch=epoch).to(self.device)
                rows = [self.share.of(part) for part in order.split(size)[first : self.steps_per_epoch]]
                for chosen, x in zip(rows, lessons.source.batches(rows), strict=True):
                    with explained_memory_errors("batch", size):
                        self._step(objective, epoch, chosen, x, lessons.labels[chosen])
                    progress.update()
                    if self.step % self.recipe.checkpoint_steps == 0 and self.step % self.steps_per_epoch:
                        self._save(folder)
                with explained_memory_errors("batch", size):
                    self._end_epoch(epoch, lessons)
                self._save(folder)
                last = self.history[-1]
                shown = {"loss": f"{last.loss:.3f}", "noisy_accuracy": f"{last.noisy_accuracy:.3f}"}
                progress.set_postfix(shown, refresh=False)
                if self.share.rank == 0:
                    on_epoch()

    def _step(self, objective: Objective, epoch: int, rows: Tensor, x: Tensor, y: Tensor) -> None:
        recipe = self.recipe
        if recipe.augment:
            x = augmented(x, seed=recipe.seed, step=self.step, share=self.share)
        if recipe.ds and epoch >= recipe.warmup_epochs:
            self._search(epoch, rows, x)
        self.parallel.train()
        loss = objective(self.parallel, Batch(x, y, self.sigma[rows], epoch, self.smoothing, self._drawer(x)))
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"expected the objective to return a scalar loss, got {got}.")
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * SCHEDULES[recipe.schedule](self.step / self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.detach()
        self.step += 1

    def _search(self, epoch: int, rows: Tensor, x: Tensor) -> None:
        """K steps of Algorithm 1 from where the images' scales stood; an image's noise is new at each visit."""
        seed = NoiseKey(self.recipe.seed, epoch, Stage.TRAIN).block_seed(0)
        start, numbers = self.sigma[rows], rows.tolist()
        try:
            path = self.search(self.model, x, start, smoothing=self.smoothing, seed=seed, indices=numbers)
        except InputError as error:  # all that was checked before training stands, but for NaN
            raise self._diverged() from error
        self.sigma[rows], self.moved[rows] = path.chosen, True

    def _drawer(self, x: Tensor) -> Callable[[int], Tensor]:
        """Standard noise for the images of a step; each call reads on in the step's stream, each process its share."""
        key = NoiseKey(self.recipe.seed, self.step, Stage.TRAIN)
        stream = NoiseStream(self.smoothing, key, x.shape[1:], self.device)
        drawn = 0

        def draw(samples: int) -> Tensor:
            nonlocal drawn
            out = torch.empty(len(x), samples, *x.shape[1:], device=self.device)
            stream.fill(out.flatten(0, 1), drawn + self.share.rank * len(x) * samples)
            drawn += self.share.world * len(x) * samples
            return out

        return draw

    def _end_epoch(self, epoch: int, lessons: Lessons) -> None:
        """Measure what the epoch brought; noise on the test images is the same after every epoch."""
        self._agree()
        loss = self.loss.item() / self.steps_per_epoch
        self.loss.zero_()
        self.model.eval()
        test, labels = lessons.test, lessons.test_labels
        key = NoiseKey(self.recipe.seed, 0, Stage.PREDICT)
        noise = NoiseStream(self.smoothing, key, test.shape[1:], self.device).fill(torch.empty_like(test), 0)
        self.history.append(
            Epoch(
                epoch=epoch + 1,
                loss=loss,
                clean_accuracy=accuracy(self.model, test, labels, self.recipe.batch),
                noisy_accuracy=accuracy(self.model, test + self.recipe.sigma * noise, labels, self.recipe.batch),
                sigma_counts=sigma_counts(self.sigma, self.recipe.sigma),
            )
        )

    def _agree(self) -> None:
        """Let all processes know the mean loss and the noise scales that each has moved."""
        if self.share.world > 1:
            found, moved = torch.where(self.moved, self.sigma, 0), self.moved.float()
            dist.all_reduce(found)
            dist.all_reduce(moved)
            self.sigma = torch.where(moved > 0, found, self.sigma)
            self.moved.zero_()
            dist.all_reduce(self.loss)
            self.loss /= self.share.world

    def _save(self, folder: TrainFolder) -> None:
        """Write a checkpoint: the first process does."""
        self._agree()
        if not all(torch.isfinite(parameter).all() for parameter in self.model.parameters()):
            raise self._diverged()
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        if self.share.rank == 0:
            cuda = self.device.type == "cuda"
            state: dict[str, Any] = {
                "step": self.step,
                "network": self.model.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sigma": self.sigma,
                "loss": self.loss,
                "seconds": self.seconds,
                "rng": torch.get_rng_state(),  # a network of the user's may draw from the global generators
                "cuda_rng": torch.cuda.get_rng_state(self.device) if cuda else None,
            }
            folder.save(state, self.history)

    def _diverged(self) -> InputError:
        return InputError(
            f"the weights became NaN or infinite by step {self.step}. Set a lower lr, and another name or run_root."
        )

    def resume(self, state: dict[str, Any], history: list[Epoch]) -> None:
        """Take up a checkpoint."""
        self.history = history
        self.model.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.sigma, self.loss = state["sigma"].to(self.device), state["loss"].to(self.device)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def _progress(self) -> tqdm:
        return tqdm(
            total=self.steps,
            initial=self.step,
            desc=self.recipe.title,
            unit="step",
            mininterval=_PROGRESS_EVERY,  # a line every few seconds reads well in a log
            maxinterval=_PROGRESS_EVERY,
            file=sys.stdout,
            disable=self.share.rank > 0,
        )


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of images (N, C, H, W) that the network classifies as their labels (N,)."""
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    return sum(int((network(x).argmax(1) == y).sum()) for x, y in parts) / len(labels)
