"""Nearest points of hyperplane ∩ box: as near as float64 finds by bisection, on the plane or at its nearest corner; rows are islands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rbench_threats import planes
from rbench_threats.planes import Landing

Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Projection = Callable[..., tuple[Landing, Landing]]
ROWS, P = 30, 300  # more coordinates than l1 looks at first


def given(seed: int) -> Five:
    """θ, box, w, b: grey and inky images, θ at walls, w that is steep, flat or holds zeros; planes near, far and out of reach by turns."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(ROWS, P, generator=draw)
    x[::2] = ((x[::2] - 0.5) * 8 + 0.5).clamp(0, 1)
    theta = (torch.rand(ROWS, P, generator=draw) * 3 - 1).clamp(0, 1) - x
    w = torch.randn(ROWS, P, generator=draw)
    w[1::3] **= 5
    w[2::3] = torch.where(w[2::3] > 1, 0.0, 1e-3 * (1 + 1e-4 * w[2::3]) * w[2::3].sign())
    way = torch.tensor([1e-4, 0.02, 0.2, 0.6, 1.5]).repeat(ROWS // 5) * (w.abs().sum(1) * 0.5)
    return theta, -x, 1 - x, w, (w * theta).sum(1) + way * torch.randn(ROWS, generator=draw).sign()


def optimum(norm: str, theta: Tensor, five: Five, reach: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: the distance, how far w·θ has to go, and how far it can go. Bisection on λ; for l1 one coordinate after another."""
    lower, upper, w, b = (part.double() for part in five[1:])
    ahead = b - (w * theta).sum(1)
    sign, size, need = w.sign() * ahead.sign()[:, None], w.abs(), ahead.abs()
    pace = {"linf": torch.ones_like(size), "l2": size, "l1": size}[norm] if reach is None else reach.double().expand_as(size)
    room = torch.where(sign > 0, upper - theta, theta - lower) * (sign != 0) * (pace != 0)
    if norm == "l1":
        order = size.argsort(1, descending=True)
        there, steep = room.gather(1, order), size.gather(1, order)
        before = (there * steep).cumsum(1) - there * steep
        return ((need[:, None] - before) / steep.clamp_min(1e-300)).clamp_min(0).minimum(there).sum(1), need, (size * room).sum(1)
    low, high = torch.zeros_like(need), (room / pace.clamp_min(1e-300)).amax(1)
    for _ in range(100):
        middle = (low + high) / 2
        short = (size * room.minimum(middle[:, None] * pace)).sum(1) < need
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    move = room.minimum(high[:, None] * pace)
    return (move.norm(dim=1) if norm == "l2" else (move / pace.clamp_min(1e-300)).amax(1)), need, (size * room).sum(1)


def length(norm: str, move: Tensor, reach: Tensor | None) -> Tensor:
    scaled = move if reach is None else torch.where(move == 0, 0.0, move / reach)
    return torch.linalg.vector_norm(scaled, {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)


def law_nearest(norm: str, project: Projection, five: Five, reach: Tensor | None) -> None:
    theta, lower, upper, w, b = five
    scale = w.double().abs().amax(1)
    unreachable = 0
    for at, found in zip((theta, torch.zeros_like(theta)), project(*five, *(() if reach is None else (reach,))), strict=True):
        assert ((lower <= found.theta) & (found.theta <= upper)).all(), "outside the box"
        best, need, can = optimum(norm, at.double(), five, reach)
        left = (b - (w * found.theta.double()).sum(1)).abs()
        assert ((left - (need - can).clamp_min(0)) / scale <= 5e-5).all(), "off the plane, or off the corner nearest to it"
        moved = length(norm, found.theta.double() - at, reach)
        torch.testing.assert_close(moved, found.distance.double(), atol=1e-4, rtol=1e-5, msg="it says another distance")
        assert (moved <= best * (1 + 1e-5) + 1e-4).all(), "a nearer point exists"
        unreachable += int((need > can).sum())
    assert 0 < unreachable < ROWS


CASES: dict[str, tuple[str, Projection, bool]] = {
    "linf": ("linf", planes.to_plane_linf, False),
    "box": ("linf", planes.to_plane_linf, True),
    "l2": ("l2", planes.to_plane_l2, False),
    "l1": ("l1", planes.to_plane_l1, False),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Projection, Tensor | None]:
    norm, project, weighted = CASES[request.param]
    drawn = torch.rand(ROWS, P, generator=torch.Generator().manual_seed(9))
    return norm, project, drawn * (drawn > 0.2) if weighted else None  # some values may not move


@pytest.mark.parametrize("seed", range(3))
def test_nearest(case: tuple[str, Projection, Tensor | None], seed: int) -> None:
    norm, project, reach = case
    law_nearest(norm, project, given(seed), reach)


def test_rows_are_islands(case: tuple[str, Projection, Tensor | None]) -> None:
    """Bit for bit, alone and beside neighbours that take more rounds, or need more coordinates."""
    _, project, reach = case
    five = given(4)
    together = project(*five, *(() if reach is None else (reach,)))
    for rows in ([7], list(range(0, ROWS, 5)), list(range(1, ROWS, 5)), list(range(ROWS))[::-1]):
        some = project(*(part[rows] for part in five), *(() if reach is None else (reach[rows],)))
        for all_, few in zip(together, some, strict=True):
            assert torch.equal(all_.theta[rows], few.theta)
            assert torch.equal(all_.distance[rows], few.distance)


def test_a_point_on_the_plane_stays_and_without_slope_nothing_moves(case: tuple[str, Projection, Tensor | None]) -> None:
    _, project, reach = case
    theta, lower, upper, w, _ = given(5)
    more = () if reach is None else (reach,)
    there, _ = project(theta, lower, upper, w, torch.linalg.vecdot(w, theta), *more)
    torch.testing.assert_close(there.theta, theta)
    flat, zero = project(theta, lower, upper, torch.zeros_like(w), torch.ones(ROWS), *more)
    assert torch.equal(flat.theta, theta)
    assert not zero.theta.any()
    assert not zero.distance.any()


@pytest.mark.parametrize("factor", [1e-25, 1e15])
def test_the_scale_of_gradients_does_not_matter(case: tuple[str, Projection, Tensor | None], factor: float) -> None:
    _, project, reach = case
    theta, lower, upper, w, b = given(6)
    more = () if reach is None else (reach,)
    for one, other in zip(
        project(theta, lower, upper, w, b, *more), project(theta, lower, upper, w * factor, b * factor, *more), strict=True
    ):
        torch.testing.assert_close(one.theta, other.theta, atol=1e-4, rtol=1e-4)


def rescaled(theta: Tensor, lower: Tensor, upper: Tensor, w: Tensor, b: Tensor) -> tuple[Landing, Landing]:
    """The plane without the box, then clipped: what a projection must not be."""
    found = []
    for at in (theta, torch.zeros_like(theta)):
        move = w * ((b - (w * at).sum(1)) / w.square().sum(1))[:, None]
        found.append(Landing((at + move).clamp(lower, upper), move.norm(dim=1)))
    return found[0], found[1]


def longer(theta: Tensor, lower: Tensor, upper: Tensor, w: Tensor, b: Tensor) -> tuple[Landing, Landing]:
    """On the plane, but nearest in l2 and not in linf."""
    there, near = planes.to_plane_l2(theta, lower, upper, w, b)
    return Landing(there.theta, (there.theta - theta).abs().amax(1)), Landing(near.theta, near.theta.abs().amax(1))


def test_wrong_projections_are_caught() -> None:
    with pytest.raises(AssertionError, match="off the plane"):
        law_nearest("l2", rescaled, given(0), None)
    with pytest.raises(AssertionError, match="a nearer point"):
        law_nearest("linf", longer, given(0), None)
