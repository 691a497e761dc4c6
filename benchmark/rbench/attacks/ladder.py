"""One set at many radii, and a set whose rows stand at radii of their own: what a search over radii needs, in any attack's hands."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks.noise import Row
from rbench.attacks.search import Examples
from rbench_core.errors import SpecError
from rbench_threats.protocol import Context, PerturbationSet, Scale, resized

STEPS = 20  # radii; the asked one is the tenth
Thetas = Float[Tensor, "rows p"]
PerRow = Float[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class Ladder:
    """The set at growing radii, in units of its own; the asked one is among them."""

    space: PerturbationSet
    radii: tuple[Fraction, ...]
    sets: tuple[PerturbationSet, ...]

    @classmethod
    def of(cls, space: PerturbationSet, shape: tuple[int, int, int]) -> Ladder | None:
        """A tenth of the radius, two tenths, ... up to twice it, or to where the set ends; None: it is no additive ball of one radius.

        Where the set wants whole numbers it gets the whole number below, each once.
        """
        if not {"additive", "norm"} <= space.capabilities or len(space.extent) != 1:
            return None
        found = dict(filter(None, (_rung(space, Fraction(2 * step, STEPS), shape) for step in range(1, STEPS + 1))))
        return cls(space, tuple(found), tuple(found.values()))

    def __len__(self) -> int:
        return len(self.radii)

    @property
    def asked(self) -> int:
        """The place of the asked radius."""
        return self.radii.index(Fraction(1))

    def scales(self, level: Int[Tensor, " rows"]) -> PerRow:
        """Radii of some levels in units of the asked one."""
        return torch.tensor([float(radius) for radius in self.radii], device=level.device)[level]

    def level(self, contexts: list[Context], theta: Thetas) -> Int[Tensor, " rows"]:
        """The first level whose set holds θ, tolerances and all; as many as there are levels where none does. contexts: one per level."""
        holds = torch.stack([space.excess(ctx, theta) <= 0 for space, ctx in zip(self.sets, contexts, strict=True)])
        first: Tensor = holds.int().argmax(0)
        return torch.where(holds.any(0), first, len(self))


def _rung(space: PerturbationSet, factor: Fraction, shape: tuple[int, int, int]) -> tuple[Fraction, PerturbationSet] | None:
    """The radius, in units of the set's own, that comes nearest to factor from below, and the set of that radius."""
    ((name, radius),) = space.extent.items()
    for wanted in (factor * radius, Fraction(floor(factor * radius))):
        try:
            made: PerturbationSet = resized(space, {name: wanted})
            made.check(shape)
        except SpecError:
            continue
        return wanted / radius, made
    return None


@dataclass(frozen=True, slots=True)
class Placed:
    """The set's own context, every row's level and radius, where the search of its restart 0 starts, and who the row is."""

    inner: Context
    x: Float[Tensor, "rows c h w"]
    level: Int[Tensor, " rows"]
    scale: PerRow
    theta: Thetas
    known: Bool[Tensor, " rows"]
    row: tuple[Tensor, ...]


class AtLevels:
    """A ladder's set as attacks and the referee see it, each example at its own level: scale 1 is the radius of that level.

    A first restart starts from the projection of `theta`, the closest adversarial point known so far, where there is one.
    """

    def __init__(
        self,
        ladder: Ladder,
        examples: Examples,
        level: Int[Tensor, " examples"],
        theta: Float[Tensor, "examples p"],
        known: Bool[Tensor, " examples"],
    ) -> None:
        self._ladder, self._space, self._index = ladder, ladder.space, examples.index
        self._level, self._theta, self._known = level, theta, known
        self.capabilities = ladder.space.capabilities

    def context(self, x: Float[Tensor, "rows c h w"], row: Row) -> Placed:
        place = (self._index[None, :] == row.example[:, None]).int().argmax(1)
        level = self._level[place]
        known = self._known[place] & (row.restart == 0)
        return Placed(self._space.context(x, row), x, level, self._ladder.scales(level), self._theta[place], known, tuple(row))

    def start(self, ctx: Placed, row: Row) -> Thetas:
        drawn = self._space.start(ctx.inner, row) * ctx.scale[:, None]
        return self.project(ctx, torch.where(ctx.known[:, None], ctx.theta, drawn))

    def project(self, ctx: Placed, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        return self._space.project(ctx.inner, theta, ctx.scale * scale)

    def steepest(self, ctx: Placed, grad: Thetas, share: Tensor | None = None) -> Thetas:
        """A ball that is convex has a steepest θ that grows with it; one that is not (l0) has only its own."""
        unit = self._space.steepest(ctx.inner, grad) if share is None else self._space.steepest(ctx.inner, grad, share)
        return unit * ctx.scale[:, None] if "convex" in self.capabilities else unit

    def gauge(self, ctx: Placed, theta: Thetas) -> PerRow:
        return self._space.gauge(ctx.inner, theta) / ctx.scale

    def excess(self, ctx: Placed, theta: Thetas) -> PerRow:
        """By each row's own set, with that set's tolerances."""
        found = torch.empty_like(theta[:, 0])
        for level in ctx.level.unique().tolist():
            rows = (ctx.level == level).nonzero().squeeze(1)
            space, who = self._ladder.sets[level], Row(*(part[rows] for part in ctx.row))
            found[rows] = space.excess(space.context(ctx.x[rows], who), theta[rows])
        return found

    def render(self, ctx: Placed, theta: Thetas) -> Float[Tensor, "rows c h w"]:
        return self._space.render(ctx.inner, theta)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._space, name)
        return lambda ctx, *rest, **named: method(ctx.inner, *rest, **named)
