"""Budgets of a volume and a range: constraints for 10,000 maps, gradients by finite differences, the nearest answer, bad requests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rbench_core.errors import SpecError
from rbench_threats.normaliser import Bent, Clamped, Range

HOUSE = Range(0.3, 0.15, 0.6)
FORMS = ("clamped", "bent")


def maps(seed: int, count: int, values: int = 784) -> Tensor:
    """Random scores, each row at a scale of its own from 0 to 20."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, values, generator=random) * 20 * torch.rand(count, 1, generator=random)


def off(eps: Tensor, volume: float) -> float:
    """The largest |mean log ε − log volume| over rows, in float64 of the stored float32."""
    return float((eps.double().log().mean(1) - math.log(volume)).abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_volume_and_range_hold_for_ten_thousand_random_maps(form: str) -> None:
    random = np.random.default_rng(0)
    for seed in range(40):
        low, high = random.uniform(0.001, 0.2), random.uniform(0.4, 1.0)
        bounds = Range(float(low * (high / low) ** random.uniform()), low, high)
        eps = getattr(bounds, form)(maps(seed, 250))
        assert eps.dtype == torch.float32
        assert off(eps, bounds.volume) < 1e-6
        assert eps.min() >= torch.tensor(low)
        assert eps.max() <= torch.tensor(high)


@pytest.mark.parametrize("function", [Clamped, Bent])
def test_gradients_are_those_of_finite_differences(function: type[torch.autograd.Function]) -> None:
    random = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(4, 12, generator=random, dtype=torch.float64)
    ends = [torch.full((4,), math.log(value), dtype=torch.float64) for value in (0.15, 0.6, 0.3)]
    given = [tensor.requires_grad_() for tensor in (scores, *ends)]
    if function is Clamped:
        t = Clamped.apply(*given)
        assert 0.3 < ((t <= math.log(0.15)) | (t >= math.log(0.6))).double().mean() < 0.9, "clamped entries are what is hard"
    assert torch.autograd.gradcheck(function.apply, given)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_over_the_scores_sums_to_zero(form: str) -> None:
    scores = maps(1, 8, 50).double().requires_grad_()
    getattr(HOUSE, form)(scores).square().sum().backward()
    assert scores.grad is not None
    assert scores.grad.abs().sum() > 0
    t = scores.detach().clone().requires_grad_()
    ends = [torch.full((8,), math.log(value), dtype=torch.float64) for value in (0.15, 0.6, 0.3)]
    pull = torch.randn(8, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ((Clamped if form == "clamped" else Bent).apply(t, *ends) * pull).sum().backward()
    assert t.grad is not None
    torch.testing.assert_close(t.grad.sum(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_equal_scores_are_uniform_exactly(form: str) -> None:
    for level in (-30.0, 0.0, 7.0):
        assert (getattr(HOUSE, form)(torch.full((3, 784), level)) == torch.tensor(0.3)).all()


@pytest.mark.parametrize("form", FORMS)
def test_only_differences_of_scores_count_and_their_order_does_not(form: str) -> None:
    scores = maps(3, 6, 100).double()
    if form == "bent":
        scores = scores.clamp(-2, 2)  # the soft cap bends large scores
    eps, order = getattr(HOUSE, form)(scores), torch.randperm(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(getattr(HOUSE, form)(scores[:, order]), eps[:, order], rtol=1e-12, atol=0)
    if form == "clamped":
        torch.testing.assert_close(HOUSE.clamped(scores + 3), eps, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_its_neighbours(form: str) -> None:
    scores = maps(4, 20)
    together = getattr(HOUSE, form)(scores)
    for row in (0, 7, 19):
        assert torch.equal(getattr(HOUSE, form)(scores[row : row + 1]), together[row : row + 1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("volume", [0.15, 0.6])
def test_at_an_end_of_the_range_the_answer_is_the_constant(form: str, volume: float) -> None:
    scores = maps(5, 4, 30).requires_grad_()
    eps = getattr(Range(volume, 0.15, 0.6), form)(scores)
    torch.testing.assert_close(eps, torch.full_like(eps, volume), rtol=0, atol=1e-7)
    eps.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_scores_that_saturate_everywhere_keep_the_constraints(form: str) -> None:
    scores = torch.cat([torch.full((2, 60), 1e6), torch.full((2, 40), -1e6)], 1).requires_grad_()
    eps = getattr(HOUSE, form)(scores)
    assert off(eps.detach(), 0.3) < 1e-6
    eps.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_the_clamp_form_is_the_nearest_map() -> None:
    """Against 200 other maps that obey the same constraints; the sigmoid form is one of them and lies further."""
    scores = maps(6, 1, 40).double().clamp(-4, 1)
    t = HOUSE.clamped(scores).log()
    own = float((t - scores).square().sum())
    others = [HOUSE.clamped(scores + 0.3 * torch.randn(1, 40, generator=torch.Generator().manual_seed(i))).log() for i in range(200)]
    assert all(own <= float((other - scores).square().sum()) + 1e-9 for other in others)
    assert own < float((HOUSE.bent(scores).log() - scores).square().sum()) - 1e-3


def test_the_share_that_the_range_lets_sit_at_its_lower_end() -> None:
    assert HOUSE.play == pytest.approx(0.5)
    assert Range(0.3, 0.03, 1.0).play == pytest.approx(0.34, abs=0.01)
    assert Range(0.4, 0.15, 0.6).play == pytest.approx(0.29, abs=0.01)
    low = torch.cat([torch.full((1, 499), -50.0), torch.full((1, 501), 50.0)], 1)
    assert (HOUSE.clamped(low) < 0.151).double().mean() == pytest.approx(HOUSE.play, abs=0.002)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((0.3, 0.0, 0.6), "0 < low"),
        ((0.3, -0.1, 0.6), "0 < low"),
        ((0.3, 0.6, 0.15), "low <= high"),
        ((0.3, 0.15, 1.5), "<= 1"),
        ((0.1, 0.15, 0.6), "volume 0.1 is impossible for the range"),
        ((0.7, 0.15, 0.6), "volume 0.7 is impossible for the range"),
        ((float("nan"), 0.15, 0.6), "impossible"),
    ],
)
def test_impossible_requests_are_one_line(numbers: tuple[float, float, float], told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        Range(*numbers)
    assert "\n" not in str(caught.value)
