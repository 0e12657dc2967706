"""The paper's rows, and records beside them: numbers worked out by hand."""

import math

import pytest

from ddviz.paper import gains, in_common, levels, published
from ddviz.records import Record

FIXED = [Record(0, 1, 1, 0.3, 1, 0.25), Record(20, 2, 2, 0.6, 1, 0.25), Record(40, 3, 1, 0.9, 0, 0.25)]
CHOSEN = [Record(40, 3, 3, 0.4, 1, 0.2), Record(0, 1, 1, 0.5, 1, 0.3), Record(20, 2, 2, 0.6, 1, 0.25)]  # any order
NONE = [Record(i, 1, 2, 0.5, 0) for i in range(500)]
ROWS = published("cifar10", "l2")


def test_the_paper_s_rows_are_read_with_what_is_illegible():
    assert list(ROWS)[:4] == ["Cohen", "Cohen-DS", "Cohen-DS2", "SmoothAdv"]
    row = ROWS["SmoothAdv-DS"]
    assert (row.table, row.radii[:3], row.accuracy[:2], row.acr) == (2, (0, 0.25, 0.5), (75.7, 66.4), 0.799)
    assert row.texts[-1] == "?" and math.isnan(row.accuracy[-1])
    assert {row.table for row in published("imagenet", "l1").values()} == {4}
    assert published("digits", "l2") == {}


def test_levels_are_the_best_over_sigma_with_wilson_s_errors():
    first, second, *_, acr = levels({0.25: FIXED, 0.5: CHOSEN}, ROWS["Cohen"].radii, ROWS["Cohen"])
    assert (first.value, first.paper) == (pytest.approx(100), 79.9)
    assert first.error == pytest.approx(100 / 2 * 4 / 7, abs=0.01)  # (1 - 3 / (3 + 4)) / 2
    assert levels({0.25: FIXED}, [0], None)[0].error == pytest.approx(23.2046, abs=0.01)  # 2/3 of 3: from .2026
    assert second.value == pytest.approx(100)
    assert (acr.value, acr.paper) == (pytest.approx(0.5), 0.591)
    assert acr.error == pytest.approx(0.1 / 3**0.5)


def test_no_certified_image_is_no_certainty():
    (cell, _) = levels({0.25: NONE}, [0.1], None)
    assert cell.value == 0 and cell.error == pytest.approx(100 / 2 * 4 / 504, abs=1e-3)


def test_a_row_without_runs_shows_the_paper_alone():
    cells = levels({}, ROWS["Cohen"].radii, ROWS["Cohen"])
    assert [cell.value for cell in cells] == [None] * 12 and (cells[0].paper, cells[-1].paper) == (79.9, 0.591)
    assert cells[0].difference is None and cells[-1].digits == 3


def test_gains_are_paired_image_by_image():
    radii = ROWS["Cohen"].radii
    cells = gains({0.25: FIXED}, {0.25: CHOSEN}, radii, [ROWS["Cohen"], ROWS["Cohen-DS"]])
    quarter, beyond, acr = cells[1], cells[4], cells[-1]
    assert (quarter.value, quarter.error) == (pytest.approx(100 / 3), pytest.approx(100 / 3))  # 0, 0, 100
    assert quarter.paper == pytest.approx(64.5 - 58.3)
    assert (beyond.value, beyond.error) == (0, pytest.approx(200 / 7))
    assert (acr.value, acr.error) == (pytest.approx(0.2), pytest.approx(0.2 / 3**0.5))  # +.2, 0, +.4
    assert acr.paper == pytest.approx(0.193) and acr.signed


def test_gains_are_over_what_both_sides_have():
    low = [Record(i, 1, 1, 0.1, 1) for i in (0, 20)]
    before, after = {0.12: low, 0.25: FIXED, 0.5: CHOSEN}, {0.12: low, 0.25: CHOSEN}
    assert in_common(before, after) == ([0.12, 0.25], {0, 20})
    tenth, half, acr = gains(before, after, [0.1, 0.5], [None, None])
    assert (tenth.value, half.value) == (0, 50)  # fixed 0.5 would have certified both
    assert acr.value == pytest.approx(0.1) and acr.paper is None


def test_nothing_in_common_is_no_gain():
    cells = gains({0.25: FIXED}, {0.5: CHOSEN}, [0], [None, None])
    assert [cell.value for cell in cells] == [None, None]
