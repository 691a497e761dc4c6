"""The lp balls, cut with the box that keeps x + θ in [0, 1]. θ = x′ − x, flattened; radii in pixel units. linf lives in boxes.py."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rbench_core.errors import SpecError
from rbench_threats import planes, squares
from rbench_threats.boxes import MOVE, Additive, Box, Linf, Rows, Thetas, shape_of
from rbench_threats.planes import Landing
from rbench_threats.projections import project_l1_box, project_l2_box
from rbench_threats.protocol import NORM_TOLERANCE, PIXEL_TOLERANCE, Row, Scale
from rbench_threats.spec import Exact, whole, written

__all__ = ["L0", "L1", "L2", "Box", "Linf"]  # linf is the box of equal half-widths, and lives in boxes.py with the others


class _Norm(Additive):
    """What l2 and l1 share: a norm in float64, a radius relative to which it is tolerant."""

    __slots__ = ()
    family: ClassVar[str]
    order: ClassVar[int]
    eps: Exact | Fraction | float | int | str

    def __str__(self) -> str:
        return written(self.family, {"eps": self.eps})

    @property
    def extent(self) -> dict[str, Fraction]:
        return {"eps": Exact(self.eps)}

    @property
    def radius(self) -> float:
        return float(self.eps)

    def gauge(self, ctx: Box, theta: Thetas) -> Rows:
        return (_norm(theta, self.order) / float(self.eps)).float()

    def excess(self, ctx: Box, theta: Thetas) -> Rows:
        beyond = _norm(theta, self.order) - float(self.eps) * (1 + NORM_TOLERANCE)
        return torch.maximum(beyond.float(), _outside(ctx, theta) - PIXEL_TOLERANCE)


@dataclass(frozen=True, slots=True)
class L2(_Norm):
    """Every x′ with ‖x′ − x‖₂ ≤ eps and x′ in [0, 1]; the norm over all values, channels included. 0 < eps."""

    eps: Exact | Fraction | float | int | str

    family: ClassVar[str] = "l2"
    capabilities: ClassVar[frozenset[str]] = frozenset({"additive", "convex", "norm", "plane", "squares"})
    order: ClassVar[int] = 2
    norm: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", _radius("l2", self.eps))

    @property
    def sentence(self) -> str:
        return f"The squares of all movements add up to at most {self.eps}²."

    def start(self, ctx: Box, row: Row) -> Thetas:
        """A direction drawn uniformly, at radius eps, cut with the box."""
        return self.project(ctx, _unit(row.normal(ctx.lower.shape[1], stream=0)) * float(self.eps))

    def project(self, ctx: Box, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        return project_l2_box(theta, ctx.lower, ctx.upper, _radii(theta, scale, self.eps))

    def steepest(self, ctx: Box, grad: Thetas, share: Tensor | None = None) -> Thetas:
        return _unit(grad) * float(self.eps)

    def to_plane(self, ctx: Box, theta: Thetas, w: Thetas, b: Rows) -> tuple[Landing, Landing]:
        """The points of {w·θ = b} in the image range that are nearest to theta and to 0."""
        return planes.to_plane_l2(theta, ctx.lower, ctx.upper, w, b)

    def opening(self, ctx: Box, row: Row) -> Thetas:
        """Bumps all over the image, scaled to radius eps, cut with the box."""
        return self._scaled(ctx, squares.tiled(shape_of(ctx), self.order, row, stream=0).flatten(1))

    def move(self, ctx: Box, theta: Thetas, share: Rows, row: Row) -> Thetas:
        """Mass of one window moved to another, the whole scaled to radius eps, cut with the box."""
        return self._scaled(ctx, squares.shifted(theta, shape_of(ctx), share, float(self.eps), self.order, row, MOVE))

    def _scaled(self, ctx: Box, theta: Thetas) -> Thetas:
        """By the norm in float64: in float32 that of one large value among 3,000 small ones is off by more than the set's tolerance."""
        size = float(self.eps) / _norm(theta, self.order).clamp_min(1e-30)
        return (theta * size.to(theta)[:, None]).clamp_(ctx.lower, ctx.upper)


