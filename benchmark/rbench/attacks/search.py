"""The evaluation driver: a batch of fixed width whose dead rows are replaced from one queue. Only this and lockstep loop over steps.

A slot holds one (example, target, restart). A row that fell, that its attack gave up or whose logits are not finite is dead at once, by a
mask on the device; the host reads the flags one poll later without waiting and refills at the start of the attack's next cycle. Once the
queue is empty the batch narrows with the rows that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks import tree
from rbench.attacks.ahead import applies, run_ahead
from rbench.attacks.evaluate import Model, Passes, look, padded
from rbench.attacks.losses import by_logit
from rbench.attacks.noise import Row, row_keys
from rbench.attacks.protocol import Attack, Seen
from rbench.attacks.slots import Slots, apart
from rbench.attacks.widths import WIDER, at_most, first_width, width_for
from rbench_threats.protocol import PIXEL_TOLERANCE, Context, PerturbationSet


@dataclass(frozen=True, slots=True)
class Examples:
    """What is attacked: images, labels, indices in the data set and clean logits, (examples,) each on one device."""

    x: Float[Tensor, "examples c h w"]
    label: Int[Tensor, " examples"]
    index: Int[Tensor, " examples"]
    clean: Float[Tensor, "examples classes"]
    order: Int[Tensor, "examples others"] | None = None  # the classes but the label, nearest first, where somebody found out

    @property
    def rivals(self) -> Int[Tensor, "examples others"]:
        """The classes that a targeted attack aims at, nearest first; by clean logit where no order is known."""
        return by_logit(self.clean, self.label) if self.order is None else self.order

    def __len__(self) -> int:
        return len(self.label)


@dataclass(slots=True)
class Best:
    """Per example the smallest margin inside the set, where it was found and by which row.

    In minimum-norm mode that of the adversarial point of smallest gauge instead, inside the set or not; inf where none was seen.
    """

    margin: Float[Tensor, " examples"]
    gauge: Float[Tensor, " examples"]  # in minimum-norm mode; else inf
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
        targets = attack.targets(examples.rivals).cpu().numpy()
        n, k = targets.shape
        restart, rank, position = (
            part.ravel() for part in np.meshgrid(np.arange(attack.restarts), np.arange(k), np.arange(n), indexing="ij")
        )
        target = targets[position, rank]
        return cls(position, target, restart, row_keys(seed, spec, examples.index.cpu().numpy()[position], target, restart))


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
        nearest: bool = False,
    ) -> None:
        """beyond: how far below 0 a margin must fall to count (for claims that the referee refused). width: one of WIDTHS.

        passes: counted on, also when the model raises in the middle. checked: ask `excess` of attacks that stay inside by themselves too.
        nearest: minimum-norm mode, in which rows run to their end, a fall retires nothing, and the smallest gauge is kept. An attack
        without a gradient runs in batches three times as wide.
        """
        self.checked, self.nearest = checked and not nearest, nearest
        self.model, self.space, self.attack, self.examples, self.progress = model, space, attack, examples, progress
        self.queue = Queue.of(attack, spec, examples, seed)
        self.width = first_width(len(self.queue.position), width if "gradient" in attack.cycle else at_most(WIDER * width))
        self.device = examples.label.device
        self.beyond = torch.zeros_like(examples.clean[:, 0]) if beyond is None else beyond
        self.alone = nearest or len(self.queue.position) == len(examples)  # one row per example: nothing to retire beside it
        self.passes, self.served, self.filed, self.waste = passes or Passes(), 0, 0, 0
        self.passes.timed = self.device.type == "cpu"
        self.contexts = contexts if contexts is not None else self._contexts(spec, seed)
        self.fallen = torch.zeros(len(examples), device=self.device)
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
                self._note(slots, seen, theta)
                self.passes.lap()
                slots.state = self.attack.step(self.space, slots.ctx, slots.row, slots.state, seen, phase)
                self.passes.lap("step")
            slots.row = slots.row._replace(step=slots.row.step + 1)
            slots.alive &= self.attack.goes_on(slots.state, slots.row)
            slots = self._refill(slots)
            while applies(self, slots):
                run_ahead(self, slots)
                slots = self._refill(slots)
        return self.best

    def _note(self, slots: Slots, seen: Seen, theta: Float[Tensor, "width p"]) -> None:
        """Keep what is better; a fall or a number that is none ends the row and, for a fall, its example's other rows."""
        slots.lived += slots.alive
        slots.bad |= slots.alive > seen.sound
        sound = seen.sound & slots.alive
        better = self._nearer(slots, seen, theta) if self.nearest else seen.margin < slots.margin
        better &= sound
        if seen.inside is not None and not self.nearest:
            better &= seen.inside
        slots.margin = torch.where(better, seen.margin, slots.margin)
        _keep(slots.theta, theta, better)
        if self.nearest:
            slots.alive = sound
            return
        fell = better & (seen.margin < slots.falls_at)
        slots.alive = sound > fell
        if not self.alone:
            self.fallen.index_add_(0, slots.position, fell.float())
            slots.alive &= self.fallen[slots.position] == 0

    def _nearer(self, slots: Slots, seen: Seen, theta: Float[Tensor, "width p"]) -> Bool[Tensor, " width"]:
        """Minimum-norm mode: which rows stand at a fall inside the image range, nearer than their nearest so far."""
        images = self.space.render(slots.ctx, theta).flatten(1)
        shown = (images.amin(1) >= -PIXEL_TOLERANCE) & (images.amax(1) <= 1 + PIXEL_TOLERANCE)
        gauge = self.space.gauge(slots.ctx, theta)
        better = shown & seen.sound & slots.alive & (seen.margin < slots.falls_at) & (gauge < slots.gauge)
        slots.gauge = torch.where(better, gauge, slots.gauge)
        return better

    def _contexts(self, spec: str, seed: int) -> Context:
        """Contexts of every (restart, example), computed in padded batches: restart r of example i stands at r · examples + i."""
        count, restarts = len(self.examples), self.attack.restarts
        position = np.tile(np.arange(count), restarts)
        restart = np.repeat(np.arange(restarts), count)
        target = np.full_like(position, -1)
        keys = row_keys(seed, spec, self.examples.index.cpu().numpy()[position], target, restart)
        made = []
        self.passes.lap()
        for part in torch.arange(len(position)).split(self.width):
            whole = padded(part, self.width).numpy()
            row = self._row(position[whole], target[whole], restart[whole], keys[whole])
            ctx = self.space.context(self.examples.x[torch.from_numpy(position[whole]).to(self.device)], row)
            made.append(tree.take(ctx, torch.arange(len(part), device=self.device)))
        self.passes.lap("step")
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
        self.passes.lap()
        state = self.attack.begin(self.space, ctx, row)
        self.passes.lap("step")
        alive = torch.arange(width, device=self.device) < len(tasks)
        theta = self.attack.ask(state)
        taken = np.arange(width) < len(tasks)
        where = torch.from_numpy(position).to(self.device)
        none = torch.full_like(theta[:, 0], torch.inf)
        bad, lived = torch.zeros_like(alive), torch.zeros_like(where)
        return Slots(row, where, alive, ctx, state, none, none.clone(), theta.clone(), bad, lived, -self.beyond[where], taken)

    def _open(self) -> Slots:
        return self._fresh(self._next(self.width), self.width)

    def _nothing(self, slots: Slots) -> Best:
        count = len(self.examples)
        none = torch.full((count,), -1, dtype=torch.long, device=self.device)
        no = torch.zeros(count, dtype=torch.bool, device=self.device)
        margin = torch.full((count,), torch.inf, device=self.device)
        return Best(margin, margin.clone(), slots.theta.new_zeros(count, slots.theta.shape[1]), none, none.clone(), no, no.clone())

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
        """File dead rows and put new ones in their places, or narrow the batch, once their waiting has cost half a step."""
        alive = self._polled(slots)
        gone = slots.taken & ~alive
        dead = int(np.count_nonzero(gone))
        self.waste += dead
        if dead == 0 or (2 * self.waste < len(gone) and dead < np.count_nonzero(slots.taken)):
            return slots
        self.waste = 0
        self._file(slots, np.flatnonzero(gone).tolist())
        free = np.flatnonzero(~slots.taken).tolist()
        tasks = self._next(len(free))
        if len(tasks):
            slots.seat(free[: len(tasks)], self._fresh(tasks, width_for(len(tasks), self.width)))
        self._flags.clear()
        return slots.narrowed() if self.served == len(self.queue.position) else slots

    def _file(self, slots: Slots, dead: list[int]) -> None:
        """Hand the best of finished rows to their examples; the smaller margin stays, row by row in slot order."""
        slots.taken[dead] = False
        rows = torch.tensor(dead, device=self.device)
        position, margin = slots.position[rows], slots.margin[rows]
        for start in apart(position.tolist()):  # two rows of one example never in one assignment
            some = torch.tensor(start, device=self.device)
            who, where = rows[some], position[some]
            wins = slots.gauge[who] < self.best.gauge[where] if self.nearest else margin[some] < self.best.margin[where]
            keep, who = where[wins], who[wins]
            self.best.margin[keep], self.best.gauge[keep], self.best.theta[keep] = slots.margin[who], slots.gauge[who], slots.theta[who]
            self.best.target[keep], self.best.restart[keep] = slots.row.target[who], slots.row.restart[who]
            self.best.fell[keep] |= self._fell(slots, who)
        self.best.bad[position[slots.bad[rows]]] = True
        self.passes.useful += int(slots.lived[rows].sum())
        self.filed += len(dead)
        if self.alone and not self.nearest:
            self.fallen[position[margin < -self.beyond[position]]] = 1
        if self.progress is not None:
            self.progress(self.filed, len(self.queue.position))

    def _fell(self, slots: Slots, who: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
        """Whether the best of some rows is a fall inside the set."""
        fell = slots.margin[who] < slots.falls_at[who]
        return fell & (self.space.excess(tree.take(slots.ctx, who), slots.theta[who]) <= 0) if self.nearest and len(who) else fell


def _keep(best: Float[Tensor, "width p"], theta: Float[Tensor, "width p"], better: Bool[Tensor, " width"]) -> None:
    """Write the better rows of theta into best: on a CPU those alone, on other devices as one operation that nobody waits for."""
    if better.device.type == "cpu":
        rows = better.nonzero().squeeze(1)
        if len(rows):
            best.index_copy_(0, rows, theta.index_select(0, rows))
    else:
        best.lerp_(theta, better.to(best.dtype)[:, None])  # tree.pick, in place
