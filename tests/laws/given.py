"""Images, θ and rows to try a set on. One batch holds every kind of image beside every kind of θ, so no draw misses one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from rbench.attacks import tree
from rbench.attacks.noise import Row, row_keys
from rbench_threats.protocol import PerturbationSet

ROWS = 24  # 4 kinds of images beside 6 kinds of θ
SCALES = (1e-3, 0.1, 1.0, 30.0, 1e3)

seeds = st.integers(0, 2**31)


@dataclass(frozen=True)
class Given:
    """A set in front of a batch of images."""

    space: PerturbationSet
    x: Tensor
    row: Row
    ctx: Any

    @property
    def parameters(self) -> int:
        return int(self.space.start(self.ctx, self.row).shape[1])

    def take(self, rows: Tensor) -> Given:
        """The same contexts, fewer rows or in another order."""
        return Given(self.space, self.x[rows], Row(*(part[rows] for part in self.row)), tree.take(self.ctx, rows))


def given_images(space: PerturbationSet, x: Tensor, seed: int = 0) -> Given:
    row = rows(len(x), seed)
    return Given(space, x, row, space.context(x, row))


def given_batch(space: PerturbationSet, shape: tuple[int, int, int], seed: int) -> Given:
    """ROWS images of every kind."""
    return given_images(space, images(shape, ROWS, seed), seed)


def rows(count: int, seed: int = 0, spec: str = "laws") -> Row:
    """Rows of examples 0 … count − 1, labels 0, restarts 0 to 4 by turns: sets whose rows search slices show all kinds of them."""
    index, zero = np.arange(count), np.zeros(count, dtype=np.int64)
    key = torch.from_numpy(row_keys(seed, spec, index, zero - 1, zero))
    none = torch.zeros(count, dtype=torch.long)
    return Row(torch.arange(count), none, none - 1, torch.arange(count) % 5, key, none)


def images(shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Uniform · inky (mostly exact 0 and 1, as digits are) · grey (the box is far) · black and white alone; by turns."""
    random = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, *shape, generator=random)
    inky = ((uniform - 0.5) * 4 + 0.2).clamp(0, 1)
    grey = 0.5 + 0.1 * (uniform - 0.5)
    turn = (torch.arange(count) % 4)[:, None, None, None]
    return torch.where(turn == 0, uniform, torch.where(turn == 1, inky, torch.where(turn == 2, grey, uniform.round())))


def thetas(given: Given, seed: int, scale: float = 1.0) -> Tensor:
    """Gaussian · a few large · heavy tails over many magnitudes · all of one size · a gentle slope · one value alone; by turns."""
    random = torch.Generator().manual_seed(seed + 1)
    size = (len(given.x), given.parameters)
    normal, other = torch.randn(*size, generator=random), torch.randn(*size, generator=random)
    few = torch.where(other > 1.5, 10 * normal, 0.01 * normal)
    heavy = normal.sign() * (2 * other).exp()
    level = normal.sign()
    slope = normal.sign() * torch.linspace(0.01, 1, size[1])
    lone = torch.where(torch.arange(size[1]) == (seed % size[1]), normal, 0.0)
    turn = (torch.arange(size[0]) // 4 % 6)[:, None]
    found = normal
    for kind, theta in enumerate((few, heavy, level, slope, lone), start=1):
        found = torch.where(turn == kind, theta, found)
    return scale * found


def members(given: Given, seed: int) -> Tensor:
    """θ inside, on the surface and in between, as the set itself makes them: starts, projections, and these pulled towards 0."""
    drawn = given.space.project(given.ctx, thetas(given, seed, (0.05, 1.0, 30.0)[seed % 3]))
    pulled = drawn * torch.rand(len(drawn), 1, generator=torch.Generator().manual_seed(seed))
    start = given.space.start(given.ctx, given.row)
    turn = (torch.arange(len(drawn)) % 3)[:, None]
    return torch.where(turn == 0, drawn, torch.where(turn == 1, pulled, start))
