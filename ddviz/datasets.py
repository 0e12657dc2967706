"""Images to certify: digits | cifar10 | imagenet | any folder of class folders.

Every data set yields float32 pixels in [0, 1], not normalised: noise is added before the network normalises.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from ddviz.errors import InputError

SPLITS = ("train", "test")
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp"}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DIGITS_TRAIN = 1200  # of 1797; consecutive images share a writer, so a cut keeps most test writers unseen


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, read one at a time.

    `indices` are the images' numbers in the whole split: they name records and noise, so that a subset's results
    are those of the whole run. `read(i)` gives the pixels of number i.
    """

    name: str
    classes: tuple[str, ...]
    labels: Sequence[int]
    indices: Sequence[int]
    read: Callable[[int], Tensor]
    where: str

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Tensor:
        """Pixels (C, H, W) of the image with this number.

        Raises: InputError for an image that cannot be read, holds NaN, or leaves [0, 1].
        """
        return checked_image(self.read(index), f"image {index} of {self.name} ({self.where})")

    def images(self, indices: Sequence[int]) -> Tensor:
        """Pixels (B, C, H, W) of several images.

        Raises: InputError where their sizes differ.
        """
        images = [self.image(index) for index in indices]
        for index, image in zip(indices, images, strict=True):
            check_size(image, index, images[0].shape, indices[0])
        return torch.stack(images)


def check_size(image: Tensor, index: int, shape: torch.Size, first: int) -> None:
    """Raise an InputError where an image has not the shape of the first one."""
    if image.shape != shape:
        raise InputError(
            f"expected images of one size, got {tuple(shape)} (image {first}) and {tuple(image.shape)} (image "
            f"{index}). Set image_size to resize and crop them all."
        )


def checked_image(x: Tensor, what: str) -> Tensor:
    """The image as it is, if it is float pixels (C, H, W) in [0, 1] without NaN; else an InputError."""
    if x.ndim != 3:
        raise InputError(f"expected {what} to be (channels, height, width), got shape {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise InputError(f"expected {what} as float pixels in [0, 1], got {x.dtype}. Divide 8-bit pixels by 255.")
    if not x.numel():
        raise InputError(f"expected {what} to have pixels, got shape {tuple(x.shape)}.")
    if not torch.isfinite(x).all():
        raise InputError(f"expected pixels in [0, 1], got NaN or infinity in {what}. Repair that image.")
    low, high = x.min().item(), x.max().item()
    if low < 0 or high > 1:
        raise InputError(
            f"expected pixels in [0, 1], got {low:.3g} to {high:.3g} in {what}. Give pixels before any "
            "normalisation: the network normalises, after the noise is added."
        )
    return x


def user_path(text: str | Path) -> Path:
    """A path as a user writes it: ~ is a home folder, where there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def default_data_root() -> Path:
    """The folder named by DDVIZ_DATA, else ddviz in the user's cache folder."""
    if root := os.environ.get("DDVIZ_DATA"):
        return user_path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddviz"


def load(
    name: str,
    *,
    split: str = "test",
    data_root: str | Path = "",
    skip: int = 1,
    max_images: int = 0,
    download: bool = False,
    image_size: int = 0,
) -> ImageSet:
    """Load a data set by name, or any folder of class folders by its path; it may hold train/ and test/ with them.

    skip: take every skip-th image of the split, as the field does. max_images: then at most so many (0: all).
    data_root: where data lies ("": see `default_data_root`). download: fetch CIFAR-10 if it is missing.
    image_size: resize the shorter side of a folder's images to this and crop the centre (0: as they are).

    Raises: InputError for an unknown name or missing data: what was looked for, where, how to get it.
    """
    root = user_path(data_root) if data_root else default_data_root()
    if split not in SPLITS:
        raise InputError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}.")
    if skip < 1 or max_images < 0 or image_size < 0:
        raise InputError(
            f"expected skip >= 1, max_images >= 0, image_size >= 0, got {skip}, {max_images}, {image_size}."
        )
    if name in DATASETS:
        if image_size:
            raise InputError(f"image_size is for folders of images; {name} has a size of its own. Leave it out.")
        whole = DATASETS[name](root, split, download)
    elif name and (folder := user_path(name)).is_dir():
        part = folder / split if all((folder / each).is_dir() for each in SPLITS) else folder
        if split == "train" and part == folder:
            raise InputError(
                f"expected train/<class>/ and test/<class>/ in {folder}, to train on the one and test on the other."
            )
        whole = from_folder(part, name=folder.resolve().name, resize=image_size, crop=image_size)
    else:
        raise InputError(
            f"expected dataset to be one of {', '.join(DATASETS)}, or a folder of class folders, got {name!r}."
        )
    indices = whole.indices[::skip]
    return ImageSet(whole.name, whole.classes, whole.labels, indices[: max_images or None], whole.read, whole.where)


