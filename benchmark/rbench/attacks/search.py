"""The evaluation driver: a batch of fixed width whose dead rows are replaced from one queue. Only this and lockstep loop over steps.

A slot holds one (example, target, restart). A row that fell, that its attack gave up or whose logits are not finite is dead at once, by a
mask on the device; the host reads the flags one poll later without waiting and refills at the start of the attack's next cycle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import tree
from rbench.attacks.evaluate import Model, Passes, look, padded
from rbench.attacks.noise import Row, row_keys
from rbench.attacks.protocol import Attack, Seen, State
from rbench_threats.protocol import Context, PerturbationSet

WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # below 15 rows logits change in their last bits


@dataclass(frozen=True, slots=True)
class Examples:
    """What is attacked: images, labels, indices in the data set and clean logits, (examples,) each on one device."""

    x: Float[Tensor, "examples c h w"]
    label: Int[Tensor, " examples"]
    index: Int[Tensor, " examples"]
    clean: Float[Tensor, "examples classes"]

    def __len__(self) -> int:
        return len(self.label)


@dataclass(slots=True)
class Best:
    """Per example the smallest margin inside the set, where it was found and by which row."""

    margin: Float[Tensor, " examples"]
    theta: Float[Tensor, "examples p"]
    target: Int[Tensor, " examples"]
    restart: Int[Tensor, " examples"]
    fell: Bool[Tensor, " examples"]
    bad: Bool[Tensor, " examples"]  # NaN or infinity in logits or gradient


@dataclass(frozen=True, slots=True)
class Queue:
    """Every row to run, best target of every example first; position points into the examples. numpy, (tasks,) each."""

    position: Int[np.ndarray, " tasks"]
    target: Int[np.ndarray, " tasks"]
    restart: Int[np.ndarray, " tasks"]
    key: Int[np.ndarray, " tasks"]

    @classmethod
    def of(cls, attack: Attack, spec: str, examples: Examples, seed: int) -> Queue:
        """Restart by restart, target rank by target rank, then the examples in their order: falls retire the later ranks."""
        targets = attack.targets(examples.clean, examples.label).cpu().numpy()
        n, k = targets.shape
        restart, rank, position = (
            part.ravel() for part in np.meshgrid(np.arange(attack.restarts), np.arange(k), np.arange(n), indexing="ij")
        )
        target = targets[position, rank]
        return cls(position, target, restart, row_keys(seed, spec, examples.index.cpu().numpy()[position], target, restart))


@dataclass(slots=True)
class Slots:
    """What runs now: who, where each row may go, what its attack remembers and its best so far; (width,) each."""

    row: Row
    position: Int[Tensor, " width"]
    alive: Bool[Tensor, " width"]
    ctx: Context
    state: State
    margin: Float[Tensor, " width"]
    theta: Float[Tensor, "width p"]
    bad: Bool[Tensor, " width"]  # NaN or infinity in logits or gradient
    lived: Int[Tensor, " width"]  # looks while alive
    falls_at: Float[Tensor, " width"]  # margins below this are falls
    taken: Bool[np.ndarray, " width"]  # host: the slot holds a row that is not filed yet


PER_SLOT = ("position", "alive", "ctx", "state", "margin", "theta", "bad", "lived", "falls_at")


def width_for(tasks: int, width: int) -> int:
    """The smallest width of the list that holds all tasks, at most `width`."""
    return min([w for w in WIDTHS if w >= tasks] + [width], default=width) if tasks < width else width


class Search:
    """One attack over one list of examples; `run` returns the best per example. Deterministic per row at equal width."""

    def __init__(
        self,
        model: Model,
        space: PerturbationSet,
        attack: Attack,
        examples: Examples,
        *,
        spec: str,
        seed: int,
        width: int,
        beyond: Float[Tensor, " examples"] | None = None,
        progress: Callable[[int, int], None] | None = None,
        contexts: Context | None = None,
        passes: Passes | None = None,
        checked: bool = False,
    ) -> None:
        """beyond: how far below 0 a margin must fall to count (for claims that the referee refused). width: one of WIDTHS.

        passes: counted on, also when the model raises in the middle. checked: ask `excess` of attacks that stay inside by themselves too.
        """
        self.checked = checked
        self.model, self.space, self.attack, self.examples, self.progress = model, space, attack, examples, progress
        self.queue = Queue.of(attack, spec, examples, seed)
        self.width = width_for(len(self.queue.position), width)
        self.device = examples.label.device
        self.beyond = torch.zeros_like(examples.clean[:, 0]) if beyond is None else beyond
        self.alone = len(self.queue.position) == len(examples)  # one row per example: nothing to retire beside it
        self.contexts = contexts if contexts is not None else self._contexts(spec, seed)
        self.fallen = torch.zeros(len(examples), device=self.device)
        self.passes, self.served, self.filed = passes or Passes(), 0, 0
        self._flags: list[tuple[Tensor, torch.cuda.Event]] = []

    @torch.no_grad()
    def run(self) -> Best:
        """Run every row to its end or its example's fall."""
        slots = self._open()
        self.best = self._nothing(slots)
        while slots.taken.any():
            for phase, kind in enumerate(self.attack.cycle):
                theta = self.attack.ask(slots.state)
                seen = look(self.model, self.space, self.attack, slots.ctx, slots.row, theta, kind, self.passes, self.checked)
                self._note(slots, seen)
                slots.state = self.attack.step(self.space, slots.ctx, slots.row, slots.state, seen, phase)
            slots.row = slots.row._replace(step=slots.row.step + 1)
            slots.alive &= self.attack.goes_on(slots.state, slots.row)
            slots = self._refill(slots)
        return self.best

    def _note(self, slots: Slots, seen: Seen) -> None:
        """Keep the smallest margin inside; a fall or a number that is none ends the row and, for a fall, its example's other rows."""
        slots.lived += slots.alive
        slots.bad |= slots.alive > seen.sound
        sound = seen.sound & slots.alive
        better = sound & (seen.margin < slots.margin)
        if seen.inside is not None:
            better &= seen.inside
        slots.margin = torch.where(better, seen.margin, slots.margin)
        slots.theta.lerp_(self.attack.ask(slots.state), better.to(slots.theta.dtype)[:, None])  # tree.pick, in place
        fell = better & (seen.margin < slots.falls_at)
        slots.alive = sound > fell
        if not self.alone:
            self.fallen.index_add_(0, slots.position, fell.float())
            slots.alive &= self.fallen[slots.position] == 0

    def _contexts(self, spec: str, seed: int) -> Context:
        """Contexts of every (restart, example), computed in padded batches: restart r of example i stands at r · examples + i."""
        count, restarts = len(self.examples), self.attack.restarts
        position = np.tile(np.arange(count), restarts)
        restart = np.repeat(np.arange(restarts), count)
        target = np.full_like(position, -1)
        keys = row_keys(seed, spec, self.examples.index.cpu().numpy()[position], target, restart)
        made = []
        for part in torch.arange(len(position)).split(self.width):
            whole = padded(part, self.width).numpy()
            row = self._row(position[whole], target[whole], restart[whole], keys[whole])
            ctx = self.space.context(self.examples.x[torch.from_numpy(position[whole]).to(self.device)], row)
            made.append(tree.take(ctx, torch.arange(len(part), device=self.device)))
        return tree.joined(made)

    def _row(self, position: np.ndarray, target: np.ndarray, restart: np.ndarray, key: np.ndarray) -> Row:
        where = torch.from_numpy(position).to(self.device)
        target_, restart_, key_ = (torch.from_numpy(np.ascontiguousarray(part)).to(self.device) for part in (target, restart, key))
        return Row(self.examples.index[where], self.examples.label[where], target_, restart_, key_, torch.zeros_like(where))

    def _next(self, count: int) -> np.ndarray:
        """Up to count tasks from the queue, those of fallen examples passed over."""
        down = self.fallen.cpu().numpy() > 0
        chosen: list[int] = []
        while len(chosen) < count and self.served < len(self.queue.position):
            if not down[self.queue.position[self.served]]:
                chosen.append(self.served)
            self.served += 1
        return np.array(chosen, dtype=np.int64)

    def _fresh(self, tasks: np.ndarray, width: int) -> Slots:
        """Slots for tasks, padded to width with copies of the first; alive where a task is."""
        whole = np.concatenate([tasks, np.repeat(tasks[:1], width - len(tasks))])
        position, restart = self.queue.position[whole], self.queue.restart[whole]
        row = self._row(position, self.queue.target[whole], restart, self.queue.key[whole])
        ctx = tree.take(self.contexts, torch.from_numpy(restart * len(self.examples) + position).to(self.device))
        state = self.attack.begin(self.space, ctx, row)
        alive = torch.arange(width, device=self.device) < len(tasks)
        theta = self.attack.ask(state)
        taken = np.arange(width) < len(tasks)
        where = torch.from_numpy(position).to(self.device)
        none = torch.full_like(theta[:, 0], torch.inf)
        bad, lived = torch.zeros_like(alive), torch.zeros_like(where)
        return Slots(row, where, alive, ctx, state, none, theta.clone(), bad, lived, -self.beyond[where], taken)

    def _open(self) -> Slots:
        return self._fresh(self._next(self.width), self.width)

    def _nothing(self, slots: Slots) -> Best:
        count = len(self.examples)
        none = torch.full((count,), -1, dtype=torch.long, device=self.device)
        no = torch.zeros(count, dtype=torch.bool, device=self.device)
        margin = torch.full((count,), torch.inf, device=self.device)
        return Best(margin, slots.theta.new_zeros(count, slots.theta.shape[1]), none, none.clone(), no, no.clone())

    def _polled(self, slots: Slots) -> np.ndarray:
        """Which slots are alive, as the host knows it: now on a CPU, one poll late on a GPU so that nobody waits."""
        if self.device.type != "cuda":
            return slots.alive.numpy()
        copy = torch.empty(slots.alive.shape, dtype=torch.bool, pin_memory=True)
        copy.copy_(slots.alive, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        self._flags.append((copy, event))
        if len(self._flags) < 2:
            return np.ones(len(slots.taken), dtype=bool)
        copy, event = self._flags.pop(0)
        event.synchronize()
        return copy.numpy()

    def _refill(self, slots: Slots) -> Slots:
        """File dead rows and put new ones in their places; with an empty queue and half the slots idle, go on at half the width."""
        alive = self._polled(slots)
        gone = slots.taken & ~alive
        dead, more = np.count_nonzero(gone), self.served < len(self.queue.position)
        if dead == 0 or (more and dead < self.width // 32):
            return slots
        self._file(slots, np.flatnonzero(gone).tolist())
        free = np.flatnonzero(~slots.taken).tolist()
        tasks = self._next(len(free)) if more else np.empty(0, dtype=np.int64)
        if len(tasks):
            self._seat(slots, free[: len(tasks)], tasks)
        self._flags.clear()
        return self._narrowed(slots)

    def _file(self, slots: Slots, dead: list[int]) -> None:
        """Hand the best of finished rows to their examples; the smaller margin stays, row by row in slot order."""
        slots.taken[dead] = False
        rows = torch.tensor(dead, device=self.device)
        position, margin = slots.position[rows], slots.margin[rows]
        for start in _apart(position.tolist()):  # two rows of one example never in one assignment
            some = torch.tensor(start, device=self.device)
            where, found = position[some], margin[some]
            wins = found < self.best.margin[where]
            keep, who = where[wins], rows[some][wins]
            self.best.margin[keep], self.best.theta[keep] = found[wins], slots.theta[who]
            self.best.target[keep], self.best.restart[keep] = slots.row.target[who], slots.row.restart[who]
            self.best.fell[keep] |= found[wins] < -self.beyond[keep]
        self.best.bad[position[slots.bad[rows]]] = True
        self.passes.useful += int(slots.lived[rows].sum())
        self.filed += len(dead)
        if self.alone:
            self.fallen[position[margin < -self.beyond[position]]] = 1
        if self.progress is not None:
            self.progress(self.filed, len(self.queue.position))

    def _seat(self, slots: Slots, places: list[int], tasks: np.ndarray) -> None:
        fresh = self._fresh(tasks, width_for(len(tasks), self.width))
        where = torch.tensor(places, device=self.device)
        slots.row = Row(*(old.index_copy(0, where, new[: len(places)]) for old, new in zip(slots.row, fresh.row, strict=True)))
        for name in PER_SLOT:
            setattr(slots, name, tree.put(getattr(slots, name), where, getattr(fresh, name)))
        slots.taken[places] = True

    def _narrowed(self, slots: Slots) -> Slots:
        """The same rows in a batch of half the width, once they fit."""
        busy = np.flatnonzero(slots.taken).tolist()
        half = len(slots.taken) // 2
        if self.served < len(self.queue.position) or half not in WIDTHS or len(busy) > half or not busy:
            return slots
        rows = padded(torch.tensor(busy, device=self.device), half)
        taken = np.arange(half) < len(busy)
        row = Row(*(part.index_select(0, rows) for part in slots.row))
        parts = {name: tree.take(getattr(slots, name), rows) for name in PER_SLOT}
        parts["alive"] &= torch.from_numpy(taken).to(self.device)
        self._flags.clear()
        return Slots(row, **parts, taken=taken)


def _apart(positions: list[int]) -> list[list[int]]:
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
