"""A plan by the way of the product: models, probes, pilot, runner, referee, a store in a temporary folder; no site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rbench.api import recorded
from rbench.attacks.catalogue import Plan, Stage
from rbench.attacks.stage import Outcome
from rbench.bench.meter import Meter
from rbench.bench.sides import CLEAN, REST, Row, Side
from rbench.data.dataset import Dataset
from rbench.judging import Asked, Entry, Judge, Standing
from rbench.models import Found, attacked
from rbench.runner import Runner
from rbench_results.records import QuestionRecord, VerdictRecord
from rbench_results.store import Store
from rbench_threats.catalogue import Threat


def run_plan(
    found: Found,
    data: Dataset,
    threat: Threat,
    plan: Plan,
    *,
    n: int,
    round: int,
    seed: int,
    width: int,
    device: str,
    methods: tuple[str, ...],
    meter: Meter,
) -> Side:
    """One run of a plan on the first n images, clocked from probing the model to the last verdict. The meter must be watching."""
    side = Side(plan.name, round, seed, n)
    ready = attacked(found.module, name=found.name, dataset=data, device=device, source=found.source, title=found.title)
    with TemporaryDirectory(prefix="rbench-bench-") as folder:
        meter.lap()
        with ready as model, Store.open(Path(folder)) as store:
            asked = Asked(model, data, threat.members, plan, n, seed, width, False, "all", "bench", _silent, methods)
            judge = Clocked(asked, meter, side)
            runner = Runner(asked, store, judge)
            with recorded(runner, threat, 0.0, "rbench bench", {}, data.name):
                runner.run()
            judge.file(REST)
            side.warnings = runner.warnings
            _verdicts(judge, store, side)
    return side


class Clocked(Judge):
    """A judge that notes in a side what every stage got, broke and spent."""

    def __init__(self, asked: Asked, meter: Meter, side: Side) -> None:
        self.meter, self.side, self.in_pilot = meter, side, False
        super().__init__(asked)

    def pilot(self, place: int, proved: set[int]) -> Standing:
        """As the judge's; its rows are told apart."""
        self.in_pilot = True
        standing = super().pilot(place, proved)
        self.in_pilot = False
        spec = self.entries[place].spec
        self.side.pilots[spec] = self.facts[place].to_json()
        return standing

    def _stage(self, entry: Entry, stage: Stage, position: int, still: list[int], standing: Standing) -> list[int]:
        self.file(REST)
        return super()._stage(entry, stage, position, still, standing)

    def _cost(
        self, record: QuestionRecord, standing: Standing, position: int, attack: str, entered: int, outcome: Outcome, seconds: float
    ) -> None:
        super()._cost(record, standing, position, attack, entered, outcome, seconds)
        row = Row(record.spec, attack, entered, len(outcome.witnesses), pilot=self.in_pilot)
        row = replace(row, model_seconds=outcome.passes.model_seconds, step_seconds=outcome.passes.step_seconds)
        self.file(CLEAN if position == 0 else attack, row)

    def file(self, attack: str, row: Row | None = None) -> None:
        """A row with all that was spent since the last one."""
        spent = self.meter.lap()
        base = row or Row("", attack, pilot=self.in_pilot)
        self.side.rows.append(replace(base, forward=spent.forward, backward=spent.backward, cpu=spent.cpu, wall=spent.wall))


def _verdicts(judge: Judge, store: Store, side: Side) -> None:
    """Who fell to what, from the store: the first member that broke an example is named."""
    wrong: set[int] = set()
    for entry in judge.entries:
        for verdict in store.verdicts(entry.record.key, 0, side.n):
            if verdict.status == "broken":
                side.fell.setdefault(verdict.index, f"{verdict.attack} in {entry.spec}")
            elif verdict.status == "misclassified":
                wrong.add(verdict.index)
            elif verdict.status == "error":
                side.errors[verdict.index] = verdict.reason or ""
            _note_refusal(verdict, side)
    side.wrong = sorted(wrong)


def _note_refusal(verdict: VerdictRecord, side: Side) -> None:
    if verdict.status == "survived" and verdict.reason:
        side.refused[verdict.index] = verdict.reason


def _silent(*told: Any) -> None:
    return
