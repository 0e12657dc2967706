"""Shuffled, augmented batches: whole images, no image lost, the same for any number of processes."""

from itertools import product

import pytest
import torch
from torch import Tensor

from ddviz import datasets
from ddviz.batches import Share, Stored, Streamed, augmented, epoch_order, packed, source, unpacked
from ddviz.datasets import ImageSet

CPU = torch.device("cpu")


def test_whole_255ths_are_kept_as_bytes_and_other_pixels_as_they_are():
    bytes_ = torch.arange(256).view(1, 1, 16, 16) / 255
    assert packed(bytes_).dtype == torch.uint8 and torch.equal(unpacked(packed(bytes_)), bytes_)
    digits = torch.arange(17).view(1, 1, 1, 17) / 16
    assert torch.equal(packed(digits), digits) and torch.equal(unpacked(packed(digits)), digits)


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    first, again, second = (epoch_order(100, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    assert torch.equal(first.sort().values, torch.arange(100))
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_shifts_and_mirrors_and_changes_nothing_else(channels):
    x = torch.rand(300, channels, 16, 16) + 0.1
    padded = torch.zeros(300, channels, 20, 20)
    padded[:, :, 2:18, 2:18] = x
    found = augmented(x, seed=0, step=3, share=Share())
    seen = set()
    for image, big in zip(found, padded, strict=True):
        crops = {(i, j): big[:, i : i + 16, j : j + 16] for i, j in product(range(5), range(5))}
        crops = {(*key, False): crop for key, crop in crops.items()} | {
            (*key, True): crop.flip(-1) for key, crop in crops.items()
        }
        (match,) = [key for key, crop in crops.items() if torch.equal(crop, image)]
        seen.add(match)
    assert {key[:2] for key in seen} == set(product(range(5), range(5)))
    assert {key[2] for key in seen} == ({False, True} if channels == 3 else {False})


def test_processes_together_do_what_one_would():
    x = torch.rand(12, 3, 8, 8)
    whole = augmented(x, seed=5, step=2, share=Share())
    parts = [augmented(Share(r, 3).of(x), seed=5, step=2, share=Share(r, 3)) for r in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augmented(x, seed=5, step=3, share=Share()), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_are_the_stored_ones(workers):
    images = datasets.load("digits", skip=40)
    rows = list(epoch_order(len(images), seed=0, epoch=0).split(6))
    stored = source(images, CPU)
    assert isinstance(stored, Stored)
    streamed = Streamed(images, CPU, workers)
    pairs = list(zip(stored.batches(rows), streamed.batches(rows), strict=True))
    assert len(pairs) == len(rows) and all(torch.equal(first, second) for first, second in pairs)
    assert torch.equal(pairs[0][0][0], images.image(images.indices[int(rows[0][0])]))


def test_images_too_many_for_the_device_are_streamed():
    def read(_: int) -> Tensor:
        return torch.zeros(3, 224, 224)

    many = range(1_281_167)
    assert isinstance(source(ImageSet("imagenet", ("a",), [0], many, read, "here"), CPU), Streamed)
