"""The explorer's panel, driven from Python as its widgets are driven from a page."""

import threading
from dataclasses import replace

import ipywidgets as ipw
import pytest

import ddviz
from ddviz import exploration
from ddviz.explorer import Explorer
from ddviz.widgets import Callbacks, Status

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def explorer(tmp_path):
    config = ddviz.RunConfig(dtype="float32", iterations=10, max_images=60, n=1000, run_root=str(tmp_path))
    panel = Explorer(config)
    panel.wait()
    return panel


def test_it_begins_with_the_first_image_at_the_configs_settings(explorer):
    assert explorer.study.index == 0 and explorer.study.config.sigma == pytest.approx(0.12)
    assert explorer.k.value == 10 and explorer.figure.version == 1
    assert "digits-cnn-cohen-0.12-fs" in explorer.status.value
    assert all(bytes(picture.image.value[:4]) == b"\x89PNG" for picture in explorer.pictures)


def test_the_k_slider_only_indexes_the_stored_path(explorer, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was called")

    monkeypatch.setattr(explorer.bench.network, "forward", refuse)
    monkeypatch.setattr(type(explorer.bench.sampler), "count", refuse)
    before, picture = explorer.figure.figure, explorer.pictures[2].image.value
    explorer.k.value = 3
    assert explorer.figure.version == 2 and explorer.figure.figure != before
    assert explorer.pictures[2].image.value != picture and "3 steps" in explorer.figure.figure
    assert "AssertionError" not in explorer.status.value


def test_sigma_x_may_be_another_solver_s(explorer):
    explorer.gallery.index = 7
    explorer.wait()
    for solver, name in (("halving", "halving"), ("grid", "grid search")):
        explorer.solver.value = solver
        chosen = explorer.study.choices[solver]
        assert f"sigma_x = {chosen:.3f} by {name}" in explorer.figure.figure
        explorer.certify.click()
        explorer.wait()
        assert f"sigma_x = {chosen:.3f}" in explorer.result.value
    explorer.solver.value = ""
    assert f"sigma_x = {explorer.study.sigma[-1]:.3f} after 10 steps" in explorer.figure.figure


def test_a_new_sigma_0_makes_a_new_path(explorer):
    explorer.sigma_0.value = 0.25
    explorer.wait()
    assert explorer.study.config.sigma == 0.25 and explorer.study.sigma[0].item() == 0.25
    assert "sigma_0 = 0.250" in explorer.figure.figure


def test_a_newer_change_cancels_the_older_one(explorer, monkeypatch):
    gate, real, made = threading.Event(), exploration.study, []

    def slow(bench, config, index, token):
        if config.sigma == 0.2:
            gate.wait(10)
        made.append(real(bench, config, index, token))
        return made[-1]

    monkeypatch.setattr(exploration, "study", slow)
    explorer.sigma_0.value = 0.2
    older = explorer._searching._thread
    assert "Searching" in explorer.status.value
    explorer.sigma_0.value = 0.3
    explorer.wait()
    gate.set()
    older.join(10)
    assert [study.config.sigma for study in made] == [0.3] and explorer.study is made[0]


def test_papers_settings_and_back(explorer):
    explorer.paper.click()
    explorer.k.value = 850  # while the longer path is still being searched
    explorer.redraw.click()
    assert "after 10 steps" in explorer.figure.figure and "Error" not in explorer.status.value
    explorer.wait()
    settings = explorer.study.config
    assert (settings.lr, settings.samples, settings.iterations, settings.clamp) == (1e-4, 1, 900, 0.02)
    assert "after 850 steps" in explorer.figure.figure
    explorer.sigma_0.value = 0.5
    explorer.defaults.click()
    explorer.wait()
    assert explorer.study.config == explorer.config


def test_certificates_are_those_of_certify_and_the_memory_answers(explorer):
    explorer.k.value = 7
    explorer.certify.click()
    explorer.wait()
    study, bench = explorer.study, explorer.bench
    for sigma in (0.12, study.sigma[7].item()):
        plain = ddviz.certify(bench.network, study.image, sigma, n=1000, index=0)
        assert f"<b>{plain.radius:.3f}</b>" in explorer.result.value and f"{plain.sigma:.3f}" in explorer.result.value
    assert "stored it as it came" in explorer.result.value and len(explorer.memory) == 1
    explorer.certify.click()
    explorer.wait()
    assert "repeated what it had answered" in explorer.result.value and len(explorer.memory) == 1
    assert not explorer.certify.disabled and explorer.cancel.disabled


def test_no_certificate_of_one_image_is_stored_for_another(explorer, monkeypatch):
    gate, real = threading.Event(), exploration.study

    def slow(*arguments):
        gate.wait(10)
        return real(*arguments)

    monkeypatch.setattr(exploration, "study", slow)
    explorer.gallery.thumbnails[3].click()
    explorer.certify.click()
    assert "The search has not ended yet" in explorer.status.value and not explorer.certify.disabled
    gate.set()
    explorer.wait()
    assert len(explorer.memory) == 0
    explorer.certify.click()
    explorer.gallery.thumbnails[5].click()  # gives the certificate up
    explorer.wait()
    assert len(explorer.memory) == 0 and explorer.study.index == 5


def test_a_panel_that_is_closed_stops_working(explorer, monkeypatch):
    gate, real = threading.Event(), explorer.bench.network.forward
    monkeypatch.setattr(explorer.bench.sampler.forward, "forward", lambda x: (gate.wait(10), real(x))[1])
    explorer.certify.click()
    explorer.close()
    gate.set()
    explorer.wait()
    assert len(explorer.memory) == 0 and not explorer._certifying.busy


def test_a_certificate_can_be_cancelled(explorer, monkeypatch):
    reached, gate, real = threading.Event(), threading.Event(), explorer.bench.network.forward

    def slow(x):
        reached.set()
        gate.wait(10)
        return real(x)

    monkeypatch.setattr(explorer.bench.sampler.forward, "forward", slow)
    explorer.certify.click()
    assert reached.wait(10) and explorer.certify.disabled and not explorer.cancel.disabled
    explorer.cancel.click()
    gate.set()
    explorer.wait()
    assert explorer.result.value == "Cancelled." and len(explorer.memory) == 0 and not explorer.certify.disabled


def test_the_gallery_filters_pages_and_picks(explorer):
    gallery, labels = explorer.gallery, explorer.bench.images.labels
    gallery.later.click()
    gallery.thumbnails[2].click()
    explorer.wait()
    assert explorer.study.index == gallery.index == 14 == gallery.number.value
    gallery.wanted.value = 3
    assert [labels[index] for index in gallery._shown] == [3] * len(gallery._shown) != []
    gallery.thumbnails[0].click()
    explorer.wait()
    assert explorer.study.label == 3
    gallery.number.value = 5000  # there is no such image: the nearest is taken
    explorer.wait()
    assert explorer.study.index == gallery.number.value == 59
    gallery.wanted.value = "all"
    for _ in range(9):
        gallery.later.click()
    assert gallery.later.disabled and not gallery.earlier.disabled


def test_finished_runs_offer_their_extremes(tmp_path):
    config = ddviz.RunConfig(dtype="float32", iterations=30, max_images=20, n=500, run_root=str(tmp_path))
    ddviz.run(config)
    panel = Explorer(config)
    panel.wait()
    panel.gallery.wanted.value = "extremes"
    assert panel.bench is not None
    gains = exploration.finished_gains(panel.bench)
    assert panel.gallery._shown == [gain.idx for gain in gains] != []


def test_other_noise_changes_only_the_noisy_pictures(explorer):
    before = [picture.image.value for picture in explorer.pictures]
    explorer.redraw.click()
    after = [picture.image.value for picture in explorer.pictures]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]


