"""From questions to verdicts: which rows the store lacks, chunk by chunk, one transaction each. The only writer of verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from rbench.attacks.catalogue import Plan, Stage
from rbench.attacks.evaluate import Passes, clean_logits
from rbench.attacks.search import Examples
from rbench.attacks.stage import Outcome, Witness, run_stage
from rbench.data.dataset import Dataset
from rbench.models import Wrapped
from rbench.probe import range_warning, warning
from rbench.questions import question
from rbench.witnesses import store_witnesses
from rbench_results.figures import FALLEN
from rbench_results.records import QuestionRecord, StageRecord, VerdictRecord
from rbench_results.store import Store
from rbench_threats.protocol import PerturbationSet

CHUNK = 250  # examples per transaction, unless the plan runs in blocks


@dataclass(frozen=True, slots=True)
class Asked:
    """Everything a run needs, resolved."""

    model: Wrapped
    data: Dataset
    members: tuple[PerturbationSet, ...]
    plan: Plan
    n: int
    seed: int
    width: int
    full: bool
    witnesses: str
    run: str
    report: Callable[[str, int, int], None]


@dataclass(slots=True)
class Standing:
    """One chunk under one question: what is still to be answered and what is known so far, by data set index."""

    verdicts: dict[int, VerdictRecord] = field(default_factory=dict)
    witnesses: dict[int, Witness] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    closest: dict[int, tuple[float, Tensor]] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)


class Strict(nn.Module):
    """A model held to what the probe saw: a batch fails that gets no row of `classes` numbers per image, or that ends the interpreter."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Raises whatever the model raises, ValueError for another shape."""
        try:
            logits: Tensor = self.model(x)
        except SystemExit as stop:
            raise RuntimeError(f"SystemExit: {stop}") from stop
        if not isinstance(logits, Tensor) or logits.shape != (len(x), self.classes):
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"an answer of {given} to {len(x)} images; expected {(len(x), self.classes)}")
        return logits


