"""Bounds hold for every operator alone and joined; where the net is affine they are exact; at a point they are the net."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from certificates.enclosure import at_points, boxes_of, worst
from certificates.nets import AFFINE, CURVED, DEEP, EVERY, IMAGE, JOINED, made
from rbench.certificates import crown, ibp
from rbench.certificates.graph import trace
from rbench.certificates.rules import Box

ROUNDING = 1e-10


@pytest.mark.parametrize("name", EVERY)
def test_no_value_leaves_its_bounds_and_a_point_has_no_room(name: str) -> None:
    net, graph = made(name)
    assert worst(net, IMAGE, graph) <= ROUNDING
    assert at_points(net, IMAGE, graph) <= (1e-6 if name in CURVED or name in DEEP else ROUNDING)


@pytest.mark.parametrize("name", [*AFFINE, *JOINED])
def test_affine_nets_are_bounded_exactly(name: str) -> None:
    """The minimum over a box of an affine function, whose matrix autograd finds independently of any rule."""
    net, graph = made(name)
    lower, upper = boxes_of(IMAGE)
    matrix: Tensor = torch.autograd.functional.jacobian(lambda x: net(x[None])[0], lower[0]).flatten(1)
    radius = ((upper - lower) / 2).flatten(1)
    with torch.no_grad():
        exact = net((upper + lower) / 2) - radius @ matrix.abs().T
        found = ibp.boxes(graph, graph.weights(), Box(lower, upper), len(graph.nodes) - 1)
        unit = torch.eye(graph.classes, dtype=torch.float64).expand(len(lower), -1, -1)
        torch.testing.assert_close(crown.backward(graph, graph.weights(), found, unit), exact, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", DEEP)
def test_the_upper_bound_is_the_lower_bound_of_the_negative_net(name: str) -> None:
    net, own = made(name)
    lower, upper = boxes_of(IMAGE)
    ends = []
    for graph, sign in ((own, -1.0), (trace(nn.Sequential(net, _Negative()), IMAGE), 1.0)):
        specs = sign * torch.eye(graph.classes, dtype=torch.float64).expand(len(lower), -1, -1)
        with torch.no_grad():
            found = ibp.boxes(graph, graph.weights(), Box(lower, upper), graph.tail)
            ends.append(crown.backward(graph, graph.weights(), found, specs))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=ROUNDING)


class _Negative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


@pytest.mark.parametrize("name", DEEP)
def test_merging_the_last_layer_is_never_looser_and_somewhere_tighter(name: str) -> None:
    _, graph = made(name)
    lower, upper = boxes_of(IMAGE)
    label = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        logits = ibp.boxes(graph, graph.weights(), Box(lower, upper), len(graph.nodes) - 1)[-1]
        merged = ibp.margins(graph, lower, upper, label)
    specs = ibp.differences(label, graph.classes, lower)
    apart = ibp.least(specs, logits)
    if name != "two layers of curves":  # that one ends with tanh and a linear layer of its own
        assert (merged > apart + 1e-3).any()
    assert (merged >= apart - ROUNDING).all()


@pytest.mark.parametrize("name", DEEP)
def test_half_a_box_never_has_a_lower_interval_margin(name: str) -> None:
    _, graph = made(name)
    lower, upper = boxes_of(IMAGE)
    middle, label = (lower + upper) / 2, torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        whole = ibp.margins(graph, lower, upper, label)
        half = ibp.margins(graph, (lower + middle) / 2, (upper + middle) / 2, label)
    assert (half >= whole - ROUNDING).all()


def test_margins_leave_out_the_own_class() -> None:
    specs = ibp.differences(torch.tensor([2, 0]), 4, torch.zeros(()))
    assert specs.tolist() == [
        [[-1, 0, 1, 0], [0, -1, 1, 0], [0, 0, 1, -1]],
        [[1, -1, 0, 0], [1, 0, -1, 0], [1, 0, 0, -1]],
    ]
