"""Everything that a config names, loaded and tested: images, network, and the engine ready to count."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ddviz import datasets, models
from ddviz.config import RunConfig
from ddviz.datasets import ImageSet
from ddviz.errors import InputError, explained_memory_errors
from ddviz.inference import default_dtype
from ddviz.models import BaseClassifier
from ddviz.runfolder import RunFolder, short_hash
from ddviz.sampling import Sampler
from ddviz.settings import torch_device
from ddviz.sigma import default_search_batch

_SELF_TEST_IMAGES = 32


@dataclass(frozen=True)
class Bench:
    """Everything loaded and tested, ready to certify."""

    config: RunConfig
    images: ImageSet
    base: BaseClassifier
    network: nn.Module
    sampler: Sampler
    shape: torch.Size
    search_batch: int
    images_hash: str
    model_hash: str

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
    on_device = copy.deepcopy(base.network).to(device).eval().requires_grad_(False)
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
        )
    return Bench(
        config=config,
        images=images,
        base=base,
        network=on_device,
        sampler=sampler,
        shape=pixels[0].shape,
        search_batch=config.search_batch or default_search_batch(pixels[0], config.samples),
        images_hash=short_hash(images.classes, list(map(int, images.labels))),
        model_hash=short_hash(base.digest, answers),
    )
