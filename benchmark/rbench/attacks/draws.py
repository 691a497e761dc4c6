"""Random search without memory: so many members of the set, drawn as its starts are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import losses
from rbench.attacks.noise import Row
from rbench.attacks.pgd import Position
from rbench.attacks.protocol import Phase, Seen
from rbench_core.errors import SpecError
from rbench_threats.protocol import Context, PerturbationSet


@dataclass(frozen=True, slots=True)
class Random:
    """Looks at `draws` starts of the set: of rotation-translation random-k, uniform over its box (Engstrom et al. 2019, sec. 3).

    k = 10 as in Tramèr & Boneh 2019.
    """

    draws: int = 10
    restarts: int = 1

    name: ClassVar[str] = "random"
    needs: ClassVar[frozenset[str]] = frozenset({"convex"})  # a set with a start all over it
    cycle: ClassVar[tuple[Phase, ...]] = ("logits",)
    stays_inside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.draws < 1 or self.restarts < 1:
            raise SpecError(f"random: draws={self.draws}, restarts={self.restarts}", expected="whole numbers of at least 1")

    def targets(self, order: Int[Tensor, "examples others"]) -> Int[Tensor, "examples k"]:
        return losses.targets("ce", order, 1)

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Position:
        return Position(space.start(ctx, row))

    def ask(self, state: Position) -> Float[Tensor, "rows p"]:
        return state.theta

    def loss(self, logits: Float[Tensor, "rows classes"], row: Row) -> Float[Tensor, " rows"]:
        return losses.cross_entropy(logits, row)

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Position, seen: Seen, phase: int) -> Position:
        return Position(space.start(ctx, row._replace(step=row.step + 1)))

    def goes_on(self, state: Position, row: Row) -> Bool[Tensor, " rows"]:
        return row.step < self.draws
