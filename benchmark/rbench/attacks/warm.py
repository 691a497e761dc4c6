"""A set whose rows start where an earlier attack stopped: what a plan's `start = "best"` means. Everything else is the set's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks.noise import Row
from rbench_threats.protocol import Context, PerturbationSet


@dataclass(frozen=True, slots=True)
class Begun:
    """The set's own context, the θ to start from, and whether there is one."""

    inner: Context
    theta: Float[Tensor, "rows p"]
    known: Bool[Tensor, " rows"]


class StartAt:
    """space, with start(row) = the stored θ of the row's example, where one is known. index: data set indices, (examples,)."""

    def __init__(
        self,
        space: PerturbationSet,
        index: Int[Tensor, " examples"],
        known: Bool[Tensor, " examples"],
        theta: Float[Tensor, "examples p"],
    ) -> None:
        self._space, self._index, self._known, self._theta = space, index, known, theta
        self.capabilities = space.capabilities

    def context(self, x: Float[Tensor, "rows c h w"], row: Row) -> Begun:
        place = (self._index[None, :] == row.example[:, None]).int().argmax(1)
        theta, inner = self._theta[place], self._space.context(x, row)
        if "blocks" in self.capabilities:  # each row searches a slice of its own, and must search that of θ
            inner = self._space.around(inner, theta)  # type: ignore[attr-defined]
        return Begun(inner, theta, self._known[place])

    def start(self, ctx: Begun, row: Row) -> Float[Tensor, "rows p"]:
        return torch.where(ctx.known[:, None], self._space.project(ctx.inner, ctx.theta), self._space.start(ctx.inner, row))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._space, name)
        return lambda ctx, *rest, **named: method(ctx.inner, *rest, **named)