def from_folder(folder: Path, *, name: str, resize: int = 0, crop: int = 0, classes: Sequence[str] = ()) -> ImageSet:
    """Images in class folders: the sorted folder names are the classes, the sorted files of each its images.

    All images are read as RGB, or all as grey where the first one is grey.

    Raises: InputError for a folder without class folders, or with others than the expected `classes`.
    """
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if classes and found != list(classes):
        raise InputError(
            f"expected the class folders {', '.join(classes)} in {folder}, found {', '.join(found) or 'none'}."
        )
    files = [(path, label) for label, cls in enumerate(found) for path in sorted((folder / cls).iterdir())]
    files = [(path, label) for path, label in files if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    if not files:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(
            f"expected {folder}/<class>/<image> ({kinds}), found {len(found)} class folders with no image."
        )
    paths = [path for path, _ in files]
    grey = not classes and read_image(paths[0], mode="").shape[:1] == (1,)
    return ImageSet(
        name=name,
        classes=tuple(found),
        labels=[label for _, label in files],
        indices=range(len(files)),
        read=lambda index: read_image(paths[index], mode="L" if grey else "RGB", resize=resize, crop=crop),
        where=str(folder),
    )


def read_image(path: Path, *, mode: str = "RGB", resize: int = 0, crop: int = 0) -> Tensor:
    """Pixels (C, H, W) in [0, 1] of an image file, or of a .npy array that holds them already.

    mode: "RGB", "L" (grey), or "" for whichever the file is. resize: length of the shorter side; crop: side of the
    square cut from the centre (0: neither).

    Raises: InputError for a file that is no image.
    """
    try:
        image: Any = _opened(path, mode)
        if resize:
            low_high = torch.aminmax(image) if isinstance(image, Tensor) else None
            image = transforms.resize(image, [resize])
            if low_high:  # interpolation overshoots by a rounding
                image = image.clamp(*low_high)
        if crop:
            image = transforms.center_crop(image, [crop])
        return image if isinstance(image, Tensor) else transforms.to_tensor(image)
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise InputError(f"cannot read the image {path}: {error}. Replace or remove it.") from error


def _opened(path: Path, mode: str) -> Image.Image | Tensor:
    """An 8-bit image in the wanted mode, or float pixels as they stand in the file."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    with Image.open(path) as file:
        image = file
        if file.mode == "F":
            return torch.from_numpy(np.array(file)).expand(3 if mode == "RGB" else 1, -1, -1)
        if file.mode.startswith("I"):  # 16-bit grey, which PIL's own conversion would saturate
            image = Image.fromarray((np.asarray(file, dtype=np.uint32) >> 8).astype(np.uint8))
        return image.convert(mode or ("L" if image.mode in ("1", "L", "LA") else "RGB"))


def _digits(_root: Path, split: str, _download: bool) -> ImageSet:
    from sklearn.datasets import load_digits  # here because it takes a second that other data sets need not wait

    pixels, target = load_digits(return_X_y=True)  # (1797, 64), integers 0 to 16
    pixels = torch.from_numpy(pixels / 16.0).float().view(-1, 1, 8, 8)
    part = slice(0, _DIGITS_TRAIN) if split == "train" else slice(_DIGITS_TRAIN, None)
    images, labels = pixels[part], target[part].tolist()
    return ImageSet(
        name="digits",
        classes=tuple("0123456789"),
        labels=labels,
        indices=range(len(images)),
        read=lambda index: images[index].clone(),
        where="scikit-learn",
    )


def _cifar10(root: Path, split: str, download: bool) -> ImageSet:
    from torchvision.datasets import CIFAR10

    for base in (root / "cifar10", root):
        if (base / split).is_dir():
            return from_folder(base / split, name="cifar10", classes=CIFAR10_CLASSES)
    archive = next((base for base in (root / "cifar10", root) if (base / CIFAR10.base_folder).is_dir()), None)
    if archive is None and not download:
        raise InputError(
            f"cifar10 was not found: looked for {CIFAR10.base_folder}/ (torchvision's archive, unpacked) and "
            f"{split}/<class>/ in {root / 'cifar10'} and {root}. Set data_root or DDVIZ_DATA to where it lies, or "
            f"fetch it (170 MB): python -c \"import ddviz; ddviz.datasets.load('cifar10', data_root='{root}', "
            'download=True)"'
        )
    try:
        data = CIFAR10(archive or root / "cifar10", train=split == "train", download=download)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cifar10 could not be read or fetched at {archive or root / 'cifar10'}: {error}") from error
    return ImageSet(
        name="cifar10",
        classes=CIFAR10_CLASSES,
        labels=data.targets,
        indices=range(len(data.targets)),
        read=lambda index: transforms.to_tensor(data.data[index]),
        where=str(archive or root / "cifar10"),
    )


def _imagenet(root: Path, split: str, _download: bool) -> ImageSet:
    part = "val" if split == "test" else "train"
    folders = [root / "imagenet" / part, root / part]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise InputError(
            f"imagenet was not found: looked for {part}/<wnid>/*.JPEG in {root / 'imagenet'} and {root}. ImageNet "
            "must be requested at image-net.org (ILSVRC 2012); sort the validation images into one folder per wnid, "
            "and set data_root or DDVIZ_DATA to the folder that holds it."
        )
    images = from_folder(folder, name="imagenet", resize=256, crop=224)
    if len(images.classes) != 1000:
        raise InputError(
            f"expected 1000 wnid folders in {folder}, found {len(images.classes)}: label numbers are places in the "
            "sorted list of all wnids. Add the missing folders (they may be empty), or pass the folder's path as "
            "dataset."
        )
    return images


DATASETS: dict[str, Callable[[Path, str, bool], ImageSet]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "imagenet": _imagenet,
}
"""Data sets by name; each takes (root, split, download)."""
