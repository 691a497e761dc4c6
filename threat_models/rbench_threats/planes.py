"""Nearest points of hyperplane ∩ box, per row and in three norms: what FAB projects the place and the clean image onto.

Hyperplane {θ : w·θ = b}, box lower ≤ θ ≤ upper, which holds θ and 0. Where plane and box do not meet, the corner of the box that comes
nearest to the plane. A point has to travel b − w·θ along w; coordinate i contributes at most |wᵢ| times its room, the way to the end of the
box that it moves towards. Rows are islands: the one test that a CPU makes and a GPU does not changes no bit.

Both points of one w are found by one call, which shares what depends on w and the box alone. Masks are float tensors: on a CPU a comparison
into bool, and `where`, take five to thirty times as long as the arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]

ROUNDS = 16  # of Newton's iteration; 3 on honest nets, up to 8 on masked ones, up to 9 on noise
TOLERANCE = 1e-4  # of the way: a row that lacks no more takes its last round; it then lacks 1e-8 as a rule
FIRST = 64  # coordinates that nearly always suffice under l1
TINY = 1e-37  # what nothing is divided by less than
FAR = 3e38


class Landing(NamedTuple):
    """A point on the plane, and how far away it is in the norm that calls it the nearest."""

    theta: Thetas
    distance: Rows


class Plane:
    """A hyperplane and a box per row, and what every point that is projected needs of them."""

    def __init__(self, lower: Thetas, upper: Thetas, w: Thetas, b: Rows) -> None:
        self.lower, self.upper, self.w, self.b = lower, upper, w, b
        self.size, self.side = w.abs(), w.sign()
        self.half, self.middle = (upper - lower).mul_(0.5).mul_(self.side.abs()), (upper + lower).mul_(0.5)

    def ahead(self, theta: Thetas | None) -> Rows:
        """How far along w theta (None: 0) has to travel; negative: against it."""
        return self.b if theta is None else self.b - _dot(self.w, theta)

    def way(self, theta: Thetas | None, ahead: Rows) -> tuple[Thetas, Thetas]:
        """The direction in which each coordinate moves, −1, 0 or 1, and its room: half the width, plus or minus the way to the middle."""
        sign = self.side * ahead.sign()[:, None]
        room = torch.addcmul(self.half, sign, self.middle if theta is None else self.middle - theta)
        return sign, room.clamp_min_(0)

    def landed(self, theta: Thetas | None, sign: Thetas, move: Thetas) -> Thetas:
        """theta moved; `move` is overwritten."""
        moved = move.mul_(sign)
        return (moved if theta is None else moved.add_(theta)).clamp_(self.lower, self.upper)


def to_plane_linf(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows, reach: Thetas | None = None) -> tuple[Landing, Landing]:
    """The points nearest to theta and to 0 in linf; with reach, ≥ 0, in units of these half-widths per coordinate: 0 never moves.

    Coordinate i moves by min(λ · reachᵢ, roomᵢ), with one λ per row: the distance.
    """
    plane = Plane(lower, upper, w, b)
    slopes = plane.size if reach is None else plane.size * reach

    def land(at: Thetas | None) -> Landing:
        ahead = plane.ahead(at)
        sign, ends = plane.way(at, ahead)
        if reach is not None:
            ends = ends.mul_(reach.sign()).div_(reach.clamp_min(TINY))
        level = _level(slopes, slopes * ends, ends, ahead.abs())
        move = torch.minimum(ends, level[:, None])
        return Landing(plane.landed(at, sign, move if reach is None else move.mul_(reach)), level.minimum(ends.amax(1)))

    return land(theta), land(None)


def to_plane_l2(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows) -> tuple[Landing, Landing]:
    """The points nearest to theta and to 0 in l2: coordinate i moves by min(λ · |wᵢ|, roomᵢ), with one λ per row."""
    plane = Plane(lower, upper, w, b)
    pace = plane.size / plane.size.amax(1, keepdim=True).clamp_min(TINY)  # squares of gradients of 1e-25 are 0
    slopes, inverse = plane.size * pace, pace.clamp_min(TINY).reciprocal_()

    def land(at: Thetas | None) -> Landing:
        ahead = plane.ahead(at)
        sign, room = plane.way(at, ahead)
        reach = plane.size * room
        ends = room.mul_(inverse)
        move = torch.minimum(ends, _level(slopes, reach, ends, ahead.abs())[:, None]).mul_(pace)
        distance = _dot(move, move).sqrt_()
        return Landing(plane.landed(at, sign, move), distance)

    return land(theta), land(None)


def to_plane_l1(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows) -> tuple[Landing, Landing]:
    """The points nearest to theta and to 0 in l1: the largest |wᵢ| go to the end of the box one after another, the last as far as it must.

    The few largest are looked at first; where they do not suffice, all.
    """
    size = w.abs()
    order = _by_size(size, FIRST)
    few = Plane(lower.gather(1, order), upper.gather(1, order), w.gather(1, order), b)

    def land(at: Thetas | None) -> Landing:
        ahead = b if at is None else b - _dot(w, at)
        theta = torch.zeros_like(w) if at is None else at
        landing, lacks = _one_by_one(few, order, theta, ahead)
        short = (lacks > 0).nonzero()[:, 0] if order.shape[1] < w.shape[1] else lacks[:0]
        if len(short):
            every = _by_size(size[short], w.shape[1])
            low, high, slope = (part[short].gather(1, every) for part in (lower, upper, w))
            whole = Plane(low, high, slope, b[short])
            again, _ = _one_by_one(whole, every, theta[short], ahead[short])
            for found, better in zip(landing, again, strict=True):
                found.index_copy_(0, short, better)
        return landing

    return land(theta), land(None)


def _one_by_one(plane: Plane, order: Int[Tensor, "rows k"], theta: Thetas, ahead: Rows) -> tuple[Landing, Rows]:
    """Where theta lands if the coordinates of `order`, which are those of `plane`, move alone; and what it then still lacks."""
    there = theta.gather(1, order)
    sign, room = plane.way(there, ahead)
    gain, need = plane.size * room, ahead.abs()
    total = gain.cumsum(1)
    move = ((need[:, None] - (total - gain)) / plane.size.clamp_min(TINY)).clamp_min_(0).minimum(room)
    distance = move.sum(1)
    return Landing(theta.scatter(1, order, plane.landed(there, sign, move)), distance), need - total[:, -1]


def _by_size(size: Thetas, count: int) -> Int[Tensor, "rows k"]:
    """Where the `count` largest coordinates stand, largest first; all on a GPU, where nobody waits to see whether they suffice.

    On a CPU numpy selects and sorts five times as fast as torch.
    """
    if size.device.type != "cpu":
        return size.argsort(dim=1, descending=True)
    if count >= size.shape[1]:
        return torch.from_numpy(np.argsort(size.neg().numpy(), axis=1))
    some = size.shape[1] - count
    chosen = torch.from_numpy(np.argpartition(size.numpy(), some, axis=1)[:, some:])
    return chosen.gather(1, torch.from_numpy(np.argsort(size.gather(1, chosen).neg_().numpy(), axis=1)))


def _level(slopes: Thetas, reach: Thetas, ends: Thetas, need: Rows) -> Rows:
    """λ per row where Σ min(λ slopesᵢ, reachᵢ) is `need`, the i-th term being at its end from λ = endsᵢ on; FAR where it never is.

    The sum is concave and piecewise linear: Newton rises monotonically to its piece, and ends exactly there. The first step from 0 is taken
    blindly, as if no end were 0. A row that is done stands still while others go on. On a CPU numpy works on the same memory: at this size
    its calls cost a quarter, and its products of rows half.
    """
    level, free, host = need / slopes.sum(1).clamp_min_(TINY), torch.empty_like(ends), ends.device.type == "cpu"
    dot, where = (np.vecdot, np.where) if host else (torch.linalg.vecdot, torch.where)
    every: list[Any] = [slopes, reach, free, level, reach.sum(1) - need, TOLERANCE * need]
    slopes_, reach_, free_, level_, beyond, enough = (part.numpy() for part in every) if host else every
    goes = beyond >= 0
    level_[:] = where(goes, level_, FAR)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(ROUNDS):
            torch.gt(ends, level[:, None], out=free)
            slope = dot(slopes_, free_)
            lacks = dot(reach_, free_) - beyond - slope * level_
            level_ += where(goes & (lacks > 0), lacks / (slope + TINY), 0.0)
            goes &= lacks > enough
            if host and not goes.any():
                break
    return level


def _dot(a: Thetas, b: Thetas) -> Rows:
    """Σ aᵢ bᵢ per row; on a CPU by numpy, which writes no products to memory."""
    return torch.from_numpy(np.vecdot(a.numpy(), b.numpy())) if a.device.type == "cpu" else torch.linalg.vecdot(a, b)
