"""Two ways to the nearest point of l1 ball ∩ box, of images and of heavy tails; and the largest values, ties included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rbench_threats.lp import _largest
from rbench_threats.projections import l1_by_newton, l1_by_sort, project_l2_box

ROWS, SIZE = 64, 192


def point(scale: float, tail: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """θ, box and radius: a fifth of the values without room on one side, radii from 0.3 to 3."""
    random = torch.Generator().manual_seed(3)
    theta = torch.randn(ROWS, SIZE, generator=random)
    theta = scale * theta.sign() * theta.abs() ** tail * (torch.rand(ROWS, SIZE, generator=random) < 0.8)
    x = torch.rand(ROWS, SIZE, generator=random).mul_(1.2).sub_(0.1).clamp_(0, 1)
    return theta, -x, 1 - x, torch.linspace(0.3, 3, ROWS)


@pytest.mark.parametrize(("scale", "tail"), [(0.02, 1.0), (1.0, 1.0), (30.0, 1.0), (1e4, 4.0), (1.0, 9.0)])
def test_newton_is_the_sort(scale: float, tail: float) -> None:
    """As near to θ as what float64 finds, to the rounding of θ; the whole budget spent, and no more."""
    theta, lower, upper, eps = point(scale, tail)
    found, known = l1_by_newton(theta, lower, upper, eps), l1_by_sort(theta, lower, upper, eps)
    apart = [(theta.double() - one.double()).square().sum(1) for one in (found, known)]
    assert (apart[0] <= apart[1] * (1 + 1e-6)).all()
    norm = found.double().abs().sum(1)
    assert (norm <= eps * (1 + 1e-6)).all()
    outside = theta.clamp(lower, upper).abs().sum(1) > eps
    assert outside.any()
    assert (norm >= eps * (1 - 1e-6))[outside].all()
    if scale <= 1 and tail == 1:
        torch.testing.assert_close(found, known, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [0.05, 1.0, 100.0])
def test_l2_is_what_bisection_finds(scale: float) -> None:
    """clamp(s·θ) with the largest s ≤ 1 that the radius allows, in float64."""
    theta, lower, upper, eps = (part.double() for part in point(scale))
    low, high = torch.zeros(ROWS, 1).double(), torch.ones(ROWS, 1).double()
    for _ in range(80):
        middle = (low + high) / 2
        fits = (middle * theta).clamp(lower, upper).norm(dim=1, keepdim=True) <= eps[:, None]
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    known = (low * theta).clamp(lower, upper)
    torch.testing.assert_close(project_l2_box(*point(scale)).double(), known, rtol=1e-5, atol=1e-6)


def test_the_largest_with_ties() -> None:
    """The first of equal values, however many its neighbours want; none, some and all of them."""
    values = torch.tensor([[1.0, 3, 3, 0, 3, 2], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 6]])
    mask = _largest(values, torch.tensor([2, 3, 0, 6]))
    assert [row.nonzero().flatten().tolist() for row in mask] == [[1, 2], [0, 1, 2], [], [0, 1, 2, 3, 4, 5]]
