"""sigma-zero: the fewest pixels by gradient descent on a smooth count of them, with a threshold that keeps the point sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rbench.attacks import losses
from rbench.attacks.noise import Row
from rbench.attacks.pgd import Ascent, check
from rbench.attacks.protocol import Seen
from rbench_core.errors import SpecError
from rbench_threats.protocol import Context, PerturbationSet

PerRow = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]
FIRST, SECOND = 0.9, 0.999  # Adam's moments


@dataclass(frozen=True, slots=True)
class Thinning:
    """Where a row stands, Adam's two moments, and how far a pixel must move to stay."""

    theta: Thetas
    mean: Thetas
    square: Thetas
    least: PerRow


@dataclass(frozen=True, slots=True)
class SigmaZero(Ascent):
    """sigma-zero (Cinà et al. 2024, arXiv:2402.01879, Alg. 1), counting pixels, all channels once, where the paper counts values.

    Adam on the loss, as long as the label leads, and on the mean over pixels of s / (s + sigma), s the sum of squares of a pixel's changes;
    the gradient is divided by its largest entry, the step falls by a cosine to a tenth. After each step pixels that moved less than a
    threshold go back; it rises by `pull` of the step where the point is a fall and sinks where it is none. The engine keeps the points that
    the set holds. The first restart begins at the clean image, others at a start of the set. In five settings five restarts of 100 steps
    broke more than one of 500 in three and less in two; cross-entropy and the paper's margin break alike.
    """

    steps: int = 100
    rate: float = 1.0
    sigma: float = 1e-3
    least: float = 0.3
    pull: float = 0.01
    loss_name: str = "ce"
    top: int = 9
    restarts: int = 1

    name: ClassVar[str] = "sigma-zero"
    needs: ClassVar[frozenset[str]] = frozenset({"support"})
    stays_inside: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self.name, self.steps, self.restarts, self.rate)
        losses.known(self.loss_name)
        if not (0 < self.sigma < math.inf and 0 < self.least <= 1 and 0 <= self.pull <= 1):
            given = f"sigma={self.sigma}, least={self.least}, pull={self.pull}"
            raise SpecError(f"{self.name}: {given}", expected="0 < sigma, 0 < least <= 1 and 0 <= pull <= 1")

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> Thinning:
        start = space.start(ctx, row) * (row.restart > 0)[:, None]
        return Thinning(start, torch.zeros_like(start), torch.zeros_like(start), torch.full_like(start[:, 0], self.least))

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: Thinning, seen: Seen, phase: int) -> Thinning:
        assert seen.grad is not None
        stands = (seen.margin >= 0).to(state.theta.dtype)
        slope = self._crowding(space, ctx, state.theta) - stands[:, None] * seen.grad
        slope = slope / slope.abs().amax(1, keepdim=True).clamp_min(1e-12)
        mean = state.mean.lerp(slope, 1 - FIRST)
        square = state.square.lerp(slope.square(), 1 - SECOND)
        done = (row.step + 1).clamp_max(self.steps).to(state.theta.dtype)
        rate = self.rate * (0.55 + 0.45 * (done * (math.pi / self.steps)).cos())
        unbiased = (square / (1 - SECOND**done)[:, None]).sqrt_().add_(1e-8)
        theta = state.theta - (rate / (1 - FIRST**done))[:, None] * mean / unbiased
        least = (state.least + self.pull * rate * (1 - 2 * stands)).clamp(1e-6, 1)
        return Thinning(space.thinned(ctx, theta, least), mean, square, least)  # type: ignore[attr-defined]  # "support"

    def _crowding(self, space: PerturbationSet, ctx: Context, theta: Thetas) -> Thetas:
        """The gradient of the mean over pixels of s / (s + sigma)."""
        pixels = space.grouped(ctx, theta)  # type: ignore[attr-defined]  # "support"
        size = pixels.square().sum(1, keepdim=True)
        crowding: Tensor = (2 * self.sigma / pixels.shape[2]) * pixels / (size + self.sigma).square()
        return crowding.flatten(1)
