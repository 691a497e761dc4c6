"""The checks themselves: mistakes that people made in such engines, each put in by hand and seen to be caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from certificates.enclosure import worst
from certificates.nets import IMAGE, made
from rbench.certificates import crown
from rbench.certificates.activations import Lines, MaxPool, ReLU, Sigmoid
from rbench.certificates.affine import Cat, Conv, Diagonal, Linear, Sum, Weighted
from rbench.certificates.moved import AvgPool, Pad, Positive
from rbench.certificates.rules import Box, Shape, Weights


def without_abs(self: Weighted, w: Weights, *boxes: Box) -> Box:
    """|W| forgotten: lower and upper end go through as they are."""
    return Box(self.value(w, boxes[0].lower), self.value(w, boxes[0].upper))


def without_sign(self: Diagonal, w: Weights, *boxes: Box) -> Box:
    """A negative scale of batch norm swaps the ends, forgotten."""
    scale, shift = self.pair(w, boxes[0].mid)
    return Box(boxes[0].lower * scale + shift, boxes[0].upper * scale + shift)


def without_output_padding(self: Conv, a: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """The rows that no window ended on are put on the wrong side."""
    moved = functional.conv_transpose2d(a, weight, None, self.stride, self.padding, 0, self.groups, self.dilation)
    return functional.pad(moved, (shape[-1] - moved.shape[-1], 0, shape[-2] - moved.shape[-2], 0))


def without_groups(self: Cat, *given: Any) -> Any:
    """The parts of a join taken in the wrong order."""
    _, a, shapes, _ = given
    parts = a.split([shape[self.dim - 1] for shape in shapes[::-1]], self.dim + 1)
    return list(parts[::-1]), None


def without_bias(self: Linear, *given: Any) -> Any:
    parts, _ = Weighted.back(self, *given)
    return parts, None


def one_sided(self: Sum, w: Weights, a: Tensor, *given: Any) -> Any:
    """The sign of the second operand of a difference forgotten on the way back."""
    return [a, a], None


def average_of_all(self: AvgPool, w: Weights, *x: Tensor) -> Tensor:
    """Padding always counted."""
    return functional.avg_pool2d(x[0], self.kernel, self.stride, self.padding, self.ceil, True, self.divisor)


def padded_with_zero(self: Pad, *given: Any) -> Any:
    parts, _ = Positive.back(self, *given)
    return parts, None


def chord_through_zero(self: ReLU, low: Tensor, high: Tensor) -> Lines:
    """The upper line without its intercept."""
    lines = RELU(self, low, high)
    return lines._replace(over=torch.zeros_like(low))


def slopes_swapped(self: ReLU, low: Tensor, high: Tensor) -> Lines:
    below, under, above, over = RELU(self, low, high)
    return Lines(above, over, below, under)


def one_curvature(self: Sigmoid, low: Tensor, high: Tensor) -> Lines:
    """The chord below and the tangent above, also left of 0."""
    middle, chord = (low + high) / 2, (self.value((), high) - self.value((), low)) / (high - low).clamp_min(1e-12)
    slope = self.slope(middle)
    return Lines(chord, self.value((), low) - chord * low, slope, self.value((), middle) - slope * middle)


def first_wins(self: MaxPool, *given: Any) -> Any:
    """The member with the largest lower end taken for the maximum, above too."""
    w, a, shapes, boxes = given
    return POOL(self, w, a, shapes, (Box(boxes[0].lower, boxes[0].lower),))


def padding_is_place_0(self: MaxPool, *given: Any) -> Tensor:
    """Padded members read, and credited to, the plane's first value."""
    return PLACES(self, *given).clamp_min(0)


def overwritten(waiting: dict[int, Tensor], place: int, part: Tensor) -> None:
    """Of several readers of a node only the last one counts."""
    waiting[place] = part


RELU, POOL, PLACES = ReLU.lines, MaxPool.back, MaxPool._places
Put = tuple[Any, str, Callable[..., Any], str]
MISTAKES: list[Put] = [
    (Weighted, "interval", without_abs, "conv"),
    (Weighted, "interval", without_abs, "linear"),
    (Diagonal, "interval", without_sign, "batch norm"),
    (Diagonal, "interval", without_sign, "multiply by both signs"),
    (Conv, "transposed", without_output_padding, "conv stride 3, rows left over"),
    (Conv, "transposed", without_output_padding, "conv dilation stride"),
    (Cat, "back", without_groups, "concat"),
    (Linear, "back", without_bias, "linear"),
    (Sum, "back", one_sided, "subtract two nodes"),
    (AvgPool, "value", average_of_all, "average pool, padding not counted"),
    (Pad, "back", padded_with_zero, "pad with a number, cut on the other side"),
    (ReLU, "lines", chord_through_zero, "relu"),
    (ReLU, "lines", slopes_swapped, "relu"),
    (Sigmoid, "lines", one_curvature, "tanh"),
    (MaxPool, "back", first_wins, "max pool"),
    (MaxPool, "_places", padding_is_place_0, "max pool, overlapping, padded"),
    (crown, "_receive", overwritten, "residual"),
    (crown, "_receive", overwritten, "add of a node to itself"),
    (crown, "_receive", overwritten, "concat of a node with itself"),
]


@pytest.mark.parametrize(("where", "name", "wrong", "net"), MISTAKES, ids=lambda each: getattr(each, "__name__", str(each)))
def test_a_mistake_is_seen(where: Any, name: str, wrong: Callable[..., Any], net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built, graph = made(net)
    assert worst(built, IMAGE, graph) <= 1e-10
    monkeypatch.setattr(where, name, wrong)
    assert worst(built, IMAGE, graph) > 1e-3
