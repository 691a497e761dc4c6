"""Rotation and translation: θ = (degrees, Δx, Δy), not the image; one bilinear resampling with zero fill."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rbench_core.errors import SpecError
from rbench_threats.protocol import PIXEL_TOLERANCE, Row, Scale, per_row
from rbench_threats.spec import Exact, written

Rows = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows 3"]
Images = Float[Tensor, "rows c h w"]
GRID = (31, 5, 5)  # angles, horizontal and vertical shifts: 775 points, all counts odd, so the identity is one of them


@dataclass(frozen=True, slots=True)
class Canvas:
    """The context: the clean images, and the limits of θ, one for every row."""

    x: Float[Tensor, "rows c h w"]
    limits: Float[Tensor, "rows 3"]


@dataclass(frozen=True, slots=True)
class RotationTranslation:
    """Every image turned by at most `degrees` about its centre, then moved by at most `shift` pixels along each axis.

    0 ≤ degrees ≤ 180 and 0 ≤ shift, not both 0. One resampling on an unbounded canvas: what a turn pushes past the edge is back after the
    shift, unlike the two resamplings of Tramèr & Boneh 2019 (half-pixel shifts blur less here). Grid: their 775 points, sec. 5.
    """

    degrees: Exact | Fraction | float | int | str
    shift: Exact | Fraction | float | int | str

    family: ClassVar[str] = "rotation-translation"
    capabilities: ClassVar[frozenset[str]] = frozenset({"convex", "points", "warp"})
    parameters: ClassVar[int] = 3  # of "warp", with warp()

    def __post_init__(self) -> None:
        degrees, shift = Exact(self.degrees), Exact(self.shift)
        if not (0 <= degrees <= 180 and 0 <= shift <= 1000 and degrees + shift > 0):
            raise SpecError(
                f"{self.family}: degrees={degrees}, shift={shift}", expected="0 <= degrees <= 180 and 0 <= shift pixels, not both 0"
            )
        object.__setattr__(self, "degrees", degrees)
        object.__setattr__(self, "shift", shift)

    def __str__(self) -> str:
        return written(self.family, {"degrees": self.degrees, "shift": self.shift})

    @property
    def extent(self) -> dict[str, Fraction]:
        return {"degrees": Exact(self.degrees), "shift": Exact(self.shift)}

    @property
    def sentence(self) -> str:
        return f"The image may be turned by up to {self.degrees} degrees and shifted by up to {self.shift} pixels."

    def check(self, shape: tuple[int, int, int]) -> None:
        """A shift past the edge leaves nothing to classify."""
        if Exact(self.shift) >= min(shape[1:]):
            raise SpecError(f"{self.family}: shift={self.shift}", expected=f"less than {min(shape[1:])}, the image's side")

    def context(self, x: Images, row: Row) -> Canvas:
        shift = float(self.shift)
        return Canvas(x, x.new_tensor([float(self.degrees), shift, shift]).repeat(x.shape[0], 1))

    def start(self, ctx: Canvas, row: Row) -> Thetas:
        """Uniform over the box."""
        return (2 * row.uniform(3, stream=0) - 1) * ctx.limits

    def project(self, ctx: Canvas, theta: Thetas, scale: Scale = 1.0) -> Thetas:
        limits = per_row(scale) * ctx.limits
        return theta.minimum(limits).maximum(-limits)

    def steepest(self, ctx: Canvas, grad: Thetas, share: Tensor | None = None) -> Thetas:
        return grad.sign() * ctx.limits

    def gauge(self, ctx: Canvas, theta: Thetas) -> Rows:
        limits = ctx.limits
        return torch.where(theta == 0, 0.0, theta.abs() / limits).amax(1)

    def excess(self, ctx: Canvas, theta: Thetas) -> Rows:
        return (theta.abs() - ctx.limits).amax(1) - PIXEL_TOLERANCE

    def render(self, ctx: Canvas, theta: Thetas) -> Images:
        return self.warp(ctx.x, theta)

    def warp(self, images: Images, theta: Thetas) -> Images:
        """Any images, turned and then moved; differentiable in both. Output pixel p shows the source at R(−degrees)·(p − Δ), centred.

        On a canvas whose sides are powers of two: grid_sample's coordinates of whole pixels are exact there, so a turn by 0 is no blur.
        """
        height, width = images.shape[2:]
        above, below, left, right = *_margins(height), *_margins(width)
        canvas = functional.pad(images, (left, right, above, below))
        across = torch.arange(width, device=theta.device, dtype=theta.dtype) - (width - 1) / 2
        down = torch.arange(height, device=theta.device, dtype=theta.dtype) - (height - 1) / 2
        px = across[None, None, :] - theta[:, 1, None, None]
        py = down[None, :, None] - theta[:, 2, None, None]
        angle = theta[:, 0, None, None] * (math.pi / 180)
        cos, sin = angle.cos(), angle.sin()
        tall, wide = canvas.shape[2:]
        sides = (width, wide, left), (height, tall, above)
        off = [(size - whole + 2 * before) / whole for size, whole, before in sides]  # of the two centres
        grid = torch.stack([(cos * px + sin * py) * (2 / wide) + off[0], (cos * py - sin * px) * (2 / tall) + off[1]], dim=-1)
        return functional.grid_sample(canvas, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def points(self, ctx: Canvas) -> Float[Tensor, "k 3"]:
        """The finite set that stands for the ball: the 775-member grid, the identity first, then outwards by gauge."""
        axes = [(2 * torch.arange(count, dtype=torch.float64) - (count - 1)) / (count - 1) for count in GRID]
        unit = torch.cartesian_prod(*axes)
        order = unit.abs().amax(1).argsort(stable=True)
        return unit[order].to(ctx.x) * ctx.limits[0]


def _margins(size: int) -> tuple[int, int]:
    """What a side lacks to the next power of two, before and behind."""
    lacking = (1 << (size - 1).bit_length()) - size
    return lacking // 2, lacking - lacking // 2
