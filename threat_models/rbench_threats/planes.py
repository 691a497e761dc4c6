"""Nearest points of hyperplane ∩ box, per row and in three norms, without waiting for a GPU: what FAB projects onto.

Hyperplane {θ : w·θ = b}, box lower ≤ θ ≤ upper, which holds θ. Where they do not meet, the corner of the box that comes nearest to the
plane. A point has to travel b − w·θ along w; coordinate i can contribute |wᵢ| times its room, the way to the end that w points at.

Masks are float tensors here: on a CPU a comparison into a bool, and `where`, take five to thirty times as long as the arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Rows = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]

ROUNDS = 24  # of Newton's iteration, which ends exactly; 2 to 9 seen
FIRST = 64  # coordinates that nearly always suffice under l1
FAR = 3e38


class Ranked(NamedTuple):
    """The largest coordinates of |w|, largest first, and where they stand."""

    size: Float[Tensor, "rows k"]
    order: Int[Tensor, "rows k"]


def to_plane_box(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows, pace: Thetas | None) -> Thetas:
    """Nearest point where coordinate i moves by min(λ · paceᵢ, roomᵢ), one λ per row: pace None is |w|, which is l2.

    pace 1 is linf, half-widths as pace the linf of a box with budgets; (rows, 1) or (rows, P), above 0 somewhere. Σ |wᵢ| min(λ paceᵢ,
    roomᵢ) is concave and piecewise linear in λ: Newton from 0 rises monotonically to the piece where it spends what is needed, and ends
    exactly there. Rows are islands.
    """
    size, room, need, sign = _travel(theta, lower, upper, w, b)
    move = size if pace is None else pace
    ends = room / move.clamp_min(1e-30)  # the λ at which a coordinate stops
    slopes, reach, free = size * move, size * room, torch.empty_like(size)
    whole, level = reach.sum(1), torch.zeros_like(need)
    for _ in range(ROUNDS):
        torch.gt(ends, level[:, None], out=free)
        slope = torch.linalg.vecdot(slopes, free)
        spent = whole - torch.linalg.vecdot(reach, free)  # by those that stopped
        higher = torch.maximum(level, (need - spent) / slope.clamp_min(1e-30)).clamp_max(FAR)
        if not theta.is_cuda and torch.equal(higher, level):
            break
        level = higher
    return torch.addcmul(theta, sign * move, torch.minimum(ends, level[:, None])).clamp_(lower, upper)


def to_plane_box_l1(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows, first: Ranked) -> Thetas:
    """Nearest in l1: the coordinates of largest |w| go to the end of the box one after another, the last as far as it must.

    first: `ranked(w)`, shared by all points of one w; for rows where it does not suffice all coordinates are sorted.
    """
    size, room, need, sign = _travel(theta, lower, upper, w, b)
    move, enough = _greedy(room, need, first)
    short = slice(None) if theta.is_cuda else (~enough).nonzero()[:, 0]
    if theta.is_cuda or len(short):  # type: ignore[arg-type]
        rest = _greedy(room[short], need[short], Ranked(*size[short].sort(dim=1, descending=True)))[0]
        move = torch.where(enough[:, None], move, rest) if theta.is_cuda else move.index_copy(0, short, rest)  # type: ignore[arg-type]
    return torch.addcmul(theta, sign, move).clamp_(lower, upper)


def ranked(w: Thetas) -> Ranked:
    """The first FIRST coordinates of |w|."""
    return Ranked(*w.abs().topk(min(FIRST, w.shape[1]), dim=1))


def _greedy(room: Thetas, need: Rows, largest: Ranked) -> tuple[Thetas, Bool[Tensor, " rows"]]:
    """How far each coordinate moves, those of `largest` alone, and for which rows they were enough."""
    there = room.gather(1, largest.order)
    gain = largest.size * there
    total = gain.cumsum(1)
    last = (need[:, None] - (total - gain)) / largest.size.clamp_min(1e-30)
    move = torch.zeros_like(room).scatter_(1, largest.order, last.clamp_min(0).minimum(there))
    return move, total[:, -1] >= need


def _travel(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows) -> tuple[Thetas, Thetas, Rows, Thetas]:
    """|w|, the room of each coordinate in the direction that approaches the plane, the way to go, and that direction."""
    ahead = b - torch.linalg.vecdot(w, theta)
    sign = w.sign().mul_(ahead.sign()[:, None])
    off = (upper + lower).mul_(0.5).sub_(theta)  # room to either end is half the width, plus or minus this
    room = torch.addcmul((upper - lower).mul_(0.5), sign, off).clamp_min_(0)
    return w.abs(), room, ahead.abs(), sign
