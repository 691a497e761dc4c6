"""Losses against pyautoattack's own formulas where both are defined, and where they are not: few classes, a label at rank three, ties."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laws.entries import drawn
from laws.given import seeds
from rbench.attacks.losses import LOSSES, Logits, by_logit, dlr, known, margin, targeted_dlr, targeted_margin, targets, untargeted_margin
from rbench.attacks.noise import Row
from rbench.attacks.sealed import library
from rbench_core.errors import SpecError

ROWS = 64


def logits_of(classes: int, seed: int, size: float = 1.0) -> Logits:
    return size * torch.randn(ROWS, classes, generator=torch.Generator().manual_seed(seed))


def row_of(label: Tensor, target: Tensor | None = None) -> Row:
    zero = torch.zeros_like(label)
    return Row(zero, label, zero - 1 if target is None else target, zero, zero, zero)


def by_rank(logits: Logits, rank: int) -> Tensor:
    """The class that stands at a rank, 0 the best."""
    return logits.argsort(dim=1, descending=True)[:, rank]


def theirs(logits: Logits, label: Tensor, target: Tensor | None = None) -> Tensor:
    """pyautoattack 0.2.0's dlr_loss and dlr_loss_targeted."""
    module = library("pyautoattack.autopgd_base")
    if target is None:
        return module.APGDAttack.dlr_loss(SimpleNamespace(), logits, label)  # type: ignore[no-any-return]
    return module.APGDAttack_targeted.dlr_loss_targeted(SimpleNamespace(y_target=target), logits, label)  # type: ignore[no-any-return]


def law_ascent_is_a_fall(loss: Callable[[Tensor, Row], Tensor], seed: int) -> None:
    """Every loss has a gradient that is neither 0 nor NaN, and while the label leads, a step along it brings the next class nearer."""
    for classes, size in ((2, 1.0), (3, 1.0), (4, 1.0), (5, 10.0), (10, 1.0), (10, 1e-4), (17, 10.0)):
        for rank in range(classes):
            logits = logits_of(classes, seed, size)
            label = by_rank(logits, rank)
            target = by_rank(logits, 0 if rank else 1)
            asked = logits.clone().requires_grad_()
            values = loss(asked, row_of(label, target))
            assert values.shape == (ROWS,)
            (grad,) = torch.autograd.grad(values.sum(), asked)
            assert grad.isfinite().all()
            assert (grad.abs().amax(1) > 0).all(), f"{classes} classes, label at rank {rank}: no gradient"
            after = logits + 1e-3 * size * grad / grad.abs().amax(1, keepdim=True)
            gain = targeted_margin(after, row_of(label, target)) - targeted_margin(logits, row_of(label, target))
            assert rank or (gain > -1e-6 * size).all(), "the target falls back behind the label"


def their_dlr(logits: Tensor, row: Row) -> Tensor:
    return theirs(logits, row.label)


@pytest.mark.parametrize("name", LOSSES)
@drawn
@given(seed=seeds)
def test_ascending_a_loss_is_on_the_way_to_a_fall(name: str, seed: int) -> None:
    law_ascent_is_a_fall(LOSSES[name], seed)


def test_the_hole_of_the_published_dlr_is_caught() -> None:
    """A label that ranks third stands above and below the line: the loss is constant 1."""
    with pytest.raises((AssertionError, IndexError)):
        law_ascent_is_a_fall(their_dlr, 0)
    logits = logits_of(10, 0)
    third = by_rank(logits, 2)
    torch.testing.assert_close(theirs(logits, third), torch.ones(ROWS))
    assert (dlr(logits, row_of(third)) - 1).abs().min() > 1e-3
    grad = torch.autograd.functional.jacobian(lambda z: dlr(z, row_of(third)).sum(), logits)
    assert (grad.gather(1, third[:, None]) < 0).all(), "the label's own logit should fall"


@drawn
@given(seed=seeds, classes=st.sampled_from([4, 5, 10, 100]))
def test_dlr_is_pyautoattacks(seed: int, classes: int) -> None:
    logits = logits_of(classes, seed)
    for rank in {0, 1, 3, classes - 1}:
        label = by_rank(logits, rank)
        torch.testing.assert_close(dlr(logits, row_of(label)), theirs(logits, label), rtol=1e-4, atol=1e-5)


