import dataclasses

import plotly.graph_objects as go
import pytest
import torch
from conftest import HalfSpace, SoftHalfSpace
from scipy.stats import norm
from torch.special import ndtr, ndtri

import ddviz
from ddviz import exploration, scenes
from ddviz.bench import prepare
from ddviz.exploration import landscape, study, study_evaluations
from ddviz.jobs import Cancelled, Token
from ddviz.noise import NoiseKey, Stage
from ddviz.records import ABSTAIN

pytestmark = pytest.mark.usefixtures("one_thread")
A, B, X0 = 3.0, 0.4, 0.7


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("runs"))
    return ddviz.RunConfig(dtype="float32", iterations=12, max_images=20, n=500, run_root=root)


@pytest.fixture(scope="module")
def bench(config):
    return prepare(config)


@pytest.fixture(scope="module")
def found(bench, config):
    return study(bench, config, 3)


def soft_landscape(sigma, *, samples=128, seed=0):
    """Of a classifier whose smoothed probability is known; most sigma are so small that class 0 stays on top."""
    return landscape(
        lambda x: SoftHalfSpace(A, B)(x),
        torch.full((1, 1, 2), X0),
        sigma,
        smoothing=ddviz.Gaussian(),
        key=NoiseKey(seed, 0, Stage.SHOW),
        clamp=1e-4,
        samples=samples,
    )


def test_the_landscape_of_a_known_classifier_is_its_closed_form():
    sigma = torch.tensor([0.05, 0.1, 0.2, 0.4])
    around = soft_landscape(sigma, samples=20_000)
    p_a = ndtr(A * (X0 - B) / (1 + (A * sigma) ** 2).sqrt())
    assert around.top.tolist() == [0] * 4
    assert torch.allclose(around.probabilities[:, 0], p_a, atol=0.01)
    assert torch.allclose(around.radius, sigma * ndtri(p_a), atol=0.01)


@pytest.mark.parametrize("p_a", [0.6, 0.8, 0.97, 0.99, 0.997, 0.999])
def test_the_band_covers_the_radius_also_where_nearly_all_samples_agree(p_a):
    margin = float(norm.ppf(p_a)) * 0.25
    network = HalfSpace(torch.tensor([1.0, 0.0]), margin)
    sigma, inside = torch.tensor([0.25]), 0
    for seed in range(200):
        around = landscape(
            lambda x: 50 * network(x).sign(),
            torch.zeros(1, 1, 2),
            sigma,
            smoothing=ddviz.Gaussian(),
            key=NoiseKey(seed, 0, Stage.SHOW),
            clamp=5e-4,
        )
        inside += bool(around.low <= margin <= around.high)
    assert inside >= 188  # of 200; an interval from the spread has 24 at 0.999


def test_the_landscape_does_not_depend_on_the_batch():
    sigma, network = torch.tensor([0.1, 0.4]), SoftHalfSpace(A, B)
    settings = {"smoothing": ddviz.Gaussian(), "key": NoiseKey(0, 0, Stage.SHOW), "clamp": 1e-4}
    one, many = (landscape(network, torch.full((1, 1, 2), X0), sigma, batch=batch, **settings) for batch in (128, 7))
    assert torch.allclose(one.radius, many.radius, atol=1e-6)


def test_nan_is_refused():
    with pytest.raises(ddviz.InputError, match="the network returned NaN"):
        soft_landscape(torch.tensor([float("nan")]))


def test_between_two_scales_values_lie_between():
    around = soft_landscape(torch.tensor([0.1, 0.2, 0.4]))
    radius, probabilities = around.at(torch.tensor([0.1, 0.2, 0.4]))
    assert torch.allclose(radius, around.radius) and torch.allclose(probabilities, around.probabilities)
    assert around.at(torch.tensor([2**0.5 * 0.1]))[0].item() == pytest.approx(around.radius[:2].mean().item(), abs=1e-5)
    assert around.at(torch.tensor([9.0]))[0] == around.radius[-1]  # beyond the ends: the ends


def test_a_study_shows_the_path_that_the_solver_walks(bench, config, found):
    path = dataclasses.replace(config, solver="ascent").make_solver()(
        bench.network, bench.image(3)[None], config.sigma, indices=[3]
    )
    assert torch.allclose(found.sigma, path.sigma[:, 0], atol=1e-5)  # folded, and so rounded otherwise
    assert torch.allclose(found.radius, path.radius[:, 0], atol=1e-4)
    halving = dataclasses.replace(config, solver="halving").make_solver()
    assert found.choices["halving"] in halving(bench.network, bench.image(3)[None], config.sigma, indices=[3]).sigma
    grid = ddviz.Grid(evaluations=200, samples=config.samples, clamp=config.clamp)
    chosen = grid(bench.network, bench.image(3)[None], config.sigma, indices=[3]).chosen.item()
    assert (
        found.kept == (path.chosen[0] == path.sigma[-1, 0])
        and found.choices["grid"] == chosen
        and found.label == bench.images.labels[3]
    )


