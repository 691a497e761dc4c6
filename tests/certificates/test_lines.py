"""Two lines enclose the curve over an interval, be it a point, a hair or at the kink; gradients stay finite."""

from __future__ import annotations

import pytest
import torch

from rbench.certificates.activations import ELU, Activation, Clamp, LeakyReLU, ReLU, Sigmoid

CURVES: list[Activation] = [
    ReLU(),
    LeakyReLU(0.0),
    LeakyReLU(0.3),
    LeakyReLU(1.0),
    Clamp(-0.5, 1.25),
    Clamp(0.5, None),
    Clamp(None, -0.5),
    Clamp(0.2, 0.2),
    ELU(),
    Sigmoid(),
    Sigmoid(tanh=True),
]
ENDS = [0.0, 1e-30, 1e-13, 1e-9, 1e-3, 0.2, 0.5, 0.6, 1.25, 1.3, 2.0, 7.0, 40.0, 800.0]


def intervals() -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of ends of both signs, hairs around each, and random ones."""
    ends = torch.tensor(ENDS, dtype=torch.float64)
    ends = torch.cat([-ends, ends])
    pairs = torch.cartesian_prod(ends, ends)
    noise = torch.Generator().manual_seed(0)
    pairs = torch.cat([pairs, torch.stack([ends, ends + 1e-30], 1), 3 * torch.randn(2000, 2, generator=noise, dtype=torch.float64)])
    return pairs.amin(1), pairs.amax(1)


@pytest.mark.parametrize("curve", CURVES, ids=repr)
def test_lines_enclose_the_curve(curve: Activation) -> None:
    low, high = intervals()
    lines = curve.lines(low, high)
    share = torch.linspace(0, 1, 301, dtype=torch.float64)[:, None]
    x = (low + share * (high - low)).minimum(high).maximum(low)
    room = 1e-12 * (1 + x.abs())  # roundings of the comparison itself
    assert all(bool(each.isfinite().all()) for each in lines)
    assert (lines.below * x + lines.under <= curve.value((), x) + room).all()
    assert (lines.above * x + lines.over >= curve.value((), x) - room).all()


@pytest.mark.parametrize("curve", CURVES, ids=repr)
def test_lines_touch_the_curve_where_the_interval_is_a_point(curve: Activation) -> None:
    x = torch.tensor([-3.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.25, 3.0], dtype=torch.float64)
    lines = curve.lines(x, x)
    for slope, offset in ((lines.below, lines.under), (lines.above, lines.over)):
        torch.testing.assert_close(slope * x + offset, curve.value((), x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("curve", CURVES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(curve: Activation, dtype: torch.dtype) -> None:
    low, high = (end.to(dtype).requires_grad_() for end in intervals())
    sum(each.sum() for each in curve.lines(low, high)).backward()  # type: ignore[union-attr]
    assert low.grad is not None
    assert high.grad is not None
    assert low.grad.isfinite().all()
    assert high.grad.isfinite().all()


def test_lines_of_relu_are_those_of_crown() -> None:
    """Slopes by hand (Zhang et al. 2018): on [−1, 3] chord 3/4 above and slope 1 below; on [−3, 1] 1/4 and 0."""
    lines = ReLU().lines(torch.tensor([-1.0, -3.0, 1.0, -2.0]), torch.tensor([3.0, 1.0, 2.0, -1.0]))
    assert lines.above.tolist() == [0.75, 0.25, 1, 0]
    assert lines.over.tolist() == [0.75, 0.75, 0, 0]
    assert lines.below.tolist() == [1, 0, 1, 0]
    assert lines.under.tolist() == [0, 0, 0, 0]
