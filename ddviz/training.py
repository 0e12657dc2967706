"""Training base classifiers for smoothing: what a recipe names is loaded, trained, and saved with what is known of it.

python -m ddviz train --dataset cifar10 --sigma 0.25 --epochs 17
torchrun --nproc-per-node 8 -m ddviz train --dataset imagenet --ds
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddviz import datasets, models
from ddviz.batches import Share, source
from ddviz.datasets import ImageSet
from ddviz.errors import InputError
from ddviz.inference import default_dtype
from ddviz.models import BaseClassifier
from ddviz.networks import ARCHITECTURES, MEAN_STD
from ddviz.objectives import Objective
from ddviz.recipe import DEFAULT_ARCH, Recipe
from ddviz.sampling import DTYPES, keep_freed_memory
from ddviz.settings import torch_device
from ddviz.trainer import Lessons, Precision, Trainer
from ddviz.trainfolder import Epoch, TrainFolder


@dataclass(frozen=True)
class Training:
    """A training run: finished, `weights` is a file that `checkpoint=` and `models.load` take.

    base: the network, in training or trained. history: an entry an epoch. sigma: (N,), the scale of each training
    image. seconds: spent training, over all sessions. steps: done, of all.
    """

    recipe: Recipe
    base: BaseClassifier
    weights: Path
    history: list[Epoch]
    sigma: Tensor
    seconds: float
    steps: tuple[int, int]


def train(
    recipe: Recipe,
    *,
    network: nn.Module | None = None,
    images: ImageSet | None = None,
    test_images: ImageSet | None = None,
    objective: Objective | None = None,
    on_epoch: Callable[[Training], object] | None = None,
) -> Training:
    """Train what a recipe describes; resume where an earlier call stopped, end at once where it had ended.

    network, images, test_images, objective: your own instead of those that the recipe names. The network is trained
    in place, from the weights it has. on_epoch: called with the training so far after every epoch.

    Raises: InputError for what the user can put right; ResourceError where the machine's limits are met.
    """
    share = Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()
    if recipe.batch % share.world:
        raise InputError(f"expected batch to be a multiple of the {share.world} processes, got {recipe.batch}.")
    images, test_images = images or _load(recipe, "train"), test_images or _load(recipe, "test")
    if len(images) < recipe.batch:
        raise InputError(f"expected at least batch = {recipe.batch} training images, got {len(images)}.")
    device = torch_device(recipe.device)
    dtype = default_dtype(device) if recipe.dtype == "auto" else recipe.dtype
    if device.type == "cpu":
        keep_freed_memory()
    with torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        base = _base(recipe, network, len(images.classes))
        folder = TrainFolder(datasets.user_path(recipe.run_root) / recipe.title)
        with folder.locked() if share.rank == 0 else nullcontext():
            if share.rank == 0:
                own = {"objective": getattr(objective, "__qualname__", repr(objective))} if objective else {}
                identity = {**recipe.deciding, **own, "device": device.type, "dtype": dtype, "start": base.digest}
                folder.check_identity(identity, {"torch": torch.__version__})
            base.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            trainer = Trainer(recipe, Precision(base.network, device, DTYPES[dtype]), len(images), device, share)
            trainer.resume(folder)

            def training() -> Training:
                sigma = trainer.sigma.cpu().clone()  # on the CPU the trainer goes on changing its own
                steps = (trainer.step, trainer.steps)
                return Training(recipe, base, folder.weights, [*trainer.history], sigma, trainer.seconds, steps)

            if trainer.step < trainer.steps:
                lessons = _lessons(recipe, images, test_images, device)
                report = on_epoch or (lambda _: None)
                trainer.run(lessons, objective or recipe.make_objective(), folder, lambda: report(training()))
            base.network.eval()
            if share.rank == 0 and not folder.weights.exists():
                models.save_weights(base.network, folder.weights, _metadata(training(), dtype))
            return training()


def _load(recipe: Recipe, split: str) -> ImageSet:
    return datasets.load(
        recipe.dataset,
        split=split,
        data_root=recipe.data_root,
        download=recipe.download,
        image_size=recipe.image_size,
    )


def _base(recipe: Recipe, network: nn.Module | None, num_classes: int) -> BaseClassifier:
    """The network as training finds it."""
    if network is not None:
        return BaseClassifier(network, recipe.title, arch="own", normalize="as given")
    if recipe.init:
        base = models.load(recipe.dataset, checkpoint=recipe.init, arch=recipe.arch, normalize=recipe.normalize)
        return replace(base, name=recipe.title)
    arch = recipe.arch or DEFAULT_ARCH.get(recipe.dataset)
    if arch is None:
        raise InputError(f"expected arch to name a network for {recipe.dataset!r}: one of {', '.join(ARCHITECTURES)}.")
    auto = recipe.dataset if recipe.dataset in MEAN_STD else "none"
    normalize = auto if recipe.normalize == "auto" else recipe.normalize
    fresh = ARCHITECTURES[arch](num_classes=num_classes)
    return BaseClassifier(models.with_normalization(fresh, normalize), recipe.title, arch, normalize)


def _lessons(recipe: Recipe, images: ImageSet, test_images: ImageSet, device: torch.device) -> Lessons:
    skip = max(1, len(test_images) // recipe.eval_images)
    spread = test_images.indices[::skip][: recipe.eval_images]
    return Lessons(
        source=source(images, device, recipe.workers),
        labels=torch.tensor([int(images.labels[index]) for index in images.indices], device=device),
        test=test_images.images(spread).to(device),
        test_labels=torch.tensor([int(test_images.labels[index]) for index in spread], device=device),
    )


def _metadata(training: Training, dtype: str) -> dict[str, str]:
    """What a weights file says of itself: recipe, figures, and the command that makes it again."""
    last = training.history[-1]
    return {name: str(value) for name, value in training.recipe.deciding.items()} | {
        "arch": training.base.arch,
        "normalize": training.base.normalize,
        "dtype": dtype,
        "clean_accuracy": f"{last.clean_accuracy:.4f}",
        "noisy_accuracy": f"{last.noisy_accuracy:.4f}",
        "seconds": f"{training.seconds:.0f}",
        "command": training.recipe.command,
        "note": training.recipe.note,
    }
