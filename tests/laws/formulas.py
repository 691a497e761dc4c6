"""The sets once more, in numpy float64 and in other ways than the code under test: membership, support points, dual norms, enumeration.

A family that is not listed here is held to the laws that need no formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from rbench_threats.protocol import PerturbationSet

Array = NDArray[np.float64]
TOLERANCE = 1e-6  # DESIGN section 2: per pixel, and of the radius for norms


def excess(space: PerturbationSet, x: Array, theta: Array) -> Array | None:
    """How far θ (rows, P) lies outside the widened set, from its definition; x (rows, C, H, W)."""
    radius = {name: float(value) for name, value in space.extent.items()}
    if space.family == "rotation-translation":
        limits = np.array([radius["degrees"], radius["shift"], radius["shift"]])
        return np.asarray((np.abs(theta) - limits).max(1) - TOLERANCE)
    if space.family.startswith("learned:"):
        return np.asarray(np.sqrt((theta * theta).sum(1)) - radius["radius"] * (1 + TOLERANCE))
    if "blocks" in space.capabilities:
        return _excess_of_parts(space, x, theta)
    if "additive" not in space.capabilities:
        return None
    moved = x.reshape(len(x), -1) + theta
    outside = np.maximum(-moved, moved - 1).max(1) - TOLERANCE
    widths = half_widths(space, x)
    if widths is not None:
        return np.maximum(outside, (np.abs(theta) - widths).max(1) - TOLERANCE)
    if space.family == "l2":
        return np.maximum(outside, np.sqrt((theta * theta).sum(1)) - radius["eps"] * (1 + TOLERANCE))
    if space.family == "l1":
        return np.maximum(outside, np.abs(theta).sum(1) - radius["eps"] * (1 + TOLERANCE))
    if space.family == "l0":
        changed = np.array([len({where % (x.shape[2] * x.shape[3]) for where in np.flatnonzero(row)}) for row in theta])
        return np.maximum(outside, changed - radius["pixels"])
    return None


def parts(space: PerturbationSet, x: Array, theta: Array) -> list[tuple[PerturbationSet, Array]]:
    """The parts of a combination, each with its own θ: three numbers for a warp, one per value of the image for noise."""
    found, begin = [], 0
    for part in space.parts:  # type: ignore[attr-defined]  # of "blocks"
        end = begin + (3 if part.family == "rotation-translation" else x[0].size)
        found.append((part, theta[:, begin:end]))
        begin = end
    assert begin == theta.shape[1]
    return found


def gauge(space: PerturbationSet, x: Array, theta: Array) -> Array:
    """The smallest scale whose ball holds θ: of each part of a combination."""
    radius, widths = {name: float(value) for name, value in space.extent.items()}, half_widths(space, x)
    if widths is not None:
        return np.asarray((np.abs(theta) / widths).max(1))
    if space.family == "rotation-translation":
        return np.asarray((np.abs(theta) / np.array([radius["degrees"], radius["shift"], radius["shift"]])).max(1))
    if space.family == "l0":
        return np.array([len({where % (x.shape[2] * x.shape[3]) for where in np.flatnonzero(row)}) for row in theta]) / radius["pixels"]
    return np.asarray(np.linalg.norm(theta, {"l2": 2, "l1": 1}[space.family], axis=1) / radius["eps"])


def _excess_of_parts(space: PerturbationSet, x: Array, theta: Array) -> Array:
    """No part beyond its own widened set; and where two or more have moved, the gauges' sum, or each one beside its weight, within 1e-6."""
    split = parts(space, x, theta)
    own = np.stack([np.asarray(excess(part, x, one)) for part, one in split], 1).max(1)
    gauges = np.stack([gauge(part, x, one) for part, one in split], 1)
    weights = space.weights  # type: ignore[attr-defined]
    if weights is not None:
        share = np.array([float(weight) for weight in weights])
        beyond = np.where(share == 1, -np.inf, gauges - share * (1 + TOLERANCE)).max(1)
    else:
        moved = np.stack([(one != 0).any(1) for _, one in split], 1).sum(1)
        beyond = np.where(moved > 1, gauges.sum(1) - 1 - TOLERANCE, -np.inf)
    return np.maximum(own, beyond)


def half_widths(space: PerturbationSet, x: Array) -> Array | None:
    """How far each value of x may move in a box, (rows, P); None for other sets. Budgets are asked of the set, and tested elsewhere."""
    if space.family == "linf":
        return np.full((len(x), x[0].size), float(space.extent["eps"]))
    if space.family.startswith("contextual:"):
        eps = space.budgets(torch.from_numpy(x).float(), torch.arange(len(x)))  # type: ignore[attr-defined]
        return np.asarray(eps.double().numpy().reshape(len(x), -1) * float(space.extent["scale"]))
    return None


