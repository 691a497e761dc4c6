"""From an aligned neighbour to a candidate inside the linf ball, and which class to aim at (Tramèr et al. 2020, released code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float32, UInt8

from rbench_core.errors import UsageError

Grey = Float32[np.ndarray, "h w"]
Targets = Mapping[int, Sequence[int]]
MNIST_TARGETS: Targets = {  # made by hand: the classes that each digit can be turned into
    0: (4, 6, 8, 9), 1: (4, 6, 7, 9), 2: (8,), 3: (8,), 4: (8, 9), 5: (3, 8), 6: (0,), 7: (2, 3), 8: (3,), 9: (3, 4, 5),
}  # fmt: skip


def towards(clean: Grey, neighbour: UInt8[np.ndarray, "h w"], eps: Fraction) -> Grey:
    """The image moved towards the neighbour inside the ball of radius eps (in [0, 1]); all on the 0-255 scale.

    Where the neighbour is further than eps, by exactly eps; where it is nearer and the image has ink, onto it. Background is not raised to
    the neighbour's faint values: without that the released set does not come out.
    """
    reach = np.float32(float(eps * 255))
    gap = neighbour.astype(np.float32) - clean
    near = (np.abs(gap) <= reach) & (clean > 0)
    moved = np.where(np.abs(gap) > reach, clean + np.sign(gap) * reach, np.where(near, neighbour, clean)).astype(np.float32)
    return moved.clip(clean - reach, clean + reach).clip(0, 255).astype(np.float32)


def darkening(clean: Grey, moved: Grey) -> float:
    """How much ink was taken away, in pixels."""
    return float(np.maximum(clean - moved, 0).sum(dtype=np.float64) / 255)


def chosen(clean: Grey, candidates: Mapping[int, Grey], allowed: Sequence[int]) -> int:
    """The allowed target that takes least ink away; of equal ones the lower class."""
    return min(sorted(target for target in candidates if target in allowed), key=lambda target: darkening(clean, candidates[target]))


def stretched(clean: UInt8[np.ndarray, "h w"], moved: Grey, base: Fraction, eps: Fraction) -> UInt8[np.ndarray, "h w"]:
    """A candidate for radius `base` stretched to `eps` and cut to whole grey levels: how the released 0.4 set was made from that of 0.3."""
    x, a = clean.astype(np.float32) / np.float32(255), moved / np.float32(255)
    return (np.float32(255) * np.clip(x + (a - x) * np.float32(float(eps) / float(base)), 0, 1)).astype(np.uint8)


def targets_of(table: Mapping[str, object], classes: int) -> Targets:
    """A user's table of allowed targets, `4 = [8, 9]` per class. Raises UsageError."""
    wanted = "one line per class, such as 4 = [8, 9]"
    if set(table) != {str(label) for label in range(classes)}:
        raise UsageError(f"targets for the classes {', '.join(sorted(table))}", expected=f"{wanted}, from 0 to {classes - 1}")
    found: dict[int, Sequence[int]] = {}
    for label, allowed in table.items():
        if (
            not isinstance(allowed, list)
            or not allowed
            or any(type(t) is not int or not 0 <= t < classes or t == int(label) for t in allowed)
        ):
            raise UsageError(f"targets of class {label}: {allowed!r}", expected=wanted)
        found[int(label)] = allowed
    return found


def all_others(classes: int) -> Targets:
    """Every class but one's own: for data sets for which nobody made a table."""
    return {label: [other for other in range(classes) if other != label] for label in range(classes)}