@dataclass(frozen=True, slots=True)
class L1(_Norm):
    """Every x′ with ‖x′ − x‖₁ ≤ eps and x′ in [0, 1]; the norm over all values, channels included. 0 < eps."""

    eps: Exact | Fraction | float | int | str

    family: ClassVar[str] = "l1"
    order: ClassVar[int] = 1
    norm: ClassVar[float] = 1.0
    capabilities: ClassVar[frozenset[str]] = frozenset({"additive", "convex", "norm", "plane", "sparse", "squares"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", _radius("l1", self.eps))

    @property
    def sentence(self) -> str:
        return f"The movements of all pixels add up to at most {self.eps}."

    def start(self, ctx: Box, row: Row) -> Thetas:
        """Laplace noise scaled to radius eps, cut with the box."""
        noise = row.uniform(ctx.lower.shape[1], stream=0) - 0.5
        laplace = -noise.sign() * torch.log1p(-2 * noise.abs())
        return self.project(ctx, laplace * (float(self.eps) / laplace.abs().sum(1, keepdim=True)))

    def project(self, ctx: Box, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        return project_l1_box(theta, ctx.lower, ctx.upper, _radii(theta, scale, self.eps))

    def steepest(self, ctx: Box, grad: Thetas, share: Tensor | None = None) -> Thetas:
        """share None: the one largest coordinate takes all; else the sign on the `share` largest, evenly (SLIDE's step)."""
        direction = grad.sign() * _largest(grad.abs(), _counts(grad, share))
        return direction * (float(self.eps) / direction.abs().sum(1, keepdim=True).clamp_min(1))

    def free(self, ctx: Box, theta: Thetas, grad: Thetas) -> Thetas:
        return _free(ctx, theta, grad)

    def to_plane(self, ctx: Box, theta: Thetas, w: Thetas, b: Rows) -> tuple[Landing, Landing]:
        """The points of {w·θ = b} in the image range that are nearest to theta and to 0."""
        return planes.to_plane_l1(theta, ctx.lower, ctx.upper, w, b)

    def opening(self, ctx: Box, row: Row) -> Thetas:
        """Bumps all over the image, projected: only their peaks remain."""
        return self.project(ctx, squares.tiled(shape_of(ctx), self.order, row, stream=0).flatten(1))

    def move(self, ctx: Box, theta: Thetas, share: Rows, row: Row) -> Thetas:
        """Mass of one window moved to another, the whole projected."""
        return self.project(ctx, squares.shifted(theta, shape_of(ctx), share, float(self.eps), self.order, row, MOVE))


@dataclass(frozen=True, slots=True)
class L0(Additive):
    """Every x′ in [0, 1] that differs from x in at most `pixels` pixels; all channels of a pixel count once."""

    pixels: Exact | Fraction | float | int | str

    family: ClassVar[str] = "l0"
    capabilities: ClassVar[frozenset[str]] = frozenset({"additive", "norm", "sparse", "support", "swaps"})
    norm: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", Exact(whole(self.pixels, "l0: pixels")))

    def __str__(self) -> str:
        return written("l0", {"pixels": self.pixels})

    @property
    def extent(self) -> dict[str, Fraction]:
        return {"pixels": Exact(self.pixels)}

    @property
    def radius(self) -> float:
        return float(Exact(self.pixels))

    @property
    def sentence(self) -> str:
        return f"At most {self.pixels} pixels may change, each to any value."

    def check(self, shape: tuple[int, int, int]) -> None:
        """More pixels than the image has make no sense."""
        if int(Exact(self.pixels)) > shape[1] * shape[2]:
            raise SpecError(
                f"l0: pixels={self.pixels}", expected=f"at most {shape[1] * shape[2]}, the pixels of a {shape[1]} x {shape[2]} image"
            )

    def start(self, ctx: Box, row: Row) -> Thetas:
        """Pixels drawn uniformly, each channel uniform over its range."""
        channels, pixels = ctx.x.shape[1], ctx.x.shape[2] * ctx.x.shape[3]
        chosen = _largest(row.uniform(pixels, stream=0), self._budget(ctx, 1.0))
        value = ctx.lower + row.uniform(ctx.lower.shape[1], stream=1)  # upper − lower = 1
        return torch.where(chosen.repeat(1, channels), value, 0.0)

    def project(self, ctx: Box, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        """Keep the pixels whose change brings the point nearest; clip them to the box."""
        clipped = theta.clamp(ctx.lower, ctx.upper)
        gain = self.grouped(ctx, clipped * (2 * theta - clipped)).sum(1)
        return torch.where(self._kept(ctx, gain, scale), clipped, 0.0)

    def steepest(self, ctx: Box, grad: Thetas, share: Tensor | None = None) -> Thetas:
        """Each chosen pixel goes to the end of its range that grad points at; share of the pixels, else the whole budget."""
        best = torch.where(grad > 0, ctx.upper, ctx.lower).where(grad != 0, 0.0)
        gain = self.grouped(ctx, grad * best).sum(1)
        counts = self._budget(ctx, 1.0) if share is None else _counts(gain, share).minimum(self._budget(ctx, 1.0))
        return torch.where(_largest(gain, counts).repeat(1, ctx.x.shape[1]), best, 0.0)

    def free(self, ctx: Box, theta: Thetas, grad: Thetas) -> Thetas:
        return _free(ctx, theta, grad)

    def grouped(self, ctx: Box, theta: Thetas) -> Float[Tensor, "rows channels pixels"]:
        """θ by pixel: what counts once stands in one column."""
        columns: Tensor = theta.unflatten(1, (ctx.x.shape[1], -1))
        return columns

    def thinned(self, ctx: Box, theta: Thetas, least: Rows) -> Thetas:
        """θ clipped to the image range, without the pixels of which no value moved as far as `least`."""
        clipped = theta.clamp(ctx.lower, ctx.upper)
        small = self.grouped(ctx, clipped).abs().amax(1) < least[:, None]
        return clipped * (~small).repeat(1, ctx.x.shape[1])

    def gauge(self, ctx: Box, theta: Thetas) -> Rows:
        return self._changed(ctx, theta).sum(1).float() / float(Exact(self.pixels))

    def excess(self, ctx: Box, theta: Thetas) -> Rows:
        beyond = self._changed(ctx, theta).sum(1).float() - float(Exact(self.pixels))
        return torch.maximum(beyond, _outside(ctx, theta) - PIXEL_TOLERANCE)

    def opening(self, ctx: Box, row: Row) -> Thetas:
        """Pixels drawn uniformly, each at a random corner of its colour range."""
        channels, height, width = shape_of(ctx)
        chosen = _largest(row.uniform(height * width, stream=0), self._budget(ctx, 1.0))
        return torch.where(chosen.repeat(1, channels), self._corner(ctx, row, 1), 0.0)

    def move(self, ctx: Box, theta: Thetas, share: Rows, row: Row) -> Thetas:
        """A share of the budget, one pixel at least, goes from changed pixels to others, at random corners (Croce et al. 2022, Alg. 1)."""
        channels, height, width = shape_of(ctx)
        budget, changed = self._budget(ctx, 1.0), self._changed(ctx, theta)
        count = (share * budget + 1e-4).long().clamp_min(1)
        drawn = row.uniform(2 * height * width, MOVE)
        back = _largest(torch.where(changed, drawn[:, : height * width], -1.0), count) & changed
        kept = changed & ~back
        rank = torch.where(kept, -2.0, drawn[:, height * width :] - back.float())  # those that go come back only where no other is left
        fresh = _largest(rank, budget - kept.sum(1)) & ~kept
        stay = torch.where(kept.repeat(1, channels), theta, 0.0)
        return torch.where(fresh.repeat(1, channels), self._corner(ctx, row, MOVE + 1), stay)

    def _corner(self, ctx: Box, row: Row, stream: int) -> Thetas:
        """Each value at the end of its range that a coin names; at the other where that would leave the pixel as it is."""
        up = row.uniform(ctx.lower.shape[1], stream) < 0.5
        still = ~self._changed(ctx, torch.where(up, ctx.upper, ctx.lower)).repeat(1, ctx.x.shape[1])
        return torch.where(up ^ still, ctx.upper, ctx.lower)

    def _changed(self, ctx: Box, theta: Thetas) -> Bool[Tensor, "rows pixels"]:
        changed: Tensor = (self.grouped(ctx, theta) != 0).any(1)
        return changed

    def _budget(self, ctx: Box, scale: Scale) -> Tensor:
        count = torch.as_tensor(scale, device=ctx.x.device, dtype=torch.float64) * float(Exact(self.pixels))
        return (count + 1e-4).floor().long().expand(ctx.x.shape[0])

    def _kept(self, ctx: Box, gain: Tensor, scale: Scale) -> Tensor:
        return _largest(gain, self._budget(ctx, scale)).repeat(1, ctx.x.shape[1])


def _norm(theta: Thetas, order: int) -> Tensor:
    if order == 1:
        return theta.abs().sum(1, dtype=torch.float64)  # a third of the time of vector_norm
    norm: Tensor = torch.linalg.vector_norm(theta, order, dim=1, dtype=torch.float64)
    return norm


def _outside(ctx: Box, theta: Thetas) -> Rows:
    return torch.maximum(ctx.lower - theta, theta - ctx.upper).amax(1)


def _unit(direction: Thetas) -> Thetas:
    """Each row at Euclidean length 1, or 0; scaled by its largest entry first, so gradients of 1e-30 do not underflow."""
    scaled = direction / direction.abs().amax(1, keepdim=True).clamp_min(1e-38)
    norm: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / norm.clamp_min(1e-12)


def _free(ctx: Box, theta: Thetas, grad: Thetas) -> Thetas:
    """grad without the entries along which the box leaves no room."""
    stuck = ((grad > 0) & (theta >= ctx.upper)) | ((grad < 0) & (theta <= ctx.lower))
    return torch.where(stuck, 0.0, grad)


def _counts(values: Tensor, share: Tensor | None) -> Tensor:
    """How many coordinates a sparse step moves: at least one."""
    if share is None:
        return torch.ones(values.shape[0], dtype=torch.long, device=values.device)
    return (share * values.shape[1]).round().long().clamp(1, values.shape[1])


def _largest(values: Tensor, counts: Tensor) -> Tensor:
    """Mask of the counts[i] largest entries of row i; ties go to the lower index, so a row never depends on its neighbours."""
    counts = counts.clamp_max(values.shape[1])
    most = values.shape[1] if values.is_cuda else max(int(counts.max()), 1)  # a CPU may look, and need not sort them all
    edge = values.topk(most, dim=1).values.gather(1, (counts[:, None] - 1).clamp_min(0))
    above, tied = values > edge, values == edge
    left = counts[:, None] - above.sum(1, keepdim=True)
    return above | (tied & (tied.cumsum(1) <= left))


def _radii(theta: Thetas, scale: Scale, eps: Exact | Fraction | float | int | str) -> Rows:
    radius = torch.as_tensor(scale, device=theta.device, dtype=theta.dtype) * float(eps)
    return radius.expand(theta.shape[0])


def _radius(name: str, eps: Exact | Fraction | float | int | str) -> Exact:
    exact = Exact(eps)
    if not 0 < exact <= 10**6:
        raise SpecError(f"{name}: eps={exact}", expected="0 < eps <= 1000000, in units of pixels that lie in [0, 1]")
    return exact
