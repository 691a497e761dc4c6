"""Records to table rows and back, and the store's door: only what a reader will understand comes in."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

from sqlalchemy import Table

from rbench_core.errors import StoreError
from rbench_results import schema
from rbench_results.records import STATUSES, DatasetRecord, StageRecord, VerdictRecord
from rbench_results.seal import seal_of

Record = TypeVar("Record")


def verdict_row(question: int, key: str, kind: str, verdict: VerdictRecord) -> dict[str, Any]:
    """The table row of a verdict, sealed unless it brings a seal. Raises StoreError for what no reader would understand."""
    if verdict.status not in STATUSES[kind]:
        raise StoreError(f"example {verdict.index}: status {verdict.status!r}", expected=f"one of: {', '.join(sorted(STATUSES[kind]))}")
    if verdict.index < 0:
        raise StoreError(f"example {verdict.index}", expected="an index from 0")
    if verdict.witness is not None:
        path = PurePosixPath(verdict.witness)
        if path.is_absolute() or ".." in path.parts:
            raise StoreError(f"example {verdict.index}: witness file {verdict.witness!r}", expected="a path inside the results folder")
    row = to_row(schema.Verdict, verdict)
    if not verdict.seal:  # of the values as they are stored
        row["seal"] = seal_of(key, to_record(VerdictRecord, row))
    return {**row, "question_id": question}


def stage_row(question: int, key: str, stage: StageRecord) -> dict[str, Any]:
    """The table row of a stage. Raises StoreError if it belongs to another question than its chunk."""
    if stage.question != key:
        raise StoreError(f"a stage of question {stage.question[:12]} in a chunk of {key[:12]}", expected="stages of the chunk's question")
    return {**to_row(schema.Stage, stage), "question_id": question}


def to_row(kind: type[schema.Base], record: object) -> dict[str, Any]:
    """A record's fields as plain values for the table's columns of the same names."""
    return {name: _plain(getattr(record, name)) for name in columns(kind) if hasattr(record, name)}


def to_record(kind: type[Record], row: Mapping[Any, Any], **given: Any) -> Record:
    """A record from the columns of the same names; `given` stands in for those that need a conversion."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # every kind of record is a dataclass
    return kind(**{name: given[name] if name in given else row[name] for name in names})


def dataset_record(row: Mapping[Any, Any]) -> DatasetRecord:
    """A data set; JSON has lists where the record has tuples."""
    return to_record(DatasetRecord, row, shape=tuple(row["shape"]), classes=tuple(row["classes"]))


def columns(kind: type[schema.Base]) -> list[str]:
    return [column.name for column in table_of(kind).columns]


def table_of(kind: type[schema.Base]) -> Table:
    found = kind.__table__
    assert isinstance(found, Table)  # SQLAlchemy types it wider, for classes that map a query
    return found


def _plain(value: Any) -> Any:
    """A value that SQLite stores as what it is: numpy's scalars would become bytes, lone surrogates of a file name would be refused."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if value is None or isinstance(value, bool | list | dict):
        return value
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "__index__"):
        return operator.index(value)
    number = float(value)
    return number if math.isfinite(number) else None  # NaN and infinities have no place in figures or in JSON
