"""Record files: full precision, torn by a kill at any byte, and written onto a full disk."""

import csv
import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddviz import records as records_module
from ddviz.analysis import certified_accuracy
from ddviz.errors import InputError, ResourceError
from ddviz.records import ABSTAIN, AppendLog, Record, column, read_records, read_rows, write_atomically, write_records

HEADER = ["idx", "label", "predict", "radius", "correct"]
ROWS = [[0, 3, ABSTAIN, 0.0, 0], [20, 7, 7, 0.1 + 0.2, 1], [40, 1, 1, 1e-300, 1], [100, 2, 2, 2.5, 1]]


def text_of(rows: list[list]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in [HEADER, *rows])


radii = st.floats(0, allow_infinity=False, allow_nan=False)
records_of_runs = st.builds(
    Record,
    idx=st.integers(0, 10**6),
    label=st.integers(0, 999),
    predict=st.integers(ABSTAIN, 999),
    radius=radii,
    correct=st.integers(0, 1),
    sigma=radii | st.just(math.nan),
    p_lower=st.floats(0, 1) | st.just(math.nan),
    count=st.integers(0, 10**6),
    n=st.integers(0, 10**6),
)


@settings(max_examples=60, deadline=None)
@given(records=st.lists(records_of_runs, max_size=8))
def test_a_round_trip_changes_no_bit(records, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "some" / "new" / "folder" / "records.tsv"
    write_records(path, records)
    assert repr(read_records(path)) == repr(records)  # repr: NaN equals NaN
    assert path.read_text().startswith("\t".join(HEADER) + "\t")  # the field's own columns come first
    assert [entry.name for entry in path.parent.iterdir()] == ["records.tsv"]


@pytest.mark.parametrize("number", [np.float64(0.1), np.float32(0.7)], ids=repr)
def test_numpy_radii_survive_too(tmp_path, number):
    """Their own text will not do: a float32 just below 0.7 reads 0.7, which is more; a float64 may name its type."""
    path = tmp_path / "records.tsv"
    write_records(path, [Record(0, 1, 1, number, 1)])
    assert read_records(path)[0].radius == float(number)


def test_certified_and_columns():
    records = [Record(0, 1, 1, 0.5, 1), Record(1, 1, 2, 0.5, 0), Record(2, 1, ABSTAIN, 0.0, 0), Record(3, 1, 1, 0.0, 1)]
    assert [record.certified for record in records] == [0.5, -1, -1, 0]
    assert column(records, "idx").tolist() == [0, 1, 2, 3] and column(records, "radius").dtype == np.float64
    assert np.isnan(column(records, "sigma")).all()


def test_files_of_the_field_read_as_they_are(tmp_path):
    """Extra columns are left out, absent ones get their defaults; empty lines and Windows line ends do no harm."""
    path = tmp_path / "cohen.tsv"
    path.write_bytes(b"idx\tlabel\tpredict\tradius\tcorrect\ttime\r\n\r\n20\t7\t7\t0.0734\t1\t0:00:13.771528\r\n")
    assert repr(read_records(str(path))) == repr([Record(20, 7, 7, 0.0734, 1)])


def test_published_files_read_as_csv_reads_them_and_give_the_published_numbers():
    folder = os.environ.get("DDVIZ_REFERENCE")
    if not folder:
        pytest.skip("DDVIZ_REFERENCE does not name the folder of the published record files")
    paths = sorted(Path(folder).rglob("cohen_*_sigma_*.tsv"))
    if not paths:
        pytest.skip("the folder that DDVIZ_REFERENCE names holds no cohen_*_sigma_*.tsv")
    for path in paths:
        found = read_records(path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert len(found) == len(rows) > 100
        assert [[record.idx, record.label, record.predict, record.correct] for record in found] == [
            [int(row[name]) for name in ("idx", "label", "predict", "correct")] for row in rows
        ]
        assert column(found, "radius").tolist() == [float(row["radius"]) for row in rows]
        if published := PUBLISHED.get(path.stem):
            accuracies = certified_accuracy(found, np.arange(len(published)) / 2)
            assert accuracies == pytest.approx(published, abs=0.005)


# Certified accuracy at radii 0, 0.5, 1, ...: table 1 of arXiv 1902.02918, of the files that hold all of its images
PUBLISHED = {
    "cohen_imagenet_resnet50_sigma_0.50": [0.57, 0.46, 0.37, 0.29, 0, 0, 0],
    "cohen_imagenet_resnet50_sigma_1.00": [0.44, 0.38, 0.33, 0.26, 0.19, 0.15, 0.12],
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (text_of(ROWS).replace("20\t7", "20"), "line 3: expected 5 columns .idx label predict radius correct., got 4"),
        (text_of(ROWS).replace("2.5", "2.5\t9"), "line 5: expected 5 columns .*, got 6"),
        (text_of(ROWS).replace("20\t", "20.5\t"), "line 3, column idx: .*20.5"),
        (text_of(ROWS).replace("2.5", "much"), "line 5, column radius: .*much"),
        ("idx\tlabel\n0\t3\n", "expected the columns idx label predict radius correct, found idx label"),
        ("0\t3\t3\t0.5\t1\n" * 2, "expected the columns idx label"),
        pytest.param("idx\tlabel\n", "expected the columns", id="wrong header, no rows"),
        pytest.param("", "header|columns", id="empty file"),
        pytest.param(text_of(ROWS).replace("20\t", "\n20.5\t"), "line 4", id="line number after an empty line"),
        pytest.param(text_of(ROWS).replace("2.5", "\udcff"), "file.tsv", id="not UTF-8"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "file.tsv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        read_records(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"expected a record file at .*absent\.tsv, got: No such file"):
        read_records(tmp_path / "absent.tsv")
    with pytest.raises(InputError, match="got: Is a directory"):
        read_records(tmp_path)


def test_a_log_torn_at_any_byte_continues_to_the_same_file(tmp_path):
    """Read first, as it is, then resumed: the rows that are whole are kept, the others are written again."""
    path, whole = tmp_path / "log.tsv", text_of(ROWS).encode()
    seen = set()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = max(0, whole[:cut].count(b"\n") - 1)
        if cut:  # a last line that lacks only its end, or a part of its last cell, still counts as read
            shown = [int(row["idx"]) for row in read_rows(path)]
            assert shown in ([row[0] for row in ROWS[:kept]], [row[0] for row in ROWS[: kept + 1]])
        with AppendLog(path, HEADER) as log:
            assert path.read_text() == text_of(ROWS[:kept])
            log.append(*ROWS[kept:])
        assert path.read_bytes() == whole
        seen.add(kept)
    assert seen == {0, 1, 2, 3, 4}


def test_a_log_is_in_the_file_after_each_append(tmp_path):
    path = tmp_path / "new" / "folder" / "log.tsv"
    with AppendLog(path, HEADER) as log:
        for count in range(1, len(ROWS) + 1):
            log.append(ROWS[count - 1])
            assert path.read_text() == text_of(ROWS[:count])
    assert column(read_records(path), "radius").tolist() == [row[3] for row in ROWS]


@pytest.mark.parametrize("torn", ["", "100\t2"])
def test_a_log_with_other_columns_is_refused_and_left_alone(tmp_path, torn):
    path = tmp_path / "log.tsv"
    path.write_text(text_of(ROWS) + torn)
    with pytest.raises(
        InputError, match=r"(?s)log\.tsv: expected the columns 'idx.*tsigma.*', found 'idx.*Remove the file"
    ):
        AppendLog(path, [*HEADER, "sigma"])
    assert path.read_text() == text_of(ROWS) + torn


class SmallDisk:
    """An unbuffered file on a disk with `room` bytes left: it writes what fits, then it fails, as Linux does."""

    room = 0
    latest: "SmallDisk"

    def __init__(self, path, mode, **options):
        self._file = open(path, mode, **options)
        SmallDisk.latest = self

    def write(self, data) -> int:
        fits = bytes(data)[: SmallDisk.room]
        if not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        SmallDisk.room -= len(fits)
        return self._file.write(fits)

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_full_disk_leaves_no_half_line_and_the_log_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "open", SmallDisk, raising=False)
    path, whole = tmp_path / "log.tsv", text_of(ROWS)
    first = len(text_of(ROWS[:2]))
    for room in range(first, len(whole)):
        path.unlink(missing_ok=True)
        monkeypatch.setattr(SmallDisk, "room", room)
        with AppendLog(path, HEADER) as log:
            log.append(*ROWS[:2])
            with pytest.raises(ResourceError, match=r"cannot write .*log\.tsv: no space is left.*free some space"):
                log.append(*ROWS[2:])
            assert path.read_text() == text_of(ROWS[:2])
            SmallDisk.room = 10**6  # the user has freed some space
            log.append(*ROWS[2:])
        assert path.read_text() == whole


@pytest.mark.parametrize("room", [0, 5])
def test_a_full_disk_when_a_log_begins(tmp_path, monkeypatch, room):
    path = tmp_path / "log.tsv"
    with monkeypatch.context() as patch:
        patch.setattr(records_module, "open", SmallDisk, raising=False)
        patch.setattr(SmallDisk, "room", room)
        with pytest.raises(ResourceError, match="no space is left"):
            AppendLog(path, HEADER)
    closed = SmallDisk.latest.closed
    SmallDisk.latest.close()
    with AppendLog(path, HEADER) as log:
        log.append(*ROWS)
    assert path.read_text() == text_of(ROWS)
    assert closed  # nobody has the log, so nobody else can close it


def failing(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize(
    ("module", "name", "error", "raised", "message"),
    [
        (os, "fsync", FULL, ResourceError, "no space is left"),
        (os, "fsync", OSError(errno.EDQUOT, "quota"), ResourceError, "no space is left"),
        (os, "replace", PermissionError(errno.EACCES, "denied"), ResourceError, "may not be written. Choose another"),
        (os, "replace", OSError(errno.EROFS, "read-only"), ResourceError, "it may not be written"),
        (os, "replace", OSError(errno.EIO, "broken"), ResourceError, "broken"),
        (os, "fsync", KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_failed_atomic_write_leaves_the_old_file(tmp_path, monkeypatch, module, name, error, raised, message):
    path = tmp_path / "records.tsv"
    write_atomically(path, "old\n")
    monkeypatch.setattr(module, name, failing(error))
    with pytest.raises(raised, match=message):
        write_atomically(path, "new\n" * 1000)
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]  # nor any leftover
    monkeypatch.undo()
    write_atomically(path, "new\n")
    assert path.read_text() == "new\n"


def test_a_folder_that_cannot_be_made_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (lambda path: write_records(path, []), lambda path: AppendLog(path, HEADER)):
        with pytest.raises(ResourceError, match=r"cannot write .*records\.tsv"):
            write(tmp_path / "file" / "records.tsv")
