import re

import plotly.graph_objects as go
import pytest
import torch
from conftest import HalfSpace
from scipy.stats import norm

from ddviz import plane, plane_scenes
from ddviz.records import ABSTAIN
from ddviz.tour import MemoryTour, SmoothingTour

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network():
    return plane.trained()


@pytest.fixture(scope="module")
def visited(network):
    points = plane.visitors()
    certificates = plane.certified(network, points, plane.searched(network, points, 0.1, lr=0.01))
    return points, certificates, plane.arrivals(points, certificates, range(len(points)))


def test_a_blurred_half_plane_is_the_normal_distribution():
    half = plane.regions(HalfSpace(torch.tensor([1.0, 0.0]), -0.5))
    smoothed = half.smoothed(0.1)
    expected = norm.cdf((half.axis - 0.5) / 0.1)
    assert abs(smoothed[0] - expected[None, :]).max() < 0.03  # a cell is a tenth of sigma
    assert abs(smoothed.sum(0) - 1).max() < 1e-9


def test_the_network_is_the_same_each_time_and_knows_new_points(network):
    state = torch.get_rng_state()
    again = plane.trained()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    x, y = plane.spiral(300, seed=1)
    assert (network(x).argmax(1) == y).float().mean() > 0.98


def test_visitors_make_the_memory_do_all_that_it_can(visited):
    _, _, answered = visited
    assert {arrival.answer.case for arrival in answered} == {"new", "known", "adopted", "shrunk", "abstained"}
    (adopted,) = (a for a in answered if a.answer.case == "adopted")
    assert ABSTAIN != adopted.certificate.predict != adopted.answer.predict  # two certificates that contradict
    assert answered[-1].answer.case == "known" and answered[-1].by == 0


def test_stored_balls_of_different_classes_do_not_meet_and_the_certified_ones_did(visited):
    _, _, answered = visited

    def meetings(balls) -> int:
        pairs = [(p, q) for i, p in enumerate(balls) for q in balls[:i] if ABSTAIN not in (p[1], q[1]) and p[1] != q[1]]
        return sum(torch.dist(torch.tensor(p[0]), torch.tensor(q[0])) < p[2] + q[2] - 1e-6 for p, q in pairs)

    assert meetings([(a.point, a.certificate.predict, a.certificate.radius) for a in answered]) > 0
    assert meetings([(a.point, a.answer.predict, a.answer.radius) for a in answered]) == 0


def test_one_sigma_needs_no_memory(network, visited):
    points = visited[0][:-1]
    fixed = plane.certified(network, points, [0.1] * len(points))
    cases = [a.answer.case for a in plane.arrivals(points, fixed, range(len(points))) if a.certificate.predict >= 0]
    assert set(cases) == {"new"}


def test_the_cause_is_named_by_its_arrival(visited):
    _, _, answered = visited
    for place, arrival in enumerate(answered):
        if arrival.answer.case in ("shrunk", "adopted"):
            cause = answered[arrival.by]
            assert arrival.by < place
            distance = torch.dist(torch.tensor(arrival.point), torch.tensor(cause.point)).item()
            assert distance == pytest.approx(cause.answer.radius + arrival.answer.radius, abs=1e-6) or (
                arrival.answer.case == "adopted" and distance + arrival.answer.radius <= cause.answer.radius + 1e-6
            )


def test_the_order_matters_and_the_same_order_does_not(visited):
    points, certificates, answered = visited
    backwards = plane.arrivals(points, certificates, range(len(points))[::-1])
    assert plane.different(answered, answered) == 0
    assert plane.different(answered, backwards) > 0


def test_every_picture_of_the_memory_tells_its_story(visited):
    _, _, answered = visited
    titles = [go.Figure(plane_scenes.memory(answered, t)).layout.title.text for t in range(1, len(answered) + 1)]
    for arrival, title in zip(answered, titles, strict=True):
        wanted = {
            "new": "stored as it came",
            "known": "asked before",
            "adopted": f"in the ball of point {arrival.by + 1}",
        }
        wanted |= {"shrunk": f"the ball of point {arrival.by + 1} is in the way", "abstained": "nothing stored"}
        assert wanted[arrival.answer.case] in title


def test_a_click_moves_the_point_and_the_balls_are_certificates(network):
    tour = SmoothingTour(network)
    before = tour.figure.version
    tour.figure.clicked = {"x": 0.3, "y": 0.8}
    assert (tour.x.value, tour.y.value) == (0.3, 0.8) and tour.figure.version == before + 1
    point = torch.tensor([[0.3, 0.8]])
    fixed = plane.certified(network, point, [0.05])[0]
    assert f"fixed sigma = 0.050: green, certified radius {fixed.radius:.3f}" in tour.status.value
    tour.sigma.value = 0.2
    assert "fixed sigma = 0.200" in tour.status.value and tour.figure.version == before + 2
    go.Figure(plane_scenes.smoothing(plane.regions(network), 0.2, *plane.spiral(9), (0.3, 0.8), [fixed, fixed]))


def test_the_panel_begins_where_sigma_x_certifies_clearly_more(network):
    tour = SmoothingTour(network)
    fixed, found = (float(radius) for radius in re.findall(r"radius (\d\.\d{3})", tour.status.value))
    assert found > 1.5 * fixed > 0.1


def test_the_memory_panel_replays_in_other_orders(network):
    tour = MemoryTour(network)
    tour.arrived.value = 20
    assert "Point 20 of 22" in tour.figure.figure
    tour.order.value = "the last one first"
    assert "answers are not those of the order in which they came" in tour.status.value
