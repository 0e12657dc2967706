"""Tables and curves against numbers worked out by hand, and against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddviz.analysis import (
    Gain,
    accuracy_band,
    average_certified_radius,
    certified_accuracy,
    envelope,
    envelope_band,
    extremes,
    gains,
    nice_radii,
    radius_grid,
    summary_table,
)
from ddviz.records import ABSTAIN, Record


def record(idx: int, radius: float, correct: int = 1, predict: int = 1) -> Record:
    return Record(idx, label=1, predict=predict if correct else predict + 1, radius=radius, correct=correct)


# By hand: of 5 images 3 are right, with radii 0.25, 0.5, 0.5; one is wrong with a large radius, one abstains
RUN = [record(0, 0.5), record(1, 0.25), record(2, 2.0, correct=0), record(3, 0.5), Record(4, 1, ABSTAIN, 0.0, 0)]
WIDE = [record(0, 1.0), record(1, 0.0), record(2, 0.0, correct=0), Record(3, 1, ABSTAIN, 0.0, 0), record(4, 0.125)]

# Radii from a short list, so that ties are common
runs = st.lists(
    st.builds(record, st.integers(0, 9), st.sampled_from([0.0, 0.1, 0.3, 0.75, 1e-9]) | st.floats(0, 3), st.booleans()),
    min_size=1,
    max_size=20,
)


def test_certified_accuracy_by_hand():
    """R >= r: a radius of exactly r counts, the next larger r does not; wrong and abstained ones never count."""
    beyond = [math.nextafter(r, 9) for r in (0.25, 0.5)]
    radii = [0.0, 0.25, beyond[0], 0.5, beyond[1], 2.0]
    assert certified_accuracy(RUN, radii) == pytest.approx([0.6, 0.6, 0.4, 0.4, 0, 0], abs=1e-15)
    assert certified_accuracy(WIDE, radii) == pytest.approx([0.6, 0.2, 0.2, 0.2, 0.2, 0], abs=1e-15)


def test_average_certified_radius_by_hand():
    """A mean over all images: (0.5 + 0.25 + 0.5) / 5, the wrong one's radius of 2 counting as 0."""
    assert average_certified_radius(RUN) == pytest.approx(0.25, abs=1e-15)
    assert average_certified_radius([record(0, 2.0, correct=0)]) == 0


def test_envelope_by_hand():
    assert envelope([RUN, WIDE], [0.1, 0.2, 0.75, 1.5]) == pytest.approx([0.6, 0.6, 0.2, 0], abs=1e-15)


def test_a_run_without_images_certifies_nothing():
    assert certified_accuracy([], [0.0, 1.0]).tolist() == [0, 0]
    assert average_certified_radius([]) == 0


@given(first=runs, second=runs)
def test_curves_agree_with_plain_loops(first, second):
    radii = sorted({0.0, 0.2, 4.0, *(r.radius for r in first), *(math.nextafter(r.radius, 9) for r in second)})
    for run in (first, second):
        share = [sum(bool(r.correct and r.radius >= radius) for r in run) / len(run) for radius in radii]
        assert certified_accuracy(run, radii) == pytest.approx(share, abs=1e-12)
        acr = sum(r.radius for r in run if r.correct) / len(run)
        assert average_certified_radius(run) == pytest.approx(acr, rel=1e-12)
    best = [max(pair) for pair in zip(*(certified_accuracy(run, radii) for run in (first, second)), strict=True)]
    assert envelope([first, second], radii).tolist() == best


@given(run=runs)
def test_the_average_radius_is_the_area_under_the_curve(run):
    """The curve is a staircase that falls just after each radius, so a sum over its steps is its integral."""
    steps = np.unique([0.0, *(r.radius for r in run)])
    area = np.sum(np.diff(steps) * certified_accuracy(run, steps[1:]))
    assert average_certified_radius(run) == pytest.approx(area, abs=1e-12)


def test_radius_grid():
    grid = radius_grid([RUN, WIDE], points=22)
    assert (grid[0], len(grid)) == (0, 22) and grid == pytest.approx(np.arange(22) / 10)
    assert (envelope([RUN, WIDE], grid)[-1], len(radius_grid([RUN]))) == (0, 400)
    for nothing in ([], [[]], [[record(0, 0.0)]]):
        assert radius_grid(nothing)[-1] == 1


