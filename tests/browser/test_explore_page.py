"""explore.ipynb as a user meets it. The speeds are printed, not asserted: `pytest -s tests/browser`."""

import statistics
import time

import nbformat
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def explorer(lab):
    """The page with all cells run and the first figure drawn."""
    lab.open("explore.ipynb")
    began = time.monotonic()
    lab.run_all()
    lab.wait_for_figure(0)
    print(f"\nRun All to first figure, imports included: {time.monotonic() - began:.1f} s")
    return lab


def title(lab) -> str:
    return lab.text(".ddviz-figure .gtitle")


def range_of_landscape(lab) -> list[float]:
    return lab.page.evaluate("() => document.querySelector('.ddviz-figure')._fullLayout.xaxis.range")


def test_pick_move_certify_cancel_and_reload(explorer):
    lab, page = explorer, explorer.page
    assert title(lab).startswith("Image 0:") and "after 100 steps" in title(lab)
    lab.screenshot("explore", ".ddviz-explorer")

    before = lab.figure_version()
    page.locator(".ddviz-thumbnail").nth(4).click()
    lab.wait_for_figure(before)
    assert title(lab).startswith("Image 4:")

    lab.press(".ddviz-k", "ArrowLeft")
    assert "after 99 steps" in title(lab)
    sigma_0 = lab.text(".ddviz-sigma0 .widget-readout")
    lab.press(".ddviz-sigma0", "ArrowRight")
    assert lab.text(".ddviz-sigma0 .widget-readout") != sigma_0
    assert f"sigma_0 = {lab.text('.ddviz-sigma0 .widget-readout')}" in title(lab)

    page.locator(".ddviz-certify").click()
    page.wait_for_selector(".ddviz-certificates")
    assert "The memory stored it as it came" in lab.text(".ddviz-result")
    page.locator("select").filter(has_text="N = 100,000").select_option("N = 100,000")
    page.locator(".ddviz-certify").click()
    page.get_by_text("of 200,200 samples").wait_for()
    page.locator(".ddviz-cancel").click()
    page.get_by_text("Cancelled.").wait_for()

    lab.command("docmanager:save")
    page.reload()
    lab.wait_for_figure(0)
    assert title(lab).startswith("Image 4:")
    lab.press(".ddviz-k", "ArrowLeft")
    assert "after 98 steps" in title(lab)
    assert lab.foreign == []


def test_the_zoom_stays_and_nothing_piles_up(explorer):
    lab, page = explorer, explorer.page
    before = range_of_landscape(lab)
    box = page.locator(".ddviz-figure .nsewdrag").first
    box.scroll_into_view_if_needed()
    area = box.bounding_box()
    page.mouse.move(area["x"] + 0.2 * area["width"], area["y"] + 0.2 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.6 * area["width"], area["y"] + 0.8 * area["height"], steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    zoomed = range_of_landscape(lab)
    assert zoomed != before
    seconds = [lab.press(".ddviz-k", "ArrowLeft") for _ in range(40)]
    assert range_of_landscape(lab) == zoomed
    heap, kernel = lab.memory()
    seconds += [lab.press(".ddviz-k", key) for _ in range(80) for key in ("ArrowRight", "ArrowLeft")]
    grown = [after - before for after, before in zip(lab.memory(), (heap, kernel), strict=True)]
    median = 1000 * statistics.median(seconds)
    print(f"\nK slider to new picture: median {median:.0f} ms")
    print(f"page {heap:.0f} MiB, {grown[0]:+.1f} in 160 moves; kernel {kernel:.0f} MiB, {grown[1]:+.1f}")
    assert grown[0] < 10 and grown[1] < 20  # 160 pictures with their plots, kept, would be more


def test_dark_pages_read_as_well(explorer):
    lab = explorer
    color = "() => document.querySelector('.ddviz-figure')._fullLayout.font.color"
    light = lab.page.evaluate(color)
    lab.command("apputils:change-theme", theme="JupyterLab Dark")
    lab.page.wait_for_function(f"light => ({color})() !== light", arg=light)
    lab.screenshot("explore-dark", ".ddviz-explorer")
    lab.command("apputils:change-theme", theme="JupyterLab Light")
    lab.page.wait_for_function(f"light => ({color})() === light", arg=light)
    lab.page.set_viewport_size({"width": 1100, "height": 800})
    lab.page.wait_for_timeout(500)
    lab.screenshot("explore-1100", ".ddviz-explorer")
    width = lab.page.evaluate("() => document.querySelector('.ddviz-figure').clientWidth")
    assert width < 1000  # the figure follows the page


def test_real_images(lab, server, data_root):
    notebook = nbformat.read(server[1] / "explore.ipynb", 4)
    source = notebook.cells[1].source.replace('"digits"', '"cifar10"', 1).replace("0.12", "0.25", 1)
    notebook.cells[1].source = source.replace('data_root: str = ""', f"data_root: str = {str(data_root)!r}")
    nbformat.write(notebook, server[1] / "cifar10.ipynb")
    lab.open("cifar10.ipynb")
    lab.run_all()
    lab.wait_for_figure(0)
    seconds = [lab.press(".ddviz-sigma0", key) for key in ("ArrowRight", "ArrowLeft", "ArrowRight")]
    print(f"\nsigma_0 to new path, CIFAR-10: median {statistics.median(seconds):.1f} s")
    lab.page.get_by_text("network evaluations for this picture").wait_for()
    assert "cifar10-resnet20" in lab.text(".ddviz-status")
    lab.screenshot("explore-cifar10", ".ddviz-explorer")


def test_click_into_the_plane_and_replay_the_memory(lab):
    lab.open("tour.ipynb")
    lab.run_all()
    lab.wait_for_figure(0)
    lab.page.locator(".ddviz-figure").first.scroll_into_view_if_needed()
    lab.screenshot("tour_smoothing", ".ddviz-tour")
    for place, x in ((0, 0.37), (1, 0.50)):  # in either of the two pictures of the plane, from -0.15 to 1.15
        area, before = lab.page.locator(".ddviz-figure .nsewdrag").nth(place).bounding_box(), lab.figure_version()
        left, top = (x + 0.15) / 1.3 * area["width"], 0.3 * area["height"]
        lab.page.mouse.click(area["x"] + left, area["y"] + top)
        lab.wait_for_figure(before)
        coordinates = [float(lab.page.locator("input[type=number]").nth(i).input_value()) for i in (0, 1)]
        assert coordinates == pytest.approx([x, 1.15 - 0.3 * 1.3], abs=0.02)
    arrived = lab.page.locator(".widget-slider .noUi-handle").nth(1)
    arrived.focus()
    for _ in range(19):
        lab.page.keyboard.press("ArrowRight")
    lab.page.get_by_text("Point 20 of 22").wait_for()
    assert "is in the way" in lab.page.locator(".ddviz-figure .gtitle").nth(1).text_content()
    lab.screenshot("tour_memory", ".ddviz-tour", 1)
    assert lab.foreign == []
