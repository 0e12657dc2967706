"""Training base classifiers for smoothing: what a recipe names is loaded, trained, and saved with what is known of it.

python -m ddviz train --dataset cifar10 --sigma 0.25 --epochs 17
torchrun --nproc-per-node 8 -m ddviz train --dataset imagenet --epochs 90
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddviz import datasets, models
from ddviz.batches import Share, source
from ddviz.datasets import ImageSet
from ddviz.errors import InputError
from ddviz.inference import DTYPES, default_dtype
from ddviz.models import BaseClassifier
from ddviz.networks import ARCHITECTURES, MEAN_STD
from ddviz.objectives import Objective
from ddviz.recipe import DEFAULT_ARCH, Recipe
from ddviz.runfolder import pixel_hash, short_hash
from ddviz.sampling import keep_freed_memory
from ddviz.settings import torch_device
from ddviz.trainer import Lessons, Precision, Trainer
from ddviz.trainfolder import Epoch, TrainFolder

T = TypeVar("T")


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
    in place, from the weights it has or from the last checkpoint. on_epoch: called with the training so far after
    every epoch.

    Raises: InputError for what the user can put right; ResourceError where the machine's limits are met.
    """
    share = Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()
    device = _device(recipe, share)
    dtype = default_dtype(device) if recipe.dtype == "auto" else recipe.dtype
    if recipe.download:
        _first(share, lambda: _load(recipe, "train"))  # one process downloads
    given = {"network": network, "images": images, "objective": objective}
    own = [name for name, value in given.items() if value is not None]
    images = _load(recipe, "train") if images is None else images
    test_images = _load(recipe, "test") if test_images is None else test_images
    if len(images) < recipe.batch or not len(test_images):
        raise InputError(
            f"expected at least batch = {recipe.batch} training images and a test image, got {len(images)} and "
            f"{len(test_images)}."
        )
    if images.classes != test_images.classes:
        raise InputError(
            f"expected the same classes to train and to test on, got {', '.join(images.classes)} and "
            f"{', '.join(test_images.classes)}."
        )
    if device.type == "cpu":
        keep_freed_memory()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(recipe.seed)
        base = _base(recipe, network, len(images.classes))
        start = short_hash(str(network)) if network is not None else base.digest
        base.network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        _check_network(base.network, images, test_images, device)
        folder = TrainFolder(datasets.user_path(recipe.run_root) / recipe.title)
        identity = {
            **recipe.deciding,
            **({"objective": _name(objective)} if objective else {}),
            **{"device": device.type, "dtype": dtype, "start": start, "images": _images_hash(images)},
        }

        def take_up() -> tuple | None:
            stack.enter_context(folder.locked())
            folder.check_identity(identity, {"torch": torch.__version__})
            return folder.load()

        found = _first(share, take_up)
        trainer = Trainer(recipe, Precision(base.network, device, DTYPES[dtype]), len(images), device, share)
        if found is not None:
            trainer.resume(*found)

        def training() -> Training:
            sigma = trainer.sigma.cpu().clone()  # on the CPU the trainer goes on changing its own
            steps = (trainer.step, trainer.steps)
            return Training(recipe, base, folder.weights, [*trainer.history], sigma, trainer.seconds, steps)

        unfinished = trainer.step < trainer.steps
        if unfinished:
            lessons = _lessons(recipe, images, test_images, device)
            report = on_epoch or (lambda _: None)
            trainer.run(lessons, objective or recipe.make_objective(), folder, lambda: report(training()))
        base.network.eval()
        if share.rank == 0 and (unfinished or not folder.weights.exists()):
            metadata = _metadata(training(), str(identity["objective"]), dtype, own)
            models.save_weights(base.network, folder.weights, metadata)
        return training()


def _device(recipe: Recipe, share: Share) -> torch.device:
    """The device of this process."""
    device = torch_device(recipe.device)
    if recipe.batch % share.world:
        raise InputError(f"expected batch to be a multiple of the {share.world} processes, got {recipe.batch}.")
    if share.world > 1 and device.index is not None:
        raise InputError(f"expected device auto, cuda or cpu for {share.world} processes, got {recipe.device!r}.")
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


def _first(share: Share, work: Callable[[], T]) -> T:
    """What the first process finds, for all; they share its InputError, too, instead of waiting for it."""
    found: list = [None, None]
    if share.rank == 0:
        try:
            found = [work(), None]
        except InputError as error:
            found = [None, error]
    if share.world > 1:
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


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
        return BaseClassifier(network, recipe.title, "own", models.normalization_of(network) or "none")
    arch = recipe.arch or DEFAULT_ARCH.get(recipe.dataset, "")
    if recipe.init:
        base = models.load(recipe.dataset, checkpoint=recipe.init, arch=arch, normalize=recipe.normalize)
        return replace(base, name=recipe.title, notes=(), metadata={})
    if not arch:
        raise InputError(f"expected arch to name a network for {recipe.dataset!r}: one of {', '.join(ARCHITECTURES)}.")
    auto = recipe.dataset if recipe.dataset in MEAN_STD else "none"
    normalize = auto if recipe.normalize == "auto" else recipe.normalize
    fresh = ARCHITECTURES[arch](num_classes=num_classes)
    return BaseClassifier(models.with_normalization(fresh, normalize), recipe.title, arch, normalize)


def _check_network(network: nn.Module, images: ImageSet, test_images: ImageSet, device: torch.device) -> None:
    """Find what does not fit before hours are spent."""
    if len(images.classes) < 2:
        raise InputError(f"expected at least two classes, got {', '.join(images.classes) or 'none'}.")
    for part in (images, test_images):
        image = part.image(part.indices[0]).to(device)
        models.checked_logits(network, image[None], len(images.classes))


def _images_hash(images: ImageSet) -> str:
    """Names the training images: all labels and numbers, the pixels of some."""
    some = images.indices[:: max(1, len(images) // 8)]
    return short_hash(
        *([int(images.labels[index]) for index in images.indices], list(images.indices)),
        [pixel_hash(images.image(index)) for index in some],
    )


def _name(objective: Objective) -> str:
    """What an objective of the user's is called, the same in every process."""
    return getattr(objective, "__qualname__", re.sub(r" at 0x[0-9a-f]+", "", repr(objective)))


def _lessons(recipe: Recipe, images: ImageSet, test_images: ImageSet, device: torch.device) -> Lessons:
    skip = max(1, len(test_images) // recipe.eval_images)
    spread = test_images.indices[::skip][: recipe.eval_images]
    return Lessons(
        source=source(images, device, recipe.workers),
        labels=torch.tensor([int(images.labels[index]) for index in images.indices], device=device),
        test=test_images.images(spread).to(device),
        test_labels=torch.tensor([int(test_images.labels[index]) for index in spread], device=device),
    )


def _metadata(training: Training, objective: str, dtype: str, own: list[str]) -> dict[str, str]:
    """What a weights file says of itself: recipe, figures, and the command that makes it again where one does."""
    last = training.history[-1]
    return {name: str(value) for name, value in training.recipe.deciding.items()} | {
        "arch": "" if training.base.arch == "own" else training.base.arch,
        "normalize": training.base.normalize,
        "objective": objective,
        "dtype": dtype,
        "clean_accuracy": f"{last.clean_accuracy:.4f}",
        "noisy_accuracy": f"{last.noisy_accuracy:.4f}",
        "seconds": f"{training.seconds:.0f}",
        "command": "" if own else training.recipe.command,
        "own": ", ".join(own),
        "note": training.recipe.note,
    }
