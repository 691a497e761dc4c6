"""Nearest points of hyperplane ∩ box, per row and in three norms: what FAB projects the place and the clean image onto.

Hyperplane {θ : w·θ = b}, box lower ≤ θ ≤ upper, which holds θ and 0. Where plane and box do not meet, the corner of the box that comes
nearest to the plane. A point has to travel b − w·θ along w; coordinate i contributes at most |wᵢ| times its room, the way to the end of the
box that it moves towards. Rows are islands: the one test that a CPU makes and a GPU does not changes no bit.

Both points of one w are found by one call, which shares what depends on w and the box alone. Masks are float tensors: on a CPU a comparison
into bool, and `where`, take five to thirty times as long as the arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]

ROUNDS = 24  # of Newton's iteration; on the nets of the zoo 3 to 5
TOLERANCE = 1e-4  # of the way: a row that lacks no more takes its last round; it then lacks 1e-8 as a rule
FIRST = 64  # coordinates that nearly always suffice under l1
TINY = 1e-37  # what nothing is divided by less than
FAR = 3e38


class Landing(NamedTuple):
    """A point on the plane, and how far away it is in the norm that calls it the nearest."""

    theta: Thetas
    distance: Rows


class Ranked(NamedTuple):
    """Coordinates of a row by falling |w|: the largest |w|, and where they stand."""

    size: Float[Tensor, "rows k"]
    order: Int[Tensor, "rows k"]


class Plane:
    """A hyperplane and a box per row, and what every point that is projected needs of them."""

    def __init__(self, lower: Thetas, upper: Thetas, w: Thetas, b: Rows) -> None:
        self.lower, self.upper, self.w, self.b = lower, upper, w, b
        self.size, self.side = w.abs(), w.sign()
        self.half, self.middle = (upper - lower).mul_(0.5).mul_(self.side.abs()), (upper + lower).mul_(0.5)

    def way(self, theta: Thetas | None) -> tuple[Rows, Thetas]:
        """How far theta (None: 0) has to travel, and in which direction each coordinate moves: −1, 0 or 1."""
        ahead = self.b if theta is None else self.b - torch.linalg.vecdot(self.w, theta)
        return ahead.abs(), self.side * ahead.sign()[:, None]

    def room(self, theta: Thetas | None, sign: Thetas) -> Thetas:
        """Of each coordinate to the end of the box that it moves towards: half the width, plus or minus the way to the middle; 0 where w is."""
        return torch.addcmul(self.half, sign, self.middle if theta is None else self.middle - theta).clamp_min_(0)

    def landed(self, theta: Thetas | None, sign: Thetas, move: Thetas) -> Thetas:
        """theta moved; `move` is overwritten."""
        moved = move.mul_(sign)
        return (moved if theta is None else moved.add_(theta)).clamp_(self.lower, self.upper)


def to_plane_linf(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows, reach: Thetas | None = None) -> tuple[Landing, Landing]:
    """The points nearest to theta and to 0 in linf; with reach, ≥ 0, in units of these half-widths per coordinate: 0 never moves.

    Coordinate i moves by min(λ · reachᵢ, roomᵢ), with one λ per row: the distance.
    """
    plane = Plane(lower, upper, w, b)
    slopes, moves = plane.size, None if reach is None else reach.sign()
    if reach is not None:
        slopes = plane.size * reach

    def land(at: Thetas | None) -> Landing:
        need, sign = plane.way(at)
        room = plane.room(at, sign)
        ends = room if reach is None or moves is None else room.mul_(moves).div_(reach.clamp_min(TINY))
        level = _level(slopes, plane.size * room if reach is None else slopes * ends, ends, need)
        distance = level.minimum(ends.amax(1))
        move = torch.minimum(ends, level[:, None])
        return Landing(plane.landed(at, sign, move if reach is None else move.mul_(reach)), distance)

    return land(theta), land(None)


def to_plane_l2(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows) -> tuple[Landing, Landing]:
    """The points nearest to theta and to 0 in l2: coordinate i moves by min(λ · |wᵢ|, roomᵢ), with one λ per row."""
    plane = Plane(lower, upper, w, b)
    pace = plane.size / plane.size.amax(1, keepdim=True).clamp_min(TINY)  # squares of gradients of 1e-25 are 0
    slopes, inverse = plane.size * pace, pace.clamp_min(TINY).reciprocal_()

    def land(at: Thetas | None) -> Landing:
        need, sign = plane.way(at)
        room = plane.room(at, sign)
        reach = plane.size * room
        ends = room.mul_(inverse)
        level = _level(slopes, reach, ends, need)
        move = torch.minimum(ends, level[:, None]).mul_(pace)
        distance = torch.linalg.vecdot(move, move).sqrt_()
        return Landing(plane.landed(at, sign, move), distance)

    return land(theta), land(None)


def _level(slopes: Thetas, reach: Thetas, ends: Thetas, need: Rows) -> Rows:
    """λ per row where Σ min(λ slopesᵢ, reachᵢ) is `need`, the i-th term being at its end from λ = endsᵢ on; FAR where it never is.

    The sum is concave and piecewise linear: Newton rises monotonically to its piece, and ends exactly there. The first step from 0 is taken
    blindly, as if no end were 0. A row that is done stands still while others go on.
    """
    beyond = reach.sum(1) - need
    level = torch.where(beyond >= 0, need / slopes.sum(1).clamp_min(TINY), FAR)
    goes, enough, free = (beyond >= 0).to(need), TOLERANCE * need, torch.empty_like(ends)
    for _ in range(ROUNDS):
        torch.gt(ends, level[:, None], out=free)
        slope = torch.linalg.vecdot(slopes, free)
        lacks = torch.addcmul(torch.linalg.vecdot(reach, free) - beyond, slope, level, value=-1)
        level = torch.addcmul(level, (lacks / slope.clamp_min(TINY)).clamp_(0, FAR), goes)
        goes = goes * (lacks > enough)
        if not goes.is_cuda and not goes.any():
            break
    return level


def to_plane_l1(theta: Thetas, lower: Thetas, upper: Thetas, w: Thetas, b: Rows) -> tuple[Landing, Landing]:
    """The points nearest to theta and to 0 in l1: the largest |wᵢ| go to the end of the box one after another, the last as far as it must.

    The few largest are looked at first; where they do not suffice, all.
    """
    plane = Plane(lower, upper, w, b)
    first = _largest(plane.size)
    return _landed_l1(plane, first, theta), _landed_l1(plane, first, None)


def _landed_l1(plane: Plane, first: Ranked, theta: Thetas | None) -> Landing:
    need, sign = plane.way(theta)
    room = plane.room(theta, sign)
    steps, lacks = _greedy(first, room, need)
    move = torch.zeros_like(room).scatter_(1, first.order, steps)
    if first.order.shape[1] < room.shape[1]:
        short = (lacks > 0).nonzero()[:, 0]
        move.index_copy_(0, short, _all_in_order(plane.size[short], room[short], need[short]))
    distance = move.sum(1)
    return Landing(plane.landed(theta, sign, move), distance)


def _all_in_order(size: Thetas, room: Thetas, need: Rows) -> Thetas:
    """The move in l1 of rows that need many coordinates: all of them, where even these do not suffice."""
    move, some = room.clone(), (torch.linalg.vecdot(size, room) > need).nonzero()[:, 0]
    ranked = Ranked(*size[some].sort(dim=1, descending=True))
    steps, _ = _greedy(ranked, room[some], need[some])
    return move.index_copy_(0, some, torch.empty_like(steps).scatter_(1, ranked.order, steps))


def _greedy(ranked: Ranked, room: Thetas, need: Rows) -> tuple[Float[Tensor, "rows k"], Rows]:
    """How far each of the ranked coordinates moves, and what is then still lacking."""
    there = room.gather(1, ranked.order)
    gain = ranked.size * there
    total = gain.cumsum(1)
    steps = (need[:, None] - (total - gain)) / ranked.size.clamp_min(TINY)
    return steps.clamp_min_(0).minimum(there), need - total[:, -1]


def _largest(size: Thetas) -> Ranked:
    """The FIRST largest coordinates; all of them on a GPU, where nobody waits to see whether they suffice.

    numpy's selection is four times as fast as torch.topk on 784 values, and six times on 3,072.
    """
    some = size.shape[1] - FIRST
    if size.is_cuda or some <= 0:
        return Ranked(*size.sort(dim=1, descending=True))
    chosen = torch.from_numpy(np.argpartition(size.numpy(), some, axis=1)[:, some:])
    ranked, place = size.gather(1, chosen).sort(dim=1, descending=True)
    return Ranked(ranked, chosen.gather(1, place))
