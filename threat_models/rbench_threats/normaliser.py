"""Budgets of a given volume and range from raw scores: t = log ε with mean(t) = log volume and log low ≤ t ≤ log high, per image.

Two maps, both strictly rising in a scalar shift c of the scores, so c is found between two bounds; gradients are written out, never taken
through the search. All in float64, whatever comes in.

clamp     t = clamp(s + c, log low, log high)                 the nearest t to s under the constraints: for maps that are given
sigmoid   t = log low + log(high / low) · sigmoid(s + c)      a value at a bound keeps a gradient: for maps that are learned

Source: docs/contextual.md; the formulas are the derivatives of the implicit equation mean(t) = log volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rbench_core.errors import SpecError

Scores = Float[Tensor, "rows n"]
PerRow = Float[Tensor, " rows"]
STEPS = 60  # halvings: the bracket of scores up to 1e3 ends below the spacing of float64
CLOSE = 2e-15  # of a mean that is met
LOUDEST = 10.0  # scores of the sigmoid form are bent below it: beyond 37 a float64 sigmoid is 1


@dataclass(frozen=True, slots=True)
class Range:
    """Geometric-mean half-width `volume` of every image's budgets and the range that each budget keeps to, in pixel units."""

    volume: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise SpecError(f"budgets from {self.low:g} to {self.high:g}", expected="0 < low <= high <= 1, since images lie in [0, 1]")
        if not self.low <= self.volume <= self.high:
            raise SpecError(
                f"volume {self.volume:g} is impossible for the range [{self.low:g}, {self.high:g}]",
                expected="a geometric mean between low and high",
            )

    @property
    def play(self) -> float:
        """The largest share of values that can sit at `low` while the rest sit at `high`: ln(high/volume) / ln(high/low)."""
        return 1.0 if self.low == self.high else math.log(self.high / self.volume) / math.log(self.high / self.low)

    def clamped(self, scores: Scores) -> Scores:
        """Budgets ε whose logarithms are nearest to the scores (Euclidean, per row)."""
        return self._budgets(_applied(Clamped, scores.double(), *self._logs(scores)), scores)

    def bent(self, scores: Scores) -> Scores:
        """Budgets ε of the sigmoid form; equal scores give `volume` everywhere."""
        bent = LOUDEST * torch.tanh(scores.double() / LOUDEST)
        return self._budgets(_applied(Bent, bent, *self._logs(scores)), scores)

    def _logs(self, scores: Scores) -> list[Tensor]:
        return [scores.new_full((len(scores),), math.log(value), dtype=torch.float64) for value in (self.low, self.high, self.volume)]

    def _budgets(self, t: Scores, scores: Scores) -> Scores:
        """exp in float64, then the dtype of the scores, then its range once more: rounding may not lead out of it."""
        return t.exp().to(scores.dtype).clamp(self.low, self.high)


class Clamped(torch.autograd.Function):
    """t = clamp(s + c, a, b) with mean(t) = m per row. a, b, m (rows,); s (rows, n). Not differentiable twice."""

    @staticmethod
    def forward(ctx: Any, s: Scores, a: PerRow, b: PerRow, m: PerRow) -> Scores:
        scores, low, high, mean = _wide(s, a, b, m)
        below, above = (low - scores).amin(1, keepdim=True), (high - scores).amax(1, keepdim=True)
        shift = _halved(scores, low, high, below, above, mean)
        free = (scores + shift > low) & (scores + shift < high)
        short = mean - (scores + shift).clamp(low, high).mean(1, keepdim=True)
        moved = scores + (shift + short * scores.shape[1] / free.sum(1, keepdim=True).clamp_min(1))  # piecewise linear: this is exact
        ctx.save_for_backward(moved > low, moved < high)
        return moved.clamp(low, high).to(s.dtype)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (g,), (off_low, off_high) = given, ctx.saved_tensors
        free = off_low & off_high
        count = free.sum(1, keepdim=True)
        level = torch.where(free, g, 0.0).sum(1, keepdim=True) / count.clamp_min(1)  # 0 where nothing is free
        rest = g - level
        own = torch.where(free, rest, 0.0)
        return own, _sum(rest, ~off_low), _sum(rest, ~off_high & off_low), g.shape[1] * level.squeeze(1)


class Bent(torch.autograd.Function):
    """t = a + (b − a) σ(s + c) with mean(t) = m per row. a, b, m (rows,); s (rows, n). Not differentiable twice."""

    @staticmethod
    def forward(ctx: Any, s: Scores, a: PerRow, b: PerRow, m: PerRow) -> Scores:
        scores, low, high, mean = _wide(s, a, b, m)
        span = high - low
        part = ((mean - low) / span.clamp_min(1e-300)).clamp(0, 1)
        flat = (part <= 0) | (part >= 1) | (span <= 0)  # the constant is the only answer
        aim = torch.where(flat, 0.5, part)
        level = aim.logit()
        shift = _risen(scores, level - scores.amax(1, keepdim=True), level - scores.amin(1, keepdim=True), aim)
        share = (scores + shift).sigmoid()
        ctx.save_for_backward(share, span, flat)
        return torch.where(flat, mean, low + span * share).to(s.dtype)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (g,), (share, span, flat) = given, ctx.saved_tensors
        weight = torch.where(flat, 0.0, span * share * (1 - share))
        total = weight.sum(1, keepdim=True)
        level = torch.where(total > 0, (g * weight).sum(1, keepdim=True) / total.clamp_min(1e-300), g.mean(1, keepdim=True))
        rest = g - level
        return (weight * rest).to(g.dtype), _sum(rest * (1 - share)), _sum(rest * share), (g.shape[1] * level.squeeze(1)).to(g.dtype)


def _applied(function: Any, *given: Tensor) -> Tensor:
    found: Tensor = function.apply(*given)
    return found


def _wide(s: Tensor, *ends: Tensor) -> tuple[Tensor, ...]:
    return s.double(), *(end.double()[:, None] for end in ends)


def _halved(scores: Tensor, low: Tensor, high: Tensor, below: Tensor, above: Tensor, aim: Tensor) -> Tensor:
    """The c between below and above at which mean(clamp(scores + c)) meets aim, (rows, 1): bisection."""
    for _ in range(STEPS):
        middle = (below + above) / 2
        short = (scores + middle).clamp(low, high).mean(1, keepdim=True) < aim
        below, above = torch.where(short, middle, below), torch.where(short, above, middle)
    return (below + above) / 2


def _risen(scores: Tensor, below: Tensor, above: Tensor, aim: Tensor) -> Tensor:
    """The c between below and above at which mean(sigmoid(scores + c)) meets aim, (rows, 1): Newton, halving where a step leads out.

    Rows stop one by one, so that a row's last bits do not depend on its neighbours.
    """
    at, done = (below + above) / 2, torch.zeros_like(below, dtype=torch.bool)
    for _ in range(STEPS):
        share = (scores + at).sigmoid()
        short = share.mean(1, keepdim=True) - aim
        step = -short / (share * (1 - share)).mean(1, keepdim=True).clamp_min(1e-300)
        done = done | (short.abs() <= CLOSE) | (step.abs() <= CLOSE * (1 + at.abs()))
        if bool(done.all()):
            break
        below, above = torch.where(short < 0, at, below), torch.where(short < 0, above, at)
        there = at + step
        there = torch.where((there > below) & (there < above), there, (below + above) / 2)
        at = torch.where(done, at, there)
    return at


def _sum(values: Tensor, where: Tensor | None = None) -> Tensor:
    kept = values if where is None else torch.where(where, values, 0.0)
    total: Tensor = kept.sum(1)
    return total
