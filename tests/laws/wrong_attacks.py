"""Attacks with a mistake each: every law of attacks must reject the one that was made for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rbench.attacks.noise import Row
from rbench.attacks.pgd import PGD, Position
from rbench.attacks.protocol import Seen
from rbench_threats.protocol import Context, PerturbationSet


@dataclass(frozen=True, slots=True)
class Twins(Position):
    """θ and one more field."""

    before: Tensor


class SharesStorage(PGD):
    """Remembers the place before without a copy."""

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Twins:
        theta = space.start(ctx, row)
        return Twins(theta, theta)

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Twins, seen: Seen, phase: int) -> Twins:
        return Twins(PGD.step(self, space, ctx, row, Position(state.theta), seen, phase).theta, state.theta)


class SharesSchedule(PGD):
    """One number for the whole batch."""

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Twins:
        return Twins(space.start(ctx, row), torch.full((1, 1), 0.1))

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Twins, seen: Seen, phase: int) -> Twins:
        return Twins(PGD.step(self, space, ctx, row, Position(state.theta), seen, phase).theta, 0.9 * state.before)


class LeavesTheSet(PGD):
    """Forgets to project."""

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Position, seen: Seen, phase: int) -> Position:
        assert seen.grad is not None
        return Position(state.theta + self.rate * space.steepest(ctx, seen.grad))


class StepOfTheBatch(PGD):
    """A step is as long as the batch's largest gradient says."""

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Position, seen: Seen, phase: int) -> Position:
        assert seen.grad is not None
        moved = state.theta + seen.grad / seen.grad.abs().max() * 0.1
        return Position(space.project(ctx, moved))


class SpreadsNaN(PGD):
    """Multiplies by a mask where it should choose: 0 · NaN is NaN, and the mean carries it to every row."""

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Position, seen: Seen, phase: int) -> Position:
        assert seen.grad is not None
        pull = 0.0 * seen.loss.mean()
        return Position(space.project(ctx, state.theta + self.rate * space.steepest(ctx, seen.grad) + pull))


class EndsTogether(PGD):
    """Ends when the first row ends."""

    def goes_on(self, state: Position, row: Row) -> Tensor:
        return (row.step <= self.steps).all().expand(len(row.step))


class NeverEnds(PGD):
    """Goes on and on."""

    def goes_on(self, state: Position, row: Row) -> Tensor:
        return torch.ones_like(row.step, dtype=torch.bool)


class BeginsAtOnePlace(PGD):
    """Restarts that are none."""

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Position:
        return Position(torch.zeros_like(space.start(ctx, row)))


class TargetsTheLabel(PGD):
    """The best class is the label itself."""

    def targets(self, order: Tensor) -> Tensor:
        return torch.zeros_like(order[:, :3])


class TargetsByIndex(PGD):
    """Takes other classes as they come."""

    def targets(self, order: Tensor) -> Tensor:
        return order.sort(dim=1).values
