"""From questions to answers, without a store: the clean pass, then the attacks of a plan or the bounds of a certificate, chunk by chunk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rbench.attacks.catalogue import Plan, Stage
from rbench.attacks.evaluate import Passes, clean_logits
from rbench.attacks.pilot import Facts, Pilot, pilot_rows
from rbench.attacks.rivals import nearest_first
from rbench.attacks.search import Examples
from rbench.attacks.stage import Outcome, Witness, part_of, plain_context, run_stage
from rbench.data.dataset import Dataset
from rbench.models import Wrapped
from rbench.objectives import Objective, objective_of
from rbench.questions import certificate_question, question
from rbench_core.errors import Unsupported
from rbench_results.records import QuestionRecord, StageRecord, VerdictRecord
from rbench_threats.protocol import PerturbationSet

if TYPE_CHECKING:
    from rbench.certificates import Proof

CERTIFICATE = -1  # the position of a certificate among the stages; 0 is the clean pass, attacks count from 1


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
    certify: tuple[str, ...] = ()  # methods, the cheapest first; none: no certificates
    curve: bool = False  # accuracy over eps after the verdicts


@dataclass(frozen=True, slots=True)
class Entry:
    """One question of a run and what answers it. spec: the member that it belongs to; a certificate may be about a ball around one."""

    record: QuestionRecord
    spec: str
    space: PerturbationSet
    objective: Objective
    stages: tuple[Stage, ...] = ()  # of an attack
    methods: tuple[str, ...] = ()  # of a certificate
    pilot: int = 0  # images of an attack's pilot

    @property
    def screens(self) -> int:
        """The stages at the beginning that every example meets: of a union's members they come before the costly rest of any."""
        if any(stage.foreign for stage in self.stages):
            return 0
        gated = [place for place, stage in enumerate(self.stages) if stage.rows != "all"]
        return gated[0] if self.pilot and gated else min(len(self.stages), 1)


@dataclass(slots=True)
class Standing:
    """One chunk under one question: what is still to be answered and what is known so far, by data set index."""

    verdicts: dict[int, VerdictRecord] = field(default_factory=dict)
    witnesses: dict[int, Witness] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    closest: dict[tuple[int | None, int], tuple[float, Tensor]] = field(default_factory=dict)  # by part of a combination and index
    seen: dict[int, float] = field(default_factory=dict)  # the smallest margin that the last stage saw
    rivals: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)  # the classes but the label, nearest first
    stages: list[StageRecord] = field(default_factory=list)
    still: list[int] = field(default_factory=list)  # not answered yet
    position: int = 0  # of the last stage that ran


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


def entries_of(asked: Asked, space: PerturbationSet, methods: tuple[str, ...]) -> list[Entry]:
    """The questions about one member: its certificate, or those about the balls around its candidates, and after them its attacks."""
    plain, model, data = Objective("sensitivity"), asked.model.digest, asked.data.digest
    boxes = proved_sets(space) if methods else []
    found = [Entry(certificate_question(model, data, box, methods), str(space), box, plain, methods=methods) for box in boxes]
    attack = question(model, data, space, asked.plan, asked.seed)
    stages, pilot = asked.plan.stages_for(space), asked.plan.pilot if asked.plan.pilots(space) else 0
    return [*found, Entry(attack, str(space), space, objective_of(space), stages=stages, pilot=pilot)]


def proved_sets(space: PerturbationSet) -> list[PerturbationSet]:
    """The sets with element-wise boxes whose certificates a run asks for: the set itself, or the balls around its candidates."""
    if "box" in space.capabilities:
        return [space]
    if "balls" not in space.capabilities:
        return []
    balls = space.balls()  # type: ignore[attr-defined]  # the capability
    return list({str(ball): ball for ball in balls.values() if "box" in ball.capabilities}.values())


