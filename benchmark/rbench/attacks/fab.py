"""Targeted FAB (Croce & Hein 2020, arXiv:1907.02044): along the linearised decision boundary, with a bias towards the clean image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from rbench.attacks.noise import Row
from rbench.attacks.pgd import Ascent, Position, check
from rbench.attacks.protocol import Phase, Seen
from rbench_core.errors import SpecError
from rbench_threats.protocol import Context, PerturbationSet

AHEAD = 1e-4  # of the way from the clean image: a place that a wall stops a rounding error short of the plane would never move again


@dataclass(frozen=True, slots=True)
class FAB(Ascent):
    """A cycle linearises z_target − z_label, steps beyond its zero plane, and looks whether the label still leads there.

    As in AutoAttack's FAB-T: the step mixes the projections of the place and of the clean image, the latter with at most `bias`;
    both overshoot by `beyond`; after a success the row goes on from `back` times its place. The first restart begins at the clean
    image, the others at half a random start. Minimum-norm by nature: it may leave the set, and only what lies inside counts.
    """

    steps: int = 100
    top: int = 9
    restarts: int = 1
    beyond: float = 1.05
    bias: float = 0.1
    back: float = 0.9

    name: ClassVar[str] = "fab"
    needs: ClassVar[frozenset[str]] = frozenset({"plane"})
    cycle: ClassVar[tuple[Phase, ...]] = ("gradient", "logits")
    stays_inside: ClassVar[bool] = False
    loss_name: ClassVar[str] = "margin-targeted"  # type: ignore[misc]  # a field of others, fixed here

    def __post_init__(self) -> None:
        check(self.name, self.steps, self.restarts, 1.0)
        if self.top < 1 or not (self.beyond >= 1 and 0 <= self.bias <= 1 and 0 <= self.back < 1):
            told = f"fab: top={self.top}, beyond={self.beyond:g}, bias={self.bias:g}, back={self.back:g}"
            raise SpecError(told, expected="top and beyond of at least 1, bias from 0 to 1, back from 0 to below 1")

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Position:
        if self.restarts == 1:
            return Position(space.origin(ctx))  # type: ignore[attr-defined]  # the capability "plane"
        start = space.start(ctx, row) * 0.5
        return Position(torch.where(row.restart[:, None] == 0, 0.0, start))

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Position, seen: Seen, phase: int) -> Position:
        here = state.theta
        if phase == 1:
            return Position(here * torch.where(seen.margin < 0, self.back, 1.0)[:, None])
        assert seen.grad is not None
        plane = torch.linalg.vecdot(seen.grad, here) - seen.loss
        plane = plane + AHEAD * plane.abs()
        there, near = space.to_plane(ctx, here, seen.grad, plane)  # type: ignore[attr-defined]  # the capability "plane"
        far, close = there.distance.clamp_min(1e-8), near.distance.clamp_min(1e-8)
        share = (far / (far + close)).clamp_max_(self.bias)[:, None]
        mixed = torch.lerp(torch.lerp(here, there.theta, self.beyond), near.theta * self.beyond, share)
        return Position(space.boxed(ctx, mixed))  # type: ignore[attr-defined]

    def goes_on(self, state: Position, row: Row) -> Bool[Tensor, " rows"]:
        return row.step < self.steps
