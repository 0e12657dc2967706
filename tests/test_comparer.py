"""The comparison panel, driven from Python as a page drives it."""

import html
import json
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest
from test_comparison import CHOSEN, FIELD, FIXED, made
from test_config import assert_parameters_are_fields

from ddviz.comparer import Comparison, Part
from ddviz.comparison import Selection
from ddviz.errors import InputError
from ddviz.records import Record

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
RESULTS = NOTEBOOKS / "results"
FILES = [*RESULTS.rglob("records.tsv")]
PAIR = "digits-cnn-cohen-0.12-fs-l2-0.12-fixed", "digits-cnn-cohen-0.12-fs-l2-0.12-ds"
SMOOTHADV = "digits-cnn-smoothadv-0.25-fs-l2-0.25-ds"


@pytest.fixture
def panel(tmp_path) -> Comparison:
    """On the results of the repository, without CIFAR-10."""
    return Comparison(Selection(folder=str(RESULTS), data_root=str(tmp_path)))


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder with two runs of ours, one of other images, a file of the field and one that is damaged."""
    made(tmp_path / "net-fixed", FIXED, method="fixed")
    made(tmp_path / "net-ds", CHOSEN, method="ds")
    made(tmp_path / "other-ds", [Record(77, 1, 1, 0.5, 1, 0.25, 0.9)], method="ds", norm="l1")
    (tmp_path / "cohen.tsv").write_text(FIELD + "".join(f"{i}\t{i}\t{i}\t0.{i}\t1\t15.4\n" for i in range(4)))
    (tmp_path / "damaged.tsv").write_text(FIELD + "0\tcat\t3\t0.4\t1\t15.4\n")
    return tmp_path


def figure(part: Part) -> dict:
    """The figure of a part, checked by plotly; {} where there is none."""
    if part.figure not in part.children:
        return {}
    shown = json.loads(part.figure.figure)
    go.Figure(shown)
    return shown


def title(part: Part) -> str:
    return figure(part)["layout"]["title"]["text"]


def said(part: Part) -> str:
    return html.unescape(part.note.value)


def test_the_first_two_runs_with_images_are_shown(panel):
    assert panel.runs.value == PAIR and len(panel.runs.options) == len(FILES)
    assert (panel.first.value, panel.second.value, panel.scaled.value) == (*PAIR, PAIR[1])
    assert all(name in panel.table.value for name in PAIR) and "+0.104 ± 0.006 (200 images)" in panel.table.value
    assert "0.355 ± 0.005" in panel.table.value and f"{len(FILES)} runs found, 2 chosen" in panel.status.value
    titles = [title(part).split(",")[0] for part in (panel.curves, panel.radii, panel.probabilities)]
    assert titles == ["Certified accuracy", "Radius of each of 200 images", "Lower bound on p_A"]
    assert title(panel.scales) == "sigma_x by class (blue line: sigma_0 = 0.12)"
    for part in (panel.curves, panel.radii, panel.probabilities, panel.scales):
        layout = figure(part)["layout"]
        assert all(layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis")) and layout["uirevision"]


def test_bands_and_envelope_come_and_go(panel):
    def names() -> list[str]:
        return [trace.get("name", "band").split(":")[0] for trace in figure(panel.curves)["data"]]

    assert names() == ["band", "band", *PAIR]
    panel.envelope.value = True
    assert names() == ["band", "band", "envelope", *PAIR]
    panel.bands.value = False
    assert names() == ["envelope", *PAIR]
    best, *lines = figure(panel.curves)["data"]
    assert best["y"] == [max(pair) for pair in zip(*(line["y"] for line in lines), strict=True)]
    assert [line["line"]["color"] for line in lines] == ["#0072B2", "#D55E00"]


def test_zoom_is_kept_while_runs_are_added(panel):
    before = figure(panel.curves)["layout"]["uirevision"]
    panel.runs.value = (*PAIR, SMOOTHADV)
    assert figure(panel.curves)["layout"]["uirevision"] == before


def test_what_is_picked_in_the_dropdowns_stays_while_it_is_chosen(panel):
    panel.runs.value = (*PAIR, SMOOTHADV)
    panel.second.value = panel.scaled.value = SMOOTHADV
    panel.runs.value = (PAIR[0], SMOOTHADV)
    assert (panel.first.value, panel.second.value, panel.scaled.value) == (PAIR[0], SMOOTHADV, SMOOTHADV)
    panel.runs.value = PAIR
    assert (panel.first.value, panel.second.value, panel.scaled.value) == (*PAIR, PAIR[1])


def test_every_image_is_a_point_above_or_below_the_diagonal(panel):
    points = [trace for trace in figure(panel.radii)["data"] if "customdata" in trace]
    assert sum(len(trace["x"]) for trace in points) == 200
    for trace, sign in zip(points, (0, -1, 1), strict=True):
        assert trace["x"] and all((y > x) - (y < x) == sign for x, y in zip(trace["x"], trace["y"], strict=True))


def test_the_hovered_image_is_shown_and_the_clicked_one_ringed(panel):
    def ring() -> tuple[float, float]:
        (trace,) = [trace for trace in figure(panel.radii)["data"] if trace["name"].startswith("image ")]
        return trace["x"][0], trace["y"][0]

    most = max(panel.gains, key=lambda gain: gain.gained)
    assert ring() == (most.before, most.after) and panel.image.value == most.idx
    points, before = figure(panel.radii)["data"], panel.picture.image.value
    idx, _, across, up, gain = points[2]["customdata"][3]
    panel.radii.figure.hovered = {"x": 0.1, "y": 0.1, "curve": 2, "point": 3}
    assert f"image {idx}, class " in panel.picture.caption.value
    assert f"across {across}, up {up}, gain {gain}" in panel.picture.caption.value
    assert panel.picture.image.value != before and ring() == (most.before, most.after)
    panel.radii.figure.clicked = {"x": 0.1, "y": 0.1, "curve": 2, "point": 3}
    assert panel.image.value == idx and ring() == (points[2]["x"][3], points[2]["y"][3])
    for gone in ({"curve": 0, "point": 1}, {"curve": 99, "point": 0}, {"curve": 2, "point": 999}):
        panel.radii.figure.clicked = gone
        assert panel.image.value == idx and 'role="status"' in panel.status.value


def test_an_image_is_picked_by_its_number_or_the_nearest(panel):
    panel.image.value = 12
    assert panel.picture.caption.value.split(",")[0].endswith("image 12")
    panel.image.value = 10_000
    assert panel.image.value == 199 and "image 199" in panel.picture.caption.value


def test_missing_images_are_explained_and_the_numbers_stay(panel, tmp_path):
    panel.runs.value = [name for name in panel.runs.options if name.startswith("cifar10")]
    assert "No pictures: cifar10 was not found: looked for" in said(panel.radii) and str(tmp_path) in said(panel.radii)
    assert panel.picture.image.layout.display == "none" and "class " in panel.picture.caption.value
    assert re.fullmatch(r"Radius of each of \d+ images", title(panel.radii))


def test_what_files_of_the_field_lack_is_said(mixed):
    panel = Comparison(Selection(folder=str(mixed), runs="cohen"))
    lacks = "Without p_lower, a column that only record files of ddviz have: cohen."
    assert figure(panel.curves) and figure(panel.probabilities) == {} and said(panel.probabilities).count(lacks) == 1
    assert figure(panel.scales) == {} and "cohen has no column sigma" in said(panel.scales)
    assert figure(panel.radii) == {} and "expected two runs to compare image by image, got one" in said(panel.radii)
    panel.runs.value = ("net-fixed", "cohen")
    (known,) = figure(panel.probabilities)["data"]
    assert known["name"] == "net-fixed" and lacks in said(panel.probabilities)
    assert figure(panel.radii) and panel.picture.caption.value


def test_runs_without_a_common_image_have_curves_but_no_scatter(mixed):
    panel = Comparison(Selection(folder=str(mixed), runs="net-fixed, other-ds"))
    assert figure(panel.curves) and figure(panel.radii) == {}
    assert "got none that net-fixed and other-ds share" in said(panel.radii)
    assert "image" not in panel.picture.caption.value
    assert "other images" in panel.table.value and "norms differ" in panel.status.value
    panel.image.value = 3  # there is nothing to pick from
    panel.runs.value = ("net-fixed", "net-ds")
    assert title(panel.radii) == "Radius of each of 3 images" and said(panel.radii).endswith("></div>")


@pytest.mark.parametrize(
    ("control", "value", "message"),
    [
        ("runs", (), "expected two or more runs, got none. Pick some in the list"),
        ("runs", ("net-fixed", "damaged"), "damaged.tsv, line 2, column label"),
        ("folder", "nowhere", "expected a folder of finished runs, got 'nowhere', which does not exist"),
        ("folder", "{}/none.tsv", "none.tsv (no record file)"),
    ],
)
def test_a_mistake_shows_in_the_panel_and_is_put_right_there(mixed, control, value, message):
    panel = Comparison(Selection(folder=str(mixed), runs="net-fixed, net-ds"))
    (mixed / "none.tsv").write_text("radius\taccuracy\n")
    changed = getattr(panel, control)
    before, changed.value = changed.value, value.format(mixed) if isinstance(value, str) else value
    assert message in html.unescape(panel.status.value) and 'role="alert"' in panel.status.value
    parts = (panel.curves, panel.radii, panel.probabilities, panel.scales)
    assert [figure(part) for part in parts] == [{}] * 4 and not panel.table.value
    panel.bands.value, panel.image.value = False, 2  # nothing to show, and nothing else goes wrong
    assert message in html.unescape(panel.status.value)
    changed.value = before
    assert 'role="status"' in panel.status.value and all(figure(part) for part in parts)


def test_new_runs_are_found_and_the_choice_is_kept(mixed):
    panel = Comparison(Selection(folder=str(mixed), runs="net-fixed, net-ds"))
    made(mixed / "late-ds", CHOSEN, method="ds")
    panel.refresh.click()
    assert "late-ds" in panel.runs.options and panel.runs.value == ("net-fixed", "net-ds")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fodler": "x"}, r"unknown parameter fodler\. Did you mean folder\?"),
        ({"folder": "nowhere"}, "expected folder to hold finished runs, got 'nowhere', which does not exist"),
        ({"runs": 3}, r"expected runs to be str, got 3 \(int\)"),
        ({"runs": "net-fixed, net-sd"}, "expected runs to be of those in .*, got 'net-sd'. Known: .*net-ds"),
        ({"dataset": "digit"}, "expected dataset to be one of digits, .* Did you mean digits?"),
        ({"data_root": "nowhere"}, "expected data_root to be a folder of data sets, got 'nowhere'"),
    ],
)
def test_wrong_parameters_end_with_one_message(mixed, settings, message):
    with pytest.raises(InputError, match=message):
        Comparison(Selection.from_namespace({"folder": str(mixed), **settings}))


def test_the_notebook_s_parameters_are_the_settings(monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)  # where the default folder lies
    assert_parameters_are_fields(NOTEBOOKS / "compare.ipynb", Selection)
