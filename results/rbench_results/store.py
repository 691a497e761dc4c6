"""The store: what was asked and what is known, in `rbench.sqlite` of a results folder. One chunk of verdicts is one transaction.

Any number of processes may read and write; a process killed at any moment leaves whole chunks. Every error is a StoreError of one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Engine, case, literal_column, select, update
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.sql import ColumnElement

from rbench_core.errors import ModelError, StoreError, UnknownName
from rbench_results import evidence, schema
from rbench_results.database import open_database, reading, writing
from rbench_results.records import (
    RUN_STATES,
    STATUSES,
    CurveRow,
    DatasetRecord,
    ModelRecord,
    PilotRecord,
    QuestionRecord,
    RunRecord,
    StageRecord,
    VerdictRecord,
    VerificationRecord,
)
from rbench_results.rows import columns, dataset_record, stage_row, table_of, to_record, to_row, verdict_row

PROBE_TOLERANCE = 1e-3  # logits of one model on another machine differ by about 1e-6; of another model by far more
ADDED_UP = ("entered", "broken", "refused", "errors", "forward", "backward", "useful", "seconds", "model_seconds", "step_seconds")


class Store:
    """The records of one results folder. Use it as a context manager, or close() it."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder, self.engine = folder, engine

    @classmethod
    def open(cls, folder: Path, *, create: bool = True) -> Store:
        """Open for writing, making or migrating the database where needed; `create=False` only reads what is there. Raises StoreError."""
        return cls(folder, open_database(folder, create=create))

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # what was asked

    def put_model(self, record: ModelRecord) -> None:
        """Store a model, or its new name, title and card. Raises ModelError if a model of this digest answered the probe otherwise."""
        with writing(self.engine) as connection:
            stored = connection.execute(select(schema.Model.probe).where(schema.Model.digest == record.digest)).scalar()
            if stored is not None and not same_logits(stored, record.probe):
                raise ModelError(
                    f"model {record.name} ({record.digest[:12]}…) answers the probe images otherwise than when it was stored",
                    expected=f"logits within {PROBE_TOLERANCE:g}",
                    fix="It is random, or code behind it has changed; keep its results apart with --results.",
                )
            _put(connection, schema.Model, record, editorial=("name", "title", "dataset", "card"))

    def put_dataset(self, record: DatasetRecord) -> None:
        """Store a data set, or its new name, split and note."""
        with writing(self.engine) as connection:
            _put(connection, schema.Dataset, record, editorial=("name", "split", "note"))

    def put_question(self, record: QuestionRecord) -> None:
        """Store a question, or its new title and sentence. Its model and data set must be stored."""
        if record.kind not in STATUSES:
            raise StoreError(f"question {record.key[:12]}: kind {record.kind!r}", expected=f"one of: {', '.join(STATUSES)}")
        with writing(self.engine) as connection:
            _put(connection, schema.Question, record, key="key", editorial=("title", "sentence"))

    def start_run(self, record: RunRecord) -> None:
        """Store a run and its questions, which must be stored."""
        with writing(self.engine) as connection:
            connection.execute(insert(schema.Run).values(to_row(schema.Run, record)))
            for position, (key, spec) in enumerate(record.questions):
                question, _ = _question_id(connection, key)
                connection.execute(insert(schema.RunQuestion).values(run=record.id, position=position, question_id=question, spec=spec))

    def finish_run(self, id: str, *, state: str, warnings: Sequence[Mapping[str, str]], seconds: float) -> None:
        """Close a run with its state, its warnings and its duration."""
        if state not in RUN_STATES:
            raise StoreError(f"run {id}: state {state!r}", expected=f"one of: {', '.join(sorted(RUN_STATES))}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        values = {"state": state, "warnings": [dict(warning) for warning in warnings], "seconds": float(seconds), "finished": now}
        with writing(self.engine) as connection:
            if connection.execute(update(schema.Run).where(schema.Run.id == id).values(values)).rowcount == 0:
                raise StoreError(f"run {id} was never started")

    def models(self) -> list[ModelRecord]:
        """All models, by name."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(schema.Model.__table__).order_by(schema.Model.name)).mappings()
            return [to_record(ModelRecord, row) for row in rows]

    def datasets(self) -> list[DatasetRecord]:
        """All data sets, by name."""
        with reading(self.engine) as connection:
            rows = connection.execute(select(schema.Dataset.__table__).order_by(schema.Dataset.name)).mappings()
            return [dataset_record(row) for row in rows]

    def question(self, key: str) -> QuestionRecord:
        """Raises UnknownName."""
        found = self.questions(key=key)
        if not found:
            raise UnknownName("question", key, ())
        return found[0]

    def questions(self, **equal: str) -> list[QuestionRecord]:
        """Questions whose fields have the given values, `questions(model=digest, family="linf")`; the oldest first."""
        query = select(schema.Question.__table__).order_by(schema.Question.id)
        with reading(self.engine) as connection:
            return [to_record(QuestionRecord, row) for row in connection.execute(query.filter_by(**equal)).mappings()]

    def runs(self) -> list[RunRecord]:
        """All runs, the oldest first."""
        return self._runs()

    def run(self, name: str) -> RunRecord:
        """The run of this id, of this beginning of an id, or the one started last for "latest". Raises UnknownName."""
        ids = self._run_ids()
        found = ids[-1:] if name == "latest" else [id for id in ids if id == name] or [id for id in ids if name and id.startswith(name)]
        if len(found) == 1:
            return self._runs(found[0])[0]
        fix = "Several ids begin so; give more of it." if found else "`latest` names the last one." if ids else "No run is stored yet."
        raise UnknownName("run", name, found or ids, fix=fix)

    def _run_ids(self) -> list[str]:
        with reading(self.engine) as connection:
            return list(connection.execute(select(schema.Run.id).order_by(schema.Run.started, schema.Run.number)).scalars())

    def _runs(self, id: str | None = None) -> list[RunRecord]:
        runs = select(schema.Run.__table__).order_by(schema.Run.started, schema.Run.number)
        link = schema.RunQuestion
        links = select(link.run, schema.Question.key, link.spec).join(schema.Question, schema.Question.id == link.question_id)
        if id is not None:
            runs, links = runs.where(schema.Run.id == id), links.where(link.run == id)
        with reading(self.engine) as connection:
            asked: dict[str, list[tuple[str, str]]] = {}
            for run, key, spec in connection.execute(links.order_by(link.run, link.position)):
                asked.setdefault(run, []).append((key, spec))
            return [to_record(RunRecord, row, questions=asked.get(row["id"], [])) for row in connection.execute(runs).mappings()]

    # what is known

    def add_chunk(self, key: str, verdicts: Sequence[VerdictRecord], stages: Sequence[StageRecord]) -> None:
        """Store verdicts of one question and what they cost, in one transaction.

        A stored verdict gives way only to one that says at least as much: `error` < `survived`, `open` < all others. So an error never
        hides an answer, and of two processes that answer the same example the one with a witness prevails. Stages are added up.
        Raises StoreError for an unknown question, run or status, and then stores nothing.
        """
        with writing(self.engine) as connection:
            question, kind = _question_id(connection, key)
            rows = [verdict_row(question, key, kind, verdict) for verdict in verdicts]
            costs = [stage_row(question, key, stage) for stage in stages]
            if rows:
                connection.execute(_VERDICTS, rows)
            if costs:
                connection.execute(_STAGES, costs)

    def answered(self, key: str, first: int = 0, n: int | None = None) -> dict[int, str]:
        """Statuses by example index, of the examples first ≤ index < first + n that have a row; an `error` is a row too."""
        verdict = schema.Verdict
        query = select(verdict.index, verdict.status).where(*_slice(key, first, n)).order_by(verdict.index)
        with reading(self.engine) as connection:
            return {index: status for index, status in connection.execute(query)}  # noqa: C416  dict() of rows has no type

    def statuses(self, keys: Iterable[str], at: Iterable[int] | None = None) -> list[tuple[str, int, str]]:
        """(question key, example index, status) of every row of these questions, or of the few at these indices."""
        verdict, question = schema.Verdict, schema.Question
        query = select(question.key, verdict.index, verdict.status).join(question, question.id == verdict.question_id)
        query = query.where(question.key.in_(list(keys)), *([] if at is None else [verdict.index.in_(sorted(at))]))
        with reading(self.engine) as connection:
            return [(key, index, status) for key, index, status in connection.execute(query)]

    def verdicts(self, key: str, first: int = 0, n: int | None = None) -> list[VerdictRecord]:
        """The rows of one question with first ≤ index < first + n, in the order of the index."""
        query = select(schema.Verdict.__table__).where(*_slice(key, first, n)).order_by(schema.Verdict.index)
        with reading(self.engine) as connection:
            return [to_record(VerdictRecord, row) for row in connection.execute(query).mappings()]

    def stages(self, *, run: str | None = None, question: str | None = None) -> list[StageRecord]:
        """What attacks did and cost, of one run or one question or both; in the order of runs and plans."""
        stage, asked = schema.Stage, schema.Question
        query = select(stage.__table__, asked.key.label("question")).join(asked, asked.id == stage.question_id)
        query = query.join(schema.Run, schema.Run.id == stage.run)
        if run is not None:
            query = query.where(stage.run == run)
        if question is not None:
            query = query.where(asked.key == question)
        with reading(self.engine) as connection:
            rows = connection.execute(
                query.order_by(schema.Run.started, schema.Run.number, stage.question_id, stage.position, stage.pilot)
            ).mappings()
            return [to_record(StageRecord, row) for row in rows]

    def put_pilot(self, question: str, run: str, facts: Mapping[str, Any]) -> None:
        """Store what the pilot of a question found, in place of what was stored of it. Raises StoreError."""
        with writing(self.engine) as connection:
            pilot = PilotRecord(question=question, run=run, facts=dict(facts))
            evidence.write_pilot(connection, evidence.question_ids(connection), pilot)

    def pilot(self, question: str) -> dict[str, Any] | None:
        """The facts of a question's pilot; None before it ran, or where there is none."""
        return next((record.facts for record in self.pilots([question])), None)

    def pilots(self, questions: Iterable[str] | None = None) -> list[PilotRecord]:
        """All pilots, or those of the questions with these keys, by key."""
        with reading(self.engine) as connection:
            return evidence.pilots(connection, questions)

    def put_curve(self, run: str, rows: Iterable[CurveRow]) -> None:
        """Store the closest adversarial points that a run found, in place of those stored before. Raises StoreError."""
        with writing(self.engine) as connection:
            evidence.write_curve(connection, evidence.question_ids(connection), run, rows)

    def curve(self, run: str) -> list[CurveRow]:
        """The closest adversarial points that a run found, by question in the order in which they were stored, and index."""
        with reading(self.engine) as connection:
            return evidence.curve(connection, run)

    # what was confirmed

    def put_verification(self, record: VerificationRecord) -> None:
        """Store what was confirmed of a run, which need not be in the store yet: a bundle is verified before it is merged."""
        with writing(self.engine) as connection:
            connection.execute(insert(schema.Verification).values(to_row(schema.Verification, record)).on_conflict_do_nothing())

    def verifications(self, run: str | None = None) -> list[VerificationRecord]:
        """All verifications, or those of one run; the oldest first, and of one second the one stored first."""
        query = select(schema.Verification.__table__).order_by(schema.Verification.started, literal_column("rowid"))
        if run is not None:
            query = query.where(schema.Verification.run == run)
        with reading(self.engine) as connection:
            return [to_record(VerificationRecord, row) for row in connection.execute(query).mappings()]


def _slice(key: str, first: int, n: int | None) -> list[ColumnElement[bool]]:
    verdict = schema.Verdict
    of = verdict.question_id == select(schema.Question.id).where(schema.Question.key == key).scalar_subquery()
    return [of, verdict.index >= first, *([] if n is None else [verdict.index < first + n])]


def _question_id(connection: Connection, key: str) -> tuple[int, str]:
    found = connection.execute(select(schema.Question.id, schema.Question.kind).where(schema.Question.key == key)).first()
    if found is None:
        raise StoreError(f"question {key[:12]} is not in the store", fix="put_question comes before its runs and verdicts.")
    return found[0], found[1]


def _put(connection: Connection, kind: type[schema.Base], record: object, *, editorial: Iterable[str], key: str = "digest") -> None:
    """Insert a record, or update only what is editorial: the rest belongs to its key."""
    statement = insert(kind).values(to_row(kind, record))
    connection.execute(statement.on_conflict_do_update(index_elements=[key], set_={name: statement.excluded[name] for name in editorial}))


def _strength(status: ColumnElement[str]) -> ColumnElement[int]:
    return case({"error": 0, "survived": 1, "open": 1}, value=status, else_=2)


def _upsert_verdicts() -> Insert:
    statement = insert(schema.Verdict)
    fields = {name: statement.excluded[name] for name in columns(schema.Verdict) if name not in ("question_id", "index")}
    at_least = _strength(statement.excluded.status) >= _strength(table_of(schema.Verdict).c.status)
    return statement.on_conflict_do_update(index_elements=["question_id", "index"], set_=fields, where=at_least)


def _upsert_stages() -> Insert:
    statement = insert(schema.Stage)
    stored = table_of(schema.Stage).c
    return statement.on_conflict_do_update(
        index_elements=["run", "question_id", "position", "pilot"],
        set_={name: stored[name] + statement.excluded[name] for name in ADDED_UP},
    )


def same_logits(stored: Sequence[Sequence[float]], given: Sequence[Sequence[float]]) -> bool:
    """Equal shapes and logits within the tolerance; NaN equals NaN. Nothing is compared where one of them is empty."""
    if not stored or not given:
        return True
    if [len(row) for row in stored] != [len(row) for row in given]:
        return False
    pairs = ((a, b) for old, new in zip(stored, given, strict=True) for a, b in zip(old, new, strict=True))
    return all(a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= PROBE_TOLERANCE for a, b in pairs)


_VERDICTS = _upsert_verdicts()
_STAGES = _upsert_stages()
