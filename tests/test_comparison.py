"""Runs side by side: intervals known by hand, files that are found and named, pairs against plain loops."""

import json
import os
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddviz import compare_scenes, datasets
from ddviz.analysis import Gain, accuracy_band, mean_with_error
from ddviz.comparison import (
    FoundRun,
    Selection,
    find,
    image_of,
    images_of,
    paired,
    shares_at_least,
    short_names,
    summary,
    unit,
)
from ddviz.errors import InputError
from ddviz.records import ABSTAIN, Record, write_records

FIELD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
FIXED = [Record(i, i % 10, i % 10, 0.1 * (i + 1), 1, 0.25, 0.9, 90, 100) for i in range(4)]
CHOSEN = [Record(i, i % 10, i % 10, 0.2 * (i + 1), int(i != 2), 0.2 + 0.1 * i, 0.95, 95, 100) for i in range(1, 6)]


def made(folder: Path, records: list[Record], **config: object) -> FoundRun:
    """A finished run of ours, by its folder's name."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dataset": "digits", "norm": "l2", "sigma": 0.25, **config}))
    write_records(folder / "records.tsv", records)
    return FoundRun(folder.name, folder / "records.tsv")


@pytest.mark.parametrize(
    ("certified", "images", "low", "high"),
    [  # table I of Newcombe, Statistics in Medicine 17 (1998), method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_band_is_wilson_s_interval(certified, images, low, high):
    records = [Record(i, 1, 1, 0.5, int(i < certified)) for i in range(images)]
    band = accuracy_band(records, [0.0, 0.5, 0.6])
    none = 1.959964**2 / (images + 1.959964**2)  # by hand: nothing is certified beyond 0.5
    assert band[0] == pytest.approx([low, low, 0], abs=5e-5)
    assert band[1] == pytest.approx([high, high, none], abs=5e-5)


@given(correct=st.lists(st.booleans(), min_size=1, max_size=60), confidence=st.floats(0.5, 0.999))
def test_the_band_s_ends_are_as_far_off_as_chance_allows(correct, confidence):
    """Wilson's interval holds every p from which the observed share is at most z standard deviations away."""
    share, z = sum(correct) / len(correct), statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    records = [Record(i, 1, 1, 1.0, int(right)) for i, right in enumerate(correct)]
    low, high = (side[0] for side in accuracy_band(records, [0.5], confidence=confidence))
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    for end in (low, high):
        assert abs(share - end) == pytest.approx(z * (end * (1 - end) / len(correct)) ** 0.5, abs=1e-6)


@given(values=st.lists(st.floats(-3, 3), min_size=2, max_size=30))
def test_mean_and_standard_error_agree_with_the_standard_library(values):
    expected = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    assert mean_with_error(values) == pytest.approx(expected, abs=1e-9)


def test_one_image_has_no_standard_error():
    mean, error = mean_with_error([0.5])
    assert mean == 0.5 and np.isnan(error)


def test_runs_are_found_fixed_first_under_short_names(tmp_path):
    for folder in ("a/net-ds", "a/net-fixed", "b/net-fixed"):
        made(tmp_path / folder, FIXED)
    (tmp_path / "a" / "net-ds" / "certificates.tsv").write_text(FIELD)  # a part of a run
    (tmp_path / "b" / "broken-off").mkdir()
    (tmp_path / "b" / "broken-off" / "certificates.tsv").write_text(FIELD)
    (tmp_path / "cohen_0.25.tsv").write_text(FIELD + "0\t3\t3\t0.378\t1\t15.4\n")
    (tmp_path / "paper.tsv").write_text("radius\taccuracy\n")
    runs, left_out = find(tmp_path)
    assert [run.name for run in runs] == ["a/net-fixed", "net-ds", "b/net-fixed", "cohen_0.25"]
    assert left_out == ["paper.tsv (no record file)", "broken-off (not finished)"]
    (alone,), _ = find(tmp_path / "cohen_0.25.tsv")
    assert (alone.name, alone.method, len(alone.records)) == ("cohen_0.25", "", 1)


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join), unique=True, max_size=8))
def test_names_are_unique_and_no_shorter_one_would_be(folders):
    paths = [Path("/", folder, "records.tsv") for folder in folders]
    names = short_names(paths)
    assert len(set(names)) == len(paths)
    for path, name in zip(paths, names, strict=True):
        if name != str(path):
            assert str(path.parent).endswith(name)
            shorter = name.partition("/")[2]
            assert not shorter or sum(("/" + folder).endswith("/" + shorter) for folder in folders) > 1


