"""What runs now: a batch of slots, one (example, target, restart) each, that is filled, emptied and narrowed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import tree
from rbench.attacks.evaluate import padded
from rbench.attacks.noise import Row
from rbench.attacks.protocol import State
from rbench.attacks.widths import width_for
from rbench_threats.protocol import Context


@dataclass(slots=True)
class Slots:
    """Who runs, where each row may go, what its attack remembers and its best so far; (width,) each."""

    row: Row
    position: Int[Tensor, " width"]
    alive: Bool[Tensor, " width"]
    ctx: Context
    state: State
    margin: Float[Tensor, " width"]
    gauge: Float[Tensor, " width"]  # of the best, in minimum-norm mode alone
    theta: Float[Tensor, "width p"]
    bad: Bool[Tensor, " width"]  # NaN or infinity in logits or gradient
    lived: Int[Tensor, " width"]  # looks while alive
    falls_at: Float[Tensor, " width"]  # margins below this are falls
    taken: Bool[np.ndarray, " width"]  # host: the slot holds a row that is not filed yet

    def seat(self, places: list[int], fresh: Slots) -> None:
        """Put the first rows of fresh into some places."""
        where = torch.tensor(places, device=self.alive.device)
        self.row = Row(*(old.index_copy(0, where, new[: len(places)]) for old, new in zip(self.row, fresh.row, strict=True)))
        for name in PER_SLOT:
            setattr(self, name, tree.put(getattr(self, name), where, getattr(fresh, name)))
        self.taken[places] = True

    def narrowed(self) -> Slots:
        """The same rows in the narrowest batch that holds them."""
        busy = np.flatnonzero(self.taken).tolist()
        width = width_for(len(busy), len(self.taken))
        if width == len(self.taken) or not busy:
            return self
        rows = padded(torch.tensor(busy, device=self.alive.device), width)
        taken = np.arange(width) < len(busy)
        row = Row(*(part.index_select(0, rows) for part in self.row))
        parts = {name: tree.take(getattr(self, name), rows) for name in PER_SLOT}
        parts["alive"] &= torch.from_numpy(taken).to(self.alive.device)
        return Slots(row, **parts, taken=taken)


PER_SLOT = ("position", "alive", "ctx", "state", "margin", "gauge", "theta", "bad", "lived", "falls_at")


def apart(positions: list[int]) -> list[list[int]]:
    """The places of a list in groups without a repeated value, earlier places first."""
    groups: list[list[int]] = []
    seen: dict[int, int] = {}
    for place, value in enumerate(positions):
        depth = seen.get(value, 0)
        seen[value] = depth + 1
        if depth == len(groups):
            groups.append([])
        groups[depth].append(place)
    return groups
