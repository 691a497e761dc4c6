"""Adding one store's records to another's, by key: twice is once, and the order does not matter.

Where both have a record of one key, the same one of the two wins in either direction: of verdicts the one that says more, then the one with
a witness; of a model's or a run's words those of the newest run; among equals the larger JSON text. Costs of one run are no sum but the
larger of two readings. Verifications stay where they were made: they are the word of whoever looked, and a stranger's proves nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from rbench_core.errors import StoreError
from rbench_core.files import canonical_json
from rbench_results import schema
from rbench_results.database import writing
from rbench_results.records import DatasetRecord, ModelRecord, QuestionRecord, RunRecord, StageRecord, VerdictRecord
from rbench_results.rows import dataset_record, stage_row, table_of, to_record, to_row, verdict_row
from rbench_results.seal import is_intact, question_key
from rbench_results.store import ADDED_UP, Store, same_logits

RUN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,79}")  # it becomes a file name of the site
DIGEST = re.compile(r"[0-9a-f]{64}")
EXTENT = re.compile(r"\d{1,18}(\.\d{1,18})?(/[1-9]\d{0,17})?")  # an exact radius that takes no minutes to read
STRENGTH = {"error": 0, "survived": 1, "open": 1}  # every other status says more
STATES = ("running", "failed", "done")

Record = TypeVar("Record")


@dataclass(slots=True)
class Snapshot:
    """The records of a store, or of a bundle. `verdicts` by the key of their question."""

    models: list[ModelRecord] = field(default_factory=list)
    datasets: list[DatasetRecord] = field(default_factory=list)
    questions: list[QuestionRecord] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)
    verdicts: dict[str, list[VerdictRecord]] = field(default_factory=dict)
    stages: list[StageRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge changed: records that are new, and stored ones that gave way."""

    runs: int
    verdicts: int
    replaced: int


def snapshot(store: Store) -> Snapshot:
    """Everything that a store holds, each kind in an order of its own content."""
    questions = sorted(store.questions(), key=lambda record: record.key)
    return Snapshot(
        models=sorted(store.models(), key=lambda record: record.digest),
        datasets=sorted(store.datasets(), key=lambda record: record.digest),
        questions=questions,
        runs=sorted(store.runs(), key=lambda record: record.id),
        verdicts={record.key: store.verdicts(record.key) for record in questions},
        stages=sorted(store.stages(), key=lambda stage: (stage.run, stage.question, stage.position)),
    )


def check(given: Snapshot) -> None:
    """Refuse what contradicts itself: keys that are not their content's, broken seals, ids that are no names. Raises StoreError."""
    for model in given.models:
        _named(DIGEST, model.digest, "model")
    for dataset in given.datasets:
        _named(DIGEST, dataset.digest, "data set")
    for question in given.questions:
        if question.key != question_key(question):
            raise StoreError(f"question {question.key[:12]} ({question.spec}): its content has another key", fix="It was changed.")
        if question.set != {"family": question.family, "extent": question.extent}:  # boards compare by the two, keys by the set
            raise StoreError(f"question {question.key[:12]}: family or extent is not that of its set", fix="It was changed.")
        if not all(EXTENT.fullmatch(value) for value in question.extent.values()):
            raise StoreError(f"question {question.key[:12]}: extent {str(question.extent)[:80]}", expected="exact radii such as 3/10")
    for run in given.runs:
        _named(RUN_ID, run.id, "run")
        if run.state not in STATES or run.n < 1 or run.first < 0:
            raise StoreError(f"run {run.id}: state {run.state!r}, first {run.first}, n {run.n}", expected="a run that was stored by rbench")
    for key, rows in given.verdicts.items():
        for row in rows:
            if not is_intact(key, row):
                what = f"example {row.index} of question {key[:12]}: the verdict does not agree with its seal"
                raise StoreError(what, fix="It was changed after it was stored: ask for the original.")


def _named(pattern: re.Pattern[str], text: str, kind: str) -> None:
    if not pattern.fullmatch(text):
        raise StoreError(f"a {kind} with the id {text[:80]!r}", expected="an id as rbench makes it")


def merge(store: Store, given: Snapshot) -> Merged:
    """Add records to a store in one transaction: all of them or, when one is refused, none. Raises StoreError."""
    check(given)
    with writing(store.engine) as connection:
        _models(connection, given)
        _put(connection, schema.Dataset, _won(_datasets(connection), given.datasets, "digest"))
        _put(connection, schema.Question, _won(_all(connection, schema.Question, QuestionRecord), given.questions, "key"), key="key")
        known = {key: (id, kind) for id, key, kind in connection.execute(_QUESTIONS)}
        _refer(given, known.keys())
        runs = _runs(connection, given.runs, known)
        counts = [_verdicts(connection, key, *known[key], rows) for key, rows in given.verdicts.items()]
        _stages(connection, given.stages, known)
    return Merged(runs, sum(new for new, _ in counts), sum(replaced for _, replaced in counts))


Known = Mapping[str, tuple[int, str]]  # the row and the kind of each question, by key
_QUESTIONS = select(schema.Question.id, schema.Question.key, schema.Question.kind)


