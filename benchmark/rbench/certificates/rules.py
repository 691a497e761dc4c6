"""What a bound needs of one operator: its value, the box of its output, its backward step and its rounding error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

Shape = tuple[int, ...]
Weights = tuple[Tensor | None, ...]
Count = TypeVar("Count", float, Tensor)
UNIT = 2.0**-24  # unit roundoff of float32: the model's own forward pass, whose error `error` bounds
OWN = 1 + 2.0**-20
TINY = 2.0**-126  # below it float32 is subnormal, or flushed to zero: an absolute error per operation


class Box:
    """An element-wise interval (rows, …), as two ends or as middle and radius; the other form is made when it is asked for."""

    __slots__ = ("_lower", "_mid", "_rad", "_upper")

    def __init__(
        self, lower: Tensor | None = None, upper: Tensor | None = None, *, mid: Tensor | None = None, rad: Tensor | None = None
    ) -> None:
        self._lower, self._upper, self._mid, self._rad = lower, upper, mid, rad

    @property
    def lower(self) -> Tensor:
        if self._lower is None:
            assert self._mid is not None
            assert self._rad is not None
            self._lower = self._mid - self._rad
        return self._lower

    @property
    def upper(self) -> Tensor:
        if self._upper is None:
            assert self._mid is not None
            assert self._rad is not None
            self._upper = self._mid + self._rad
        return self._upper

    @property
    def mid(self) -> Tensor:
        if self._mid is None:
            self._mid = torch.add(self.lower, self.upper).mul(0.5)
        return self._mid

    @property
    def rad(self) -> Tensor:
        if self._rad is None:
            self._rad = torch.sub(self.upper, self.lower).mul(0.5)
        return self._rad

    def size(self) -> Tensor:
        """The largest absolute value, per element."""
        return torch.maximum(self.lower.abs(), self.upper.abs())


class Rounded(NamedTuple):
    """An operand of the float32 pass: where the exact one lies, and how far the computed one may be from it, per element."""

    box: Box
    error: Tensor

    @property
    def reach(self) -> Tensor:
        """The largest absolute value of the computed one."""
        return self.box.size() + self.error


@dataclass(frozen=True, slots=True)
class Rule:
    """One operator on perturbed inputs. All tensors have rows first; `w` are the operator's own tensors, in the order its rule names them.

    value: the operator. interval: a box that holds every value while the inputs stay in theirs. back: for coefficients `a` (rows, specs,
    *output) the coefficients of every input and an offset (rows, specs) with a·output ≥ Σ coefficients·input + offset over the inputs'
    boxes. error: how far the float32 result may be from the exact one, per element. An affine rule needs no boxes in `back`, and there
    equality holds.
    """

    affine: ClassVar[bool] = False

    def value(self, w: Weights, *x: Tensor) -> Tensor:
        raise NotImplementedError

    def interval(self, w: Weights, *boxes: Box) -> Box:
        raise NotImplementedError

    def back(self, w: Weights, a: Tensor, shapes: tuple[Shape, ...], boxes: tuple[Box, ...] | None) -> tuple[list[Tensor], Tensor | None]:
        raise NotImplementedError

    def error(self, w: Weights, *inputs: Rounded) -> Tensor:
        raise NotImplementedError


def gamma(count: Count) -> Count:
    """The relative error of a sum of `count` rounded float32 operations in any order (Higham 2002, lemma 3.1), and a millionth more.

    The millionth is for the bounds themselves: their float64 roundings are 2⁻²⁹ of those of float32.
    """
    return OWN * count * UNIT / (1 - count * UNIT)


def total(products: Tensor) -> Tensor:
    """Sum over all but rows and specs."""
    return products.flatten(2).sum(2)


def fitted(a: Tensor, shape: Shape) -> Tensor:
    """The adjoint of broadcasting: a (rows, specs, *broadcast) summed to (rows, specs, *shape)."""
    return a.sum_to_size(*a.shape[:2], *shape)
