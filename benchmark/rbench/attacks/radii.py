"""Radii that shrink in stages, as functions of a row's looks: what lets an attack leave the set and be pulled back into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench_core.errors import SpecError

SHRINK, OUTSIDE = 1.5, 0.6  # each radius over the next, about; the share of the steps outside the set
Look = Int[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class Radii:
    """A geometric series from outer radii of the set to 1: 60 % of the steps outside, evenly, the rest at 1. outer 1: one stage."""

    outer: float
    steps: int

    @property
    def values(self) -> tuple[float, ...]:
        """The radii in their order."""
        shrinks = max(round(math.log(self.outer, SHRINK)), 1) if self.outer > 1 else 0
        return (*(self.outer ** (left / shrinks) for left in range(shrinks, 0, -1)), 1.0)

    @property
    def each(self) -> int:
        """Looks at each radius but the last."""
        return int(OUTSIDE * self.steps / max(len(self.values) - 1, 1) + 1e-9)

    @property
    def inside(self) -> int:
        """The first look of the last stage."""
        return self.each * (len(self.values) - 1)

    def check(self, name: str) -> None:
        """Refuse steps that are too few for so many radii. Raises SpecError."""
        if not 1 <= self.outer <= 1000:
            raise SpecError(f"{name}: outer={self.outer}", expected="1 <= outer <= 1000, in radii of the set")
        if len(self.values) > 1 and self.each < 1:
            least = math.ceil((len(self.values) - 1) / OUTSIDE)
            raise SpecError(f"{name}: steps={self.steps}, outer={self.outer}", expected=f"at least {least} steps from so far out")

    def at(self, look: Look) -> Float[Tensor, " rows"]:
        """The radius of a look."""
        found = torch.ones_like(look, dtype=torch.float32)
        for stage, radius in enumerate(self.values[:-1]):
            found = torch.where(look // self.each == stage, radius, found)
        return found

    def begins(self, look: Look) -> Bool[Tensor, " rows"]:
        """Whether the look is the first of its stage."""
        return (look % max(self.each, 1) == 0) & (look <= self.inside)

    def ends(self, look: Look) -> Bool[Tensor, " rows"]:
        """Whether the look is the last of its stage, and another one follows."""
        return self.begins(look + 1) & (look < self.inside)
