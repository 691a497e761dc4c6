"""Windows, tiles and bumps: the geometry of Square's moves (Andriushchenko et al. 2020, sec. 3), each row with its own, any image shape."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench_threats.protocol import Row

PerRow = Int[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]
Bump = Float[Tensor, "rows 1 h w"]
Shape = tuple[int, int, int]  # channels, height, width


def sides(share: Float[Tensor, " rows"], shape: Shape, odd: bool = False) -> PerRow:
    """The side, in pixels, of a square window that covers a share of the image: at least 1, at most the image's shorter side."""
    side = (share * (shape[1] * shape[2])).sqrt().round().long().clamp_min(1)
    return (side | 1 if odd else side).clamp_max(min(shape[1:]))


def corners(side: PerRow, shape: Shape, row: Row, stream: int) -> tuple[PerRow, PerRow]:
    """The first pixel down and across of a window, uniform over every place where it fits, the last one too."""
    drawn = row.uniform(2, stream)  # at most 1 − 2⁻²⁴: no product below rounds up to a place too many
    down, across = ((drawn[:, axis] * (shape[1 + axis] - side + 1)).long() for axis in (0, 1))
    return down, across


def inside(corner: tuple[PerRow, PerRow], side: PerRow, shape: Shape) -> Bool[Tensor, "rows 1 h w"]:
    """Which pixels a window covers."""
    (down, across), (i, j) = corner, _pixels(shape, side.device)
    i, j, side = i - down[:, None], j - across[:, None], side[:, None]
    return ((i >= 0) & (i < side))[:, None, :, None] & ((j >= 0) & (j < side))[:, None, None, :]


def signs(count: int, row: Row, stream: int) -> Float[Tensor, "rows count"]:
    """−1 or 1, either as often."""
    return torch.where(row.uniform(count, stream) < 0.5, -1.0, 1.0)


def bump(corner: tuple[PerRow, PerRow], side: PerRow, shape: Shape, order: int, row: Row, stream: int) -> Bump:
    """A window's bump, 0 outside it: two halves of opposite sign, side by side or one below the other, of norm 1 in all (sec. 3.4)."""
    (down, across), (i, j) = corner, _pixels(shape, side.device)
    table, turned = _bumps(min(shape[1:]), order, side.device), row.uniform(1, stream) < 0.5
    a, b = (_within(place - first[:, None], side[:, None]) for place, first in ((i, down), (j, across)))
    a, b, turned = a[:, :, None], b[:, None, :], turned[:, :, None]
    return table[side[:, None, None], torch.where(turned, b, a), torch.where(turned, a, b)][:, None]


def shifted(theta: Thetas, shape: Shape, share: Float[Tensor, " rows"], eps: float, order: int, row: Row, stream: int) -> Thetas:
    """The move under l2 and l1 (Alg. 3): what a second window holds, and what the ball has left, goes to a first one and forms a bump.

    The first window's own form is half of the sum. Not yet inside: l2 wants scaling, l1 projecting. Streams stream … stream + 4. Two things
    are not AutoAttack's, and matter on small images alone (on 28 × 28 not within 8,000 queries): windows shrink to one pixel, not to 3 × 3,
    and under l2 such a one gives any part of what it holds, since with all or nothing no dense θ is reached. Of 16 images of 6 × 6 pixels
    and a linear net all fall at 1.05 of the least distance within 3,000 queries; with 3 × 3 windows 7 fall at 1.3 within 5,000.
    """
    channels, delta = shape[0], theta.unflatten(1, shape)
    side = sides(share, shape, odd=True)
    to = corners(side, shape, row, stream)
    here, there = inside(to, side, shape), inside(corners(side, shape, row, stream + 1), side, shape)
    fresh = bump(to, side, shape, order, row, stream + 2) * signs(channels, row, stream + 3)[:, :, None, None]
    fresh = _normal(fresh + _normal(delta * here, order), order)
    part = torch.where((side == 1) & (order == 2), row.uniform(1, stream + 4)[:, 0], 1.0)[:, None, None, None]
    held = torch.where(here, delta, torch.where(there, delta * part ** (1 / order), 0.0))
    left = (eps**order - torch.linalg.vector_norm(theta, order, dim=1) ** order).clamp_min(0) / channels
    mass = (left[:, None, None, None] + _size(held, order) ** order) ** (1 / order)
    if order == 1:  # AutoAttack's: more than there is, so that the projection takes from all windows; else colour images hardly fall
        mass = mass * channels
    return torch.where(here, fresh * mass, torch.where(there, delta * (1 - part) ** (1 / order), delta)).flatten(1)


