"""Auto-PGD for affine combinations: each row splits the budget among the parts and climbs with all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rbench.attacks.apgd import APGD, Climb
from rbench.attacks.noise import Row
from rbench.attacks.protocol import Seen
from rbench_threats.protocol import Context, PerturbationSet

Thetas = Float[Tensor, "rows p"]
SPLIT, SHARE = 41, 42  # streams of the noise that no set uses


@dataclass(frozen=True, slots=True)
class Mixture(APGD):
    """Auto-PGD over an affine combination. A row keeps the split of the budget that it draws: √(−log U) per part, normalised.

    That is nearer to even than the flat Dirichlet draw of Tramèr & Boneh 2019 (−log U), since the parts' own attacks have been at the ends:
    docs/combinations.md has what each draw broke. Where the set fixes the weights it climbs at those. Sparse parts move a share of their
    coordinates, drawn per row from 0.02 to 0.2. Unlike in the paper's code all parts move at every step: at equal passes that broke as
    many as one part after the other.
    """

    loss_name: str = "ce"
    steps: int = 50
    top: int = 9
    restarts: int = 1

    name: ClassVar[str] = "mixture"
    needs: ClassVar[frozenset[str]] = frozenset({"blocks", "convex"})

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Climb:
        return APGD.begin(self, space, _split(space, ctx, row), row)

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Climb, seen: Seen, phase: int) -> Climb:
        return APGD.step(self, space, _split(space, ctx, row), row, state, seen, phase)

    def uphill(self, space: PerturbationSet, ctx: Context, row: Row, here: Thetas, grad: Thetas) -> Thetas:
        share = 0.02 + 0.18 * _born(row).uniform(1, stream=SHARE).squeeze(1)
        return space.steepest(ctx, space.free(ctx, here, grad), share)  # type: ignore[attr-defined]  # the capability "blocks"


def _split(space: PerturbationSet, ctx: Context, row: Row) -> Context:
    """The slice of the weights that the row draws, the same at every step."""
    drawn = _born(row).uniform(ctx.weight.shape[1], stream=SPLIT).log().neg().sqrt().to(ctx.weight)
    return space.weighed(ctx, drawn / drawn.sum(1, keepdim=True))  # type: ignore[attr-defined]  # the capability "blocks"


def _born(row: Row) -> Row:
    """The row as it was at its first step."""
    return row._replace(step=torch.zeros_like(row.step))
