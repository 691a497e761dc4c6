"""Accuracy over eps: for every example the smallest of twenty radii at which it is known to fall, within a budget of passes.

It starts from the witnesses of the run, draws them in, looks for nearer ones with a minimum-norm attack, and then lets attacks of growing
cost try every example just below its smallest radius, until the budget is spent. What counts as a fall at a radius is what the referee
accepts in the set of that radius: the curve is an upper bound at each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rbench.attacks.catalogue import Stage, resolve_plan
from rbench.attacks.evaluate import Crash, OutOfMemory, Passes, clean_logits
from rbench.attacks.ladder import AtLevels, Ladder
from rbench.attacks.protocol import Attack
from rbench.attacks.referee import WIDTH, judge
from rbench.attacks.rivals import nearest_first
from rbench.attacks.search import Examples, Search
from rbench.attacks.stage import part_of, plain_context, run_stage
from rbench.attacks.widths import first_width, width_for
from rbench_core.errors import ModelError, NoAttack
from rbench_threats.protocol import PerturbationSet

PART = 500  # examples that are searched together: what memory holds
RANKED = 12  # passes per example that the order of the classes costs at most, of the ten that are ranked

Thetas = Float[Tensor, "examples p"]
Rows = Int[Tensor, " rows"]
Levels = Int[Tensor, " examples"]


@dataclass(frozen=True, slots=True)
class Round:
    """One attack over the open examples: `nearest`, in minimum-norm mode, or again and again at the level below what is known.

    share: skipped where it might cost more of the whole budget than this. It is worth most on a net that masks its gradients.
    """

    spec: str
    nearest: bool = False
    unless: tuple[str, ...] = ()
    share: float = 1.0


ROUNDS = (
    Round("fab(steps=10, top=1)", nearest=True),
    Round("fab(steps=60, top=3)", nearest=True, share=0.5),
    Round("apgd(loss=ce, steps=20)", unless=("sparse",)),
    Round("apgd-sparse(loss=ce, steps=20)"),
    Round("topk(steps=20)"),
    Round("apgd-shrinking(loss=margin, steps=40, restarts=2)", unless=("sparse",)),
    Round("apgd-sparse(loss=ce, steps=40, outer=3, restarts=2)"),
    Round("sigma-zero(steps=60)"),
    Round("apgd(loss=dlr-targeted, steps=20, top=3)", unless=("sparse",)),
    Round("apgd-sparse(loss=dlr-targeted, steps=40, outer=3, top=3)"),
    Round("topk(steps=100, restarts=3)"),
)


@dataclass(slots=True)
class Known:
    """Per example the closest adversarial point: its level (as many as there are levels: none), gauge, θ and attack.

    floor: the level below which nobody need look, since an attack or a proof left it standing there; −1: none.
    proved: whether it was a proof.
    """

    level: Levels
    gauge: Float[Tensor, " examples"]
    theta: Thetas
    attack: list[str | None]
    floor: Levels
    proved: Bool[Tensor, " examples"]

    def put(self, rows: Rows, level: Rows, gauge: Float[Tensor, " rows"], theta: Float[Tensor, "rows p"], attack: str | None) -> None:
        """What was found of some examples, in place of what was known. attack None: by the same attack as before."""
        self.level[rows], self.gauge[rows], self.theta[rows] = level, gauge, theta
        self.floor[rows] = torch.where(self.floor[rows] < level, self.floor[rows], -1)
        for row in rows.tolist() if attack is not None else []:
            self.attack[row] = attack


@dataclass(slots=True)
class Drawing:
    """The search for one member's curve. limit: passes, forward and backward, that it may cost; `passes`: those that it did cost."""

    model: nn.Module
    ladder: Ladder
    examples: Examples
    known: Known
    seed: int
    width: int
    limit: int
    gradient: bool = True  # False: the model gives none of use, so that no round can run
    report: Callable[[str, int, int], None] = lambda said, done, total: None
    passes: Passes = field(default_factory=Passes)
    searched: bool = True  # False: examples were open, and no round had room
    contradicted: set[int] = field(default_factory=set)  # proved examples with a fall inside the proof's radius, by place

    def run(self) -> None:
        """Every round that the budget has room for, in order."""
        self._guarded(self._shrink, torch.arange(len(self.examples)))
        chosen = rounds(self.ladder) if self.gradient else []
        self.searched = not len(self._open())
        for place, (each, stage) in enumerate(chosen):
            rows = self._open()
            price = self._price(stage, len(rows))
            if not len(rows) or not self._affords(price) or price > each.share * self.limit:
                continue
            self.searched = True
            if stage.aims:
                self._rank()
            self._guarded(self._nearest if each.nearest else self._below, rows, stage)
            self.report(f"{self.ladder.space} · accuracy over eps", place + 1, len(chosen))

    def _guarded(self, work: Callable[..., None], rows: Rows, *rest: Stage) -> None:
        """Part by part; a part on which the model fails is left as it was: what is known of it holds."""
        for part in rows.split(PART):
            try:
                work(part, *rest)
            except (Crash, OutOfMemory, ModelError):
                continue

    def _open(self) -> Rows:
        """Examples with a level between their floor and what is known."""
        return (self.known.level - self.known.floor > 1).nonzero().squeeze(1)

    def _affords(self, price: int) -> bool:
        return self.passes.forward + self.passes.backward + price <= self.limit

    def _price(self, stage: Stage, examples: int) -> int:
        """The most that a stage can cost: every row to its end, padding, referee."""
        attack = _own(stage)
        targets = attack.targets(self.examples.rivals[:1]).shape[1]
        rows, steps = examples * targets * attack.restarts, int(attack.steps)  # type: ignore[attr-defined]  # all of ROUNDS have them
        each = sum({"gradient": 2, "logits": 1}[phase] for phase in attack.cycle)
        ranking = RANKED * padded_rows(len(self.examples), self.width) if stage.aims and self.examples.order is None else 0
        return (steps + 1) * each * padded_rows(rows, self.width) + 2 * _refereed(examples) + ranking

    def _rank(self) -> None:
        """The classes, nearest first; only now, since a search with little to spend aims at none."""
        if self.examples.order is None:
            told, _ = clean_logits(self.model, self.examples.x, self.width, self.passes)
            clean = [old if new is None else new.to(old) for old, new in zip(self.examples.clean, told, strict=True)]
            self.examples = replace(self.examples, clean=torch.stack(clean).nan_to_num())
            order = nearest_first(self.model, self.ladder.space, self.examples, self.width, self.passes)
            self.examples = replace(self.examples, order=order)

    def _shrink(self, rows: Rows) -> None:
        """Bisection over levels along the projections of what is known onto smaller balls: one forward pass per example and halving."""
        low, known = self.known.floor[rows].clone(), self.known.level
        while len(rows) and self._affords(_refereed(len(rows))):
            middle = (low + known[rows]) // 2
            more = (known[rows] - low > 1) & (known[rows] < len(self.ladder)) & (self.known.theta[rows] != 0).any(1)
            rows, low, middle = rows[more], low[more], middle[more]
            if not len(rows):
                return
            space, part = self._at(rows, middle)
            theta = space.project(plain_context(space, part, self.seed), self.known.theta[rows])
            low = torch.where(self._judged(rows, middle, theta, None), low, middle)

    def _nearest(self, rows: Rows, stage: Stage) -> None:
        """The minimum-norm attack once per example, then its points drawn in."""
        part = part_of(self.examples, rows.tolist())
        search = Search(
            self.model, self.ladder.space, _own(stage), part, spec=stage.spec, seed=self.seed, width=self.width, passes=self.passes,
            nearest=True,
        )  # fmt: skip
        best = search.run()
        contexts = [plain_context(space, part, self.seed) for space in self.ladder.sets]
        level = self.ladder.level(contexts, best.theta)
        level = torch.where(best.gauge.isfinite(), level, len(self.ladder))
        nearer = (level < self.known.level[rows]).nonzero().squeeze(1)
        if len(nearer):
            fell = self._judged(rows[nearer], level[nearer], best.theta[nearer], stage.label)
            self._shrink(rows[nearer][fell])

    def _below(self, rows: Rows, stage: Stage) -> None:
        """The attack at the level below what is known; who falls there is drawn in and tried again."""
        while len(rows) and self._affords(self._price(stage, len(rows))):
            level = self.known.level[rows] - 1
            space, part = self._at(rows, level)
            found = run_stage(self.model, space, stage, part, seed=self.seed, width=self.width, closest={})
            self.passes.add(found.passes)
            fell = torch.tensor(sorted(found.witnesses), dtype=torch.long, device=rows.device)
            for place in fell.tolist():
                witness, one = found.witnesses[place], rows[place : place + 1]
                theta = witness.theta.to(self.known.theta)[None]
                self._take(one, level[place : place + 1], torch.tensor([witness.gauge], device=rows.device), theta, stage.label)
            self._shrink(rows[fell])
            rows = rows[fell]
            rows = rows[self.known.level[rows] - self.known.floor[rows] > 1]

    def _at(self, rows: Rows, level: Rows) -> tuple[PerturbationSet, Examples]:
        """The set with every example at its level, and these examples."""
        part, known = part_of(self.examples, rows.tolist()), self.known.level[rows] < len(self.ladder)
        space: Any = AtLevels(self.ladder, part, level, self.known.theta[rows], known)  # a set in all that searches ask
        return space, part

    def _judged(self, rows: Rows, level: Rows, theta: Float[Tensor, "rows p"], attack: str | None) -> Bool[Tensor, " rows"]:
        """Which θ the referee accepts as falls in the sets of their levels; those are known from now on."""
        space, part = self._at(rows, level)
        ctx = plain_context(space, part, self.seed)
        judged = judge(self.model, space, ctx, theta, part.label, self.passes, min(self.width, WIDTH))
        yes = judged.accepted
        self._take(rows[yes], level[yes], judged.gauge[yes], theta[yes], attack)
        return yes

    def _take(self, rows: Rows, level: Rows, gauge: Float[Tensor, " rows"], theta: Float[Tensor, "rows p"], attack: str | None) -> None:
        """gauge: in radii of the level's set; at most 1 is stored, since the referee's tolerance belongs to the set."""
        wrong = self.known.proved[rows] & (level <= self.known.floor[rows])
        self.contradicted |= set(rows[wrong].tolist())
        self.known.put(rows, level, gauge.clamp_max(1) * self.ladder.scales(level), theta, attack)


def rounds(ladder: Ladder) -> list[tuple[Round, Stage]]:
    """The rounds whose attacks fit the set."""
    found = []
    plan = resolve_plan(f"plan({', '.join(each.spec for each in ROUNDS)})")
    for each, stage in zip(ROUNDS, plan.stages, strict=True):
        alone = replace(plan, stages=(replace(stage, unless=each.unless),))
        try:
            found.append((each, alone.stages_for(ladder.space)[0]))
        except NoAttack:
            continue
    return found


def _own(stage: Stage) -> Attack:
    """The attack of a stage that is no other library's, as those of ROUNDS."""
    assert not stage.foreign
    return stage.attack  # type: ignore[return-value]


def padded_rows(rows: int, width: int) -> int:
    """Rows that the model sees for so many, in batches."""
    first = first_width(rows, width)
    whole, rest = divmod(rows, first)
    return whole * first + (width_for(rest, first) if rest else 0)


def _refereed(rows: int) -> int:
    return -(-rows // WIDTH) * WIDTH
