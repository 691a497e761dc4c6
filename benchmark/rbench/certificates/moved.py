"""Affine operators that only move or average values: no weight is negative, so the ends of a box go to the ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from rbench.certificates.rules import TINY, UNIT, Box, Rounded, Rule, Shape, Weights, gamma, total

Back = tuple[list[Tensor], Tensor | None]


@dataclass(frozen=True, slots=True)
class Positive(Rule):
    """An affine map without negative weights and without tensors of its own. `back` is the adjoint that autograd knows."""

    affine: ClassVar[bool] = True
    count: ClassVar[int] = 0  # rounded operations per output value, where they do not depend on the size

    def roundings(self, shape: Shape) -> int:
        return self.count

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        raise NotImplementedError

    def interval(self, w: Weights, *boxes: Box) -> Box:
        return Box(self.value(w, boxes[0].lower), self.value(w, boxes[0].upper))

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        flat, keep = a.flatten(0, 1), torch.is_grad_enabled() and a.requires_grad
        with torch.enable_grad():
            zero = flat.new_zeros((len(flat), *shapes[0]), requires_grad=True)
            (moved,) = torch.autograd.grad(self.value(w, zero), zero, flat, create_graph=keep)
        return [moved.unflatten(0, a.shape[:2])], None

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        (x,) = inputs
        count = float(self.roundings(tuple(x.error.shape[1:])))
        return self.value(w, x.error + gamma(count) * x.reach) + count * TINY


@dataclass(frozen=True, slots=True)
class Reshape(Positive):
    """Every row in another shape, its values in the same order."""

    shape: Shape

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return x[0].reshape(len(x[0]), *self.shape)

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        return [a.reshape(*a.shape[:2], *shapes[0])], None


@dataclass(frozen=True, slots=True)
class Permute(Positive):
    dims: Shape

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return x[0].permute(self.dims)


@dataclass(frozen=True, slots=True)
class Slice(Positive):
    """Every `step`-th entry of one axis from `start` to before `end`; `drop`: the axis goes (it has one entry)."""

    dim: int
    start: int
    end: int
    step: int = 1
    drop: bool = False

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        kept = x[0][(slice(None),) * self.dim + (slice(self.start, self.end, self.step),)]
        return kept.squeeze(self.dim) if self.drop else kept


@dataclass(frozen=True, slots=True)
class Pad(Positive):
    """A frame of the constant `fill`; negative widths cut."""

    widths: Shape
    fill: float = 0.0

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return functional.pad(x[0], self.widths, value=self.fill)

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        parts, _ = super(Pad, self).back(w, a, shapes, boxes)
        return parts, None if self.fill == 0 else total(a * self.value(w, a.new_zeros((1, *shapes[0]))))

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        return functional.pad(inputs[0].error, self.widths) + UNIT * abs(self.fill)


@dataclass(frozen=True, slots=True)
class AvgPool(Positive):
    kernel: Shape
    stride: Shape
    padding: Shape = (0, 0)
    ceil: bool = False
    count_padding: bool = True
    divisor: int | None = None

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return functional.avg_pool2d(x[0], self.kernel, self.stride, self.padding, self.ceil, self.count_padding, self.divisor)

    def roundings(self, shape: Shape) -> int:
        return math.prod(self.kernel) + 2


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPool(Positive):
    """Averages over bins that cover the plane; their borders depend on the size alone."""

    size: Shape

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(x[0], list(self.size))  # type: ignore[arg-type]  # torch says tuples of two

    def roundings(self, shape: Shape) -> int:
        return math.prod(math.ceil(side / bins) + 1 for side, bins in zip(shape[-2:], self.size, strict=True)) + 2


@dataclass(frozen=True, slots=True)
class Mean(Positive):
    """The mean over axes, or their sum."""

    dims: Shape
    keep: bool = False
    summed: bool = False

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return x[0].sum(self.dims, self.keep) if self.summed else x[0].mean(self.dims, self.keep)

    def roundings(self, shape: Shape) -> int:
        return math.prod(shape[dim - 1] for dim in self.dims) + 2
