"""Multi steepest descent (Maini, Wong & Kolter 2020, Alg. 1): one step per member of a union, the one of largest loss is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import losses
from rbench.attacks.noise import Row
from rbench.attacks.protocol import Phase, Seen
from rbench_core.errors import SpecError
from rbench_threats.protocol import Context, PerturbationSet


@dataclass(frozen=True, slots=True)
class Fork:
    """Where the row stands, one candidate per member, and the losses seen at them."""

    theta: Float[Tensor, "rows p"]
    candidates: Float[Tensor, "rows members p"]
    losses: Float[Tensor, "rows members"]


@dataclass(frozen=True, slots=True)
class MSD:
    """One gradient, then a look at each member's step: θ moves `rates[i]` radii along member i's steepest direction, onto its own ball.

    Members share θ = x′ − x. θ starts at 0 and may pass from one ball to another; the driver keeps the point of largest loss. Sparse
    members step on `share` of the coordinates, drawn per step from its half to its double (5 to 20 of 784 pixels in the paper).
    """

    members: tuple[PerturbationSet, ...]
    rates: tuple[float, ...]
    steps: int = 20
    share: float = 0.05

    name: ClassVar[str] = "msd"
    restarts: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"additive"})
    stays_inside: ClassVar[bool] = True  # every candidate lies in its member, so in the union

    def __post_init__(self) -> None:
        if len(self.members) != len(self.rates) or len(self.members) < 1:
            raise SpecError(f"msd: {len(self.members)} members, {len(self.rates)} rates", expected="one rate per member")
        if any("additive" not in member.capabilities for member in self.members):
            raise SpecError(f"msd over {', '.join(map(str, self.members))}", expected="additive sets")

    @property
    def cycle(self) -> tuple[Phase, ...]:
        """One gradient, then one look per member."""
        looks: list[Phase] = ["logits" for _ in self.members]
        return ("gradient", *looks)

    def targets(self, order: Int[Tensor, "examples others"]) -> Int[Tensor, "examples k"]:
        return losses.targets("ce", order, 1)

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Fork:
        theta = torch.zeros_like(space.start(ctx, row))
        return Fork(theta, theta[:, None].repeat(1, len(self.members), 1), theta[:, :1].repeat(1, len(self.members)))

    def ask(self, state: Fork) -> Float[Tensor, "rows p"]:
        return state.theta

    def loss(self, logits: Float[Tensor, "rows classes"], row: Row) -> Float[Tensor, " rows"]:
        return losses.cross_entropy(logits, row)

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Fork, seen: Seen, phase: int) -> Fork:
        if phase == 0:
            assert seen.grad is not None
            candidates = torch.stack(
                [
                    self._moved(member, rate, ctx, row, state.theta, seen.grad)
                    for member, rate in zip(self.members, self.rates, strict=True)
                ],
                1,
            )
            return Fork(candidates[:, 0].clone(), candidates, torch.zeros_like(state.losses))
        found = state.losses.index_copy(1, torch.tensor([phase - 1], device=state.losses.device), seen.loss[:, None])
        if phase < len(self.members):
            return Fork(state.candidates[:, phase].clone(), state.candidates.clone(), found)
        best = found.argmax(1)
        return Fork(state.candidates[torch.arange(len(best), device=best.device), best], state.candidates.clone(), found)

    def goes_on(self, state: Fork, row: Row) -> Bool[Tensor, " rows"]:
        return row.step < self.steps

    def _moved(self, member: PerturbationSet, rate: float, ctx: Context, row: Row, theta: Tensor, grad: Tensor) -> Tensor:
        share, ctx = None, member.context(ctx.x, row)  # the driver's is the first member's; all have the clean images
        if "sparse" in member.capabilities:
            grad = member.free(ctx, theta, grad)  # type: ignore[attr-defined]  # the capability
            share = self.share * torch.exp2(2 * row.uniform(1, stream=3).squeeze(1) - 1)
        return member.project(ctx, theta.add(member.steepest(ctx, grad, share), alpha=rate))