def test_the_solvers_whose_choices_are_shown_have_names_and_looks(found):
    assert found.choices.keys() == scenes.SOLVERS.keys()


def test_forms_of_a_network_are_made_before_threads_run_it():
    """torch.fx patches nn.Module while it traces; a network that runs beside it would fail, half of the times."""
    images, network = torch.rand(2, 3, 32, 32), ddviz.models.pretrained("cifar10-resnet20-cohen-0.25-fs").network
    labels = network.eval()(images).argmax(1).tolist()
    own = ddviz.datasets.ImageSet("own", tuple("0123456789"), labels, range(2), images.__getitem__, "here")
    config = ddviz.RunConfig(dataset="cifar10", sigma=0.25, iterations=1, samples=1, dtype="float32")
    for _ in range(4):
        bench = prepare(config, network, own)
        study(dataclasses.replace(bench, sampler=dataclasses.replace(bench.sampler, workers=2)), config, 0)


def test_the_landscape_reaches_everything_that_was_visited(found):
    low, high = found.landscape.sigma[0].item(), found.landscape.sigma[-1].item()
    for sigma in (*found.sigma.tolist(), *found.choices.values(), found.config.sigma):
        assert low * 0.999 <= sigma <= high * 1.001


def test_the_stated_evaluations_are_those_made(bench, config, found):
    assert found.evaluations == study_evaluations(config)
    other = dataclasses.replace(config, samples=3, iterations=5, keep_class=False, keep_radius=False)
    assert study(bench, other, 0).evaluations == study_evaluations(other)


def test_a_study_can_be_cancelled(bench, config):
    token = Token()
    token.cancel()
    with pytest.raises(Cancelled):
        study(bench, config, 0, token)


def test_one_draw_is_the_same_noise_at_every_scale(found):
    one, two = ((exploration.noisy(found, sigma, 5) - found.image) / sigma for sigma in (0.1, 0.4))
    assert torch.allclose(one, two, atol=1e-5) and one.std() > 0.5
    assert not torch.allclose(one, (exploration.noisy(found, 0.1, 6) - found.image) / 0.1, atol=0.1)


def test_certificates_here_are_those_of_certify(bench, config):
    token = Token()
    ours = exploration.certify_scales(bench, config, 4, [0.1, 0.2], token)
    plain = [ddviz.certify(bench.network, bench.image(4), s, n=config.n, index=4) for s in (0.1, 0.2)]
    assert ours == plain and token.evaluations == 2 * (config.n0 + config.n)


def test_the_gain_counts_wrong_answers_as_nothing():
    right = ddviz.Certificate(3, 0.5, 0.9, 90, 100, 0.1, "l2")
    wrong = dataclasses.replace(right, predict=2, radius=0.9)
    none = dataclasses.replace(right, predict=ABSTAIN, radius=0.0)
    assert exploration.gain([right, wrong], 3) == -0.5 and exploration.gain([none, right], 3) == 0.5
    assert exploration.gain([wrong, wrong], 3) == 0


def test_images_of_finished_runs_come_with_the_largest_loss_first(config):
    own = dataclasses.replace(config, run_root=config.run_root + "/finished")
    bench = prepare(own)
    assert exploration.finished_gains(bench) == []
    ddviz.run(own)
    gains = exploration.finished_gains(bench)
    assert gains and gains[0].gained == min(gain.gained for gain in gains)


@pytest.mark.parametrize("k", [0, 7, 12])
def test_the_figure_is_one_that_plotly_knows(found, k):
    classes = tuple("0123456789")
    traces = go.Figure(scenes.explorer(found, k, classes)).to_dict()["data"]
    points = {trace.get("name"): trace for trace in traces}
    assert points["sigma_0"]["marker"]["color"] == scenes.FIXED.color
    (bars,) = (trace for trace in traces if trace["type"] == "bar" and trace.get("name") == "sigma_x")
    assert sum("(true)" in name for name in bars["y"]) <= 1 and len(bars["y"]) == 5
    marks = [trace["x"][0] for trace in traces if trace.get("mode") == "markers" and trace.get("xaxis") == "x2"]
    assert marks == [k, k]
    title = scenes.explorer(found, k, classes)["layout"]["title"]["text"]
    assert f"sigma_x = {found.sigma[k]:.3f} after {k} steps" in title


def test_where_another_class_is_on_top_the_curve_is_another_one(found):
    around = dataclasses.replace(found.landscape, probabilities=found.landscape.probabilities.clone())
    first = around.at(torch.tensor([found.config.sigma]))[1].argmax()
    around.probabilities[-3:, first] = -1.0
    shown = scenes.explorer(dataclasses.replace(found, landscape=around), 0, tuple("0123456789"))["data"]
    (curve,) = (trace for trace in shown if "of the class at sigma_0" in trace.get("name", ""))
    assert curve["y"][-3:] == [None] * 3 and None not in curve["y"][:5]
