"""From questions to answers, without a store: the clean pass, then the attacks of the plan, then the verdicts of one chunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rbench.attacks.catalogue import Plan, Stage
from rbench.attacks.evaluate import Passes, clean_logits
from rbench.attacks.search import Examples
from rbench.attacks.stage import Outcome, Witness, run_stage
from rbench.data.dataset import Dataset
from rbench.models import Wrapped
from rbench.questions import question
from rbench_results.records import QuestionRecord, StageRecord, VerdictRecord
from rbench_threats.protocol import PerturbationSet


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


class Judge:
    """Answers questions about examples, for whoever stores the answers or compares them with stored ones."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.questions = [question(asked.model.digest, asked.data.digest, space, asked.plan, asked.seed) for space in asked.members]
        self.stages = [asked.plan.stages_for(space) for space in asked.members]
        self.model = Strict(asked.model.module, asked.model.classes)
        self.clean: dict[int, Tensor | None] = {}
        self.clean_errors: dict[int, str] = {}
        self.width = self.least = asked.width  # of the stage that runs, and of all of them
        self.refusals = 0
        self.passes = Passes()  # of all that was asked

    def answer(self, member: int, need: list[int]) -> Standing:
        """Clean pass and plan over the indices (those of a whole block where the plan runs in blocks): verdicts, witnesses, costs."""
        record, standing, space = self.questions[member], Standing(), self.asked.members[member]
        still = self.clean_pass(record, need, standing)
        for position, stage in enumerate(self.stages[member], start=1):
            if still:
                still = self._stage(space, stage, position, record, still, standing)
        for index in still:
            error = standing.errors.get(index)
            status, reason = ("survived", standing.refused.get(index)) if error is None else ("error", error)
            margin = standing.closest[index][0] if index in standing.closest else None
            self._judge(standing, index, status, margin=margin, reason=reason)
        self.refusals += len(standing.refused)
        return standing

    def clean_pass(self, record: QuestionRecord, need: list[int], standing: Standing) -> list[int]:
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
        self.passes.add(passes)
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
