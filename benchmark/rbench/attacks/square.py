"""Random search, which needs logits alone and no gradient: Square for lp balls, and Sparse-RS where a set bounds how many pixels change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import losses, tree
from rbench.attacks.noise import Row
from rbench.attacks.pgd import Ascent, check
from rbench.attacks.protocol import Phase, Seen
from rbench_core.errors import SpecError
from rbench_threats.protocol import Context, PerturbationSet

Schedule: TypeAlias = tuple[tuple[int, int], ...]  # (after so many queries, what the first share is divided by)


@dataclass(frozen=True, slots=True)
class Searched:
    """The candidate that is asked next, and the best place so far."""

    theta: Float[Tensor, "rows p"]
    best: Float[Tensor, "rows p"]
    best_loss: Float[Tensor, " rows"]


class RandomSearch(Ascent):
    """From the best place so far a share is drawn anew; what has a larger loss is kept. The set says what it is a share of."""

    __slots__ = ()
    cycle: ClassVar[tuple[Phase, ...]] = ("logits",)
    schedule: ClassVar[Schedule]
    name: ClassVar[str]
    queries: int
    share: float
    restarts: int

    def __post_init__(self) -> None:
        check(self.name, self.queries, self.restarts, self.share)
        losses.known(self.loss_name)
        if self.share > 1:
            raise SpecError(f"{self.name}: share={self.share}", expected="0 < share <= 1")

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Searched:
        start = space.opening(ctx, row)  # type: ignore[attr-defined]  # the capability
        return Searched(start, start.clone(), torch.full_like(start[:, 0], -torch.inf))

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Searched, seen: Seen, phase: int) -> Searched:
        better = seen.loss > state.best_loss
        best = tree.pick(better, state.theta, state.best)
        candidate = space.move(ctx, best, self._share(row), row)  # type: ignore[attr-defined]
        return Searched(candidate, best, torch.where(better, seen.loss, state.best_loss))

    def takes(self, state: Searched, seen: Seen) -> Bool[Tensor, " rows"]:
        """Whether a look changes the state; else the next candidate depends on the step alone, and several may be looked at together."""
        return seen.loss > state.best_loss

    def _share(self, row: Row) -> Float[Tensor, " rows"]:
        after, shares = _shares(self.schedule, self.share, row.step.device)
        return shares[torch.bucketize(row.step, after)]

    def goes_on(self, state: Searched, row: Row) -> Bool[Tensor, " rows"]:
        return row.step <= self.queries


@cache
def _shares(schedule: Schedule, share: float, device: torch.device) -> tuple[Int[Tensor, " n"], Float[Tensor, " m"]]:
    """The queries after which the share changes, and the share before and after each; made once, not at every query."""
    after, divisors = zip(*schedule, strict=True)
    return torch.tensor(after, device=device), share / torch.tensor([1, *divisors], device=device)


@dataclass(frozen=True, slots=True)
class Square(RandomSearch):
    """Square (Andriushchenko et al. 2020, Alg. 1): one square, `share` of the image at first, halved after 10, 50, 200, … queries.

    Defaults are AutoAttack's: 0.8, 5,000 queries after the first look, the margin, the schedule of 10,000 queries not rescaled. Unlike
    there each row draws its own squares and signs, and the last row and column of pixels are as likely as others.
    """

    queries: int = 5000
    share: float = 0.8
    loss_name: str = "margin"
    restarts: int = 1

    name: ClassVar[str] = "square"
    needs: ClassVar[frozenset[str]] = frozenset({"squares"})
    schedule: ClassVar[Schedule] = tuple(
        (query, 2**halved) for halved, query in enumerate((10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), start=1)
    )


@dataclass(frozen=True, slots=True)
class SparseRS(RandomSearch):
    """Sparse-RS for l0 (Croce et al. 2022, sec. 3): `share` of the budget of pixels is drawn anew, half of it at once, less and less later.

    The share is the paper's for untargeted attacks, queries and schedule (that of 10,000 queries) are its code's. Unlike there a drawn
    pixel always changes, so that on images of pure black and white no part of the budget is wasted.
    """

    queries: int = 5000
    share: float = 0.3
    loss_name: str = "margin"
    restarts: int = 1

    name: ClassVar[str] = "sparse-rs"
    needs: ClassVar[frozenset[str]] = frozenset({"swaps"})
    schedule: ClassVar[Schedule] = ((-1, 2), (49, 4), (199, 5), (499, 6), (999, 8), (1999, 10), (3999, 12), (5999, 15), (7999, 20))
