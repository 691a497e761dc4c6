"""Projected gradient ascent in three manners: along the steepest direction, along few coordinates (SLIDE), onto few pixels (l0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import losses
from rbench.attacks.noise import Row
from rbench.attacks.protocol import Phase, Seen
from rbench_core.errors import SpecError
from rbench_threats.protocol import Context, PerturbationSet


@dataclass(frozen=True, slots=True)
class Position:
    """The whole state: where the row stands."""

    theta: Float[Tensor, "rows p"]


class Ascent:
    """What attacks that climb one loss for a number of steps share: their rows, what they ask, when they end. One look more than steps."""

    __slots__ = ()
    cycle: ClassVar[tuple[Phase, ...]] = ("gradient",)
    stays_inside: ClassVar[bool] = True
    steps: int
    loss_name: str

    def targets(self, order: Int[Tensor, "examples others"]) -> Int[Tensor, "examples k"]:
        return losses.targets(self.loss_name, order, getattr(self, "top", 1))

    def ask(self, state: Any) -> Float[Tensor, "rows p"]:
        return state.theta  # type: ignore[no-any-return]  # every state here has one

    def loss(self, logits: Float[Tensor, "rows classes"], row: Row) -> Float[Tensor, " rows"]:
        return losses.LOSSES[self.loss_name](logits, row)

    def goes_on(self, state: Any, row: Row) -> Bool[Tensor, " rows"]:
        return row.step <= self.steps


@dataclass(frozen=True, slots=True)
class PGD(Ascent):
    """Projected gradient ascent (Madry et al. 2018, sec. 2.1). A step moves `rate` radii along the set's steepest direction."""

    steps: int = 40
    rate: float = 0.1
    loss_name: str = "ce"
    restarts: int = 1
    top: int = 9

    name: ClassVar[str] = "pgd"
    needs: ClassVar[frozenset[str]] = frozenset({"convex"})

    def __post_init__(self) -> None:
        check(self.name, self.steps, self.restarts, self.rate)
        losses.known(self.loss_name)

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Position:
        return Position(space.start(ctx, row))

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Position, seen: Seen, phase: int) -> Position:
        assert seen.grad is not None  # a "gradient" phase
        moved = state.theta.add(space.steepest(ctx, seen.grad), alpha=self.rate)
        return Position(space.project(ctx, moved))


@dataclass(frozen=True, slots=True)
class Slide(Ascent):
    """Sparse l1 descent: a step moves the largest `share` of free coordinates evenly, `rate` radii in all (Tramèr & Boneh 2019, Alg. 1).

    The first restart uses `share`; the others draw theirs from share to `widest`, once per row: the paper's range of percentiles.
    """

    steps: int = 100
    rate: float = 0.1
    share: float = 0.01
    widest: float = 0.2
    loss_name: str = "ce"
    restarts: int = 1

    name: ClassVar[str] = "slide"
    needs: ClassVar[frozenset[str]] = frozenset({"sparse", "convex"})

    def __post_init__(self) -> None:
        check(self.name, self.steps, self.restarts, self.rate)
        losses.known(self.loss_name)
        if not 0 < self.share <= self.widest <= 1:
            raise SpecError(f"slide: share={self.share}, widest={self.widest}", expected="0 < share <= widest <= 1")

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> SlideState:
        drawn = self.share + (self.widest - self.share) * row.uniform(1, stream=7).squeeze(1)
        return SlideState(space.start(ctx, row), torch.where(row.restart == 0, self.share, drawn))

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: SlideState, seen: Seen, phase: int) -> SlideState:
        assert seen.grad is not None
        grad = space.free(ctx, state.theta, seen.grad)  # type: ignore[attr-defined]  # the capability "sparse"
        moved = state.theta.add(space.steepest(ctx, grad, state.share), alpha=self.rate)
        return SlideState(space.project(ctx, moved), state.share.clone())


@dataclass(frozen=True, slots=True)
class SlideState:
    """Where the row stands and which fraction of the coordinates it moves."""

    theta: Float[Tensor, "rows p"]
    share: Float[Tensor, " rows"]


@dataclass(frozen=True, slots=True)
class TopK(Ascent):
    """PGD for a set that bounds how many pixels change (Croce & Hein 2019, sec. 4): a step of l2 length `rate`, then the nearest point.

    The step shrinks linearly to a tenth, so that the support can wander early and settles late. Of rates 2, 4, 8
    and 16, three restarts on a small linf-trained MNIST net at 16 pixels broke 44, 51, 66 and 67 of 200.
    """

    steps: int = 100
    rate: float = 8.0
    loss_name: str = "ce"
    restarts: int = 1

    name: ClassVar[str] = "topk"
    needs: ClassVar[frozenset[str]] = frozenset({"support"})

    def __post_init__(self) -> None:
        check(self.name, self.steps, self.restarts, self.rate)
        losses.known(self.loss_name)

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Position:
        return Position(space.start(ctx, row))

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Position, seen: Seen, phase: int) -> Position:
        assert seen.grad is not None
        length = self.rate * (1 - 0.9 * row.step / self.steps).clamp_min(0.1)
        scaled = seen.grad / seen.grad.abs().amax(1, keepdim=True).clamp_min(1e-38)
        unit = scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1e-12)
        return Position(space.project(ctx, state.theta + length[:, None] * unit))


def check(name: str, steps: int, restarts: int, rate: float) -> None:
    """Refuse budgets that are no budgets. Raises SpecError."""
    if steps < 1 or restarts < 1 or not 0 < rate < float("inf"):
        raise SpecError(
            f"{name}: steps={steps}, restarts={restarts}, rate={rate}",
            expected="whole steps and restarts of at least 1, and a rate above 0",
        )
