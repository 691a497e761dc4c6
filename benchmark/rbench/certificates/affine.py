"""Operators that are affine in the image: with weights, element by element, sums and joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from rbench.certificates.rules import TINY, Box, Rounded, Rule, Shape, Weights, fitted, gamma, total

Back = tuple[list[Tensor], Tensor | None]

# --- with weights: one pass for the middle, one with |W| for the radius ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weighted(Rule):
    """W·x + b; w = (W, b or None)."""

    affine: ClassVar[bool] = True

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def transposed(self, a: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        """Wᵀ·a for a (many, *output), with the shape of the input."""
        raise NotImplementedError

    def channels(self, bias: Tensor) -> Tensor:
        """The bias, to be broadcast over an output without rows."""
        raise NotImplementedError

    def operands(self, alive: Tensor, weight: Tensor) -> Tensor:
        """How many numbers that are not exactly 0 one output value adds up, the most in a row: (rows, 1, …). alive: 1 where it may be."""
        raise NotImplementedError

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return self.apply(x[0], given(w[0]), w[1])

    def interval(self, w: Weights, *boxes: Box) -> Box:
        weight = given(w[0])
        return Box(mid=self.apply(boxes[0].mid, weight, w[1]), rad=self.apply(boxes[0].rad, weight.abs(), None))

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        moved = self.transposed(a.flatten(0, 1), given(w[0]), shapes[0]).unflatten(0, a.shape[:2])
        return [moved], None if w[1] is None else total(a * self.channels(w[1]))

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        return self.apply(inputs[0].error, given(w[0]).abs(), None) + self.fresh(w, inputs[0])

    def fresh(self, w: Weights, x: Rounded) -> Tensor:
        """The roundings of this operation alone. Zeros add none: a product with 0 is exact, and so is a sum with it."""
        weight = given(w[0])
        count = self.operands((x.reach > 0).to(weight.dtype), weight) + 2
        return gamma(count) * self.apply(x.reach, weight.abs(), None if w[1] is None else w[1].abs()) + count * TINY


@dataclass(frozen=True, slots=True)
class Linear(Weighted):
    """x·Wᵀ + b on the last axis."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight, bias)

    def transposed(self, a: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        return a @ weight

    def channels(self, bias: Tensor) -> Tensor:
        return bias

    def operands(self, alive: Tensor, weight: Tensor) -> Tensor:
        return alive.sum(-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class Conv(Weighted):
    """2-d convolution with zero padding."""

    stride: Shape = (1, 1)
    padding: Shape = (0, 0)
    dilation: Shape = (1, 1)
    groups: int = 1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def transposed(self, a: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        """output_padding gives back the rows and columns that no window of a strided convolution ended on."""
        reached = [
            (out - 1) * step - 2 * pad + spread * (kernel - 1) + 1
            for out, step, pad, spread, kernel in zip(
                a.shape[-2:], self.stride, self.padding, self.dilation, weight.shape[-2:], strict=True
            )
        ]
        left = [side - end for side, end in zip(shape[-2:], reached, strict=True)]
        return functional.conv_transpose2d(a, weight, None, self.stride, self.padding, left, self.groups, self.dilation)

    def channels(self, bias: Tensor) -> Tensor:
        return bias[:, None, None]

    def operands(self, alive: Tensor, weight: Tensor) -> Tensor:
        """Of all groups together, which is at least as many as of one."""
        window = weight.new_ones((1, 1, *weight.shape[-2:]))
        found = functional.conv2d(alive.sum(1, keepdim=True), window, None, self.stride, self.padding, self.dilation)
        return found.amax((1, 2, 3), keepdim=True).clamp_max(weight[0].numel())


# --- element by element ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Diagonal(Rule):
    """s·x + t with s and t broadcast to the output."""

    affine: ClassVar[bool] = True

    def pair(self, w: Weights, like: Tensor) -> tuple[Tensor, Tensor]:
        """s and t, to be broadcast over rows."""
        raise NotImplementedError

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        scale, shift = self.pair(w, x[0])
        return x[0] * scale + shift

    def interval(self, w: Weights, *boxes: Box) -> Box:
        mid = boxes[0].mid
        scale, shift = self.pair(w, mid)
        mid = mid * scale + shift
        return Box(mid=mid, rad=(boxes[0].rad * scale.abs()).expand_as(mid))

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        scale, shift = self.pair(w, a[:, 0])
        return [fitted(a * scale, shapes[0])], total(a * shift)

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        (x,) = inputs
        scale, shift = self.pair(w, x.error)
        return scale.abs() * x.error + gamma(4.0) * (scale.abs() * x.reach + shift.abs()) + 4 * TINY


@dataclass(frozen=True, slots=True)
class Constant(Diagonal):
    """The image with a constant: kind "add", "subtract" (x − c), "from" (c − x), "multiply" or "divide"; c is `number`, or w = (c,)."""

    kind: str
    number: float | None = None

    def pair(self, w: Weights, like: Tensor) -> tuple[Tensor, Tensor]:
        constant = given(w[0]) if self.number is None else like.new_tensor(self.number)
        zero, one = like.new_zeros(()), like.new_ones(())
        pairs = {"add": (one, constant), "subtract": (one, -constant), "from": (-one, constant), "multiply": (constant, zero)}
        return (1 / constant, zero) if self.kind == "divide" else pairs[self.kind]


@dataclass(frozen=True, slots=True)
class BatchNorm(Diagonal):
    """Batch norm with given statistics; w = (weight or None, bias or None, mean, variance). `owner`: the submodule that keeps them."""

    eps: float
    owner: str = ""

    def pair(self, w: Weights, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = given(w[2])
        scale = (given(w[3]) + self.eps).rsqrt()
        scale = scale if w[0] is None else scale * w[0]
        shift = -mean * scale if w[1] is None else w[1] - mean * scale
        planes = (-1, *(1,) * (like.ndim - 2))
        return scale.view(planes), shift.view(planes)

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        """As `Diagonal`, with the roundings of the scale itself and of the bias minus the scaled mean."""
        (x,) = inputs
        scale, _ = self.pair(w, x.error)
        planes = scale.shape
        offset = (given(w[2]).view(planes) * scale).abs() + (0 if w[1] is None else w[1].abs().view(planes))
        return scale.abs() * x.error + gamma(12.0) * (scale.abs() * x.reach + offset) + 12 * TINY


# --- several nodes --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sum(Rule):
    """x + sign·z of two nodes; the same node may stand on both sides."""

    sign: float = 1.0

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return x[0] + self.sign * x[1]

    def interval(self, w: Weights, *boxes: Box) -> Box:
        mid, rad = boxes[0].mid + self.sign * boxes[1].mid, boxes[0].rad + abs(self.sign) * boxes[1].rad
        return Box(mid=mid, rad=rad)

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        return [fitted(a, shapes[0]), fitted(self.sign * a, shapes[1])], None

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        first, second = inputs
        error, factor = first.error + abs(self.sign) * second.error, abs(self.sign)
        return error + gamma(3.0) * (first.reach + factor * second.reach) + 3 * TINY


@dataclass(frozen=True, slots=True)
class Cat(Rule):
    """Nodes side by side along axis `dim` (rows are axis 0)."""

    dim: int

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return torch.cat(x, self.dim)

    def interval(self, w: Weights, *boxes: Box) -> Box:
        return Box(torch.cat([box.lower for box in boxes], self.dim), torch.cat([box.upper for box in boxes], self.dim))

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        return list(a.split([shape[self.dim - 1] for shape in shapes], self.dim + 1)), None

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        return torch.cat([each.error for each in inputs], self.dim)


def given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # the tracer filled it
    return tensor