@given(largest=st.floats(0.02, 1e7))
def test_nice_radii_are_few_round_and_cover_the_run(largest):
    radii = nice_radii([[record(0, largest)]])
    step = radii[1]
    assert radii[0] == 0 and 6 <= len(radii) <= 11
    assert radii == pytest.approx([step * i for i in range(len(radii))])
    assert radii[-1] <= 1.05 * largest * (1 + 1e-9) and radii[-1] + step > largest
    if largest < 4e4:
        digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(digits - digit) for digit in (1, 2, 2.5, 5)) < 1e-9


@pytest.mark.parametrize(
    ("largest", "radii"),
    [
        (0.0, [i / 10 for i in range(11)]),  # a run without radii is shown up to 1
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (2.2, [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25]),
        (3.9, [0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]),
    ],
)
def test_nice_radii_by_hand(largest, radii):
    assert nice_radii([RUN[1:2], [record(0, largest)]] if largest else [[record(0, 0.0)]]) == radii


def test_gains_pair_the_same_images():
    paired = gains(RUN, [*WIDE[::-1], record(7, 1.0)])  # in any order; image 7 is in one run alone
    assert paired == [Gain(0, 1, 0.5, 1.0), Gain(1, 1, 0.25, 0.0), Gain(2, 1, -1, -1), Gain(3, 1, 0.5, -1), *paired[4:]]
    assert paired[4:] == [Gain(4, 1, -1, 0.125)]
    assert [gain.gained for gain in paired] == [0.5, -0.25, 0, -0.5, 0.125]  # wrong counts as 0, not as -1


def test_gains_are_in_order_of_index():
    """Certificates may be read in any order: certificates.tsv is appended as images are done."""
    assert [gain.idx for gain in gains(RUN[::-1], WIDE)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "images"),
    [
        pytest.param(0, [], id="none"),
        (1, [3, 0]),
        (2, [3, 1, 4, 0]),
        (9, [3, 1, 4, 0]),  # image 2 is unchanged; none is shown twice
    ],
)
def test_extremes_by_hand(count, images):
    """Losses first, the largest foremost; then the gains, the largest last."""
    assert [gain.idx for gain in extremes(gains(RUN, WIDE), count)] == images


@given(changes=st.lists(st.integers(-3, 3), max_size=12), count=st.integers(1, 5))
def test_extremes_are_the_largest_changes(changes, count):
    paired = [Gain(idx, 1, 3.0, 3.0 + change) for idx, change in enumerate(changes)]
    chosen = [int(gain.gained) for gain in extremes(paired, count)]
    losses, won = sorted(c for c in changes if c < 0), sorted((c for c in changes if c > 0), reverse=True)
    assert sorted(chosen) == sorted(losses[:count] + won[:count])


def test_the_table_in_full():
    table = summary_table({"fixed": RUN, "data-dependent": WIDE, "empty": []}, [0, 0.25, 0.5], unit="l2, pixels")
    title, blank, *lines = table.split("\n")
    assert "(l2, pixels)" in title and "percent" in title and not blank
    assert lines[:-1] == [
        "|  | 0 | 0.25 | 0.5 | ACR | abstains | images |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| **fixed** | 60.0 | 60.0 | 40.0 | 0.250 | 20.0 % | 5 |",
        "| **data-dependent** | 60.0 | 20.0 | 20.0 | 0.225 | 20.0 % | 5 |",
    ]
    assert lines[-1].endswith("| 0.000 | - | 0 |")


def test_the_envelope_has_the_band_of_the_run_that_is_best_there():
    near, far = (
        [Record(i, 1, 1, 0.2, int(i < 3)) for i in range(4)],
        [Record(i, 1, 1, 0.9, int(i < 1)) for i in range(40)],
    )
    share, low, high = envelope_band([near, far], [0.1, 0.5])
    assert share.tolist() == [0.75, 0.025] == envelope([near, far], [0.1, 0.5]).tolist()
    for place, best in enumerate((near, far)):
        assert [low[place], high[place]] == [side[place] for side in accuracy_band(best, [0.1, 0.5])]
