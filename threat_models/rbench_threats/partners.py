"""How a clean image becomes its perturbed partner: the perturbations that learned sets are trained on. x and numbers in, images out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from rbench_core.errors import CardError
from rbench_threats.spec import Exact

Images = Float[Tensor, "rows c h w"]


@runtime_checkable
class Partner(Protocol):
    """A kind of perturbation: uniform numbers (rows, numbers(shape)) in (0, 1) make one partner per image."""

    kind: ClassVar[str]

    def numbers(self, shape: tuple[int, int, int]) -> int: ...
    def make(self, x: Images, drawn: Float[Tensor, "rows k"]) -> Images: ...
    @property
    def sentence(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Noise:
    """clip(x + U(−eps, eps), 0, 1), pixel by pixel (Wong & Kolter 2021, MNIST ℓ∞)."""

    eps: Exact
    kind: ClassVar[str] = "linf"

    def numbers(self, shape: tuple[int, int, int]) -> int:
        return math.prod(shape)

    def make(self, x: Images, drawn: Float[Tensor, "rows k"]) -> Images:
        return (x + (2 * drawn - 1).view_as(x) * float(self.eps)).clamp(0, 1)

    @property
    def sentence(self) -> str:
        return f"every pixel moved by up to {self.eps}"


@dataclass(frozen=True, slots=True)
class Warp:
    """Turned by up to `degrees`, scaled by a factor from `smallest` to `largest`, moved by up to `shift` pixels; uniform, on x's canvas.

    One bilinear resampling with zero fill. At scale 1 it is the warp of rotation-translation(degrees, shift), so that verdicts under the
    learned set and under the exact one are comparable. Wong & Kolter's own RTS pads MNIST to 42×42 and resamples twice.
    """

    degrees: Exact
    smallest: Exact
    largest: Exact
    shift: Exact
    kind: ClassVar[str] = "rts"

    def __post_init__(self) -> None:
        if not (0 <= self.degrees <= 180 and 0 < self.smallest <= self.largest and self.shift >= 0):
            raise CardError(f"pairs rts: {self}", expected="0 <= degrees <= 180, 0 < smallest <= largest, 0 <= shift")

    def numbers(self, shape: tuple[int, int, int]) -> int:
        return 4

    def make(self, x: Images, drawn: Float[Tensor, "rows k"]) -> Images:
        return warped(x, self.parameters(drawn))

    def parameters(self, drawn: Float[Tensor, "rows k"]) -> Float[Tensor, "rows 4"]:
        """(degrees, scale, right, down) of each row."""
        signed = 2 * drawn - 1
        scale = float(self.smallest) + drawn[:, 1] * (float(self.largest) - float(self.smallest))
        turn, right, down = signed[:, 0] * float(self.degrees), signed[:, 2] * float(self.shift), signed[:, 3] * float(self.shift)
        return torch.stack([turn, scale, right, down], 1)

    @property
    def sentence(self) -> str:
        return f"turned by up to {self.degrees}°, scaled by {self.smallest} to {self.largest}, moved by up to {self.shift} pixels"


def warped(x: Images, parameters: Float[Tensor, "rows 4"]) -> Images:
    """x turned by degrees about its centre, scaled, then moved right and down; zero fill. parameters: (degrees, scale, right, down)."""
    height, width = x.shape[2:]
    angle, scale, right, down = (parameters * parameters.new_tensor([math.pi / 180, 1, 1, 1])).T[..., None, None]
    across = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2 - right
    below = (torch.arange(height, device=x.device, dtype=x.dtype) - (height - 1) / 2)[:, None] - down
    cos, sin = angle.cos() / scale, angle.sin() / scale
    grid = torch.stack([(cos * across + sin * below) * (2 / width), (cos * below - sin * across) * (2 / height)], dim=-1)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


KINDS: dict[str, Callable[..., Partner]] = {"linf": Noise, "rts": Warp}


def build(table: dict[str, Any], where: object) -> Partner:
    """The perturbation that a table such as {kind = "linf", eps = "0.3"} names. Raises CardError."""
    kind = table.get("kind")
    if kind not in KINDS:
        raise CardError(f"{where}: pairs of kind {kind!r}", expected=f"one of: {', '.join(KINDS)}")
    given = {key: value for key, value in table.items() if key != "kind"}
    names = tuple(field.name for field in fields(KINDS[kind]))  # type: ignore[arg-type]
    if set(given) != set(names):
        raise CardError(f"{where}: pairs of kind {kind} with {', '.join(given) or 'nothing'}", expected=f"{', '.join(names)}")
    return KINDS[kind](**{key: Exact(value) for key, value in given.items()})