class Prover:
    """The certificates of one model. `why_not`: what its net has that no bound is known for; then no certificate is asked."""

    def __init__(self, asked: Asked) -> None:
        self.why_not: str | None = None
        self.methods: tuple[str, ...] = ()
        if asked.certify and any(proved_sets(space) for space in asked.members):
            self._open(asked)

    def _open(self, asked: Asked) -> None:
        from rbench.certificates import Certifier

        try:
            self.certifier = Certifier(asked.model.module, asked.data.shape, asked.model.classes)
            self.methods = asked.certify
        except Unsupported as reason:
            self.why_not = str(reason)

    def prove(self, space: PerturbationSet, examples: Examples, methods: tuple[str, ...]) -> list[Proof]:
        """One proof, or what came nearest to one, per example."""
        lower, upper = space.box(plain_context(space, examples, seed=0))  # type: ignore[attr-defined]  # the capability
        proofs: list[Proof] = self.certifier.certify(lower, upper, examples.label, methods)
        return proofs


class Judge:
    """Answers questions about examples, for whoever stores the answers or compares them with stored ones."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.model = Strict(asked.model.module, asked.model.classes)
        self.prover = Prover(asked)
        self.entries = [entry for space in asked.members for entry in entries_of(asked, space, self.prover.methods)]
        self.clean: dict[int, Tensor | None] = {}
        self.clean_errors: dict[int, str] = {}
        self.width = self.least = asked.width  # of the stage that runs, and of all of them
        self.facts: dict[int, Facts] = {}  # of pilots, by the question's place
        self.refusals = 0
        self.passes = Passes()  # of all that was asked

    @property
    def questions(self) -> list[QuestionRecord]:
        """All that is asked, certificates before the attacks on the same set."""
        return [entry.record for entry in self.entries]

    def answer(self, place: int, need: list[int]) -> Standing:
        """Answer one question about the indices (those of a whole block where the plan runs in blocks): verdicts, witnesses, costs."""
        if self.entries[place].pilot and place not in self.facts:
            self.pilot(place, set())
        return self.finish(place, self.begin(place, need))

    def begin(self, place: int, need: list[int]) -> Standing:
        """The clean pass, a certificate whole, of an attack the stages that everybody meets."""
        entry, standing = self.entries[place], Standing()
        standing.still = self.clean_pass(entry, need, standing)
        if entry.methods:
            self._prove(entry, standing.still, standing)
            standing.still = []
        for _ in range(entry.screens):
            self._next_stage(place, standing)
        return standing

    def finish(self, place: int, standing: Standing, settled: Set[int] = frozenset()) -> Standing:
        """The rest, without the examples that were settled elsewhere meanwhile: those get no verdict."""
        standing.still = [index for index in standing.still if index not in settled]
        while standing.position < len(self.entries[place].stages):
            self._next_stage(place, standing)
        self._survive(self.entries[place], standing)
        self.refusals += len(standing.refused)
        return standing

    def pilot(self, place: int, proved: set[int]) -> Standing:
        """Every stage for the pilot's examples, and from that the facts that decide for all others. proved: those with a certificate."""
        entry, standing, spent, started = self.entries[place], Standing(), self._spent(), time.perf_counter()
        standing.still = self.clean_pass(entry, pilot_rows(self.asked.data.size, entry.pilot, self.asked.seed), standing)
        log = Pilot(standing.still)
        for position, stage in enumerate(entry.stages, start=1):
            log.before(stage)
            rows = [index for index in standing.still if stage.rows == "all" or index not in proved] + log.shadows(stage)
            left = self._stage(entry, stage, position, sorted(rows), standing) if rows else []
            log.after(stage, rows, sorted(set(rows) - set(left)), standing.seen)
            standing.still = [index for index in standing.still if index not in standing.witnesses]
        standing.still = [index for index in standing.still if index not in proved]
        self._survive(entry, standing)
        cost = {name: value - spent[name] for name, value in self._spent().items()}
        self.facts[place] = log.facts(proved, {**cost, "seconds": time.perf_counter() - started}, open_=self.asked.plan.opens)
        standing.stages = [replace(row, pilot=True) for row in standing.stages]
        return standing

    def _spent(self) -> dict[str, int]:
        return {"forward": self.passes.forward, "backward": self.passes.backward, "useful": self.passes.useful}

    def _next_stage(self, place: int, standing: Standing) -> None:
        """The next stage of a plan, for those who meet it."""
        entry, facts = self.entries[place], self.facts.get(place)
        stage = entry.stages[standing.position]
        standing.position += 1
        none = (math.inf,)
        own = () if facts is None else facts.indices  # the pilot's images meet everything, whoever asks about them again
        margins = {i: standing.closest.get((stage.part, i), none)[0] for i in standing.still}
        rows = [i for i, margin in margins.items() if facts is None or i in own or facts.lets(stage, margin)]
        left = set(self._stage(entry, stage, standing.position, rows, standing)) if rows else set()
        away = set(rows) - left
        standing.still = [index for index in standing.still if index not in away]

    def _survive(self, entry: Entry, standing: Standing) -> None:
        """What no attack broke survived, or has an error."""
        for index in standing.still:
            error = standing.errors.get(index)
            status, reason = ("survived", standing.refused.get(index)) if error is None else ("error", error)
            parts = {stage.part for stage in entry.stages}
            margin = min((standing.closest[part, index][0] for part in parts if (part, index) in standing.closest), default=None)
            predicted = entry.objective.oracle(index) if error is None else None  # who survives among candidates follows people
            self._judge(standing, entry, index, status, margin=margin, reason=reason, predicted=predicted)

    def clean_pass(self, entry: Entry, need: list[int], standing: Standing) -> list[int]:
        """Logits of the clean images, once for all members; the indices of those that are still to be answered.

        A mistake answers an attack's question where the objective says so, and leaves a certificate open: it proves that a label stays.
        """
        fresh = [index for index in need if index not in self.clean]
        if fresh:
            started, passes = time.perf_counter(), Passes()
            images = self.asked.data.x[torch.tensor(fresh)].to(self.asked.model.device)
            logits, reasons = clean_logits(self.model, images, self.asked.width, passes)
            self.clean.update(zip(fresh, logits, strict=True))
            self.clean_errors.update({fresh[place]: reason for place, reason in reasons.items()})
            self._cost(entry.record, standing, 0, "clean pass", len(fresh), Outcome(passes=passes), time.perf_counter() - started)
        for index in need:
            row = self.clean[index]
            if row is None:
                self._judge(standing, entry, index, "error", reason=self.clean_errors[index])
            elif not bool(row.isfinite().all()):
                self._judge(standing, entry, index, "error", reason="the model returned NaN or infinity for the clean image")
            elif entry.objective.clean_decides and int(row.argmax()) != int(self.asked.data.y[index]):
                status = "open" if entry.methods else "misclassified"
                self._judge(standing, entry, index, status, predicted=None if entry.methods else int(row.argmax()))
        return [index for index in need if index not in standing.verdicts]

    def _prove(self, entry: Entry, still: list[int], standing: Standing) -> None:
        """Bounds over the box of every example; what they do not prove stays open."""
        if not still:
            return
        started = time.perf_counter()
        proofs = self.prover.prove(entry.space, self._examples(entry, still), entry.methods)
        for index, proof in zip(still, proofs, strict=True):
            status, by = ("certified", proof.method) if proof.certified else ("open", None)
            self._judge(standing, entry, index, status, attack=by, margin=proof.margin)
        label = f"bounds {entry.record.plan}"
        self._cost(entry.record, standing, CERTIFICATE, label, len(still), Outcome(), time.perf_counter() - started)

    def _stage(self, entry: Entry, stage: Stage, position: int, still: list[int], standing: Standing) -> list[int]:
        """One attack over what still stands; the indices that stand after it."""
        started, said = time.perf_counter(), f"{entry.record.spec} · {stage.label}"
        own = {place: (stage.part, index) for place, index in enumerate(still)}
        closest = {place: standing.closest[key] for place, key in own.items() if key in standing.closest}
        examples, passes = self._examples(entry, still), Passes()
        if stage.aims:
            examples = replace(examples, order=self._rivals(entry, stage, examples, standing, passes))
            if not examples.rivals.shape[1]:
                return still  # fewer classes than earlier stages aimed at
        outcome = run_stage(
            self.model,
            entry.space,
            stage,
            examples,
            seed=self.asked.seed,
            width=self.asked.width,
            closest=closest,
            progress=lambda done, total: self.asked.report(said, done, total),
        )
        outcome.passes.add(passes)
        standing.seen = {still[place]: margin for place, (margin, _) in outcome.closest.items()}
        self.width, self.least = outcome.width or self.width, min(self.least, outcome.width or self.least)
        for place, witness in outcome.witnesses.items():
            standing.witnesses[still[place]] = witness
            self._broke(standing, entry, still[place], stage, witness)
        for place, (margin, theta) in outcome.closest.items():
            if margin < standing.closest.get(own[place], (float("inf"),))[0]:
                standing.closest[own[place]] = (margin, theta)
        standing.errors.update({still[place]: reason for place, reason in outcome.errors.items()})
        standing.refused.update(
            {still[place]: f"the referee refused a claim of {stage.label}: {reason}" for place, reason in outcome.refused.items()}
        )
        self._cost(entry.record, standing, position, stage.label, len(still), outcome, time.perf_counter() - started)
        fell = {still[place] for place in outcome.witnesses}
        return [index for index in still if index not in fell]

    def _rivals(self, entry: Entry, stage: Stage, examples: Examples, standing: Standing, passes: Passes) -> Tensor:
        """The classes that the stage aims at, nearest first; found out once per example and part of a combination."""
        space = entry.space if stage.part is None else entry.space.parts[stage.part]  # type: ignore[attr-defined]  # "blocks"
        keys = [(stage.part, index) for index in examples.index.tolist()]
        fresh = [place for place, key in enumerate(keys) if key not in standing.rivals]
        if fresh:
            some = part_of(examples, fresh)
            for place, order in zip(fresh, nearest_first(self.model, space, some, self.asked.width, passes), strict=True):
                standing.rivals[keys[place]] = order
        return torch.stack([standing.rivals[key] for key in keys])[:, stage.skip :]

    def _examples(self, entry: Entry, indices: list[int]) -> Examples:
        rows, device = torch.tensor(indices), self.asked.model.device
        logits = torch.stack([row for index in indices if (row := self.clean[index]) is not None])
        labels = entry.objective.labels(self.asked.data, indices)
        return Examples(self.asked.data.x[rows].to(device), labels.to(device), rows.to(device), logits.to(device))

    def _broke(self, standing: Standing, entry: Entry, index: int, stage: Stage, witness: Witness) -> None:
        self._judge(
            standing,
            entry,
            index,
            "broken",
            predicted=witness.predicted,
            attack=stage.label,
            margin=witness.margin,
            gauge=witness.gauge,
            target=witness.target if witness.target >= 0 else None,
            restart=witness.restart,
        )

    def _judge(self, standing: Standing, entry: Entry, index: int, status: str, **evidence: Any) -> None:
        row = self.clean[index]
        clean = int(row.argmax()) if row is not None and bool(row.isfinite().all()) else None
        standing.verdicts[index] = VerdictRecord(
            index=index,
            label=int(self.asked.data.y[index]),
            status=status,
            clean=clean,
            oracle=entry.objective.oracle(index),
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
                model_seconds=passes.model_seconds,
                step_seconds=passes.step_seconds,
            )
        )