def furthest(space: PerturbationSet, x: Array, direction: Array, scale: Array) -> Array | None:
    """The member of (scale · ball) ∩ box that reaches furthest along direction, row by row; None where no formula is known."""
    flat = x.reshape(len(x), -1)
    reach: dict[str, Callable[[Array, Array, float], Array]] = {"l2": _furthest_l2, "l1": _furthest_l1}
    if space.family == "rotation-translation":
        limits = np.array([float(space.extent[name]) for name in ("degrees", "shift", "shift")])
        return np.asarray(np.sign(direction) * limits * scale[:, None])
    if space.family.startswith("learned:"):
        size = np.sqrt((direction * direction).sum(1, keepdims=True))
        return np.asarray(direction / np.maximum(size, 1e-300) * float(space.extent["radius"]) * scale[:, None])
    room, widths = np.where(direction > 0, 1 - flat, flat), half_widths(space, x)
    if widths is not None:
        return np.asarray(np.sign(direction) * np.minimum(room, widths * scale[:, None]))
    if space.family not in reach:
        return None
    eps = scale * float(space.extent["eps"])
    return np.stack([np.sign(g) * reach[space.family](np.abs(g), r, e) for g, r, e in zip(direction, room, eps, strict=True)])


def _furthest_l1(slope: Array, room: Array, eps: float) -> Array:
    """Spend the budget where the slope is steepest, as far as there is room: a fractional knapsack."""
    order = np.argsort(-slope, kind="stable")
    spent = np.concatenate([[0.0], np.cumsum(room[order])[:-1]])
    found = np.zeros_like(room)
    found[order] = np.clip(eps - spent, 0, room[order])
    return found


def _furthest_l2(slope: Array, room: Array, eps: float) -> Array:
    """min(t · slope, room) with the t that spends the budget, by bisection on a logarithmic scale."""
    room = np.where(slope > 0, room, 0.0)
    if (room * room).sum() <= eps * eps or not slope.any():
        return room
    if eps == 0:
        return np.zeros_like(room)
    low, high = -80.0, 80.0
    for _ in range(200):
        middle = (low + high) / 2
        spent = np.minimum(np.exp(middle) * slope, room)
        low, high = (middle, high) if (spent * spent).sum() <= eps * eps else (low, middle)
    return np.minimum(np.exp(low) * slope, room)


def best_inner_product(space: PerturbationSet, x: Array, grad: Array) -> Array | None:
    """The largest inner product of grad with a θ of gauge 1: the dual norm (over the box too for l0, whose ball is unbounded)."""
    radius = {name: float(value) for name, value in space.extent.items()}
    size = np.abs(grad)
    widths = half_widths(space, x)
    if widths is not None:
        return np.asarray((widths * size).sum(1))
    if space.family.startswith("learned:"):
        return np.asarray(radius["radius"] * np.sqrt((size * size).sum(1)))
    if space.family == "l2":
        return np.asarray(radius["eps"] * np.sqrt((size * size).sum(1)))
    if space.family == "l1":
        return np.asarray(radius["eps"] * size.max(1))
    if space.family == "l0":
        flat = x.reshape(len(x), -1)
        gain = np.maximum(grad * (1 - flat), -grad * flat).reshape(len(x), x.shape[1], -1).sum(1)
        return np.asarray(np.sort(gain, 1)[:, ::-1][:, : int(radius["pixels"])].sum(1))
    if space.family == "rotation-translation":
        return np.asarray((size * np.array([radius["degrees"], radius["shift"], radius["shift"]])).sum(1))
    return None


def nearest_l0(x: Array, theta: Array, pixels: int) -> float:
    """The squared distance from θ (P,) to the nearest point with at most `pixels` pixels changed, x (C, H, W): every choice is tried."""
    flat, channels = x.reshape(-1), x.shape[0]
    clipped = np.clip(theta, -flat, 1 - flat).reshape(channels, -1)
    parts = theta.reshape(channels, -1)
    return min(float(((parts - _on(chosen, clipped)) ** 2).sum()) for chosen in _choices(parts.shape[1], pixels))


def _choices(count: int, most: int) -> Iterator[tuple[int, ...]]:
    for size in range(min(most, count) + 1):
        yield from combinations(range(count), size)


def _on(chosen: tuple[int, ...], values: Array) -> Array:
    kept = np.zeros_like(values)
    kept[:, list(chosen)] = values[:, list(chosen)]
    return kept