class Runner:
    """Answers the questions of one run. `warnings` is filled on the way."""

    def __init__(self, asked: Asked, store: Store) -> None:
        self.asked, self.store = asked, store
        self.questions = [question(asked.model.digest, asked.data.digest, space, asked.plan, asked.seed) for space in asked.members]
        self.stages = [asked.plan.stages_for(space) for space in asked.members]
        self.model = Strict(asked.model.module, asked.model.classes)
        self.warnings: list[dict[str, str]] = list(asked.model.warnings)
        self.clean: dict[int, Tensor | None] = {}
        self.clean_errors: dict[int, str] = {}
        self.width = self.least = asked.width  # of the stage that runs, and of the whole run
        self.refusals = 0

    def run(self) -> None:
        """Fill the store until every example of the slice is answered, or fell to another member."""
        known = [self.store.answered(record.key, 0, self.asked.n) for record in self.questions]
        done = 0
        for indices in self._chunks():
            for member, record in enumerate(self.questions):
                need = self._open(indices, member, known)
                if need:
                    known[member].update(self._answer(member, record, need))
                done += sum(index < self.asked.n for index in indices)
                self.asked.report("verdicts", min(done, self.asked.n * len(self.questions)), self.asked.n * len(self.questions))
            self.clean.clear()
        self._late_warnings()

    def _chunks(self) -> Iterable[list[int]]:
        """Fixed runs of consecutive indices: whole blocks of the data set for a plan in blocks, so that a slice never changes a block."""
        block = self.asked.plan.block
        end = self.asked.n if block is None else min(-(-self.asked.n // block) * block, self.asked.data.size)
        step = block or CHUNK
        return [list(range(first, min(first + step, end))) for first in range(0, end, step)]

    def _open(self, indices: list[int], member: int, known: list[dict[int, str]]) -> list[int]:
        """The indices to ask: no verdict yet (or only an error), and not fallen to another member unless every member is wanted."""
        fallen = set() if self.asked.full else {i for i in indices if any(other.get(i) == "broken" for other in known)}
        missing = [i for i in indices if i < self.asked.n and i not in fallen and known[member].get(i, "error") == "error"]
        return indices if missing and self.asked.plan.block is not None else missing

    def _answer(self, member: int, record: QuestionRecord, need: list[int]) -> dict[int, str]:
        """Run clean pass and plan over the indices, write witnesses, then verdicts and costs in one transaction."""
        standing = Standing()
        still = self._clean_pass(record, need, standing)
        space = self.asked.members[member]
        for position, stage in enumerate(self.stages[member], start=1):
            if still:
                still = self._stage(space, stage, position, record, still, standing)
        for index in still:
            error = standing.errors.get(index)
            status, reason = ("survived", standing.refused.get(index)) if error is None else ("error", error)
            margin = standing.closest[index][0] if index in standing.closest else None
            self._judge(standing, index, status, margin=margin, reason=reason)
        clean = {index: self.asked.data.x[index] for index in standing.witnesses}
        places = store_witnesses(self.store.folder, record.key, need[0], standing.witnesses, clean, self.asked.witnesses)
        rows = [
            replace(verdict, witness=places[i][0], row=places[i][1]) if i in places else verdict
            for i, verdict in sorted(standing.verdicts.items())
        ]
        self.store.add_chunk(record.key, rows, standing.stages)
        self.refusals += len(standing.refused)
        return {row.index: row.status for row in rows}

    def _clean_pass(self, record: QuestionRecord, need: list[int], standing: Standing) -> list[int]:
        """Logits of the clean images, once for all members; the indices that were classified right."""
        fresh = [index for index in need if index not in self.clean]
        if fresh:
            started, passes = time.perf_counter(), Passes()
            images = self.asked.data.x[torch.tensor(fresh)].to(self.asked.model.device)
            logits, reasons = clean_logits(self.model, images, self.asked.width, passes)
            self.clean.update(zip(fresh, logits, strict=True))
            self.clean_errors.update({fresh[place]: reason for place, reason in reasons.items()})
            self._cost(record, standing, 0, "clean pass", len(fresh), Outcome(passes=passes), time.perf_counter() - started)
        for index in need:
            row = self.clean[index]
            if row is None:
                self._judge(standing, index, "error", reason=self.clean_errors[index])
            elif not bool(row.isfinite().all()):
                self._judge(standing, index, "error", reason="the model returned NaN or infinity for the clean image")
            elif int(row.argmax()) != int(self.asked.data.y[index]):
                self._judge(standing, index, "misclassified", predicted=int(row.argmax()))
        return [index for index in need if index not in standing.verdicts]

    def _stage(
        self, space: PerturbationSet, stage: Stage, position: int, record: QuestionRecord, still: list[int], standing: Standing
    ) -> list[int]:
        """One attack over what still stands; the indices that stand after it."""
        started, said = time.perf_counter(), f"{record.spec} · {stage.label}"
        closest = {place: standing.closest[index] for place, index in enumerate(still) if index in standing.closest}
        outcome = run_stage(
            self.model,
            space,
            stage,
            self._examples(still),
            seed=self.asked.seed,
            width=self.asked.width,
            closest=closest,
            progress=lambda done, total: self.asked.report(said, done, total),
        )
        self.width, self.least = outcome.width or self.width, min(self.least, outcome.width or self.least)
        for place, witness in outcome.witnesses.items():
            standing.witnesses[still[place]] = witness
            self._broke(standing, still[place], stage, witness)
        for place, (margin, theta) in outcome.closest.items():
            if margin < standing.closest.get(still[place], (float("inf"),))[0]:
                standing.closest[still[place]] = (margin, theta)
        standing.errors.update({still[place]: reason for place, reason in outcome.errors.items()})
        standing.refused.update(
            {still[place]: f"the referee refused a claim of {stage.label}: {reason}" for place, reason in outcome.refused.items()}
        )
        self._cost(record, standing, position, stage.label, len(still), outcome, time.perf_counter() - started)
        return [index for index in still if index not in standing.witnesses]

    def _examples(self, indices: list[int]) -> Examples:
        rows, device = torch.tensor(indices), self.asked.model.device
        logits = torch.stack([row for index in indices if (row := self.clean[index]) is not None])
        return Examples(self.asked.data.x[rows].to(device), self.asked.data.y[rows].to(device), rows.to(device), logits.to(device))

    def _broke(self, standing: Standing, index: int, stage: Stage, witness: Witness) -> None:
        self._judge(
            standing,
            index,
            "broken",
            predicted=witness.predicted,
            attack=stage.label,
            margin=witness.margin,
            gauge=witness.gauge,
            target=witness.target if witness.target >= 0 else None,
            restart=witness.restart,
        )

    def _judge(self, standing: Standing, index: int, status: str, **evidence: Any) -> None:
        row = self.clean[index]
        clean = int(row.argmax()) if row is not None and bool(row.isfinite().all()) else None
        standing.verdicts[index] = VerdictRecord(
            index=index,
            label=int(self.asked.data.y[index]),
            status=status,
            clean=clean,
            width=self.width,
            device=str(self.asked.model.device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            run=self.asked.run,
            **evidence,
        )

    def _cost(
        self, record: QuestionRecord, standing: Standing, position: int, attack: str, entered: int, outcome: Outcome, seconds: float
    ) -> None:
        passes = outcome.passes
        standing.stages.append(
            StageRecord(
                run=self.asked.run,
                question=record.key,
                position=position,
                attack=attack,
                entered=entered,
                broken=len(outcome.witnesses),
                refused=len(outcome.refused),
                errors=len(outcome.errors),
                forward=passes.forward,
                backward=passes.backward,
                useful=passes.useful,
                seconds=seconds,
            )
        )

    def _late_warnings(self) -> None:
        """What only the verdicts could tell."""
        rows = [row for record in self.questions for row in self.store.verdicts(record.key, 0, self.asked.n)]
        right = {row.index for row in rows if row.clean == row.label}
        near_chance = range_warning(len(right) / max(len({row.index for row in rows}), 1), self.asked.model.classes)
        if near_chance is not None:
            self.warnings.append(near_chance)
        fallen = {row.index for row in rows if row.status in FALLEN}  # an error under another member no longer matters
        errors = {row.index: row.reason or "" for row in rows if row.status == "error" and row.index not in fallen}
        if errors:
            some = next(iter(errors.values()))
            self.warnings.append(
                warning(
                    "errors",
                    f"{len(errors)} of {self.asked.n} images have no verdict but an error and count as not robust; the first: {some}",
                )
            )
        if self.refusals:
            self.warnings.append(
                warning("refused", f"the referee refused {self.refusals} claims: outside the set, or no other class strictly ahead")
            )
        if self.least < self.asked.width:
            self.warnings.append(warning("memory", f"memory was short: the width fell from {self.asked.width} to {self.least} rows"))


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()
