"""Windows, tiles and bumps: the geometry of Square's moves (Andriushchenko et al. 2020, sec. 3), each row with its own, any image shape."""

from __future__ import annotations

from functools import cache, reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench_threats.protocol import Row

PerRow = Int[Tensor, " rows"]
Thetas = Float[Tensor, "rows p"]
Bump = Float[Tensor, "rows 1 n n"]
Shape = tuple[int, int, int]  # channels, height, width


def sides(share: Float[Tensor, " rows"], shape: Shape, odd: bool = False) -> PerRow:
    """The side, in pixels, of a square window that covers a share of the image: at least 1, at most the image's shorter side."""
    side = (share * (shape[1] * shape[2])).sqrt().round().long().clamp_min(1)
    return (side | 1 if odd else side).clamp_max(min(shape[1:]))


def corners(side: PerRow, shape: Shape, drawn: Float[Tensor, "rows 2"]) -> tuple[PerRow, PerRow]:
    """The first pixel down and across of a window, uniform over every place where it fits, the last one too, if drawn is from (0, 1)."""
    down, across = ((drawn[:, axis] * (shape[1 + axis] - side + 1)).long() for axis in (0, 1))  # no product rounds up: drawn ≤ 1 − 2⁻²⁴
    return down, across


def offsets(side: PerRow, shape: Shape) -> Int[Tensor, "rows n"]:
    """0 … side − 1 per row, the last one again and again until all rows have as many: as the largest window needs, which a CPU knows.

    Elsewhere as many as any window could need, so that nobody waits.
    """
    most = min(shape[1:]) if side.is_cuda else int(side.max())
    return torch.arange(most, device=side.device).minimum(side[:, None] - 1)


def window(corner: tuple[PerRow, PerRow], off: Int[Tensor, "rows n"], shape: Shape) -> Int[Tensor, "rows m"]:
    """The places in θ that a window covers, channel after channel, m = channels · n²; some come again where `offsets` do."""
    channels, height, width = shape
    pixels = ((corner[0][:, None] + off) * width)[:, :, None] + (corner[1][:, None] + off)[:, None, :]
    if channels == 1:
        return pixels.flatten(1)
    first = torch.arange(0, channels * height * width, height * width, device=off.device)
    return (first[:, None, None] + pixels[:, None]).flatten(1)


def signs(drawn: Float[Tensor, "rows count"]) -> Float[Tensor, "rows count"]:
    """−1 or 1, either as often, if drawn is from (0, 1)."""
    return torch.where(drawn < 0.5, -1.0, 1.0)


def bump(off: Int[Tensor, "rows n"], side: PerRow, shape: Shape, order: int, drawn: Float[Tensor, "rows 1"]) -> Bump:
    """A window's bump: two halves of opposite sign, side by side or one below the other, of norm 1 in all (sec. 3.4)."""
    table = _bumps(min(shape[1:]), order, side.device)
    size = table.shape[1]
    across = torch.where(drawn < 0.5, size, 1)
    place = (off * (size + 1 - across))[:, :, None] + (off * across + side[:, None] * size**2)[:, None, :]
    return table.take(place)[:, None]


def shifted(theta: Thetas, shape: Shape, share: Float[Tensor, " rows"], eps: float, order: int, row: Row, stream: int) -> Thetas:
    """The move under l2 and l1 (Alg. 3): what a second window holds, and what the ball has left, goes to a first one and forms a bump.

    The first window's own form is half of the sum. Not yet inside: l2 wants scaling, l1 projecting. Streams stream … stream + 4. Two things
    are not AutoAttack's, and matter on small images alone (on 28 × 28 not within 8,000 queries): windows shrink to one pixel, not to 3 × 3,
    and under l2 such a one gives any part of what it holds, since with all or nothing no dense θ is reached. Of 16 images of 6 × 6 pixels
    and a linear net all fall at 1.05 of the least distance within 3,000 queries; with 3 × 3 windows 7 fall at 1.3 within 5,000.
    """
    channels, root = shape[0], 1 / order
    side, drawn = sides(share, shape, odd=True), row.uniforms((2, 2, 1, channels, 1), stream)
    off = offsets(side, shape)
    to, origin = (corners(side, shape, place) for place in drawn[:2])
    here, there = (window(corner, off, shape) for corner in (to, origin))
    mine, others = (theta.gather(1, places).view(-1, channels, off.shape[1], off.shape[1]) for places in (here, there))
    once = _product(*(torch.arange(off.shape[1], device=off.device) < side[:, None],) * 2)
    apart = once * (1 - _product(*(_within(corner[:, None] + off, first, side) for corner, first in zip(origin, to, strict=True))))
    held = _total(_power(mine, order) * once)
    sign = signs(drawn[3])[:, :, None, None]
    fresh = bump(off, side, shape, order, drawn[2]) * sign + mine / (held**root).clamp_min(1e-12)
    size = _total(_power(fresh, order) * once) ** root
    part = torch.where((side == 1)[:, None], drawn[4], 1.0)[:, :, None, None] if order == 2 else 1.0
    left = (eps**order - torch.linalg.vector_norm(theta, order, dim=1) ** order).clamp_min(0) / channels
    mass = (left[:, None, None, None] + held + part * _total(_power(others, order) * apart)) ** root
    if order == 1:  # AutoAttack's: more than there is, so that the projection takes from all windows; else colour images hardly fall
        mass = mass * channels
    given = theta.scatter(1, there, (others * (1 - part) ** root).flatten(1))
    return given.scatter_(1, here, (fresh * (mass / size.clamp_min(1e-12))).flatten(1))


def _product(down: Bool[Tensor, "rows n"], across: Bool[Tensor, "rows n"]) -> Float[Tensor, "rows 1 n n"]:
    """1 where both are, else 0. Masks of bool are avoided: torch.where takes ten times as long as a product."""
    return down.float()[:, None, :, None] * across.float()[:, None, None, :]


def _within(place: Int[Tensor, "rows n"], first: PerRow, side: PerRow) -> Bool[Tensor, "rows n"]:
    """Which places along one axis a window covers."""
    return (place >= first[:, None]) & (place < (first + side)[:, None])


def _power(image: Float[Tensor, "rows c n n"], order: int) -> Float[Tensor, "rows c n n"]:
    return image.square() if order == 2 else image.abs()


def _total(image: Float[Tensor, "rows c n n"]) -> Float[Tensor, "rows c 1 1"]:
    """The sum per channel, one after another on a CPU: there n depends on the neighbours, and zeros must not regroup the sum."""
    if image.is_cuda:
        return image.sum((2, 3), keepdim=True)
    for axis in (3, 2):
        image = reduce(torch.add, image.unbind(axis))
    return image[:, :, None, None]


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
    sign = signs(row.uniform(tiles * channels, stream)).view(-1, channels, tiles)[:, :, number]
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
