"""Nearest points of lp ball ∩ box, per row, without waiting for the device. Exact up to float32 rounding, and always inside.

Each is one number per row, the root of a piecewise linear function, found by Newton's method in a few rounds of plain arithmetic; a CPU
stops when every row is done, which changes no bit. Masks of bool are avoided: there each costs as much as ten of the operations here.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Rows = Float[Tensor, " rows"]
Column = Float[Tensor, "rows 1"]
Thetas = Float[Tensor, "rows p"]
SPACING = 2.4e-7  # twice that of float32 numbers, relative


def project_l2_box(theta: Thetas, lower: Thetas, upper: Thetas, eps: Rows, rounds: int = 12) -> Thetas:
    """Nearest point to theta (Euclidean, per row) with ‖·‖₂ ≤ eps and lower ≤ · ≤ upper, where lower ≤ 0 ≤ upper.

    The nearest point is clamp(s·θ) for one s per row, and Σ min(s²θᵢ², roomᵢ²) is concave and piecewise linear in s²: Newton from 0
    rises monotonically to the root, so every round is inside the ball, and it ends exactly once no room is crossed any more (2 to 9
    rounds seen). A row already inside comes back unchanged. Source: Lagrange conditions.
    """
    clipped = theta.clamp(lower, upper)
    budget = eps[:, None].square()
    inside = clipped.square().sum(1, keepdim=True) <= budget
    if _all(inside):
        return clipped
    square, room = theta.square(), _room(theta, lower, upper).square_()
    t = budget / square.sum(1, keepdim=True).clamp_min(1e-30)
    for _ in range(rounds):
        moved = t * square
        spent = torch.minimum(moved, room)
        slope = moved.sub_(spent).sign_().neg_().add_(1.0).mul_(square).sum(1, keepdim=True)  # of what its room does not stop
        left = budget - spent.sum(1, keepdim=True)
        ends = inside | (left <= 0) | (slope <= 0)
        if _all(ends):
            break
        t = torch.where(ends, t, t + left / slope.clamp_min(1e-30))
    shrunk = (theta * t.sqrt().clamp_max(1.0)).clamp(lower, upper)
    return _fit(shrunk, eps, torch.linalg.vector_norm(shrunk, dim=1)).lerp(clipped, inside.to(clipped.dtype))


def project_l1_box(theta: Thetas, lower: Thetas, upper: Thetas, eps: Rows) -> Thetas:
    """Nearest point to theta (Euclidean, per row) with ‖·‖₁ ≤ eps and lower ≤ · ≤ upper, where lower ≤ 0 ≤ upper.

    Not the box clip of an l1 projection: that leaves part of the budget unused. The nearest point is clamp(soft(θ, λ)) for one λ per row.
    On a CPU λ is found by Newton's method, 5 to 13 times as fast as the sort that a GPU does instead: there nobody can wait to see whether
    a row is done. A row already inside comes back unchanged.
    """
    return (l1_by_sort if theta.is_cuda else l1_by_newton)(theta, lower, upper, eps)


def l1_by_newton(theta: Thetas, lower: Thetas, upper: Thetas, eps: Rows, rounds: int = 64) -> Thetas:
    """project_l1_box in float32.

    With t, how far λ lies below the largest |θᵢ|, Σ min(max(t − gapᵢ, 0), roomᵢ) rises piecewise linearly: Newton from λ = 0 within a
    bracket, bisection where it would leave it and in every second round of a row that takes more than usual (3 to 6 on perturbations of
    images). A row is near when the next step is below the spacing of float32 numbers at t: it is added to t − gap instead. A row is stuck
    when no number lies between the ends of its bracket: then a straight line between them spends what is left.
    """
    clipped, budget = theta.clamp(lower, upper), eps[:, None]
    size, room, moved = theta.abs(), _room(theta, lower, upper), clipped.abs()
    over = moved.sum(1, keepdim=True) - budget
    inside = done = over <= 0
    if _all(inside):
        return clipped
    t = high = size.amax(1, keepdim=True)
    gap, low = high - size, torch.zeros_like(high)
    free = (moved.sign() - (size - moved).sign_()).sum(1, keepdim=True)  # values on the move just below t
    for turn in range(rounds):
        step, middle = t - over / free, low.lerp(high, 0.5)
        newton, stuck = (low < step) & (step < high), (middle <= low) | (middle >= high)
        near = ((step - t).abs() <= SPACING * t) & (over.abs() <= 1e-3 * budget)
        if turn:  # what was counted at the start is rounded otherwise: a row that ended there would change while others go on
            done = done | near | stuck & (t == high)
        if _all(done):
            break
        ahead = torch.where(newton, step, middle) if turn < 7 or turn % 2 else middle
        t = torch.where(done, t, torch.where(stuck, high, ahead))
        ahead = t - gap
        moved = torch.minimum(ahead, room).clamp_min_(0.0)
        over = moved.sum(1, keepdim=True) - budget
        free = theta.shape[1] - (ahead - moved).sign_().abs_().sum(1, keepdim=True)
        low, high = torch.where(over < 0, t, low), torch.where(over < 0, high, t)
    last = torch.where(near, over / free.clamp_min(1), 0.0)
    ends = torch.where(near, t, low), torch.where(near, t, high)
    less, more = ((end - gap).sub_(last).minimum(room).clamp_min_(0.0) for end in ends)
    left, jump = budget - less.sum(1, keepdim=True), more.sum(1, keepdim=True) - less.sum(1, keepdim=True)
    soft = less.lerp(more, (left / jump.clamp_min(1e-30)).clamp(0, 1)).copysign(theta)
    return _fit(soft, eps, soft.abs().sum(1)).lerp(clipped, inside.to(clipped.dtype))


def l1_by_sort(theta: Thetas, lower: Thetas, upper: Thetas, eps: Rows) -> Thetas:
    """project_l1_box by one sort per row, in float64, O(p log p), without waiting for the device.

    Σ min(max(|θᵢ| − λ, 0), roomᵢ) has its corners at |θᵢ| and |θᵢ| − roomᵢ: they are sorted, and the sum is followed downwards to the
    piece where it spends eps. Source: Croce & Hein 2021, "Mind the box", sec. 2.
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
    inside = clipped.abs().sum(1, keepdim=True) <= eps[:, None]
    return _fit(soft, eps, soft.abs().sum(1)).lerp(clipped, inside.to(clipped.dtype))


def _all(rows: Bool[Tensor, "rows 1"]) -> bool:
    """Whether all rows are done, where asking costs nothing; further rounds would not change them."""
    return not rows.is_cuda and bool(rows.all())


def _room(theta: Thetas, lower: Thetas, upper: Thetas) -> Thetas:
    """How far each value may move to the side of theta (at least as far as a tiny theta needs)."""
    return (theta * 1e30).clamp(lower, upper).abs_()


def _fit(theta: Thetas, eps: Rows, norm: Rows) -> Thetas:
    """Shrink by the rounding that is left, never stretch; towards 0, so the box still holds."""
    return theta * (eps / norm.clamp_min(1e-30)).clamp_max(1.0)[:, None]
