"""Records out of JSON that anybody may have written: every field there, of its type, and none that is unknown."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from rbench_core.errors import StoreError
from rbench_results.records import CurveRow, DatasetRecord, ModelRecord, PilotRecord, QuestionRecord, RunRecord, StageRecord, VerdictRecord
from rbench_results.snapshot import Snapshot

Record = TypeVar("Record")
KINDS = {"models": ModelRecord, "datasets": DatasetRecord, "questions": QuestionRecord, "runs": RunRecord, "stages": StageRecord}
LATER = {"pilots": PilotRecord}  # lists that older bundles have not
BY_KEY = {"verdicts": VerdictRecord, "curves": CurveRow}  # lists in an object, by question and by run
LARGEST = 2**63  # of a whole number that a database holds
DEEPEST = 20


def read_snapshot(table: Any) -> Snapshot:
    """The records of a bundle; older ones have neither pilots nor curves. Raises StoreError that names the first field that is wrong."""
    known, needed = {*KINDS, *LATER, *BY_KEY}, {*KINDS, "verdicts"}
    if not isinstance(table, dict) or not needed <= set(table) <= known or not isinstance(table["verdicts"], dict):
        raise StoreError("the record is no object of records", expected=f"the keys {', '.join([*KINDS, 'verdicts'])}")
    given = {"pilots": [], "curves": {}, **table}
    read: dict[str, Any] = {name: _records(kind, given[name], name) for name, kind in {**KINDS, **LATER}.items()}
    read |= {name: _by_key(kind, given[name], name) for name, kind in BY_KEY.items()}
    return Snapshot(**read)


def written(records: Snapshot) -> dict[str, Any]:
    """The object that `read_snapshot` reads."""
    kinds = {name: [asdict(record) for record in getattr(records, name)] for name in (*KINDS, *LATER)}
    return kinds | {name: {key: [asdict(row) for row in rows] for key, rows in getattr(records, name).items()} for name in BY_KEY}


def _by_key(kind: type[Record], table: Any, name: str) -> dict[str, list[Record]]:
    if not isinstance(table, dict):
        raise StoreError(f"{name} is {type(table).__name__}", expected="an object of lists")
    return {key: _records(kind, rows, f"{name} of {key[:12]}") for key, rows in table.items()}


def _records(kind: type[Record], rows: Any, where: str) -> list[Record]:
    return [read_record(kind, row, f"{where}[{place}]") for place, row in enumerate(_list(rows, where))]


def read_record(kind: type[Record], row: Any, where: str) -> Record:
    """One record. Raises StoreError."""
    if not isinstance(row, Mapping):
        raise StoreError(f"{where} is {type(row).__name__}", expected="an object")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # every kind of record is a dataclass
    if unknown := sorted(set(row) - set(known)):
        raise StoreError(f"{where}: unknown field {unknown[0]!r:.80}", expected=f"one of: {', '.join(known)}")
    given = {}
    for name, field in known.items():
        if name in row:
            given[name] = _value(row[name], hints[name], f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise StoreError(f"{where}: no field {name!r}")
    return kind(**given)


def _value(value: Any, hint: Any, where: str) -> Any:
    """The value in the type that the record has; JSON's lists become the tuples that it wants."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        return _value(value, next(part for part in parts if part is not type(None)), where)
    if origin is list:
        return [_value(item, parts[0], f"{where}[{i}]") for i, item in enumerate(_list(value, where))]
    if origin is tuple:
        items = _list(value, where)
        kinds = [parts[0]] * len(items) if parts[-1] is ... else list(parts)
        if len(kinds) != len(items):
            raise StoreError(f"{where} has {len(items)} entries", expected=str(len(kinds)))
        return tuple(_value(item, part, f"{where}[{i}]") for i, (item, part) in enumerate(zip(items, kinds, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise StoreError(f"{where} is {type(value).__name__}", expected="an object")
        return {key: _value(item, parts[1], f"{where}.{key[:40]}") for key, item in value.items()}
    return _plain(value, hint, where)


def _plain(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        _bounded(value, where)
        return value
    if hint is float and type(value) is int:
        value = float(value)
    odd = abs(value) >= LARGEST if hint is int and type(value) is int else isinstance(value, float) and not math.isfinite(value)
    if type(value) is not hint or odd:
        raise StoreError(
            f"{where} = {value!r:.80}", expected={str: "text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
        )
    return value


def _bounded(value: Any, where: str, depth: int = 0) -> None:
    """JSON that every reader can walk. Raises StoreError."""
    if depth > DEEPEST or (isinstance(value, float) and not math.isfinite(value)):
        raise StoreError(f"{where} holds NaN, infinity or tables {DEEPEST} deep", expected="plain values")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _bounded(part, where, depth + 1)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise StoreError(f"{where} is {type(value).__name__}", expected="a list")
    return value