def test_a_users_mistake_shows_as_its_message_and_the_panel_lives_on(explorer, monkeypatch, tmp_path):
    monkeypatch.setenv("DDVIZ_DATA", str(tmp_path))
    explorer.dataset.value = "cifar10"
    explorer.wait()
    assert "cifar10 was not found" in explorer.status.value and "Traceback" not in explorer.status.value
    explorer.dataset.value = "digits"
    explorer.wait()
    assert explorer.study.index == 0 and "network evaluations" in explorer.status.value


def test_anything_else_that_fails_shows_with_its_traceback(explorer, monkeypatch):
    monkeypatch.setattr(exploration, "study", lambda *_: {}["gone"])
    explorer.sigma_0.value = 0.3
    explorer.wait()
    assert "KeyError" in explorer.status.value and "Traceback" in explorer.status.value


def test_l1_names_lambda_and_keeps_the_image(explorer):
    explorer.gallery.thumbnails[4].click()
    explorer.norm.value = "l1"
    explorer.wait()
    assert explorer.study.index == 4 and explorer.sigma_0.description == "lambda_0 ([0,1] pixels)"
    assert "lambda_x" in explorer.figure.figure and explorer.study.config.norm == "l1"


def test_every_control_has_a_label(explorer):
    def walk(widget: ipw.Widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from walk(child)

    controls = [w for w in walk(explorer) if isinstance(w, ipw.IntSlider | ipw.FloatLogSlider | ipw.Button)]
    assert len(controls) > 20 and all(control.description or control.tooltip for control in controls)


def test_an_image_that_cannot_be_read_leaves_the_others(explorer):
    images = explorer.bench.images

    def read(index):
        if index == 1:
            raise ddviz.InputError("cannot read the image 1")
        return images.read(index)

    explorer.gallery.offer(replace(images, read=read))
    assert explorer.gallery.thumbnails[1].tooltip == "cannot read the image 1"
    assert explorer.gallery.thumbnails[2].tooltip.startswith("image 2, ")


def test_a_step_that_nobody_could_see_is_refused():
    with pytest.raises(ddviz.InputError, match=r"expected lr >= 1e-05 here, where a path is to be seen, got 0\."):
        Explorer(ddviz.RunConfig(lr=0.0))


def test_callbacks_rest_while_a_program_sets_controls():
    calls, callbacks = [], Callbacks(Status())
    callback = callbacks(lambda: calls.append(1))
    with callbacks.resting():
        callback(None)
    callback(None)
    assert calls == [1]