@drawn
@given(seed=seeds, classes=st.sampled_from([5, 10, 100]))
def test_targeted_dlr_is_pyautoattacks(seed: int, classes: int) -> None:
    """Where neither the label nor the target stands at rank three or four."""
    logits = logits_of(classes, seed)
    for rank, aim in ((0, 1), (1, 0), (0, 4), (4, 0)):
        label, target = by_rank(logits, rank), by_rank(logits, aim)
        torch.testing.assert_close(targeted_dlr(logits, row_of(label, target)), theirs(logits, label, target), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aim", [2, 3])
def test_a_target_at_rank_three_or_four_does_not_stand_below_the_line(aim: int) -> None:
    logits = logits_of(10, 1)
    label, target = by_rank(logits, 0), by_rank(logits, aim)
    best = logits.sort(dim=1, descending=True).values
    third, fourth = [rank for rank in (2, 3, 4) if rank != aim]
    line = best[:, 0] - (best[:, third] + best[:, fourth]) / 2
    known_value = (logits.gather(1, target[:, None]) - logits.gather(1, label[:, None])).squeeze(1) / line
    torch.testing.assert_close(targeted_dlr(logits, row_of(label, target)), known_value)


@pytest.mark.parametrize("classes", [2, 3])
def test_below_four_classes_dlr_is_the_margin(classes: int) -> None:
    logits = logits_of(classes, 0)
    label, target = by_rank(logits, 0), by_rank(logits, 1)
    assert torch.equal(dlr(logits, row_of(label)), untargeted_margin(logits, row_of(label)))
    assert torch.equal(targeted_dlr(logits, row_of(label, target)), targeted_margin(logits, row_of(label, target)))


def test_four_classes_with_label_and_target_behind() -> None:
    """Where no rank is left for the line, it is 1; where one is left, it counts twice."""
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)
    label, target = torch.tensor([2, 0]), torch.tensor([3, 2])
    torch.testing.assert_close(targeted_dlr(logits, row_of(label, target)), torch.tensor([-1.0 / 1, -2.0 / (4 - 1)]))


@pytest.mark.parametrize("name", LOSSES)
def test_scale_and_offset(name: str) -> None:
    """DLR does not see the logits' scale, no loss an offset (beyond rounding)."""
    logits = logits_of(10, 3)
    row = row_of(by_rank(logits, 0), by_rank(logits, 1))
    value = LOSSES[name](logits, row)
    torch.testing.assert_close(LOSSES[name](logits + 1000, row), value, rtol=1e-3, atol=1e-3)
    if name.startswith("dlr"):
        torch.testing.assert_close(LOSSES[name](1000 * logits, row), value)


@pytest.mark.parametrize("name", LOSSES)
def test_confident_logits_keep_their_gradient(name: str) -> None:
    """A softmax that rounds to 1 has gradient 0 in float32, and an attack that follows it stands still and calls the model robust."""
    for size in (1.0, 100.0, 1e4, 1e7):
        logits = (size * logits_of(10, 3)).requires_grad_()
        label, target = by_rank(logits, 0), by_rank(logits, 1)
        (grad,) = torch.autograd.grad(LOSSES[name](logits, row_of(label, target)).sum(), logits)
        assert grad.isfinite().all()
        assert (grad.gather(1, label[:, None]) < 0).all(), f"logits of size {size}: nothing pushes the label down"
        others = grad.scatter(1, label[:, None], 0)
        assert (others.amax(1) > 0).all(), f"logits of size {size}: nothing pulls another class up"


@drawn
@given(seed=seeds)
def test_ce_is_cross_entropy(seed: int) -> None:
    """The same order of points and the same direction of the gradient as −log softmax, where float32 can tell."""
    for classes in (2, 3, 10):
        logits = logits_of(classes, seed, 3.0).requires_grad_()
        label = by_rank(logits, seed % classes)
        ours = LOSSES["ce"](logits, row_of(label))
        published = torch.nn.functional.cross_entropy(logits, label, reduction="none")
        torch.testing.assert_close(torch.nn.functional.softplus(ours), published, rtol=1e-4, atol=1e-6)
        one, two = (torch.nn.functional.normalize(torch.autograd.grad(loss.sum(), logits)[0]) for loss in (ours, published))
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)


def test_margin_of_ties_is_zero() -> None:
    """Equal logits are no fall, whichever index comes first."""
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 3.0, 3.0], [1.0, 2.0, 2.5]])
    label = torch.tensor([1, 1, 2, 1])
    assert margin(logits, label).tolist() == [0.0, 0.0, 0.0, -0.5]


@pytest.mark.parametrize("name", LOSSES)
def test_ties_make_no_nan(name: str) -> None:
    """All logits equal: DLR's line is 0, and its guard must not make NaN of it."""
    for logits in (torch.zeros(4, 10), torch.full((4, 10), 7.0), torch.zeros(4, 3)):
        asked = logits.clone().requires_grad_()
        label = torch.arange(4) % logits.shape[1]
        values = LOSSES[name](asked, row_of(label, (label + 1) % logits.shape[1]))
        (grad,) = torch.autograd.grad(values.sum(), asked)
        assert values.isfinite().all()
        assert grad.isfinite().all()


def test_rows_of_a_loss_are_islands() -> None:
    logits = logits_of(10, 4)
    row = row_of(by_rank(logits, 0), by_rank(logits, 1))
    for loss in LOSSES.values():
        together = loss(logits, row)
        assert torch.equal(loss(logits[9:10], Row(*(part[9:10] for part in row))), together[9:10])


def test_targets_take_at_most_the_other_classes() -> None:
    order = by_logit(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([0]))
    assert targets("dlr-targeted", order, 9).tolist() == [[2, 1, 3]]
    assert targets("dlr-targeted", order, 2).tolist() == [[2, 1]]
    assert targets("dlr", order, 9).tolist() == [[-1]]


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(SpecError, match="one of: ce"):
        known("hinge")
