"""Auto-PGD: per-row step sizes that halve at checkpoints (Croce & Hein 2020), and its sparse form for l1 (Croce & Hein 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rbench.attacks import losses, tree
from rbench.attacks.noise import Row
from rbench.attacks.pgd import Ascent, check
from rbench.attacks.protocol import Seen
from rbench.attacks.radii import Radii
from rbench_threats.protocol import Context, PerturbationSet, Scale

PerRow = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]


@dataclass(frozen=True, slots=True)
class Climb:
    """A row's place, its best place so far with the gradient there, and its own schedule."""

    theta: Thetas
    before: Thetas
    best: Thetas
    best_grad: Thetas
    best_loss: PerRow
    loss: PerRow  # at the step before
    checked_loss: PerRow  # best loss at the last checkpoint
    halved: Bool[Tensor, " rows"]  # at the last checkpoint
    size: PerRow  # step in radii
    gains: PerRow  # steps since the last checkpoint on which the loss rose
    until: PerRow  # steps to the next checkpoint
    interval: PerRow


class Pace(NamedTuple):
    """Steps to the first checkpoint, by how many each interval is shorter than the one before, and the shortest."""

    first: int
    shorter: int
    least: int

    @classmethod
    def of(cls, steps: int) -> Pace:
        """22 %, 3 % and 6 % of the steps, at least 1 (Croce & Hein 2020, sec. 3.2)."""
        first, shorter, least = (max(int(part * steps), 1) for part in (0.22, 0.03, 0.06))
        return cls(first, shorter, least)


@dataclass(frozen=True, slots=True)
class APGD(Ascent):
    """Auto-PGD (Croce & Hein 2020, Alg. 1): step 2 radii, momentum 0.75, halved unless 3 of 4 steps gain.

    First checkpoint after 22 % of the steps, each interval 3 % shorter, down to 6 %. A best loss that stands still halves too; a halving
    restarts from the best place. With a targeted loss each of the `top` best classes of the clean logits is a row of its own.
    """

    loss_name: str = "ce"
    steps: int = 100
    top: int = 9
    restarts: int = 1

    name: ClassVar[str] = "apgd"
    needs: ClassVar[frozenset[str]] = frozenset({"convex"})

    def __post_init__(self) -> None:
        check(self.name, self.steps, self.restarts, 1.0)
        losses.known(self.loss_name)

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Climb:
        first = Pace.of(self.steps).first
        return base_camp(space.start(ctx, row), size=2.0, until=first + 1, interval=first)  # + 1: the start is no step

    def uphill(self, space: PerturbationSet, ctx: Context, row: Row, here: Thetas, grad: Thetas) -> Thetas:
        """The direction of a step, one radius long."""
        return space.steepest(ctx, grad)

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Climb, seen: Seen, phase: int) -> Climb:
        _, shorter, least = Pace.of(self.steps)
        climb = self.climbed(space, ctx, row, noted(state, seen), seen, shorter, least, row.step == 0)
        return replace(climb, theta=space.project(ctx, climb.theta))

    def climbed(
        self,
        space: PerturbationSet,
        ctx: Context,
        row: Row,
        state: Climb,
        seen: Seen,
        shorter: int | Tensor,
        least: int | Tensor,
        first: Bool[Tensor, " rows"],
        scale: Scale = 1.0,
    ) -> Climb:
        """One step on from what was noted, in scale times the ball; its θ is where the momentum ends, not projected yet.

        shorter, least: of a Pace, for all rows or one each. first: rows that have no step to take momentum from.
        """
        due = state.until <= 0
        stalled = ~state.halved & (state.checked_loss >= state.best_loss)
        halve = due & ((state.gains <= 0.75 * state.interval) | stalled)
        size = torch.where(halve, state.size / 2, state.size)
        interval = torch.where(due, (state.interval - shorter).clamp_min(least), state.interval)
        here, grad = _back_to_best(state, seen, halve)
        aim = space.project(ctx, torch.addcmul(here, size[:, None], self.uphill(space, ctx, row, here, grad)), scale)
        share = torch.where(first, 1.0, 0.75)[:, None]
        return Climb(
            torch.addcmul(here.lerp(aim, share), 1 - share, here - state.before),
            here,
            state.best,
            state.best_grad,
            state.best_loss,
            state.loss,
            checked_loss=torch.where(due, state.best_loss, state.checked_loss),
            halved=torch.where(due, halve, state.halved),
            size=size,
            gains=torch.where(due, 0.0, state.gains),
            until=torch.where(due, interval, state.until),
            interval=interval,
        )


@dataclass(frozen=True, slots=True)
class SparseClimb:
    """As Climb, with the share of coordinates that a step moves in place of gains and halvings."""

    theta: Thetas
    best: Thetas
    best_grad: Thetas
    best_loss: PerRow
    size: PerRow
    share: PerRow
    support: PerRow  # coordinates that the best place had moved at the last checkpoint
    until: PerRow


