"""Adding one store's records to another's, by key: twice is once, and the order does not matter.

Where both have a record of one key, the same one of the two wins in either direction: of verdicts the one that says more, then the one with
a witness; of a model's or a run's words those of the newest run; among equals the larger JSON text. Costs of one run are no sum but the
larger of two readings. Of two pilots the one with the smaller JSON text of its facts stays, of two points of a curve the closer one.
Verifications stay where they were made: they are the word of whoever looked, and a stranger's proves nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from rbench_core.errors import StoreError
from rbench_core.files import canonical_json
from rbench_results import evidence, schema
from rbench_results.database import writing
from rbench_results.records import (
    DatasetRecord,
    ModelRecord,
    QuestionRecord,
    RunRecord,
    StageRecord,
    VerdictRecord,
)
from rbench_results.rows import dataset_record, stage_row, table_of, to_record, to_row, verdict_row
from rbench_results.snapshot import STATES, Snapshot, check
from rbench_results.store import ADDED_UP, Store, same_logits

STRENGTH = {"error": 0, "survived": 1, "open": 1}  # every other status says more

Record = TypeVar("Record")


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
        stages=sorted(store.stages(), key=lambda stage: (stage.run, stage.question, stage.position, stage.pilot)),
        pilots=store.pilots(),
        curves={run.id: curve for run in store.runs() if (curve := sorted(store.curve(run.id), key=evidence.place))},
    )


def merge(store: Store, given: Snapshot) -> Merged:
    """Add records to a store in one transaction: all of them or, when one is refused, none. Raises StoreError."""
    check(given)
    with writing(store.engine) as connection:
        return _write(connection, given)


def add(store: Store, given: Snapshot) -> Merged:
    """Add what a store has not got, as `merge` does, and change nothing that is there: for records of somebody whom nobody need trust.

    A run that is here with other content, or a model or data set of one digest with other facts, is refused. Raises StoreError.
    """
    check(given)
    with writing(store.engine) as connection:
        return _write(connection, _missing(connection, given))


def _missing(connection: Connection, given: Snapshot) -> Snapshot:
    """The part of a snapshot that the store has not got."""
    held = _stored(connection)
    facts: list[tuple[str, Callable[[Any], Any]]] = [
        ("models", lambda record: (record.digest, record.parameters, record.classes)),
        ("datasets", lambda record: (record.digest, record.size, tuple(record.shape), tuple(record.classes))),
        ("questions", lambda record: (record.key, record.kind)),
        ("runs", lambda run: (run.id, run.model, run.dataset, run.started, run.spec, run.n, run.first, run.plan, run.seed)),
    ]
    left = {name: _new(getattr(held, name), getattr(given, name), fact, name) for name, fact in facts}
    for model in given.models:
        _same_answers(held.models, model)
    fresh = {run.id for run in left["runs"]}
    verdicts = {}
    for key, rows in given.verdicts.items():
        there = {row.index for row in held.verdicts.get(key, [])}
        verdicts[key] = [row for row in rows if row.index not in there]
    piloted = {pilot.question for pilot in evidence.pilots(connection)}
    return Snapshot(
        **left,
        verdicts=verdicts,
        stages=[stage for stage in given.stages if stage.run in fresh],
        pilots=[pilot for pilot in given.pilots if pilot.question not in piloted],
        curves={run: rows for run, rows in given.curves.items() if run in fresh},
    )


def _new(held: Sequence[Any], given: Sequence[Any], fact: Callable[[Any], Any], kind: str) -> list[Any]:
    """Records whose key is not there. Raises StoreError for one that is there and says something else."""
    stored = {fact(record)[0]: fact(record) for record in held}
    for record in given:
        if stored.get(fact(record)[0], fact(record)) != fact(record):
            raise StoreError(f"{kind[:-1]} {fact(record)[0][:24]} is in the store with other content", fix="Nothing was added.")
    return [record for record in given if fact(record)[0] not in stored]


def _write(connection: Connection, given: Snapshot) -> Merged:
    held = _stored(connection, verdicts=False)
    kinds = {question.key: question.kind for question in held.questions}
    for question in given.questions:
        if kinds.get(question.key, question.kind) != question.kind:  # the key does not hold it
            raise StoreError(f"question {question.key[:12]} is of kind {question.kind!r} there and {kinds[question.key]!r} here")
    _models(connection, given, held)
    _put(connection, schema.Dataset, _won(held.datasets, given.datasets, "digest"))
    _put(connection, schema.Question, _won(held.questions, given.questions, "key"), key="key")
    known = {key: (id, kind) for id, key, kind in connection.execute(_QUESTIONS)}
    _refer(given, known.keys())
    runs = _runs(connection, given.runs, held.runs, known)
    counts = [_verdicts(connection, key, *known[key], rows) for key, rows in given.verdicts.items()]
    _stages(connection, given.stages, known)
    ids = {key: id for key, (id, _) in known.items()}
    evidence.join_pilots(connection, ids, given.pilots)
    for run, rows in given.curves.items():
        evidence.join_curve(connection, ids, run, rows)
    return Merged(runs, sum(new for new, _ in counts), sum(replaced for _, replaced in counts))


def _stored(connection: Connection, verdicts: bool = True) -> Snapshot:
    """What a store holds, costs left out; the questions of its runs in their order."""
    links = select(schema.RunQuestion.run, schema.Question.key, schema.RunQuestion.spec)
    links = links.join(schema.Question, schema.Question.id == schema.RunQuestion.question_id).order_by(schema.RunQuestion.position)
    asked: dict[str, list[tuple[str, str]]] = {}
    for id, key, spec in connection.execute(links):
        asked.setdefault(id, []).append((key, spec))
    runs = [replace(run, questions=asked.get(run.id, [])) for run in _all(connection, schema.Run, RunRecord, questions=[])]
    questions = _all(connection, schema.Question, QuestionRecord)
    rows = {question.key: _rows(connection, question.key) for question in questions} if verdicts else {}
    return Snapshot(_all(connection, schema.Model, ModelRecord), _datasets(connection), questions, runs, rows)


def _rows(connection: Connection, key: str) -> list[VerdictRecord]:
    of = schema.Verdict.question_id == select(schema.Question.id).where(schema.Question.key == key).scalar_subquery()
    return [to_record(VerdictRecord, row) for row in connection.execute(select(schema.Verdict.__table__).where(of)).mappings()]


Known = Mapping[str, tuple[int, str]]  # the row and the kind of each question, by key
_QUESTIONS = select(schema.Question.id, schema.Question.key, schema.Question.kind)


def _refer(given: Snapshot, known: Collection[str]) -> None:
    """Every question that a run, a verdict, a stage, a pilot or a curve speaks of must be there. Raises StoreError."""
    asked = {key for run in given.runs for key, _ in run.questions} | set(given.verdicts) | {stage.question for stage in given.stages}
    asked |= {pilot.question for pilot in given.pilots} | {row.question for rows in given.curves.values() for row in rows}
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


def _models(connection: Connection, given: Snapshot, held: Snapshot) -> None:
    """The words of a model (name, title, card) are those under which its newest run asked for it. Raises StoreError."""
    ours, theirs = _newest(held.runs), _newest(given.runs)
    stored = {record.digest: record for record in held.models}
    for record in given.models:
        _same_answers(held.models, record)
        old = stored.get(record.digest)
        if old is None or (theirs.get(record.digest, ""), _text(record)) > (ours.get(record.digest, ""), _text(old)):
            _put(connection, schema.Model, [record])


def _same_answers(held: Iterable[ModelRecord], record: ModelRecord) -> None:
    for old in held:
        if old.digest == record.digest and not same_logits(old.probe, record.probe):
            raise StoreError(f"model {record.name} ({record.digest[:12]}…) answered the probe images otherwise there than here")


def _newest(runs: Iterable[RunRecord]) -> dict[str, str]:
    """By model: when its newest run began, with its id."""
    found: dict[str, str] = {}
    for run in runs:
        found[run.model] = max(found.get(run.model, ""), f"{run.started} {run.id}")
    return found


def _runs(connection: Connection, given: Sequence[RunRecord], stored: Sequence[RunRecord], known: Known) -> int:
    """Runs and what they ask; returns how many are new. A run that was done here prevails over its copy from a bundle."""
    won = _won(stored, given, "id", lambda run: (STATES.index(run.state), run.finished or "", run.submitted is None, _text(run)))
    _put(connection, schema.Run, won, key="id")
    for run in won:
        connection.execute(delete(schema.RunQuestion).where(schema.RunQuestion.run == run.id))
        for position, (key, spec) in enumerate(run.questions):
            connection.execute(insert(schema.RunQuestion).values(run=run.id, position=position, question_id=known[key][0], spec=spec))
    return len({run.id for run in won} - {run.id for run in stored})


def _verdicts(connection: Connection, key: str, question: int, kind: str, given: Sequence[VerdictRecord]) -> tuple[int, int]:
    """(new, replaced) rows of one question."""
    stored = _rows(connection, key)
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
        connection.execute(statement.on_conflict_do_update(index_elements=["run", "question_id", "position", "pilot"], set_=larger), rows)
