"""What every perturbation set offers: a ball in a space of parameters θ and a differentiable render (x, θ) → x′.

Public: a set of your own is a frozen dataclass with these members, named in a file or by an entry point of the group
`rbench.sets`; the laws of the test suite can be run over it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

PIXEL_TOLERANCE = 1e-6  # part of every set: the referee, attacks and certificates use the same widened set
NORM_TOLERANCE = 1e-6  # relative to the radius; norms are taken in float64

Context: TypeAlias = Any  # a dataclass of tensors whose first axis is rows
Scale: TypeAlias = "float | Float[Tensor, ' rows']"


@runtime_checkable
class Row(Protocol):
    """Who a row is, (rows,) each, and its private noise; made by the engine."""

    @property
    def example(self) -> Int[Tensor, " rows"]: ...
    @property
    def label(self) -> Int[Tensor, " rows"]: ...
    @property
    def target(self) -> Int[Tensor, " rows"]: ...
    @property
    def restart(self) -> Int[Tensor, " rows"]: ...
    @property
    def step(self) -> Int[Tensor, " rows"]: ...

    def uniform(self, n: int, stream: int) -> Float[Tensor, "rows n"]:
        """In (0, 1), a function of (seed, example, attack, target, restart, step, stream) alone."""
        ...

    def uniforms(self, counts: tuple[int, ...], stream: int) -> tuple[Float[Tensor, "rows _"], ...]:
        """uniform(counts[0], stream), uniform(counts[1], stream + 1), … at little more than the cost of one."""
        ...

    def normal(self, n: int, stream: int) -> Float[Tensor, "rows n"]:
        """Standard normal, likewise."""
        ...


@runtime_checkable
class PerturbationSet(Protocol):
    """The part that attacks use. `scale` is in units of the set's own radius; rows are islands, bit for bit."""

    @property
    def family(self) -> str:
        """What kind of ball it is, with every argument that is no radius: two sets of one family differ only in `extent`."""
        ...

    @property
    def extent(self) -> dict[str, Fraction]:
        """The radii by name: A contains B if they share the family and no entry of A is smaller."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """What attacks may ask of it: "additive" (θ = x′ − x, from_images) · "norm" (norm, radius) · "convex" · "sparse" (steepest
        takes share; free) · "support" (bounds how many pixels move; grouped(ctx, theta), θ as (rows, values of a pixel, pixels);
        thinned(ctx, theta, least), θ in the image range without pixels that moved less) · "plane" (to_plane(ctx, theta, w, b), the
        points of {w·θ = b} in the image range nearest to theta and 0, with distances; origin(ctx), 0; boxed(ctx, theta), cut with it)
        · "points" (points(ctx), a finite stand-in) · "squares", "swaps" (opening(ctx, row), a start for random search; move(ctx, theta,
        share, row), theta with a share of the image or of the pixels drawn anew; both inside) · "warp" (warp(images, theta) moves any
        images; `parameters` long) · "blocks" (an affine combination: blocks(ctx), its parts at work; weighed, around, lifted) · "box"
        (box(ctx), the images lower and upper that hold every x′ of the widened set, rounded outward) · "portrait" (portrait(x), what a
        page shows of it) · "examples" (examples(), its own images and labels) · "labels" (labels(), what people called the candidate of
        each example: the objective is then invariance) · "balls" (balls(), by name, in which its candidates lie)."""
        ...

    @property
    def sentence(self) -> str:
        """What the adversary may do, for a reader who knows no norms."""
        ...

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse images that the set is not made for. Raises SpecError."""
        ...

    def context(self, x: Float[Tensor, "rows c h w"], row: Row) -> Context:
        """All that depends on the clean image; computed once per (image, restart)."""
        ...

    def start(self, ctx: Context, row: Row) -> Float[Tensor, "rows p"]:
        """A random θ inside."""
        ...

    def project(self, ctx: Context, theta: Float[Tensor, "rows p"], scale: Scale = 1.0) -> Float[Tensor, "rows p"]:
        """The nearest θ of (scale · ball) ∩ box, Euclidean, per row."""
        ...

    def steepest(self, ctx: Context, grad: Float[Tensor, "rows p"], share: Tensor | None = None) -> Float[Tensor, "rows p"]:
        """The θ of gauge 1 with the largest inner product with grad (0 where grad is 0).

        share (rows,): the fraction of the coordinates that a step moves, for sets that are "sparse"."""
        ...

    def gauge(self, ctx: Context, theta: Float[Tensor, "rows p"]) -> Float[Tensor, " rows"]:
        """Smallest scale whose ball holds θ; 1 = on the surface."""
        ...

    def excess(self, ctx: Context, theta: Float[Tensor, "rows p"]) -> Float[Tensor, " rows"]:
        """How far θ lies outside the widened set; ≤ 0: inside."""
        ...

    def render(self, ctx: Context, theta: Float[Tensor, "rows p"]) -> Float[Tensor, "rows c h w"]:
        """x′ = render(x, θ), differentiable in θ; render(x, 0) is x."""
        ...


def resized(space: Any, extent: dict[str, Fraction]) -> Any:
    """The same set with other radii, by the names of its `extent`: its own `resized`, else its fields of these names replaced."""
    own = getattr(space, "resized", None)
    return own(extent) if own is not None else replace(space, **extent)


def per_row(scale: Scale) -> float | Tensor:
    """A scale that multiplies (rows, P) tensors."""
    return scale[:, None] if isinstance(scale, torch.Tensor) else scale


@dataclass(frozen=True, slots=True)
class Panel:
    """A table of images for a set's page: images in [0, 1], one caption per row and per column (or none)."""

    title: str
    caption: str
    images: Float[Tensor, "rows cols c h w"]
    rows: tuple[str, ...] = ()
    cols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a set's page: what was measured, its value with unit, and on what it rests (n, interval, command)."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Portrait:
    """What a page shows of a set that has to be seen; rendered by a command that has the set, stored, drawn without it."""

    panels: tuple[Panel, ...]
    facts: tuple[Fact, ...] = ()
