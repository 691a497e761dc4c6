"""The referee believes nobody: planted claims outside the set, outside [0, 1], tied, or of no numbers are refused, each with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from laws.entries import Entry, entries
from laws.given import Given, given_batch, images, members
from laws.nets import Around, Counting, linear_net
from rbench.attacks.evaluate import Passes
from rbench.attacks.referee import NOT_FINITE, WIDTH, Judged, judge
from rbench.attacks.widths import WIDTHS
from rbench_threats.lp import Box, Linf

SHAPE = (1, 8, 8)
ENTRIES = entries()


def always(x: Tensor) -> Tensor:
    """Class 1, whatever the image."""
    return torch.tensor([[0.0, 1.0, 0.5]]).repeat(len(x), 1)


def judged(given: Given, theta: Tensor, model: Any = always, width: int = WIDTH) -> Judged:
    label = torch.zeros(len(theta), dtype=torch.long)
    return judge(model, given.space, given.ctx, theta, label, Passes(), width)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_members_are_accepted_and_strangers_refused(entry: Entry) -> None:
    given = given_batch(entry.space, entry.shape, 0)
    inside = members(given, 0)
    found = judged(given, inside)
    assert found.accepted.all()
    assert found.reason == [""] * len(inside)
    assert found.predicted.tolist() == [1] * len(inside)
    assert (found.margin == -1).all()
    assert torch.equal(found.images, entry.space.render(given.ctx, inside))
    assert torch.equal(found.gauge, entry.space.gauge(given.ctx, inside))
    outside = torch.where(inside == 0, 0.01, 1.01 * inside.sign() * (inside.abs() + 400))
    outside = torch.where((inside == 0).all(1, keepdim=True), 400.0, outside)  # 0.01 everywhere may well be inside
    refused = judged(given, outside)
    assert not refused.accepted.any()
    assert set(refused.reason) == {"outside the set"}
    assert not judged(given, torch.full_like(inside, torch.nan)).accepted.any()


def test_one_stranger_among_members() -> None:
    """Row by row: the neighbours of a liar keep their falls."""
    given = given_batch(Linf("0.15"), SHAPE, 0)
    theta = members(given, 0)
    theta[5, 3] += 0.5
    assert judged(given, theta).accepted.tolist() == [place != 5 for place in range(len(theta))]


class Glows(Linf):
    """A set whose θ is fine and whose picture is not."""

    def render(self, ctx: Box, theta: Tensor) -> Tensor:
        return super().render(ctx, theta) + 1.5


def test_an_image_outside_the_range_is_refused() -> None:
    given = given_batch(Glows("0.15"), SHAPE, 0)
    assert set(judged(given, members(given, 0)).reason) == {"outside [0, 1]"}


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        ([1.0, 1.0, 0.0], "the label still leads"),
        ([1.0, 1.0, 1.0], "the label still leads"),
        ([2.0, 1.0, 0.0], "the label still leads"),
        ([torch.nan, 1.0, 0.0], NOT_FINITE),
        ([0.0, torch.nan, 1.0], NOT_FINITE),
        ([0.0, torch.inf, 1.0], NOT_FINITE),
        ([-torch.inf, 1.0, 0.0], NOT_FINITE),
        ([0.0, 1e-30, 0.0], ""),
    ],
    ids=str,
)
def test_ties_and_no_numbers_are_no_falls(logits: list[float], reason: str) -> None:
    given = given_batch(Linf("0.15"), SHAPE, 0)
    found = judged(given, members(given, 0), lambda x: torch.tensor([logits]).repeat(len(x), 1))
    assert set(found.reason) == {reason}
    assert found.accepted.all() == (reason == "")


def test_the_claim_is_judged_in_float32() -> None:
    """A fall of a double that float32 cannot see is none."""
    given = given_batch(Linf("0.15"), SHAPE, 0)
    found = judged(given, members(given, 0), lambda x: torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64).repeat(len(x), 1))
    assert not found.accepted.any()


@pytest.mark.parametrize("count", [1, 3, 16, 63, 64, 65, 130])
def test_one_width_whatever_the_number_of_claims(count: int) -> None:
    """Padded up to its own width, so that a claim's logits do not depend on who else claims; and every row is counted."""
    net = Counting(linear_net(SHAPE, 3, 0))
    space = Linf("0.15")
    given = given_batch(space, SHAPE, 0).take(torch.arange(count) % 24)
    theta = members(given, 0)
    label, passes = torch.zeros(count, dtype=torch.long), Passes()
    found = judge(net, space, given.ctx, theta, label, passes)
    assert net.widths == {WIDTH}
    assert WIDTH in WIDTHS
    assert passes.forward == net.forwards == -(-count // WIDTH) * WIDTH
    assert passes.useful == count
    assert len(found.reason) == len(found.accepted) == count
    alone = judge(net, space, given.take(torch.tensor([0])).ctx, theta[:1], label[:1], Passes())
    assert torch.equal(alone.margin[0], found.margin[0])


def test_no_gradient_is_kept() -> None:
    given = given_batch(Linf("0.15"), SHAPE, 0)
    net = Around(linear_net(SHAPE, 3, 0))
    found = judged(given, members(given, 0), net)
    assert not found.margin.requires_grad
    assert images(SHAPE, 1, 0).dtype == found.images.dtype
