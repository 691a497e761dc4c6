"""Increasing activations: the ends of an interval go to the ends, two lines enclose the curve over it; max pooling beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rbench.certificates.rules import TINY, UNIT, Box, Rounded, Rule, Shape, Weights, total

Back = tuple[list[Tensor], Tensor | None]
NARROW = 1e-12  # an interval no wider than this gets no slope from a quotient: a constant bounds the curve on that side


class Lines(NamedTuple):
    """below·x + under ≤ f(x) ≤ above·x + over on the interval; one number each per element."""

    below: Tensor
    under: Tensor
    above: Tensor
    over: Tensor


@dataclass(frozen=True, slots=True)
class Activation(Rule):
    """f increasing, f(x) element by element, with slope at most 1 (so an error of the input passes on no larger)."""

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        raise NotImplementedError

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        raise NotImplementedError

    def interval(self, w: Weights, *boxes: Box) -> Box:
        return Box(self.value(w, boxes[0].lower), self.value(w, boxes[0].upper))

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        """Positive coefficients take the lower line, negative ones the upper."""
        assert boxes is not None
        line = Lines(*(each.unsqueeze(1) for each in self.lines(boxes[0].lower, boxes[0].upper)))
        positive, negative = a.clamp_min(0), a.clamp_max(0)
        return [positive * line.below + negative * line.above], total(positive * line.under + negative * line.over)

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        """The input's error, and no more than the curve rises over all that the input may be: 0 behind a ReLU that is certainly shut."""
        (x,) = inputs
        return torch.minimum(x.error, self.value(w, x.box.upper + x.error) - self.value(w, x.box.lower - x.error))


@dataclass(frozen=True, slots=True)
class ReLU(Activation):
    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return x[0].relu()

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Unstable: the chord above; below slope 1 where the positive side is the longer, else 0."""
        steep = (low < 0) & (high - low > NARROW)
        above = torch.where(steep, high.relu() / torch.where(steep, high - low, 1.0), (low >= 0).to(low.dtype))
        over = torch.where(steep, -low * above, torch.where(low >= 0, 0.0, high.relu()))
        below = ((low >= 0) | (high > -low)).to(low.dtype)
        return Lines(below, torch.zeros_like(low), above, over)


@dataclass(frozen=True, slots=True)
class LeakyReLU(Activation):
    """x, or slope·x where x < 0; 0 ≤ slope ≤ 1."""

    slope: float

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return functional.leaky_relu(x[0], self.slope)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """slope·x + (1 − slope)·relu(x)."""
        line, rest = ReLU().lines(low, high), 1 - self.slope
        return Lines(self.slope + rest * line.below, line.under, self.slope + rest * line.above, rest * line.over)

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        return Activation.error(self, w, *inputs) + 3 * UNIT * self.slope * inputs[0].reach + TINY  # slope and product are rounded


@dataclass(frozen=True, slots=True)
class Clamp(Activation):
    """min(max(x, floor), ceiling); None: no such end."""

    floor: float | None
    ceiling: float | None

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return x[0].clamp(self.floor, self.ceiling)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """A line through a kink and an end of the interval, or through one kink with slope 0 or 1, whichever encloses."""
        lowest, highest = -math.inf if self.floor is None else self.floor, math.inf if self.ceiling is None else self.ceiling
        floor = low.clamp_max(highest) - 1 if self.floor is None else torch.full_like(low, lowest)
        ceiling = high.clamp_min(lowest) + 1 if self.ceiling is None else torch.full_like(low, highest)
        above, over = self._upper(low, high, floor, ceiling)
        below, under = self._upper(-high, -low, -ceiling, -floor)  # the curve turned by half a circle is a clamp again
        return Lines(below, -under, above, over)

    def _upper(self, low: Tensor, high: Tensor, floor: Tensor, ceiling: Tensor) -> tuple[Tensor, Tensor]:
        """Where it begins below the floor: from (low, f(low)) to the upper kink or to (high, f(high)), whichever comes first.

        Where it begins above the floor and ends above the ceiling the curve is concave: slope 1 or 0 through the upper kink.
        """
        end = torch.minimum(high, ceiling)
        chord = (low < floor) & (end > floor) & (end - low > NARROW)
        flat = (high <= floor) | (low >= ceiling) | ((low < floor) & ~chord)
        slope = torch.where(chord, (end - floor) / torch.where(chord, end - low, 1.0), 1.0)
        bent = (low >= floor) & (high > ceiling) & (high - ceiling > ceiling - low)
        slope = torch.where(flat | bent, 0.0, slope)
        top = torch.minimum(torch.maximum(high, floor), ceiling)  # f(high)
        return slope, torch.where(flat | bent, top, torch.where(chord, floor - slope * low, 0.0))

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        ends = max(abs(self.floor or 0.0), abs(self.ceiling or 0.0))
        return Activation.error(self, w, *inputs) + UNIT * ends  # the ends themselves as float32


@dataclass(frozen=True, slots=True)
class Sigmoid(Activation):
    """1/(1 + e⁻ˣ), or tanh: convex left of 0, concave right of it."""

    tanh: bool = False

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return x[0].tanh() if self.tanh else x[0].sigmoid()

    def slope(self, x: Tensor) -> Tensor:
        y = self.value((), x)
        return 1 - y * y if self.tanh else y * (1 - y)

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """The chord where it encloses; else the tangent in the middle, or where the curve turns, the flatter end's slope through an end."""
        at_low, at_high, middle = self.value((), low), self.value((), high), (low + high) / 2
        wide = high - low > NARROW
        chord = (at_high - at_low) / torch.where(wide, high - low, 1.0)
        steep_low, steep_high = self.slope(low), self.slope(high)
        tangent, gentle, at_middle = self.slope(middle), torch.minimum(steep_low, steep_high), self.value((), middle)
        convex, concave = high <= 0, low >= 0
        flat = torch.zeros_like(low)
        above = torch.where(convex | (steep_high >= chord), chord, torch.where(concave, tangent, gentle))
        below = torch.where(concave | (steep_low >= chord), chord, torch.where(convex, tangent, gentle))
        above, below = torch.where(wide, above, flat), torch.where(wide, below, flat)
        touched_above = torch.where(wide & concave & (steep_high < chord), at_middle - above * middle, at_high - above * high)
        touched_below = torch.where(wide & convex & (steep_low < chord), at_middle - below * middle, at_low - below * low)
        return Lines(below, touched_below, above, touched_above)

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        return Activation.error(self, w, *inputs) + 16 * UNIT  # values up to 1, taken to be good to 8 units in the last place


