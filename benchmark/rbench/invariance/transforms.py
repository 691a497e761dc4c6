"""The 775 rotations and shifts of the linf attack, exactly as released: scipy's cubic spline on bytes, each step rounded on its own.

In floats, with radians, with rows and columns swapped or with the shift first, other neighbours come out (Tramèr et al. 2020, code).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8
from scipy.ndimage import rotate, shift

Image = UInt8[np.ndarray, "h w"]
SHIFTS, ANGLES = 5, 31
DEGREES = 30.0
REACH = 3 / 28  # of the side: 3 pixels of MNIST's 28


@dataclass(frozen=True, slots=True)
class Transform:
    """A turn about the centre by `degrees`, then a shift by `down` and `right` pixels."""

    down: float
    right: float
    degrees: float


def grid(side: int) -> list[Transform]:
    """All 5 x 5 x 31 of them, shifts outermost, for square images of this side."""
    limit = REACH * side
    shifts = np.linspace(-limit, limit, SHIFTS).tolist()
    return [Transform(*each) for each in itertools.product(shifts, shifts, np.linspace(-DEGREES, DEGREES, ANGLES).tolist())]


def transformed(image: Image) -> UInt8[np.ndarray, "transforms p"]:
    """The image under every transform of the grid, in its order, flattened. Bytes after each of the two steps."""
    turned = {angle: rotate(image, angle, reshape=False) for angle in np.linspace(-DEGREES, DEGREES, ANGLES).tolist()}
    return np.stack([shift(turned[each.degrees], (each.down, each.right)).ravel() for each in grid(image.shape[0])])


def undone(image: Image, done: Transform, *, true_inverse: bool = False) -> Image:
    """The image with turn and shift taken back, in the order of the released code: turn first. The true inverse shifts first."""
    back = (-done.down, -done.right)
    if true_inverse:
        return rotate(shift(image, back), -done.degrees, reshape=False)
    return shift(rotate(image, -done.degrees, reshape=False), back)


def inverse_row(done: Transform) -> Float64[np.ndarray, "3"]:
    """(−down, −right, −degrees), as the released neighbours record it."""
    return np.array([-done.down, -done.right, -done.degrees])