def _size(image: Float[Tensor, "rows c h w"], order: int) -> Float[Tensor, "rows c 1 1"]:
    """The norm per channel."""
    size: Tensor = torch.linalg.vector_norm(image.flatten(2), order, dim=2)
    return size[:, :, None, None]


def _normal(image: Float[Tensor, "rows c h w"], order: int) -> Float[Tensor, "rows c h w"]:
    """At norm 1 per channel, or 0."""
    return image / _size(image, order).clamp_min(1e-12)


def tiled(shape: Shape, order: int, row: Row, stream: int) -> Float[Tensor, "rows c h w"]:
    """The start: the image paved with bumps a fifth of its shorter side wide, each with its own direction and, per channel, sign.

    As many whole tiles as fit, in the middle; norm 1 per tile and channel. Streams stream and stream + 1.
    """
    channels, height, width = shape
    side = max(min(height, width) // 5, 1)
    table = _bumps(min(height, width), order, row.step.device)[side]
    i, j = _pixels(shape, row.step.device)
    (rank, a), (file, b) = (_paved(place, side, length) for place, length in ((i, height), (j, width)))
    number = (rank[:, None] * (width // side) + file).flatten()  # of the tile; beyond the pavement its bump is 0
    tiles = (height // side) * (width // side)
    number = number.clamp(0, tiles - 1)
    a, b = (place.flatten() for place in torch.broadcast_tensors(a[:, None], b))
    straight, turned = table[a, b], table[b, a]
    sign = signs(tiles * channels, row, stream).view(-1, channels, tiles)[:, :, number]
    across = (row.uniform(tiles, stream + 1) < 0.5)[:, number]
    paved = torch.where(across, turned, straight)[:, None] * sign
    return paved.view(-1, channels, height, width)


def _paved(place: Int[Tensor, " n"], side: int, length: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """(number of the tile, place in it) along one axis; the place past the table's end where no tile lies."""
    count = length // side
    off = place - (length - side * count) // 2
    lies = (off >= 0) & (off < side * count)
    return torch.div(off, side, rounding_mode="floor"), torch.where(lies, off % side, -1)


def _pixels(shape: Shape, device: torch.device) -> tuple[Int[Tensor, " h"], Int[Tensor, " w"]]:
    return torch.arange(shape[1], device=device), torch.arange(shape[2], device=device)


def _within(place: Tensor, side: Tensor) -> Tensor:
    """A place in the window; outside it −1, the table's last, which holds 0."""
    return torch.where((place >= 0) & (place < side), place, -1)


@cache
def _bumps(limit: int, order: int, device: torch.device) -> Float[Tensor, "sides n n"]:
    """The bump of each side up to limit, in the corner of a square of side limit + 1 whose last row and column are 0."""
    table = torch.zeros(limit + 1, limit + 1, limit + 1, dtype=torch.float64)
    for side in range(1, limit + 1):
        half = side // 2
        whole = torch.cat([_half(half, side, order), -_half(side - half, side, order)])
        table[side, :side, :side] = whole / torch.linalg.vector_norm(whole, order)
    return table.float().to(device)


def _half(tall: int, wide: int, order: int) -> Float[Tensor, "tall wide"]:
    """Rectangles around one another, the k-th weighs 1 / (k + 1)² for order 2 and 1 / (k + 1)⁴ for 1, as AutoAttack has it; norm 1."""
    counters = torch.arange(max(tall, wide) // 2 + 1, dtype=torch.float64)
    weight = (counters + 1) ** (-2 if order == 2 else -4)
    reach = weight.flip(0).cumsum(0).flip(0)  # all rectangles from the k-th on
    down, across = ((torch.arange(size) - size // 2).abs() for size in (tall, wide))
    height = reach[torch.maximum(down[:, None], across)]
    size: Tensor = torch.linalg.vector_norm(height, order)
    return height / size.clamp_min(1e-30)
