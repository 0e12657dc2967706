"""Everything that a config names, loaded and tested: images, network, and the engine ready to count."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from ddviz import datasets, models
from ddviz.backends import BACKENDS
from ddviz.config import RunConfig
from ddviz.datasets import ImageSet
from ddviz.errors import InputError, explained_memory_errors
from ddviz.inference import DTYPES, Forward, compile_gradient, default_dtype, eval_copy
from ddviz.models import BaseClassifier
from ddviz.noise import NoiseKey, Stage, fill_block
from ddviz.runfolder import RunFolder, short_hash
from ddviz.sampling import Sampler, default_batch, side_by_side
from ddviz.settings import torch_device
from ddviz.sigma import Solver, default_search_batch
from ddviz.smoothing import smoothing_for

_SELF_TEST_IMAGES = 32
_AGREEMENT_IMAGES = 8
_LEAST_AGREEMENT = 0.95  # rounding to bfloat16 changes about 1 prediction of 200, a wrong preparation tens of percent


@dataclass(frozen=True)
class Bench:
    """Everything loaded and tested, ready to certify."""

    config: RunConfig
    images: ImageSet
    base: BaseClassifier
    network: nn.Module
    sampler: Sampler
    shape: torch.Size
    images_hash: str
    model_hash: str
    agreement: str

    def folder(self, method: str) -> RunFolder:
        """<data set>-<model>-<norm>-<scale>-<method> in run_root; a network of the zoo names its data set itself."""
        config, data = self.config, f"{self.images.name}-"
        name = f"{data}{self.base.name.removeprefix(data)}-{config.norm}-{config.sigma:g}-{method}"
        return RunFolder(datasets.user_path(config.run_root) / name)

    def identity(self, method: str) -> dict[str, object]:
        """Everything that decides the records of a method, choices of the package resolved."""
        identity = self.config.deciding(method) | {
            "dataset": self.images.name,
            "images": self.images_hash,
            "checkpoint": self.base.name,
            "model": self.model_hash,
            "method": method,
            "device": self.sampler.device.type,
            "dtype": self.sampler.dtype,
            "batch": self.sampler.batch,
        }
        return identity | ({} if method == "fixed" else {"search_batch": self.search_batch})

    @property
    def made_with(self) -> dict[str, str]:
        """What decides rounding and speed but not what is certified, to be told with the records."""
        device, backend = self.sampler.device, self.sampler.backend
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        told = BACKENDS[backend].versions | {"device": name, "backend": backend}
        return told | ({"agreement": self.agreement} if self.agreement else {})

    @property
    def search_batch(self) -> int:
        """Images in one pass of the search."""
        return self.config.search_batch or default_search_batch(self.shape.numel(), self.config.samples)

    def batches(self, done: Container[int]) -> Iterator[tuple[Sequence[int], list[int]]]:
        """The batches of a search that are not all done, each with what is left of it."""
        for start in range(0, len(self.images), self.search_batch):
            batch = self.images.indices[start : start + self.search_batch]
            if todo := [index for index in batch if index not in done]:
                yield batch, todo

    def form(self, solver: Solver) -> Forward:
        """The network in the form that suits a solver."""
        if solver.form == "gradient":
            return self._gradient
        return self.sampler.forward if solver.form == "forward" else self.network

    @cached_property
    def _gradient(self) -> Forward:
        example = self.image(self.images.indices[0]).to(self.sampler.device)
        return compile_gradient(self.network, example, DTYPES[self.sampler.dtype])

    def image(self, index: int) -> Tensor:
        """Pixels of one image, of the size of all."""
        image = self.images.image(index)
        datasets.check_size(image, index, self.shape, self.images.indices[0])
        return image


def prepare(config: RunConfig, network: nn.Module | None = None, images: ImageSet | None = None) -> Bench:
    """Load, test and fingerprint everything before the first certificate."""
    if images is None:
        images = datasets.load(
            config.dataset,
            data_root=config.data_root,
            skip=config.skip,
            max_images=config.max_images,
            download=config.download,
            image_size=config.image_size,
        )
    if not len(images):
        raise InputError(f"expected at least one image of {images.name} ({images.where}), got none.")
    if network is None:
        base = models.load(
            config.dataset,
            checkpoint=config.checkpoint,
            arch=config.arch,
            normalize=config.normalize,
            sigma=config.sigma,
        )
    else:
        base = BaseClassifier(network, type(network).__name__, arch="own", normalize="as given")
    device = torch_device(config.device)
    on_device = eval_copy(base.network, device)
    probes = range(0, len(images.labels), max(1, len(images.labels) // _SELF_TEST_IMAGES))[:_SELF_TEST_IMAGES]
    pixels = images.images([images.indices[0], *probes])
    labels = torch.tensor([int(images.labels[index]) for index in (images.indices[0], *probes)])
    models.self_test(replace(base, network=on_device), pixels.to(device), labels.to(device), len(images.classes))
    with torch.no_grad():  # a module of the user's may hold more than its parameters tell
        answers = on_device(pixels.to(device)).argmax(1).tolist() if base.arch == "own" else []
    with explained_memory_errors("batch", config.batch):
        sampler = Sampler.prepare(
            on_device,
            pixels[0],
            device=device,
            dtype=default_dtype(device) if config.dtype == "auto" else config.dtype,
            batch=config.batch,
            num_classes=len(images.classes),
            backend=config.backend,
        )
        agreement = _agreement(sampler, on_device, pixels, config)
    notes = [_few_classes(images), f"{agreement}." if agreement else ""]
    base = replace(base, notes=(*base.notes, *filter(None, notes)))
    return Bench(
        config=config,
        images=images,
        base=base,
        network=on_device,
        sampler=sampler,
        shape=pixels[0].shape,
        images_hash=short_hash(images.classes, list(map(int, images.labels))),
        model_hash=short_hash(base.digest, answers),
        agreement=agreement,
    )


def _few_classes(images: ImageSet) -> str:
    """A warning where the images are too few of the classes for that to be chance: folders lie in class order."""
    present, known = len({int(images.labels[index]) for index in images.indices}), len(images.classes)
    by_chance = known * (1 - (1 - 1 / known) ** len(images))
    spread = len(images.labels) // len(images)
    if len(images) < 20 or present > 0.6 * by_chance or spread < 2:
        return ""
    return (
        f"The {len(images)} images are of {present} of the {known} classes alone, since the data lie in class order: "
        f"results do not speak for all. Set skip={spread} to spread as many over all of them."
    )


def _agreement(sampler: Sampler, network: nn.Module, pixels: Tensor, config: RunConfig) -> str:
    """How often the prepared network predicts what the network itself does, under the run's noise; "" where it is it.

    pixels: images (B, C, H, W), of which some are taken. Fewer copies of large ones on a CPU, where they take long.

    Raises: InputError where that is too seldom for rounding to be the reason.
    """
    if sampler.dtype == "float32" and sampler.backend == "torch":
        return ""
    images = pixels[:: max(1, len(pixels) // _AGREEMENT_IMAGES)][:_AGREEMENT_IMAGES].to(sampler.device)
    copies = min(512, 16 * default_batch(images[0], sampler.device)) // len(images)
    smoothing = smoothing_for(config.norm)

    @torch.no_grad()
    def same(number: int) -> int:
        noise = torch.empty(copies, *images.shape[1:], device=sampler.device)
        noisy = fill_block(noise, smoothing, NoiseKey(config.seed, number, Stage.CHECK), 0).mul_(config.sigma)
        parts = noisy.add_(images[number]).split(sampler.batch)
        # a copy for the first: a network may work in place
        return sum(int((sampler.forward(x.clone()).argmax(1) == network(x).argmax(1)).sum()) for x in parts)

    agreed = sum(side_by_side(sampler.workers, *(partial(same, number) for number in range(len(images)))))
    total = copies * len(images)
    said = f"{100 * agreed / total:.1f} % of {total} noisy predictions agree with float32"
    if agreed < _LEAST_AGREEMENT * total:
        raise InputError(
            f"expected the network prepared in {sampler.dtype} by {sampler.backend} to predict under noise what the "
            f"network itself does, got {said} at sigma {config.sigma:g}. Set dtype=float32 and backend=torch."
        )
    return f"{sampler.dtype} {sampler.backend}: {said}"