@dataclass(frozen=True, slots=True)
class ELU(Activation):
    """x, or eˣ − 1 where x < 0: convex."""

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return functional.elu(x[0])

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """The chord above, the tangent in the middle below."""
        at_high, middle, wide = self.value((), high), (low + high) / 2, high - low > NARROW
        above = torch.where(wide, (at_high - self.value((), low)) / torch.where(wide, high - low, 1.0), 0.0)
        below = torch.where(middle > 0, 1.0, middle.clamp_max(0).exp())
        return Lines(below, self.value((), middle) - below * middle, above, at_high - above * high)

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        return Activation.error(self, w, *inputs) + 16 * UNIT  # as for the sigmoid: below 0 values lie within 1


@dataclass(frozen=True, slots=True)
class MaxPool(Rule):
    """2-d max pooling; windows may overlap, what is padded never wins."""

    kernel: Shape
    stride: Shape
    padding: Shape = (0, 0)
    dilation: Shape = (1, 1)
    ceil: bool = False

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        return functional.max_pool2d(x[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil)

    def interval(self, w: Weights, *boxes: Box) -> Box:
        return Box(self.value(w, boxes[0].lower), self.value(w, boxes[0].upper))

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        """Two maxima differ by at most the largest difference of their members."""
        return self.value(w, inputs[0].error)

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> Back:
        """Below: the member with the largest lower end. Above: the same one where no other can exceed it, else the largest upper end."""
        assert boxes is not None
        places = self._places(shapes[0], tuple(a.shape[-2:]), a.device)  # (kernel, windows)
        low, high = (self._members(end, places) for end in (boxes[0].lower, boxes[0].upper))  # (rows, channels, kernel, windows)
        best = low.amax(2, keepdim=True)
        first = torch.where(low == best, high, -torch.inf).argmax(2, keepdim=True)  # of equal lower ends the one that reaches further
        others = high.scatter(2, first, -torch.inf).amax(2, keepdim=True)
        alone, top = (others <= best).squeeze(2).unsqueeze(1), high.amax(2).unsqueeze(1)
        flat = a.flatten(-2)  # (rows, specs, channels, windows)
        positive, negative = flat.clamp_min(0), flat.clamp_max(0)
        target = places.expand_as(low).gather(2, first).squeeze(2).unsqueeze(1).expand_as(flat)
        moved = flat.new_zeros((*flat.shape[:3], shapes[0][-2] * shapes[0][-1]))
        moved = moved.scatter_add(3, target, positive + torch.where(alone, negative, 0.0))
        return [moved.unflatten(3, shapes[0][-2:])], total(torch.where(alone, 0.0, negative * top))

    def _places(self, shape: Shape, out: Shape, device: torch.device) -> Tensor:
        """For every member of every window its place in the flattened plane, −1 for padding."""
        axes = []
        for i in (0, 1):
            starts = torch.arange(out[i], device=device) * self.stride[i] - self.padding[i]
            axis = starts[None, :] + torch.arange(self.kernel[i], device=device)[:, None] * self.dilation[i]
            axes.append(torch.where((axis >= 0) & (axis < shape[-2 + i]), axis, -1))
        down, across = axes[0][:, None, :, None], axes[1][None, :, None, :]
        places = torch.where((down >= 0) & (across >= 0), down * shape[-1] + across, -1)
        return places.reshape(self.kernel[0] * self.kernel[1], out[0] * out[1])

    @staticmethod
    def _members(plane: Tensor, places: Tensor) -> Tensor:
        """(rows, channels, kernel, windows), −∞ for padding."""
        found = plane.flatten(-2)[..., places.clamp_min(0).flatten()].unflatten(-1, places.shape)
        return torch.where(places >= 0, found, -torch.inf)
