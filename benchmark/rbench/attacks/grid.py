"""Exhaustive search of the finite set that stands for a ball: the reference for sets with few parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import losses
from rbench.attacks.noise import Row
from rbench.attacks.protocol import Phase, Seen
from rbench_threats.protocol import Context, PerturbationSet


@dataclass(frozen=True, slots=True)
class Place:
    """The point of the next look, and how many points there are."""

    theta: Float[Tensor, "rows p"]
    points: Int[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Looks at every point of the set's finite stand-in, in its order (Engstrom et al. 2019, sec. 3: grid search)."""

    restarts: ClassVar[int] = 1
    name: ClassVar[str] = "grid"
    needs: ClassVar[frozenset[str]] = frozenset({"points"})
    cycle: ClassVar[tuple[Phase, ...]] = ("logits",)
    stays_inside: ClassVar[bool] = True

    def targets(self, order: Int[Tensor, "examples others"]) -> Int[Tensor, "examples k"]:
        return losses.targets("margin", order, 1)

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Place:
        points = space.points(ctx)  # type: ignore[attr-defined]  # the capability "points"
        return Place(points[:1].repeat(len(row.step), 1), torch.full_like(row.step, len(points)))

    def ask(self, state: Place) -> Float[Tensor, "rows p"]:
        return state.theta

    def loss(self, logits: Float[Tensor, "rows classes"], row: Row) -> Float[Tensor, " rows"]:
        return losses.untargeted_margin(logits, row)

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Place, seen: Seen, phase: int) -> Place:
        points = space.points(ctx)  # type: ignore[attr-defined]
        return Place(points[(row.step + 1).clamp_max(len(points) - 1)], state.points.clone())

    def goes_on(self, state: Place, row: Row) -> Bool[Tensor, " rows"]:
        return row.step < state.points
