"""Budgets that depend on the image: a box whose half-widths ε(x) are computed once from the clean image, under a fixed volume and range."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rbench_core.errors import SpecError
from rbench_threats import volume
from rbench_threats.boxes import BoxSet, Images, Reach
from rbench_threats.budgets import FORMS, Budgets, from_value
from rbench_threats.protocol import Fact, Panel, Portrait, Row
from rbench_threats.spec import Exact, Value, written

LARGEST_SCALE = 1000
SHOWN = 8  # images of the portrait


@dataclass(frozen=True, slots=True)
class Contextual(BoxSet):
    """Every x′ in [0, 1] with |x′ᵢ − xᵢ| ≤ scale · ε(x)ᵢ. No norm: foreign attacks, which know norms alone, do not apply."""

    budgets: Budgets
    scale: Exact | Fraction | float | int | str = 1

    capabilities: ClassVar[frozenset[str]] = frozenset({"additive", "box", "convex", "plane", "portrait", "squares"})

    def __post_init__(self) -> None:
        scale = Exact(self.scale)
        if not 0 < scale <= LARGEST_SCALE:
            raise SpecError(f"contextual: scale={scale}", expected=f"0 < scale <= {LARGEST_SCALE}, a factor on all budgets")
        object.__setattr__(self, "scale", scale)

    @classmethod
    def from_spec(cls, args: tuple[Value, ...], named: dict[str, Value]) -> Contextual:
        """`contextual(BUDGETS[, scale=1])`. Raises SpecError and what the budgets raise."""
        scale = named.get("scale", args[1] if len(args) > 1 else Exact(1))
        if not args or len(args) + len(named) > 2 or set(named) - {"scale"} or not isinstance(scale, Exact):
            raise SpecError("contextual(...)", expected=f"contextual(BUDGETS, scale=1), BUDGETS being {FORMS}")
        return cls(from_value(args[0]), scale)

    def __str__(self) -> str:
        scale = {} if self.scale == 1 else {"scale": self.scale}
        return written("contextual", {"budgets": (self.budgets.spec,), **scale})

    @property
    def family(self) -> str:
        return f"contextual:{self.budgets.digest}"

    @property
    def extent(self) -> dict[str, Fraction]:
        return {"scale": Exact(self.scale)}

    @property
    def sentence(self) -> str:
        factor = "" if self.scale == 1 else f", all budgets times {self.scale}"
        return f"Every pixel may move by {self.budgets.sentence}{factor}."

    def check(self, shape: tuple[int, int, int]) -> None:
        self.budgets.check(shape)

    def context(self, x: Images, row: Row) -> Reach:
        """The image range and scale · ε(x), (rows, C·H·W)."""
        flat = x.flatten(1)
        reach = (self.budgets(x, row.example) * float(self.scale)).to(x.dtype)
        return Reach(x, lower=-flat, upper=1 - flat, reach=reach.flatten(1).contiguous())

    def portrait(self, x: Images) -> Portrait:
        """Budget maps beside the first images, and figures over all of x, which are the first of their data set."""
        eps = self.budgets(x, torch.arange(len(x))) * float(self.scale)
        return Portrait((_panel(x[:SHOWN], eps[:SHOWN]),), tuple(_facts(x, eps, self.budgets)))


def _panel(x: Images, eps: Images) -> Panel:
    top = float(eps.max())
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    table = torch.stack([x, eps / max(top, 1e-12), low, high])
    return Panel(
        "Budgets beside their images",
        f"Budgets from 0 (black) to {top:.3g} (white). Every image between the darkest and the brightest one is in the set.",
        table, ("image", "budget", "darkest", "brightest"), tuple(str(i) for i in range(len(x))),
    )  # fmt: skip


def _facts(x: Float[Tensor, "rows c h w"], eps: Float[Tensor, "rows c h w"], budgets: Budgets) -> list[Fact]:
    n = f"first {len(x)} images"
    facts = [
        Fact("Volume", str(volume.nominal(eps)), f"geometric mean of the budgets; {n}"),
        Fact("Clipped volume", str(volume.clipped(eps, x)), f"the same of what is left inside [0, 1]; {n}"),
        Fact(
            "Share that depends on the image",
            f"{volume.contextual_share(eps):.2f}",
            f"of the variance of log budget; below 0.05: one map; {n}",
        ),
    ]
    if budgets.bounds is not None:
        low, high = volume.at_bounds(eps, budgets.bounds)
        told = f"{budgets.bounds.low:g} to {budgets.bounds.high:g}"
        facts += [
            Fact("Range", told, f"share of values at its ends: {low:.2f} and {high:.2f}; {n}"),
            Fact("Play", f"{budgets.bounds.play:.2f}", "largest share of values that the range and volume let sit at the lower end"),
        ]
    return facts
