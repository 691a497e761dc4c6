"""All records of a store, or of a bundle, as one value; and whether they agree with themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from rbench_core.errors import StoreError
from rbench_results.pilot_facts import check_facts
from rbench_results.records import (
    STATUSES,
    CurveRow,
    DatasetRecord,
    ModelRecord,
    PilotRecord,
    QuestionRecord,
    RunRecord,
    StageRecord,
    VerdictRecord,
)
from rbench_results.seal import is_intact, question_key

RUN_ID = re.compile(r"(?!latest$)[0-9A-Za-z][0-9A-Za-z-]{0,79}")  # it becomes a file name of the site
DIGEST = re.compile(r"[0-9a-f]{64}")
EXTENT = re.compile(r"\d{1,18}(\.\d{1,18})?(/[1-9]\d{0,17})?")  # an exact radius that takes no minutes to read
WITNESS = re.compile(r"witnesses/[0-9a-f]{16}/[0-9]{6,12}-[0-9a-f]{8,64}\.safetensors")
STATES = ("running", "failed", "done")


@dataclass(slots=True)
class Snapshot:
    """The records of a store, or of a bundle. `verdicts` by the key of their question, `curves` by the id of their run."""

    models: list[ModelRecord] = field(default_factory=list)
    datasets: list[DatasetRecord] = field(default_factory=list)
    questions: list[QuestionRecord] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)
    verdicts: dict[str, list[VerdictRecord]] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)
    pilots: list[PilotRecord] = field(default_factory=list)
    curves: dict[str, list[CurveRow]] = field(default_factory=dict)


def check(given: Snapshot) -> None:
    """Refuse what contradicts itself: keys that are not their content's, broken seals, ids that are no names. Raises StoreError."""
    _once((model.digest for model in given.models), "model", DIGEST)
    _once((dataset.digest for dataset in given.datasets), "data set", DIGEST)
    _once((question.key for question in given.questions), "question", DIGEST)
    _once((run.id for run in given.runs), "run", RUN_ID)
    _once((pilot.question for pilot in given.pilots), "pilot of a question", DIGEST)
    for question in given.questions:
        _check_question(question)
    for pilot in given.pilots:
        check_facts(pilot)
    sizes = {dataset.digest: dataset.size for dataset in given.datasets}
    for run in given.runs:
        if run.state not in STATES or run.n < 1 or run.first < 0 or run.first + run.n > sizes.get(run.dataset, 0):
            raise StoreError(f"run {run.id}: state {run.state!r:.40}, first {run.first}, n {run.n}", expected="a slice of its data set")
    for key, rows in given.verdicts.items():
        _check_rows(key, rows)


def _once(names: Iterable[str], kind: str, pattern: re.Pattern[str]) -> None:
    seen = set()
    for name in names:
        if not pattern.fullmatch(name):
            raise StoreError(f"a {kind} with the id {name[:80]!r}", expected="an id as rbench makes it")
        if name in seen:
            raise StoreError(f"{kind} {name[:80]} is there twice")
        seen.add(name)


def _check_question(question: QuestionRecord) -> None:
    called = f"question {question.key[:12]}"
    if question.key != question_key(question):
        raise StoreError(f"{called} ({question.spec}): its content has another key", fix="It was changed.")
    if question.set != {"family": question.family, "extent": question.extent}:  # boards compare by the two, keys by the set
        raise StoreError(f"{called}: family or extent is not that of its set", fix="It was changed.")
    if not all(EXTENT.fullmatch(value) for value in question.extent.values()):
        raise StoreError(f"{called}: extent {str(question.extent)[:80]}", expected="exact radii such as 3/10")
    if question.kind == "attack" and any("certificate" in step for step in question.plan_json if isinstance(step, dict)):
        raise StoreError(f"{called}: its steps are those of a certificate", expected="kind certificate", fix="It was changed.")
    if question.kind == "certificate" and not all(isinstance(step, dict) and "certificate" in step for step in question.plan_json):
        raise StoreError(f"{called}: a certificate by attacks", expected="steps that prove", fix="It was changed.")
    if question.kind not in STATUSES:
        raise StoreError(f"{called}: kind {question.kind!r:.40}", expected=f"one of: {', '.join(STATUSES)}")


def _check_rows(key: str, rows: list[VerdictRecord]) -> None:
    seen = set()
    for row in rows:
        if not is_intact(key, row):
            what = f"example {row.index} of question {key[:12]}: the verdict does not agree with its seal"
            raise StoreError(what, fix="It was changed after it was stored: ask for the original.")
        if row.index in seen:
            raise StoreError(f"example {row.index} of question {key[:12]} is there twice")
        if row.witness is not None and not WITNESS.fullmatch(row.witness):
            what = f"example {row.index} of question {key[:12]}: witness file {row.witness[:80]!r}"
            raise StoreError(what, expected="witnesses/KEY/NAME.safetensors, a path inside the results folder")
        seen.add(row.index)
