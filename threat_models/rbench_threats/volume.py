"""How much a set of budgets allows and how it spends it: volume, range, and whether the budgets depend on the image at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rbench_threats.normaliser import Range

Images = Float[Tensor, "rows c h w"]
NEAR = 1.05  # a budget within this factor of a bound sits at it


@dataclass(frozen=True, slots=True)
class Volume:
    """A geometric-mean half-width over images and values, in pixel units; None where `zeros` half-widths are 0, since the log diverges."""

    mean: float | None
    zeros: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if self.mean is not None else f"undefined, {self.zeros} values have budget 0"


def nominal(eps: Images) -> Volume:
    """exp(mean log ε), in float64."""
    return _geometric(eps.double())


def clipped(eps: Images, x: Images) -> Volume:
    """Half of what is left of each interval inside [0, 1]: a value at 0 or 1 loses half of its width."""
    x, eps = x.double(), eps.double()
    return _geometric(((x + eps).clamp_max(1) - (x - eps).clamp_min(0)) / 2)


def _geometric(widths: Tensor) -> Volume:
    zeros = int((widths <= 0).sum())
    return Volume(None if zeros else math.exp(widths.log().mean().item()), zeros)


def at_bounds(eps: Images, bounds: Range) -> tuple[float, float]:
    """The shares of values that sit within 5 % of the smallest and of the largest budget."""
    low, high = eps <= bounds.low * NEAR, eps >= bounds.high / NEAR
    return low.double().mean().item(), high.double().mean().item()


def contextual_share(eps: Images) -> float:
    """The share of the variance of log ε that lies across images, value by value: 0 for one map for all images.

    Below 0.05 the budgets are one map, not contextual. Equal budgets have no variance; their share is 0.
    """
    t = eps.double().log().flatten(1)
    total = (t - t.mean()).square().mean()
    within = (t - t.mean(0)).square().mean()
    return (within / total).item() if total > 1e-20 else 0.0


def probe(
    features: Images,
    labels: Int[Tensor, " rows"],
    held: Float[Tensor, "held c h w"],
    held_labels: Int[Tensor, " held"],
    classes: int,
    ridge: float = 1.0,
) -> float:
    """The accuracy on held-out images of a linear least-squares probe with a constant: what the features tell about the label.

    features and held are standardised by the first; ridge is per feature. In float64.
    """
    a, b = features.double().flatten(1), held.double().flatten(1)
    mean, spread = a.mean(0), a.std(0).clamp_min(1e-6)
    a, b = (a - mean) / spread, (b - mean) / spread
    aim = torch.nn.functional.one_hot(labels, classes).double()
    level = aim.mean(0)
    weights = torch.linalg.solve(a.T @ a + ridge * torch.eye(a.shape[1], dtype=a.dtype), a.T @ (aim - level))
    return float(((b @ weights + level).argmax(1) == held_labels).double().mean())
