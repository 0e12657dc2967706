"""Shuffled, augmented batches: whole images, no image lost, the same for any number of processes."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from ddviz import datasets
from ddviz.batches import Share, Stored, Streamed, augmented, epoch_order, packed, source, unpacked
from ddviz.datasets import ImageSet
from ddviz.errors import InputError

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


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 16, 16), (3, 16, 16), (3, 8, 24)])
def test_augmentation_shifts_and_mirrors_and_changes_nothing_else(channels, height, width):
    x = torch.rand(300, channels, height, width) + 0.1
    down, right = height // 8, width // 8
    padded = torch.zeros(300, channels, height + 2 * down, width + 2 * right)
    padded[:, :, down : down + height, right : right + width] = x
    found = augmented(x, seed=0, step=3, share=Share())
    places = list(product(range(2 * down + 1), range(2 * right + 1)))
    seen = set()
    for image, big in zip(found, padded, strict=True):
        crops = {(i, j): big[:, i : i + height, j : j + width] for i, j in places}
        (match,) = [
            (place, mirror)
            for place, mirror in product(places, (False, True))
            if torch.equal(crops[place].flip(-1) if mirror else crops[place], image)
        ]
        seen.add(match)
    assert {place for place, _ in seen} == set(places)
    assert {mirror for _, mirror in seen} == ({False, True} if channels == 3 else {False})


def test_processes_together_do_what_one_would():
    x = torch.rand(12, 3, 8, 8)
    whole = augmented(x, seed=5, step=2, share=Share())
    parts = [augmented(Share(r, 3).of(x), seed=5, step=2, share=Share(r, 3)) for r in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augmented(x, seed=5, step=3, share=Share()), whole)


@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_streamed_images_are_the_stored_ones(ahead):
    images = datasets.load("digits", skip=40)
    rows = list(epoch_order(len(images), seed=0, epoch=0).split(2))
    stored = source(images, CPU)
    assert isinstance(stored, Stored)
    before = torch.get_rng_state()
    streamed = Streamed(images, CPU, ahead)
    pairs = list(zip(stored.batches(rows), streamed.batches(rows), strict=True))
    assert len(pairs) == len(rows) and all(torch.equal(first, second) for first, second in pairs)
    assert torch.equal(pairs[0][0][0], images.image(images.indices[int(rows[0][0])]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_image_is_named_from_the_thread_that_read_it():
    images = datasets.load("digits", skip=40)
    broken = replace(images, read=lambda index: images.read(index) * (float("nan") if index == 80 else 1))
    with pytest.raises(InputError, match="NaN or infinity in image 80 of digits"):
        list(Streamed(broken, CPU, 2).batches(torch.arange(len(images)).split(3)))


def test_reading_ahead_stops_with_its_reader():
    asked = []
    images = datasets.load("digits", skip=2)
    watched = replace(images, read=lambda index: (asked.append(index), images.read(index))[1])
    batches = Streamed(watched, CPU, 2).batches(torch.arange(len(images)).split(1))
    next(batches)
    del batches
    assert len(asked) <= 4


def test_sets_of_bytes_and_of_other_pixels_are_held_as_they_are():
    whole, other = torch.full((1, 4, 4), 51 / 255), torch.full((1, 4, 4), 0.123)
    for some, dtype in ([whole, whole], torch.uint8), ([whole, other], torch.float32), ([other] * 2, torch.float32):
        images = ImageSet("mixed", ("a", "b"), [0, 1], range(2), some.__getitem__, "memory")
        held = source(images, CPU)
        assert isinstance(held, Stored) and held.pixels.dtype == dtype
        assert torch.equal(next(iter(held.batches([torch.tensor([1, 0])]))), torch.stack(some[::-1]))


def test_images_too_many_for_the_device_are_streamed():
    def read(_: int) -> Tensor:
        return torch.zeros(3, 224, 224)

    many = range(1_281_167)
    assert isinstance(source(ImageSet("imagenet", ("a",), [0], many, read, "here"), CPU), Streamed)
