"""What stands beside the verdicts, the facts of pilots and the closest adversarial points of runs: read, written and joined."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from rbench_core.errors import StoreError
from rbench_core.files import canonical_json
from rbench_results import schema
from rbench_results.pilot_facts import check_facts
from rbench_results.records import CurveRow, PilotRecord
from rbench_results.rows import to_record, to_row

Ids = Mapping[str, int]  # the row of each question, by key


def question_ids(connection: Connection) -> dict[str, int]:
    """The rows of all questions."""
    return {key: id for key, id in connection.execute(select(schema.Question.key, schema.Question.id))}  # noqa: C416  dict() of rows has no type


# --- pilots -------------------------------------------------------------------------------------------------------------------------


def pilots(connection: Connection, questions: Iterable[str] | None = None) -> list[PilotRecord]:
    """All pilots, or those of the questions with these keys, by key."""
    asked = schema.Question
    query = select(schema.Pilot.__table__, asked.key.label("question")).join(asked, asked.id == schema.Pilot.question_id)
    if questions is not None:
        query = query.where(asked.key.in_(list(questions)))
    return [to_record(PilotRecord, row) for row in connection.execute(query.order_by(asked.key)).mappings()]


def write_pilot(connection: Connection, ids: Ids, pilot: PilotRecord) -> None:
    """In place of what was stored of the question's pilot. Raises StoreError."""
    check_facts(pilot)
    row = {**to_row(schema.Pilot, pilot), "question_id": _id(ids, pilot.question)}
    connection.execute(insert(schema.Pilot).values(row).on_conflict_do_update(index_elements=["question_id"], set_=row))


def join_pilots(connection: Connection, ids: Ids, given: Sequence[PilotRecord]) -> None:
    """Of two pilots of one question, the same in practice, the one with the smaller JSON text: either order gives it."""
    stored = {pilot.question: pilot for pilot in pilots(connection)}
    for pilot in given:
        check_facts(pilot)
        old = stored.get(pilot.question)
        if old is None or _rank(pilot) < _rank(old):
            write_pilot(connection, ids, pilot)


def _rank(pilot: PilotRecord) -> tuple[str, str]:
    return canonical_json(pilot.facts), pilot.run


# --- curves -------------------------------------------------------------------------------------------------------------------------


def curve(connection: Connection, run: str) -> list[CurveRow]:
    """The closest adversarial points that a run found, by question in the order in which they were stored, and index."""
    asked, point = schema.Question, schema.Curve
    query = select(point.__table__, asked.key.label("question")).join(asked, asked.id == point.question_id)
    query = query.where(point.run == run).order_by(point.question_id, point.index)
    return [to_record(CurveRow, row) for row in connection.execute(query).mappings()]


def write_curve(connection: Connection, ids: Ids, run: str, rows: Iterable[CurveRow]) -> None:
    """In place of all that was stored of the run's curve. Raises StoreError."""
    made = [_curve_row(ids, run, row) for row in rows]
    connection.execute(delete(schema.Curve).where(schema.Curve.run == run))
    if made:
        connection.execute(insert(schema.Curve), made)


def join_curve(connection: Connection, ids: Ids, run: str, given: Iterable[CurveRow]) -> None:
    """Of two points of one example the closer one: both are adversarial."""
    best = {place(row): row for row in curve(connection, run)}
    for row in given:
        best[place(row)] = min(row, best.get(place(row), row), key=_distance)
    write_curve(connection, ids, run, best.values())


def _curve_row(ids: Ids, run: str, row: CurveRow) -> dict[str, Any]:
    if row.index < 0 or (row.gauge is not None and row.gauge < 0):
        raise StoreError(f"example {row.index}: distance {row.gauge}", expected="an index and a distance from 0")
    return {**to_row(schema.Curve, row), "question_id": _id(ids, row.question), "run": run}


def place(row: CurveRow) -> tuple[str, int]:
    """What a run has one point of."""
    return row.question, row.index


def _distance(row: CurveRow) -> tuple[float, str, str]:
    return math.inf if row.gauge is None else row.gauge, row.attack or "", row.spec


def _id(ids: Ids, key: str) -> int:
    if key not in ids:
        raise StoreError(f"question {key[:12]} is not in the store", fix="put_question comes before its pilot and its curve.")
    return ids[key]