@dataclass(frozen=True, slots=True)
class APGDSparse(Ascent):
    """APGD for l1 (Croce & Hein 2021, sec. 4): steps along the largest coordinates, as many as the best place has moved, over 1.5.

    A step is one radius; at each checkpoint (every 4 % of the steps) it starts anew from the best place if that became 5 % sparser, else it
    shrinks by 1.5, to a tenth at least. No momentum. Projection onto ball ∩ box is exact. With `outer` above 1 it climbs at radii that
    shrink, each stage by its own radius and length, from the projection of the best place before. AutoAttack's radii are 3, 2 and 1; on
    nets that mask their gradients in l1 the geometric series from 8 and more breaks several times as many.
    """

    loss_name: str = "ce"
    steps: int = 100
    top: int = 9
    restarts: int = 1
    outer: float = 1.0

    name: ClassVar[str] = "apgd-sparse"
    needs: ClassVar[frozenset[str]] = frozenset({"sparse", "convex"})

    def __post_init__(self) -> None:
        check(self.name, self.steps, self.restarts, 1.0)
        losses.known(self.loss_name)
        self.radii.check(self.name)

    @property
    def stays_inside(self) -> bool:  # type: ignore[override]
        """Only where no stage lies outside."""
        return self.outer <= 1

    @property
    def radii(self) -> Radii:
        """Its stages."""
        return Radii(self.outer, self.steps)

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> SparseClimb:
        theta = space.project(ctx, self.outer * space.start(ctx, row), self.outer) if self.outer > 1 else space.start(ctx, row)
        each = torch.ones_like(theta[:, 0])
        return SparseClimb(
            theta,
            theta.clone(),
            torch.zeros_like(theta),
            best_loss=each * -torch.inf,
            size=each * self.outer,
            share=each * 0.2,
            support=each * theta.shape[1],
            until=self._every(row) + 1,
        )

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: SparseClimb, seen: Seen, phase: int) -> SparseClimb:
        assert seen.grad is not None
        radii, scale = self.radii, self.radii.at(row.step)
        better = seen.loss > state.best_loss
        best = tree.pick(better, state.theta, state.best)
        best_grad = tree.pick(better, seen.grad, state.best_grad)
        due = state.until <= 1
        moved = (best != 0).sum(1).float()
        sparser = due & (moved < 0.95 * state.support)
        size = torch.where(sparser, scale, torch.where(due, (state.size / 1.5).maximum(0.1 * scale), state.size))
        share = torch.where(due, moved / (1.5 * best.shape[1]), state.share)
        here = tree.pick(sparser, best, state.theta)
        grad = space.free(ctx, here, tree.pick(sparser, best_grad, seen.grad))  # type: ignore[attr-defined]  # "sparse"
        there = here + size[:, None] * space.steepest(ctx, grad, share)
        ends, then = radii.ends(row.step), radii.at(row.step + 1)
        every = self._every(row._replace(step=row.step + 1))
        return SparseClimb(
            space.project(ctx, tree.pick(ends, best, there), then),
            best,
            best_grad,
            torch.where(ends, -torch.inf, torch.maximum(seen.loss, state.best_loss)),
            size=torch.where(ends, then, size),
            share=share,
            support=torch.where(due, moved, state.support),
            until=torch.where(ends, every + 1, torch.where(due, every, state.until - 1)),
        )

    def _every(self, row: Row) -> PerRow:
        """Steps between checkpoints at a row's stage."""
        short, long = (float(max(int(0.04 * steps), 1)) for steps in (self.radii.each, self.steps - self.radii.inside))
        return torch.where(row.step < self.radii.inside, short, long)


def base_camp(theta: Thetas, size: float, until: int, interval: int) -> Climb:
    each = torch.ones_like(theta[:, 0])
    return Climb(
        theta,
        theta.clone(),
        theta.clone(),
        torch.zeros_like(theta),
        best_loss=each * -torch.inf,
        loss=each * torch.inf,
        checked_loss=each * -torch.inf,
        halved=torch.ones_like(each, dtype=torch.bool),
        size=each * size,
        gains=each * 0,
        until=each * until,
        interval=each * interval,
    )


def noted(state: Climb, seen: Seen) -> Climb:
    """The state with what was seen at its place: best place, gains, one step nearer to the checkpoint."""
    assert seen.grad is not None
    better = seen.loss > state.best_loss
    return Climb(
        state.theta,
        state.before,
        tree.pick(better, state.theta, state.best),
        tree.pick(better, seen.grad, state.best_grad),
        best_loss=torch.maximum(seen.loss, state.best_loss),
        loss=seen.loss,
        checked_loss=state.checked_loss,
        halved=state.halved,
        size=state.size,
        gains=state.gains + (seen.loss > state.loss),
        until=state.until - 1,
        interval=state.interval,
    )


def _back_to_best(state: Climb, seen: Seen, halve: Bool[Tensor, " rows"]) -> tuple[Thetas, Thetas]:
    """Where the next step starts and along which gradient: the best place for rows that were halved."""
    assert seen.grad is not None
    return tree.pick(halve, state.best, state.theta), tree.pick(halve, state.best_grad, seen.grad)