def test_a_folder_and_a_file_of_one_name_have_different_names():
    assert len(set(short_names([Path("/x/a/records.tsv"), Path("/x/a.tsv")]))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected TSV files with the columns idx label predict radius correct in .*found none.*Make some"),
        ("a\tb\n", r"found none\. Left out: runs.tsv \(no record file\)"),
    ],
)
def test_a_folder_without_record_files_says_what_is_missing(tmp_path, text, message):
    if text:
        (tmp_path / "runs.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        find(tmp_path)
    with pytest.raises(InputError, match=r"expected a folder of finished runs, got .*, which does not exist"):
        find(tmp_path / "none")


def test_damaged_files_are_named(tmp_path):
    run = made(tmp_path / "run", FIXED)
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        _ = run.config
    (tmp_path / "empty.tsv").write_text(FIELD)
    with pytest.raises(InputError, match=r"expected records in .*empty\.tsv, found a header alone"):
        _ = FoundRun("empty", tmp_path / "empty.tsv").records


def test_the_paired_difference_agrees_with_plain_loops(tmp_path):
    first, second = made(tmp_path / "first", FIXED), made(tmp_path / "second", CHOSEN)
    assert paired(first, second) == [Gain(1, 1, 0.2, 0.4), Gain(2, 2, FIXED[2].radius, -1), Gain(3, 3, 0.4, 0.8)]
    gained = []
    for one in FIXED:
        for other in CHOSEN:
            if one.idx == other.idx:
                gained.append((other.radius if other.correct else 0) - (one.radius if one.correct else 0))
    told = summary(second, first)
    assert gained == pytest.approx([0.2, -0.3, 0.4])
    assert told.difference == pytest.approx((sum(gained) / 3, statistics.stdev(gained) / 3**0.5)) and told.common == 3
    assert told.acr == pytest.approx((0.68, statistics.stdev([0.4, 0, 0.8, 1.0, 1.2]) / 5**0.5))
    assert (told.images, told.accuracy, told.abstains) == (5, pytest.approx(0.8), 0)


def test_abstentions_are_counted(tmp_path):
    run = made(tmp_path / "run", [*FIXED, Record(9, 1, ABSTAIN, 0.0, 0)])
    told = summary(run, run)
    assert (told.abstains, told.accuracy) == pytest.approx((0.2, 0.8)) and told.difference == (0, 0)


def test_runs_of_other_images_are_not_compared(tmp_path):
    first = made(tmp_path / "first", FIXED[:2])
    elsewhere, other = made(tmp_path / "elsewhere", CHOSEN[2:]), made(tmp_path / "other", [Record(0, 5, 5, 0.1, 1)])
    with pytest.raises(InputError, match="expected runs that share images, got none that first and elsewhere share"):
        paired(first, elsewhere)
    with pytest.raises(InputError, match="got label 0 for image 0 in first and 5 in other"):
        paired(first, other)
    assert summary(elsewhere, first).difference is None and summary(other, first).common == 0


def test_shares_by_hand():
    values, share = shares_at_least(np.array([0.9, 0.5, 0.99, 0.9]))
    assert values.tolist() == [0.5, 0.9, 0.99, 0.99] and share.tolist() == [1, 0.75, 0.25, 0]


def test_what_a_file_lacks_is_said(tmp_path):
    path = tmp_path / "field.tsv"
    path.write_text(FIELD + "0\t3\t3\t0.378\t1\t15.4\n")
    field = FoundRun("field", path)
    with pytest.raises(InputError, match="field has no column p_lower: only record files of ddviz have it"):
        field.known("p_lower")
    with pytest.raises(InputError, match=r"field names no data set\. Set the parameter dataset"):
        images_of(field, Selection(folder=str(tmp_path)))
    assert images_of(field, Selection(folder=str(tmp_path), dataset="digits")).name == "digits"


def test_units_tell_the_norms_that_are_known(tmp_path):
    runs = [made(tmp_path / "a", FIXED), made(tmp_path / "b", FIXED, norm="l1")]
    path = tmp_path / "field.tsv"
    path.write_text(FIELD)
    assert unit([runs[0], FoundRun("field", path)]) == "l2, [0,1]-pixel units"
    assert unit(runs) == "l2 or l1, [0,1]-pixel units"
    assert unit([FoundRun("field", path)]) == "[0,1]-pixel units"


def test_the_image_is_the_record_s_or_none():
    digits = datasets.load("digits")
    assert image_of(digits, Gain(7, int(digits.labels[7]), 0, 0)).equal(digits.image(7))
    for idx, label in ((7, int(digits.labels[7]) + 1), (5000, 0), (-1, 0)):
        with pytest.raises(InputError, match=f"expected image {idx} of digits to be of class {label}"):
            image_of(digits, Gain(idx, label, 0, 0))


def test_every_run_has_its_own_look_and_a_method_its_colour(tmp_path):
    runs = [made(tmp_path / f"{i}", FIXED, method=("fixed", "ds", "?")[i % 3]) for i in range(18)]
    looks = compare_scenes.looks(runs)
    assert len(set(looks.values())) == len(runs)
    assert {looks[run.name].color for run in runs if run.method == "fixed"} == {"#0072B2"}
    assert {looks[run.name].color for run in runs if run.method == "data-dependent"} == {"#D55E00"}
    assert not {looks[run.name].color for run in runs if not run.method} & {"#0072B2", "#D55E00"}


def test_published_files_are_found_and_compared():
    folder = os.environ.get("DDVIZ_REFERENCE")
    if not folder:
        pytest.skip("DDVIZ_REFERENCE does not name the folder of the published record files")
    runs = {run.name: run for run in find(folder)[0]}
    low, high = (runs[f"cohen_imagenet_resnet50_sigma_{sigma}"] for sigma in ("0.25", "1.00"))
    told = summary(high, low)
    assert (told.images, told.common) == (500, 427)  # one file lacks images
    by_index = {record.idx: max(0.0, record.certified) for record in high.records}
    gained = [by_index[record.idx] - max(0.0, record.certified) for record in low.records]
    assert told.difference == pytest.approx((statistics.fmean(gained), statistics.stdev(gained) / 427**0.5))
    with pytest.raises(InputError, match="expected runs of the same data set"):
        paired(high, runs["cohen_cifar10_resnet110_sigma_0.25"])