def _refer(given: Snapshot, known: Collection[str]) -> None:
    """Every question that a run, a verdict or a stage speaks of must be there. Raises StoreError."""
    asked = {key for run in given.runs for key, _ in run.questions} | set(given.verdicts) | {stage.question for stage in given.stages}
    for key in sorted(asked - set(known)):
        raise StoreError(f"question {key[:12]!r} is spoken of and not there", expected="a whole store or bundle")


def _all(connection: Connection, kind: type[schema.Base], record: type[Record], **given: Any) -> list[Record]:
    return [to_record(record, row, **given) for row in connection.execute(select(kind.__table__)).mappings()]


def _datasets(connection: Connection) -> list[DatasetRecord]:
    return [dataset_record(row) for row in connection.execute(select(schema.Dataset.__table__)).mappings()]


def _text(record: Any) -> str:
    try:
        return canonical_json(asdict(record))
    except (TypeError, ValueError) as error:
        raise StoreError(f"a {type(record).__name__} that is no JSON ({error})", expected="records as rbench stores them") from error


def _won(stored: Sequence[Record], given: Sequence[Record], key: str, rank: Callable[[Any], Any] = _text) -> list[Record]:
    """Of the given records those that are new or outrank the stored one of their key."""
    held = {getattr(record, key): record for record in stored}
    return [record for record in given if (old := held.get(getattr(record, key))) is None or rank(record) > rank(old)]


def _put(connection: Connection, kind: type[schema.Base], records: Sequence[Any], key: str = "digest") -> None:
    """Insert records, or replace the stored ones of their key."""
    for record in records:
        row = to_row(kind, record)
        rest = {name: value for name, value in row.items() if name != key}
        connection.execute(insert(kind).values(row).on_conflict_do_update(index_elements=[key], set_=rest))


def _models(connection: Connection, given: Snapshot) -> None:
    """The words of a model (name, title, card) are those under which its newest run asked for it. Raises StoreError."""
    stored = _all(connection, schema.Model, ModelRecord)
    ours, theirs = _newest(_all(connection, schema.Run, RunRecord, questions=[])), _newest(given.runs)
    held = {record.digest: record for record in stored}
    for record in given.models:
        old = held.get(record.digest)
        if old is not None and not same_logits(old.probe, record.probe):
            raise StoreError(f"model {record.name} ({record.digest[:12]}…) answered the probe images otherwise there than here")
        if old is None or (theirs.get(record.digest, ""), _text(record)) > (ours.get(record.digest, ""), _text(old)):
            _put(connection, schema.Model, [record])


def _newest(runs: Iterable[RunRecord]) -> dict[str, str]:
    """By model: when its newest run began, with its id."""
    found: dict[str, str] = {}
    for run in runs:
        found[run.model] = max(found.get(run.model, ""), f"{run.started} {run.id}")
    return found


def _runs(connection: Connection, given: Sequence[RunRecord], known: Known) -> int:
    """Runs and what they ask; returns how many are new. A run that was done here prevails over its copy from a bundle."""
    links = select(schema.RunQuestion.run, schema.Question.key, schema.RunQuestion.spec)
    links = links.join(schema.Question, schema.Question.id == schema.RunQuestion.question_id).order_by(schema.RunQuestion.position)
    asked: dict[str, list[tuple[str, str]]] = {}
    for id, key, spec in connection.execute(links):
        asked.setdefault(id, []).append((key, spec))
    stored = [replace(run, questions=asked.get(run.id, [])) for run in _all(connection, schema.Run, RunRecord, questions=[])]
    won = _won(stored, given, "id", lambda run: (STATES.index(run.state), run.finished or "", run.submitted is None, _text(run)))
    _put(connection, schema.Run, won, key="id")
    for run in won:
        connection.execute(delete(schema.RunQuestion).where(schema.RunQuestion.run == run.id))
        for position, (key, spec) in enumerate(run.questions):
            connection.execute(insert(schema.RunQuestion).values(run=run.id, position=position, question_id=known[key][0], spec=spec))
    return len({run.id for run in won} - {run.id for run in stored})


def _verdicts(connection: Connection, key: str, question: int, kind: str, given: Sequence[VerdictRecord]) -> tuple[int, int]:
    """(new, replaced) rows of one question."""
    query = select(schema.Verdict.__table__).where(schema.Verdict.question_id == question)
    stored = [to_record(VerdictRecord, row) for row in connection.execute(query).mappings()]
    won = _won(stored, given, "index", lambda row: (STRENGTH.get(row.status, 2), row.witness is not None, _text(row)))
    rows = [verdict_row(question, key, kind, verdict) for verdict in won]
    if rows:
        statement = insert(schema.Verdict)
        fields = {name: statement.excluded[name] for name in rows[0] if name not in ("question_id", "index")}
        connection.execute(statement.on_conflict_do_update(index_elements=["question_id", "index"], set_=fields), rows)
    replaced = len({row.index for row in won} & {row.index for row in stored})
    return len(won) - replaced, replaced


def _stages(connection: Connection, given: Sequence[StageRecord], known: Known) -> None:
    rows = [stage_row(known[stage.question][0], stage.question, stage) for stage in given]
    if rows:
        statement = insert(schema.Stage)
        stored = table_of(schema.Stage).c
        larger = {name: func.max(stored[name], statement.excluded[name]) for name in (*ADDED_UP, "attack")}
        connection.execute(statement.on_conflict_do_update(index_elements=["run", "question_id", "position"], set_=larger), rows)
