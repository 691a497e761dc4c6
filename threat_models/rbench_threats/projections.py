"""Nearest points of lp ball ∩ box, per row, without waiting for the device. Exact up to float32 rounding, and always inside."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Rows = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]


def project_l2_box(theta: Thetas, lower: Thetas, upper: Thetas, eps: Rows, rounds: int = 12) -> Thetas:
    """Nearest point to theta (Euclidean, per row) with ‖·‖₂ ≤ eps and lower ≤ · ≤ upper, where lower ≤ 0 ≤ upper.

    The nearest point is clamp(s·θ) for one s per row, and Σ min(s²θᵢ², roomᵢ²) is concave and piecewise linear in s²: Newton from 0
    rises monotonically to the root, so every round is inside the ball, and it ends exactly once no room is crossed any more (2 to 9
    rounds seen). No host synchronisation. A row already inside comes back unchanged. Source: Lagrange conditions.
    """
    clipped = theta.clamp(lower, upper)
    square = theta.square()
    room = torch.where(theta > 0, upper, lower).square()
    budget = eps.square()
    t = budget / square.sum(1).clamp_min(1e-30)
    for _ in range(rounds):
        moved = t[:, None] * square
        free = moved < room
        slope = torch.where(free, square, 0.0).sum(1)
        left = budget - torch.minimum(moved, room).sum(1)
        t = torch.where((left > 0) & (slope > 0), t + left / slope.clamp_min(1e-30), t)
    shrunk = (theta * t.sqrt().clamp_max(1.0)[:, None]).clamp(lower, upper)
    inside = clipped.square().sum(1) <= budget
    return torch.where(inside[:, None], clipped, _fit(shrunk, eps, 2))


def project_l1_box(theta: Thetas, lower: Thetas, upper: Thetas, eps: Rows) -> Thetas:
    """Nearest point to theta (Euclidean, per row) with ‖·‖₁ ≤ eps and lower ≤ · ≤ upper, where lower ≤ 0 ≤ upper.

    Not the box clip of an l1 projection: that leaves part of the budget unused. The nearest point is clamp(soft(θ, λ)) for one λ per row;
    Σ min(max(|θᵢ| − λ, 0), roomᵢ) is piecewise linear in λ with corners at |θᵢ| and |θᵢ| − roomᵢ: they are sorted, and the sum is followed
    downwards to the piece where it spends eps. In float64, because in float32 a θ of 1e4 beside a room of 1e-2 has lost the room.
    One sort per row, O(p log p); no host synchronisation. A row already inside comes back unchanged.
    Source: Croce & Hein 2021, "Mind the box", sec. 2.
    """
    size, budget = theta.abs().double(), eps[:, None].double()
    room = torch.where(theta > 0, upper, -lower).double()
    corners, order = torch.cat([size, size - room], 1).sort(dim=1, descending=True)
    slope = torch.where(order < theta.shape[1], 1.0, -1.0).cumsum(1)  # coordinates on the move below each corner
    spent = functional.pad((slope[:, :-1] * (corners[:, :-1] - corners[:, 1:])).cumsum(1), (1, 0))  # at each corner
    last = (spent <= budget).sum(1, keepdim=True) - 1
    level = corners.gather(1, last) - (budget - spent.gather(1, last)) / slope.gather(1, last).clamp_min(1)
    soft = ((size - level).clamp_min(0).minimum(room) * theta.sign()).to(theta)
    clipped = theta.clamp(lower, upper)
    inside = clipped.abs().sum(1) <= eps
    return torch.where(inside[:, None], clipped, _fit(soft, eps, 1))


def _fit(theta: Thetas, eps: Rows, order: int) -> Thetas:
    """Shrink by the rounding that is left, never stretch; towards 0, so the box still holds."""
    norm: Tensor = torch.linalg.vector_norm(theta, order, dim=1)
    return theta * (eps / norm.clamp_min(1e-30)).clamp_max(1.0)[:, None]
