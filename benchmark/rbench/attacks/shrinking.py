"""APGD at shrinking radii: it leaves the ball to get off a flat piece of the loss, and is pulled back in stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from rbench.attacks import tree
from rbench.attacks.apgd import APGD, Climb, Pace, base_camp, noted
from rbench.attacks.noise import Row
from rbench.attacks.protocol import Seen
from rbench.attacks.radii import Radii
from rbench_threats.protocol import Context, PerturbationSet


@dataclass(frozen=True, slots=True)
class APGDShrinking(APGD):
    """APGD in a ball of `outer` radii, in smaller and smaller ones for 60 % of the steps, and at last in the set.

    Each stage is an Auto-PGD of its own (step 2 of its radii, momentum, checkpoints by its length) that begins at the projection of the
    best place of the stage before: what AutoAttack does for l1 alone, at 3, 2 and 1 radii (Croce & Hein 2021, sec. 4.3), for every convex
    set. Where a net masks its gradients in l2 it finds most of what FAB does, at a twentieth of the passes; on linf no gain was seen.
    """

    loss_name: str = "margin"
    steps: int = 40
    top: int = 9
    restarts: int = 1
    outer: float = 8.0

    name: ClassVar[str] = "apgd-shrinking"
    stays_inside: ClassVar[bool] = False

    def __post_init__(self) -> None:
        APGD.__post_init__(self)
        self.radii.check(self.name)

    @property
    def radii(self) -> Radii:
        """Its stages."""
        return Radii(self.outer, self.steps)

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Climb:
        first = Pace.of(self.radii.each - 1 if self.outer > 1 else self.steps).first
        start = space.project(ctx, self.outer * space.start(ctx, row), self.outer)
        return base_camp(start, size=2 * self.outer, until=first + 1, interval=first)

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Climb, seen: Seen, phase: int) -> Climb:
        radii, look = self.radii, row.step
        short, long = Pace.of(radii.each - 1), Pace.of(self.steps - radii.inside)
        shorter, least = (torch.where(look < radii.inside, a, b) for a, b in zip(short[1:], long[1:], strict=True))
        climb = self.climbed(space, ctx, row, noted(state, seen), seen, shorter, least, radii.begins(look), radii.at(look))
        ends, then = radii.ends(look), radii.at(look + 1)
        checkpoint = torch.where(look + 1 < radii.inside, float(short.first), float(long.first))
        return replace(
            climb,
            theta=space.project(ctx, tree.pick(ends, climb.best, climb.theta), then),
            best_loss=torch.where(ends, -torch.inf, climb.best_loss),
            loss=torch.where(ends, torch.inf, climb.loss),
            checked_loss=torch.where(ends, -torch.inf, climb.checked_loss),
            halved=climb.halved | ends,
            size=torch.where(ends, 2 * then, climb.size),
            gains=torch.where(ends, 0.0, climb.gains),
            until=torch.where(ends, checkpoint + 1, climb.until),
            interval=torch.where(ends, checkpoint, climb.interval),
        )
