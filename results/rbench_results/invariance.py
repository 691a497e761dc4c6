"""What a model does on stored candidates, against what people say: every figure of invariance, from verdict rows alone. Plain Python.

Of each candidate p is the model's prediction, q that on its clean image, h what people call the candidate, y the clean image's label.
C = the candidates that people call something else (h ≠ y). No figure stands without its n; over no candidates it is None with n = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from rbench_results.figures import Alarm, Figure, mcnemar
from rbench_results.records import VerdictRecord

Share = dict[str, float | int | None]
BALLS = ("strict", "nominal")


def figures(rows: Iterable[VerdictRecord], certified: Mapping[str, AbstractSet[int]] | None = None) -> dict[str, Any]:
    """All figures of one set under one model. certified: per ball (strict, nominal) the examples whose label is proved constant on it.

    strict: a ball that really holds the candidate; nominal: the declared one, which an 8-bit set may leave by a grey level. `error` rows
    stay in every n and never count as a hit. Raises Alarm where a strict proof covers a candidate on which the model changed its answer.
    """
    known = [row for row in rows if row.oracle is not None]
    changed = [row for row in known if row.oracle != row.label]
    proved = dict(certified or {})
    _sound(known, proved.get("strict", frozenset()))
    return {
        "n": len(known),
        "agreement": _share(changed, _follows),
        "agreement_all": _share(known, _follows),
        "keeps": _share(changed, _keeps),
        "neither": _share(changed, lambda row: row.predicted is not None and not _follows(row) and not _keeps(row)),
        "stuck": _share(changed, _stuck),
        "agreement_if_clean_right": _share([row for row in changed if _right(row)], _follows),
        "clean": _share(known, _right),
        "human_change": _share(known, lambda row: row.oracle != row.label),
        "ceiling": _share(known, lambda row: row.oracle == row.label),
        "certified_but_wrong": {ball: _wrong_but_proved(changed, proved[ball]) for ball in BALLS if ball in proved},
        "errors": sum(row.predicted is None for row in known),
    }


def compare(a: Iterable[VerdictRecord], b: Iterable[VerdictRecord]) -> dict[str, float | int]:
    """Two models on the same changed candidates: how many only the first follows, only the second, n, and McNemar's exact p."""
    other = {row.index: row for row in b}
    pairs = [(row, other[row.index]) for row in a if row.index in other and row.oracle is not None and row.oracle != row.label]
    only_a = sum(_follows(x) and not _follows(y) for x, y in pairs)
    only_b = sum(_follows(y) and not _follows(x) for x, y in pairs)
    return {"only_a": only_a, "only_b": only_b, "n": len(pairs), "p": mcnemar(only_a, only_b)}


def _share(rows: Sequence[VerdictRecord], holds: Callable[[VerdictRecord], bool]) -> Share:
    """The share of rows for which it holds, with count, Wilson interval and n; no numbers where there are no rows."""
    if not rows:
        return {"accuracy": None, "low": None, "high": None, "n": 0, "count": 0}
    count = sum(holds(row) for row in rows)
    return {**Figure.of(count, len(rows)).to_dict(), "count": count}


def _follows(row: VerdictRecord) -> bool:
    """The model says what people say."""
    return row.predicted is not None and row.predicted == row.oracle


def _keeps(row: VerdictRecord) -> bool:
    """It says the clean image's label."""
    return row.predicted is not None and row.predicted == row.label


def _stuck(row: VerdictRecord) -> bool:
    """It says what it said of the clean image, right or wrong."""
    return row.predicted is not None and row.predicted == row.clean


def _right(row: VerdictRecord) -> bool:
    """It is right on the clean image."""
    return row.clean is not None and row.clean == row.label


def _sound(rows: Sequence[VerdictRecord], proved: AbstractSet[int]) -> None:
    broken = [row.index for row in rows if row.index in proved and row.predicted is not None and row.predicted != row.clean]
    if broken:
        raise Alarm(
            f"candidate {broken[0]}: its label is proved constant on a ball that holds it, and the model changed its answer there",
            fix="The proof is wrong: please report it.",
        )


def _wrong_but_proved(changed: Sequence[VerdictRecord], proved: AbstractSet[int]) -> dict[str, int]:
    """How many changed candidates keep a right clean label by proof, so that the model cannot follow people there."""
    return {"count": sum(row.index in proved and _right(row) for row in changed), "n": len(changed)}
