"""Data sets yield float pixels in [0, 1] under fixed numbers; missing, foreign and damaged data is named."""

import hashlib
import io
import pickle
import re
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets.cifar
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from ddviz.datasets import CIFAR10_CLASSES, IMAGE_SUFFIXES, default_data_root, load
from ddviz.errors import InputError


def colours(height: int = 4, width: int = 4, seed: int = 0) -> np.ndarray:
    """8-bit pixels (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(image.astype(np.float32) / 255, -1, 0))


def put(path: Path, image: object) -> None:
    """Write an image (8-bit, PIL), an array for .npy, or bytes; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        path.write_bytes(image)
    elif path.suffix == ".npy":
        np.save(path, image, allow_pickle=True)  # type: ignore[arg-type]
    else:
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)  # type: ignore[arg-type]


def bytes_of(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of PNG images, and things that are none."""
    for seed, name in enumerate(["dog/b.png", "cat/z.PNG", "cat/a.png", ".hidden/x.png"]):
        put(tmp_path / "pets" / name, colours(seed=seed))
    put(tmp_path / "pets/dog/notes.txt", b"no image")
    put(tmp_path / "pets/readme.png", colours())
    return tmp_path / "pets"


def test_digits_are_split_once_and_for_all():
    pixels, target = load_digits(return_X_y=True)
    train, test = load("digits", split="train"), load("digits")
    assert (len(train), len(test), train.classes) == (1200, 597, tuple("0123456789"))
    whole = torch.cat([data.images(data.indices) for data in (train, test)])
    assert whole.shape == (1797, 1, 8, 8) and whole.dtype == torch.float32
    assert torch.equal(whole, torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16)  # each once: disjoint
    assert [*train.labels, *test.labels] == target.tolist()
    assert list(test.labels[:10]) == [7, 7, 3, 5, 1, 0, 0, 2, 2, 7]
    assert (whole.min(), whole.max()) == (0, 1)
    test.image(3).zero_()  # a copy
    assert torch.equal(test.image(3), whole[1203])


@pytest.mark.parametrize(
    ("skip", "max_images", "indices"),
    [(20, 0, range(0, 597, 20)), (20, 3, [0, 20, 40]), (1, 2, [0, 1]), (600, 0, [0]), (300, 9, [0, 300])],
)
def test_a_subset_keeps_the_numbers_of_the_whole_split(skip, max_images, indices):
    whole, part = load("digits"), load("digits", skip=skip, max_images=max_images)
    assert list(part.indices) == list(indices) and len(part) == len(indices)
    assert torch.equal(part.images(part.indices), whole.images(indices))
    assert [part.labels[i] for i in part.indices] == [whole.labels[i] for i in indices]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("digits", {"skip": 0}, "skip >= 1.*got 0, 0, 0"),
        ("digits", {"max_images": -1}, "max_images >= 0.*got 1, -1, 0"),
        ("digits", {"image_size": -8}, "image_size >= 0.*got 1, 0, -8"),
        ("digits", {"image_size": 8}, "image_size is for folders of images; digits has a size of its own"),
        ("digits", {"split": "val"}, "split to be one of train, test, got 'val'"),
        (
            "cifar100",
            {},
            "dataset to be one of digits, cifar10, imagenet, or a folder of class folders, got 'cifar100'",
        ),
        ("~nobody-of-this-name/images", {}, "or a folder of class folders, got '~nobody"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(InputError, match=message):
        load(name, **settings)


def test_class_folders_are_read_in_sorted_order(folder):
    data = load(str(folder))
    assert (data.name, data.classes, list(data.labels)) == ("pets", ("cat", "dog"), [0, 0, 1])
    expected = torch.stack([as_pixels(colours(seed=seed)) for seed in (2, 1, 0)])
    assert torch.equal(data.images(data.indices), expected)
    assert list(load(str(folder), skip=2).indices) == [0, 2]


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".npy"}))
def test_every_kind_of_image_file_is_read(suffix, tmp_path):
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)  # flat: lossy kinds keep it
    put(tmp_path / f"pets/cat/a{suffix}", flat)
    torch.testing.assert_close(load(str(tmp_path / "pets")).image(0), as_pixels(flat), atol=0.02, rtol=0)


def test_npy_files_hold_pixels_already(tmp_path):
    pixels = np.random.default_rng(0).random((3, 5, 6))
    put(tmp_path / "pets/cat/a.npy", pixels)
    put(tmp_path / "pets/cat/b.npy", pixels.astype(np.float16))
    data = load(str(tmp_path / "pets"))
    assert data.image(1).dtype == torch.float32
    assert torch.equal(data.image(0), torch.from_numpy(pixels).float())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((3, 4, 4), np.nan), r"NaN or infinity in image 1 of pets \(.*pets\)\. Repair"),
        (np.full((3, 4, 4), -np.inf), "NaN or infinity in image 1 of pets"),
        (np.full((3, 4, 4), -0.25), r"in \[0, 1\], got -0.25 to -0.25 in image 1 .* before any normalisation"),
        (np.linspace(0, 200, 48).reshape(3, 4, 4).astype(np.uint8), r"in \[0, 1\], got 0 to 200 in image 1"),
        (np.ones((4, 4)), r"image 1 of pets .* \(channels, height, width\), got shape \(4, 4\)"),
        (np.array([{}], dtype=object), "cannot read the image .*b.npy: Object arrays"),
        (b"idx label", "cannot read the image .*b.npy"),
        (b"", "b.npy"),
        (np.array(["a"]), "b.npy"),
        (np.float32(0.5), "image 1|b.npy"),
        (np.zeros((3, 0, 4)), "image 1|b.npy"),
    ],
    ids=["nan", "infinity", "negative", "8-bit", "2-d", "pickle", "text", "empty file", "strings", "0-d", "no pixels"],
)
def test_a_bad_array_is_named(bad, message, tmp_path):
    put(tmp_path / "pets/cat/a.npy", np.zeros((3, 4, 4)))
    put(tmp_path / "pets/cat/b.npy", bad)
    data = load(str(tmp_path / "pets"))
    assert not data.image(0).any()
    with pytest.raises(InputError, match=message):
        data.image(1)


PNG, BMP = bytes_of(colours(40, 44), "PNG"), bytes_of(colours(40, 44), "BMP")
CORRUPT = {
    "empty.png": b"",
    "text.png": b"no image",
    "half.png": PNG[: len(PNG) // 2],
    "half.jpg": bytes_of(colours(40, 44), "JPEG")[:700],
    "half.bmp": BMP[:1000],
    "other.jpg": b"GIF89a????",
    "chunk.png": PNG.replace(PNG[PNG.index(b"IDAT") - 4 :][:4], struct.pack(">I", 100)),
    "huge.bmp": BMP[:18] + struct.pack("<i", 400_000_000) + BMP[22:],
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_image_file_is_named(name, tmp_path):
    put(tmp_path / "pets/cat/0.png", colours())
    put(tmp_path / "pets/cat" / name, CORRUPT[name])
    with pytest.raises(InputError, match=rf"cannot read the image .*{re.escape(name)}: .* Replace or remove it"):
        load(str(tmp_path / "pets")).image(1)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_a_folder_of_grey_images_has_one_channel(mode, tmp_path):
    grey = Image.fromarray(colours()).convert(mode)
    put(tmp_path / "pets/cat/a.png", grey)
    put(tmp_path / "pets/cat/b.png", grey.convert("RGB"))
    data = load(str(tmp_path / "pets"))
    expected = torch.from_numpy(np.array(grey.convert("L")) / 255).float()[None]
    assert torch.equal(data.images([0, 1]), torch.stack([expected, expected]))


@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA"])
def test_colours_stay_colours(mode, tmp_path):
    red = Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).convert(mode)
    put(tmp_path / f"pets/cat/a.{'tif' if mode == 'CMYK' else 'png'}", red)
    expected = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 4, 4)
    assert torch.equal(load(str(tmp_path / "pets")).image(0), expected)


@pytest.mark.parametrize(("kind", "top"), [("png", 65535), ("tif", 65535), ("tif", 1.0)])
def test_other_than_8_bits_are_scaled_or_refused_but_not_clipped(kind, top, tmp_path):
    ramp = np.linspace(0, top, 64).astype(np.uint16 if top > 1 else np.float32).reshape(8, 8)
    put(tmp_path / f"pets/cat/a.{kind}", ramp)
    try:
        pixels = load(str(tmp_path / "pets")).image(0)
    except InputError:
        return
    torch.testing.assert_close(pixels[0], torch.from_numpy(ramp / top).float(), atol=0.01, rtol=0)


def test_sizes_that_differ_ask_for_image_size_which_resizes_and_crops(tmp_path):
    images = [Image.fromarray(colours(*size)) for size in ((30, 20), (20, 30), (8, 9))]
    for i, image in enumerate(images):
        put(tmp_path / f"pets/cat/{i}.png", image)
    data = load(str(tmp_path / "pets"))
    assert data.images([1]).shape == (1, 3, 20, 30)
    with pytest.raises(
        InputError, match=r"got \(3, 30, 20\) \(image 0\) and \(3, 20, 30\) \(image 1\)\. Set image_size"
    ):
        data.images([0, 1])
    resized = load(str(tmp_path / "pets"), image_size=10)
    assert resized.images(resized.indices).shape == (3, 3, 10, 10)
    expected = images[0].resize((10, 15), Image.Resampling.BILINEAR).crop((0, 2, 10, 12))
    assert torch.equal(resized.image(0), as_pixels(np.array(expected)))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_image_size_holds_for_arrays_too_and_keeps_them_in_range(value, tmp_path):
    put(tmp_path / "pets/cat/a.npy", np.full((3, 13, 10), value))
    put(tmp_path / "pets/cat/b.npy", np.full((3, 10, 13), value))
    data = load(str(tmp_path / "pets"), image_size=8)
    torch.testing.assert_close(data.images([0, 1]), torch.full((2, 3, 8, 8), value))


def test_a_folder_may_hold_both_splits(tmp_path):
    for split, classes in (("train", "ab"), ("test", "abc")):
        for name in classes:
            put(tmp_path / split / name / "0.png", Image.new("L", (4, 4)))
    assert load(str(tmp_path), split="train").classes == ("a", "b")
    assert load(str(tmp_path)).classes == ("a", "b", "c")
    with pytest.raises(InputError, match=r"expected train/<class>/ and test/<class>/ in .*train"):
        load(str(tmp_path / "train"), split="train")


@pytest.mark.parametrize(("made", "found"), [((), 0), (("cat", "dog"), 2)])
def test_a_folder_without_images_is_refused(made, found, tmp_path):
    for name in made:
        (tmp_path / name).mkdir()
    message = rf"expected .*/<class>/<image> \(\.bmp .*\), found {found} class folders with no image"
    with pytest.raises(InputError, match=message):
        load(str(tmp_path))


@pytest.mark.parametrize("place", ["root", "cifar10"])
def test_data_is_looked_for_where_the_environment_says(place, tmp_path, monkeypatch):
    home, root = tmp_path / "home", tmp_path / "data"
    for variable in ("DDVIZ_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    assert default_data_root() == home / ".cache/ddviz"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_data_root() == tmp_path / "cache/ddviz"
    monkeypatch.setenv("DDVIZ_DATA", str(root))
    assert default_data_root() == root
    for name in CIFAR10_CLASSES:
        put((root if place == "root" else root / place) / "test" / name / "0.png", colours(32, 32))
    for given in ("", root, str(root)):
        assert load("cifar10", data_root=given).labels == list(range(10))
    (home / "mine").mkdir(parents=True)
    with pytest.raises(InputError, match=re.escape(str(home / "mine"))):  # data_root goes before DDVIZ_DATA
        load("cifar10", data_root="~/mine")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cifar10", ["cifar-10-batches-py/", "test/<class>/", "cifar10 and", "data_root or DDVIZ_DATA", "170 MB"]),
        ("imagenet", ["val/<wnid>/*.JPEG", "imagenet and", "data_root or DDVIZ_DATA", "image-net.org"]),
    ],
)
def test_missing_data_says_what_was_looked_for_where_and_how_to_get_it(name, parts, tmp_path):
    with pytest.raises(InputError, match=f"{name} was not found: looked for") as refusal:
        load(name, data_root=tmp_path)
    assert [part for part in (*parts, str(tmp_path)) if part not in str(refusal.value)] == []


def test_other_class_folders_than_cifar10s_are_refused(tmp_path):
    for name in ("0", "1"):
        put(tmp_path / "test" / name / "0.png", colours())
    with pytest.raises(InputError, match=r"class folders airplane, .*, truck in .*test, found 0, 1\."):
        load("cifar10", data_root=tmp_path)


@pytest.fixture
def archive(monkeypatch):
    """A maker of torchvision's CIFAR-10 archive with two images a file, whose hashes torchvision takes for good."""

    def make(root: Path) -> None:
        for name, content in contents.items():
            put(root / CIFAR10.base_folder / name, content)

    contents = {"batches.meta": pickle.dumps({"label_names": list(CIFAR10_CLASSES)}, protocol=2)}
    for seed, name in enumerate(["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]):
        rows = np.stack([np.moveaxis(colours(32, 32, seed=10 * seed + i), -1, 0).ravel() for i in range(2)])
        contents[name] = pickle.dumps({"data": rows, "labels": [seed, 9]}, protocol=2)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in contents if name.startswith("data")])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    return make


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_torchvisions_archive_is_read(place, archive, tmp_path):
    archive(tmp_path / place)
    test, train = (load("cifar10", split=split, data_root=tmp_path) for split in ("test", "train"))
    assert (test.labels, test.classes) == ([0, 9], CIFAR10_CLASSES)
    assert train.labels == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert torch.equal(test.image(1), as_pixels(colours(32, 32, seed=1)))
    assert torch.equal(train.image(4), as_pixels(colours(32, 32, seed=30)))


def test_the_command_that_the_message_gives_fetches_cifar10(archive, tmp_path, monkeypatch):
    fetched = []

    def download(url, root, **_):
        fetched.append(url)
        archive(Path(root))

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", download)
    with pytest.raises(InputError) as refusal:
        load("cifar10", data_root=tmp_path)
    command = re.search(r'python -c "(.*)"', str(refusal.value))
    assert command and not fetched
    exec(command[1])
    assert fetched == [CIFAR10.url] and len(load("cifar10", data_root=tmp_path)) == 2


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("File not found or corrupted.")])
def test_a_download_that_fails_is_explained(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    with pytest.raises(InputError, match=rf"cifar10 could not be read or fetched at {tmp_path}.*: .*(route|corrupted)"):
        load("cifar10", data_root=tmp_path, download=True)


@pytest.mark.parametrize("download", [False, True])
def test_a_damaged_archive_is_named_and_can_be_fetched_again(download, archive, tmp_path, monkeypatch):
    archive(tmp_path / "cifar10")
    put(tmp_path / "cifar10" / CIFAR10.base_folder / "test_batch", b"half")
    monkeypatch.setattr(
        torchvision.datasets.cifar, "download_and_extract_archive", lambda url, root, **_: archive(Path(root))
    )
    if download:
        assert len(load("cifar10", data_root=tmp_path, download=True)) == 2
    else:
        with pytest.raises(InputError, match=r"could not be read.*cifar10: .* download=True"):
            load("cifar10", data_root=tmp_path)


@pytest.mark.parametrize("place", [".", "imagenet"])
def test_imagenet_is_resized_cropped_and_labelled_by_place(place, tmp_path):
    wnids = [f"n{i:08}" for i in range(1000)]
    val, image = tmp_path / place / "val", Image.fromarray(colours(280, 300))
    for wnid in wnids:
        (val / wnid).mkdir(parents=True)
    for i in (7, 999):
        put(val / wnids[i] / "x.JPEG", bytes_of(np.array(image), "PNG"))  # PNG inside, to be exact
    data = load("imagenet", data_root=tmp_path)
    assert (data.labels, data.classes) == ([7, 999], tuple(wnids))
    expected = image.resize((274, 256), Image.Resampling.BILINEAR).crop((25, 16, 249, 240))
    assert torch.equal(data.image(1), as_pixels(np.array(expected)))
    (val / wnids[3]).rmdir()
    with pytest.raises(InputError, match=r"1000 wnid folders in .*val, found 999: .* Add the missing .* empty"):
        load("imagenet", data_root=tmp_path)


@pytest.mark.data
def test_the_real_cifar10(data_root):
    data = load("cifar10", data_root=data_root, skip=500)
    assert list(data.indices) == list(range(0, 10_000, 500)) and len(data.labels) == 10_000
    x = data.images(data.indices)
    assert x.shape == (20, 3, 32, 32) and 0.3 < x.mean() < 0.7
    assert all(list(data.labels).count(label) == 1000 for label in range(10))


@pytest.mark.data
def test_the_real_imagenet(data_root):
    data = load("imagenet", data_root=data_root, skip=250)
    assert data.classes[0] == "n01440764" and data.classes[999] == "n15075141"
    x = data.images(data.indices)
    assert x.shape[1:] == (3, 224, 224) and 0.2 < x.mean() < 0.7
    assert list(data.labels) == sorted(data.labels) and set(data.labels) == set(range(1000))
