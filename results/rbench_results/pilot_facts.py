"""What a pilot's facts must be, so that whoever judges by them, counts them and draws them understands them. No SQLAlchemy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rbench_core.errors import StoreError
from rbench_core.files import canonical_json
from rbench_results.records import PilotRecord

KINDS: dict[str, type] = {
    "indices": list, "close": dict, "families": list, "masked": bool, "why": str, "opened": bool, "late": int, "audit": dict, "cost": dict,
}  # fmt: skip


def check_facts(pilot: PilotRecord) -> None:
    """Plain JSON with the parts that `rbench.attacks.pilot.Facts` writes; more parts are no fault. Raises StoreError."""
    facts, called = pilot.facts, f"the pilot of question {pilot.question[:12]}"
    try:
        canonical_json(facts)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{called}: {error}", expected="facts in plain JSON") from error
    for name, kind in KINDS.items():
        if not isinstance(facts.get(name), kind):
            raise StoreError(f"{called}: {name} = {facts.get(name)!r:.60}", expected=f"facts with {', '.join(KINDS)}")
    for name, holds, expected in (
        ("indices", all(type(index) is int and index >= 0 for index in facts["indices"]), "positions in the data set"),
        ("audit", _is_audit(facts["audit"], len(facts["indices"])), "so many missed of so many standing of its images"),
        ("families", all(_is_family(row) for row in facts["families"]), "family, entered and broken of each"),
        (
            "close",
            all(_is_quantile(q) and (m is None or _is_number(m)) for q, m in facts["close"].items()),
            "margins, or null, by quantile",
        ),
        ("cost", all(_is_number(value) and value >= 0 for value in facts["cost"].values()), "numbers"),
        ("late", facts["late"] >= 0, "a number of images"),
    ):
        if not holds:
            raise StoreError(f"{called}: {name} = {facts[name]!r:.80}", expected=expected)


def _is_audit(audit: Mapping[str, Any], images: int) -> bool:
    return _counts(audit, "standing", "missed") and bool(audit["missed"] <= audit["standing"] <= images)


def _is_family(row: object) -> bool:
    return isinstance(row, dict) and isinstance(row.get("family"), str) and _counts(row, "entered", "broken")


def _counts(table: Mapping[str, Any], *names: str) -> bool:
    return all(type(table.get(name)) is int and table[name] >= 0 for name in names)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_quantile(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
