"""compare.ipynb in a browser: four figures, and images under the mouse and from the keyboard."""

import shutil

import pytest

from .conftest import NOTEBOOKS

_DRAWN = "() => document.querySelectorAll('.ddviz-figure[data-version]').length == 4"
_POINTS = """() => [...document.querySelectorAll('.ddviz-radii .points path')].map(path => {
    const box = path.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})"""
_SAYS = "text => document.querySelector('.ddviz-picture').innerText.includes(text)"


@pytest.mark.slow
def test_images_are_shown_under_the_mouse_and_by_number(lab):
    shutil.copytree(NOTEBOOKS / "results" / "digits", lab.folder / "results" / "digits", dirs_exist_ok=True)
    lab.open("compare.ipynb")
    lab.run_all()
    lab.page.wait_for_function(_DRAWN)
    lab.page.locator(".ddviz-radii").scroll_into_view_if_needed()
    before = lab.text(".ddviz-picture")
    for x, y in lab.page.evaluate(_POINTS)[:2]:  # one of them at least is not the image that is shown
        lab.page.mouse.move(x, y)
        lab.page.wait_for_timeout(500)
    assert lab.text(".ddviz-picture") != before and "class" in lab.text(".ddviz-picture")
    number = lab.page.locator(".ddviz-image input")
    number.fill("17")
    number.press("Enter")
    lab.page.wait_for_function(_SAYS, arg="image 17, class")
    lab.screenshot("compare", ".ddviz-comparison")
    lab.command("apputils:change-theme", theme="JupyterLab Dark")
    lab.page.set_viewport_size({"width": 1100, "height": 800})
    lab.screenshot("compare-1100-dark", ".ddviz-comparison")
    lab.command("apputils:change-theme", theme="JupyterLab Light")
    assert lab.foreign == []
