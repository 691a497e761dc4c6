"""What is named by content: the key of a question, the seal of a verdict, the file of a witness. So whatever was changed is told.

A seal proves nothing against somebody who writes a new one: only looking again does (rbench.verify).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import PurePosixPath
from typing import Any

from rbench_core.files import canonical_json, sha256_bytes
from rbench_results.records import QuestionRecord, VerdictRecord

_SEALED = tuple(field.name for field in fields(VerdictRecord) if field.name not in ("seal", "oracle"))


def question_key(record: QuestionRecord) -> str:
    """SHA-256 of the canonical JSON of what is asked (DESIGN section 5), in which no name of ours stands."""
    content = {name: getattr(record, name) for name in ("model", "dataset", "set", "objective", "seed", "engine", "precision")}
    return sha256_bytes(canonical_json({**content, "plan": record.plan_json}).encode())


def set_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a question's `set`: what the file of its portrait and its page are named by."""
    return sha256_bytes(canonical_json(content).encode())


def seal_of(question: str, verdict: VerdictRecord) -> str:
    """SHA-256 of the question's key and everything that the verdict says, its provenance and the name of its witness file included.

    A witness file is named by its content, so the seal covers the evidence too. Numbers must be what the store gives back.
    """
    people = [] if verdict.oracle is None else [{"oracle": verdict.oracle}]  # rows from before there were oracles keep their seals
    content = [question, *(getattr(verdict, name) for name in _SEALED), *people]
    return sha256_bytes(canonical_json(content).encode())


def sealed(question: str, verdict: VerdictRecord) -> VerdictRecord:
    """The verdict with its seal."""
    return replace(verdict, seal=seal_of(question, verdict))


def is_intact(question: str, verdict: VerdictRecord) -> bool:
    """Whether the row says what it said when it was sealed; a row from before there were seals says nothing either way."""
    return verdict.seal in ("", seal_of(question, verdict))


def answers_digest(rows: Iterable[tuple[str, VerdictRecord]]) -> str:
    """SHA-256 of what verdicts say, (question key, verdict) each, in any order: examples, labels, answers; not their evidence."""
    return sha256_bytes(canonical_json(sorted([key, row.index, row.label, row.status, row.clean] for key, row in rows)).encode())


def is_named_by_content(name: str, data: bytes) -> bool:
    """Whether a witness file holds what its name says: `FIRST-DIGEST.safetensors`, with at least 8 digits of the SHA-256."""
    digits = PurePosixPath(name).stem.rpartition("-")[2]
    return len(digits) >= 8 and sha256_bytes(data).startswith(digits)
