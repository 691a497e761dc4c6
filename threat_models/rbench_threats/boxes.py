"""Boxes: every value moves by at most a half-width of its own, cut with the image range. linf is the box whose half-widths are all equal.

θ = x′ − x, flattened; half-widths in pixel units. What linf and contextual budgets do is written once: equal budgets are linf bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from rbench_core.errors import SpecError
from rbench_threats import planes, squares
from rbench_threats.planes import Landing
from rbench_threats.protocol import PIXEL_TOLERANCE, Row, Scale, per_row
from rbench_threats.spec import Exact, written

Rows = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]
Images = Float[Tensor, "rows c h w"]
MOVE = 4  # the first stream of a move's noise: a start and a move may be drawn at the same step


@dataclass(frozen=True, slots=True)
class Box:
    """The context of every additive set: clean images and, per value, how far θ may go down and up."""

    x: Float[Tensor, "rows c h w"]
    lower: Float[Tensor, "rows p"]
    upper: Float[Tensor, "rows p"]


@dataclass(frozen=True, slots=True)
class Reach(Box):
    """The context of a box: beside the image range its half-widths, one per value or one for the whole row; all ≥ 0."""

    reach: Float[Tensor, "rows q"]


@dataclass(frozen=True, slots=True)
class Additive:
    """What all sets with x′ = x + θ inside the image range share."""

    capabilities: ClassVar[frozenset[str]] = frozenset({"additive", "convex", "norm"})
    norm: ClassVar[float]  # with `radius` the capability "norm": what foreign attacks are told

    def check(self, shape: tuple[int, int, int]) -> None:
        """Every image shape will do."""

    def context(self, x: Images, row: Row) -> Box:
        """lower = −x and upper = 1 − x, (rows, C·H·W)."""
        flat = x.flatten(1)
        return Box(x, lower=-flat, upper=1 - flat)

    def render(self, ctx: Box, theta: Thetas) -> Images:
        """x + θ. No clamp: project keeps θ in the box, and x + (1 − x) rounds to at most 1."""
        return ctx.x + theta.view_as(ctx.x)

    def from_images(self, ctx: Box, images: Images) -> Thetas:
        """The θ of an image that a foreign attack returned."""
        return (images - ctx.x).flatten(1)

    def origin(self, ctx: Box) -> Thetas:
        """θ = 0: the clean images."""
        return torch.zeros_like(ctx.lower)

    def boxed(self, ctx: Box, theta: Thetas) -> Thetas:
        """Cut with the image range alone: what may leave the ball comes back to an image."""
        return theta.clamp(ctx.lower, ctx.upper)


class BoxSet(Additive):
    """Every x′ in [0, 1] with |x′ᵢ − xᵢ| ≤ reachᵢ; the half-widths stand in the context. A step of an attack scales with them per value."""

    __slots__ = ()

    def start(self, ctx: Reach, row: Row) -> Thetas:
        """Uniform noise scaled to gauge 1, cut with the image range (AutoAttack's start)."""
        noise = 2 * row.uniform(ctx.lower.shape[1], stream=0) - 1
        return self.project(ctx, noise * (ctx.reach / noise.abs().amax(1, keepdim=True)))

    def project(self, ctx: Reach, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        """Exact: set and image range are both boxes."""
        radius = per_row(scale) * ctx.reach
        return theta.minimum(radius).maximum(-radius).clamp_(ctx.lower, ctx.upper)

    def steepest(self, ctx: Reach, grad: Thetas, share: Tensor | None = None) -> Thetas:
        return grad.sign().mul_(ctx.reach)

    def opening(self, ctx: Reach, row: Row) -> Thetas:
        """Stripes from top to bottom, one pixel wide, each value at an end of its range."""
        channels, height, width = shape_of(ctx)
        stripes = squares.signs(row.uniform(channels * width, stream=0)).view(-1, channels, 1, width)
        return self.project(ctx, stripes.expand(-1, -1, height, -1).flatten(1) * ctx.reach)

    def move(self, ctx: Reach, theta: Thetas, share: Rows, row: Row) -> Thetas:
        """One square goes to an end of its range, each channel with its own sign; nothing else of a θ inside is touched."""
        shape = shape_of(ctx)
        side, (place, coin) = squares.sides(share, shape), row.uniforms((2, shape[0]), MOVE)
        here = squares.window(squares.corners(side, shape, place), squares.offsets(side, shape), shape)
        sign = squares.signs(coin).repeat_interleave(here.shape[1] // shape[0], 1)
        reach = ctx.reach if ctx.reach.shape[1] == 1 else ctx.reach.gather(1, here)
        return theta.scatter(1, here, (sign * reach).clamp_(ctx.lower.gather(1, here), ctx.upper.gather(1, here)))

    def to_plane(self, ctx: Reach, theta: Thetas, w: Thetas, b: Rows) -> tuple[Landing, Landing]:
        """The points of {w·θ = b} in the image range that are nearest to theta and to 0, in half-widths; equal ones: in pixels."""
        return planes.to_plane_linf(theta, ctx.lower, ctx.upper, w, b, None if ctx.reach.shape[1] == 1 else ctx.reach)

    def gauge(self, ctx: Reach, theta: Thetas) -> Rows:
        """Where the half-width is 0 a value that moved is infinitely far out."""
        return torch.where(theta == 0, 0.0, theta.abs() / ctx.reach).amax(1)

    def excess(self, ctx: Reach, theta: Thetas) -> Rows:
        outside = torch.maximum(ctx.lower - theta, theta - ctx.upper).maximum(theta.abs() - ctx.reach)
        return outside.amax(1) - PIXEL_TOLERANCE

    def box(self, ctx: Reach) -> tuple[Images, Images]:
        """(lower, upper), float32: the image of every θ whose excess is ≤ 0 lies between them, rounding included.

        In exact arithmetic such a θ obeys lower − τ ≤ θ ≤ upper + τ and |θ| ≤ reach + τ, with τ a hair over the tolerance, since
        `excess` rounds too; x + θ rounds monotonically, so it stays under the float32 number above the exact bound.
        """
        slack = PIXEL_TOLERANCE * (1 + 1e-6)
        x, reach = ctx.x.double().flatten(1), ctx.reach.double()
        low = x + torch.maximum(ctx.lower.double(), -reach) - slack
        high = x + torch.minimum(ctx.upper.double(), reach) + slack
        return _below(low).view(ctx.x.shape), -_below(-high).view(ctx.x.shape)


@dataclass(frozen=True, slots=True)
class Linf(BoxSet):
    """Every x′ with max|x′ − x| ≤ eps and x′ in [0, 1]. eps in pixel units, 0 < eps ≤ 1."""

    eps: Exact | Fraction | float | int | str

    family: ClassVar[str] = "linf"
    capabilities: ClassVar[frozenset[str]] = frozenset({"additive", "box", "convex", "norm", "plane", "squares"})
    norm: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        eps = Exact(self.eps)
        if not 0 < eps <= 1:
            fix = "For 8 grey levels write eps=8/255." if eps > 1 else None
            raise SpecError(f"linf: eps={eps}", expected="0 < eps <= 1, since images lie in [0, 1]", fix=fix)
        object.__setattr__(self, "eps", eps)

    def __str__(self) -> str:
        return written("linf", {"eps": self.eps})

    @property
    def extent(self) -> dict[str, Fraction]:
        return {"eps": Exact(self.eps)}

    @property
    def radius(self) -> float:
        return float(self.eps)

    @property
    def sentence(self) -> str:
        return f"Every pixel may move by at most {self.eps}."

    def context(self, x: Images, row: Row) -> Reach:
        """The image range and eps, once per row."""
        flat = x.flatten(1)
        return Reach(x, lower=-flat, upper=1 - flat, reach=x.new_full((len(x), 1), float(self.eps)))

    def project(self, ctx: Reach, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        """As every box, bit for bit; one number for all values is the faster way to say it, in the innermost loop of all."""
        if isinstance(scale, Tensor) or scale != 1:
            return BoxSet.project(self, ctx, theta, scale)
        return theta.clamp(-self.radius, self.radius).clamp_(ctx.lower, ctx.upper)

    def steepest(self, ctx: Reach, grad: Thetas, share: Tensor | None = None) -> Thetas:
        return grad.sign().mul_(self.radius)


def shape_of(ctx: Box) -> squares.Shape:
    """Channels, height, width."""
    channels, height, width = ctx.x.shape[1:]
    return channels, height, width


def _below(exact: Float[Tensor, "rows p"]) -> Float[Tensor, "rows p"]:
    """The largest float32 numbers that are not above the float64 ones."""
    near = exact.float()
    return torch.where(near.double() > exact, torch.nextafter(near, near.new_tensor(-torch.inf)), near)
