"""The last few rows of a random search, several steps at a time: the same looks as one by one, in batches that are not mostly padding.

A random search keeps what it has until a candidate is better, and its noise depends on the step alone. So the candidates of the next steps
are known as long as none is better, and one batch may look at them together. What comes after the first that is better is thrown away,
falls included: how many rows are left must not decide who falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rbench.attacks import tree
from rbench.attacks.evaluate import look, padded
from rbench.attacks.noise import Row
from rbench.attacks.protocol import Seen
from rbench.attacks.slots import Slots
from rbench.attacks.widths import width_for
from rbench_threats.protocol import Context

if TYPE_CHECKING:
    from rbench.attacks.search import Search

SLOTS = 32  # in all; at 16 a call costs nearly as much
FEW = SLOTS // 2  # rows from which it pays


@dataclass(frozen=True, slots=True)
class Spread:
    """Each of some rows several times: copy j looks at the step j ahead. The batch is padded with copies of its first slot."""

    busy: Int[Tensor, " rows"]  # their slots
    copies: int
    rows: Int[Tensor, " wide"]  # the slot of every copy
    offset: Int[Tensor, " wide"]
    ctx: Context

    @classmethod
    def of(cls, slots: Slots) -> Spread:
        """The rows that still run."""
        busy = torch.from_numpy(np.flatnonzero(slots.taken & slots.alive.numpy()))
        copies = SLOTS // len(busy)
        count = len(busy) * copies
        rows = padded(busy.repeat_interleave(copies), width_for(count, SLOTS))
        offset = padded(torch.arange(count) % copies, len(rows))
        return cls(busy, copies, rows, offset, tree.take(slots.ctx, rows))

    def split(self, each: Tensor) -> Tensor:
        """(rows, copies) of a tensor with one number per copy."""
        return each[: len(self.busy) * self.copies].view(-1, self.copies)


def applies(search: Search, slots: Slots) -> bool:
    """Whether the queue is empty, few rows are left and the attack is such a search; on a CPU alone, since the host decides."""
    if search.device.type != "cpu":
        return False
    running = int(np.count_nonzero(slots.taken & slots.alive.numpy()))
    return 0 < running <= FEW and search.served == len(search.queue.position) and not search.nearest and hasattr(search.attack, "takes")


def run_ahead(search: Search, slots: Slots) -> None:
    """Round after round until one of the rows ends."""
    spread = Spread.of(slots)
    while bool(slots.alive[spread.busy].all()):
        _round(search, slots, spread)


def _round(search: Search, slots: Slots, spread: Spread) -> None:
    attack: Any = search.attack
    row = Row(*(part.index_select(0, spread.rows) for part in slots.row))
    now, held = row._replace(step=row.step + spread.offset), tree.take(slots.state, spread.rows)
    states = _states(search, spread, row, held)
    theta = attack.ask(states)
    seen = look(search.model, search.space, attack, spread.ctx, now, theta, "logits", search.passes, search.checked)
    falls_at = slots.falls_at.index_select(0, spread.rows)
    on = attack.goes_on(states, now._replace(step=now.step + 1))
    ends = attack.takes(held, seen) | ~seen.sound | (seen.margin < falls_at) | ~on
    first = _first(spread.split(ends))
    chosen = torch.arange(len(spread.busy)) * spread.copies + first
    _note(search, slots, spread, seen, theta, first)
    search.passes.lap()
    after = Seen(*(None if part is None else part.index_select(0, chosen) for part in seen))  # type: ignore[arg-type]  # as seen
    there = Row(*(part.index_select(0, chosen) for part in now))
    state = attack.step(search.space, tree.take(spread.ctx, chosen), there, tree.take(states, chosen), after, 0)
    search.passes.lap("step")
    slots.state = tree.put(slots.state, spread.busy, state)
    slots.row = slots.row._replace(step=slots.row.step.index_copy(0, spread.busy, there.step + 1))
    slots.alive[spread.busy] &= on.index_select(0, chosen)


def _states(search: Search, spread: Spread, row: Row, held: Any) -> Any:
    """The state in which each copy asks: the row's own, or what it becomes if the candidate before is no better."""
    search.passes.lap()
    none = torch.full_like(row.step, -torch.inf, dtype=torch.float32)
    nothing = Seen(none[:, None], -none, none, None, None, none < 0)  # a look that takes nothing
    before = row._replace(step=row.step + spread.offset - 1)
    moved = search.attack.step(search.space, spread.ctx, before, held, nothing, 0)
    own = spread.offset == 0
    states = tree.mapped(lambda kept, new: torch.where(own.view(-1, *[1] * (new.ndim - 1)), kept, new), held, moved)
    search.passes.lap("step")
    return states


def _first(ends: Bool[Tensor, "rows copies"]) -> Int[Tensor, " rows"]:
    """The first True of each row, the last copy where there is none."""
    return torch.where(ends.any(1), ends.int().argmax(1), ends.shape[1] - 1)


def _note(search: Search, slots: Slots, spread: Spread, seen: Seen, theta: Tensor, first: Int[Tensor, " rows"]) -> None:
    """What the engine keeps of the looks up to the first that ends a round, as if they had come one by one."""
    busy, looks = spread.busy, torch.arange(spread.copies)
    valid = looks <= first[:, None]
    good = valid & spread.split(seen.sound)
    if seen.inside is not None:
        good &= spread.split(seen.inside)
    margin = torch.where(good, spread.split(seen.margin), torch.inf)
    least = margin.amin(1)
    where = torch.arange(len(busy)) * spread.copies + _first(margin == least[:, None])
    better = least < slots.margin[busy]
    slots.theta[busy[better]] = theta[where[better]]
    slots.margin[busy] = torch.where(better, least, slots.margin[busy])
    slots.lived[busy] += first + 1
    sound = spread.split(seen.sound).gather(1, first[:, None])[:, 0]
    fell = better & (least < slots.falls_at[busy])
    slots.bad[busy] |= ~sound
    slots.alive[busy] &= sound & ~fell
    if not search.alone:
        search.fallen.index_add_(0, slots.position[busy], fell.float())
        slots.alive &= search.fallen[slots.position] == 0
