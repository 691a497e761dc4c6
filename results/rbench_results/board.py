"""What a board shows: the verdicts of one question joined with all that other stored questions prove about it (DESIGN law 3).

A refereed witness lies in every set that contains its own, so a fall under linf 0.1 is a fall under linf 0.3, whichever plan found it; a
certificate for linf 0.3 holds for linf 0.1. Survival passes on to nobody, and stored verdicts stay as they are. So joined figures never
rise with the radius, except where `error` rows, which count as not robust, stand under the smaller set alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from rbench_results.figures import Alarm, join, settle
from rbench_results.records import QuestionRecord
from rbench_results.store import Store


def joined(store: Store, key: str, *certificates: str) -> dict[int, str]:
    """Settled status by example index, of every example that this question, its certificates or another stored question decides.

    `certificates`: keys of further questions about the same set, whose own rows count in full. Raises Alarm. Two SQL queries for all rows.
    """
    asked, own = store.question(key), {key, *certificates}
    bearing = {question.key: _bearing(question, asked, own) for question in _alike(store, asked)}
    found: dict[int, set[str]] = {}
    for source, index, status in store.statuses(source for source, counted in bearing.items() if counted):
        if status in bearing[source]:
            found.setdefault(index, set()).add(status)
    settled = ((index, _settle(index, statuses, asked)) for index, statuses in sorted(found.items()))
    return {index: status for index, status in settled if status is not None}


def joined_union(store: Store, keys: Iterable[str], indices: Iterable[int]) -> dict[int, str | None]:
    """A threat's joined status per index, from the questions of its members; questions of one spec are one member."""
    members: dict[str, list[str]] = {}
    for key in keys:
        members.setdefault(store.question(key).spec, []).append(key)
    answers = [joined(store, *group) for group in members.values()]
    return {index: join(answer.get(index) for answer in answers) for index in indices}


def contains(outer: QuestionRecord, inner: QuestionRecord) -> bool:
    """True if every image that the inner question's set allows is allowed by the outer's: one family, and no extent is smaller."""
    if outer.family != inner.family or set(outer.extent) != set(inner.extent):
        return False
    if not outer.extent:  # nothing to compare: a set that has no size holds only itself
        return outer.set == inner.set
    return all(Fraction(outer.extent[name]) >= Fraction(inner.extent[name]) for name in inner.extent)


def _alike(store: Store, asked: QuestionRecord) -> list[QuestionRecord]:
    return store.questions(model=asked.model, dataset=asked.dataset, objective=asked.objective, family=asked.family)


def _bearing(other: QuestionRecord, asked: QuestionRecord, own: set[str]) -> frozenset[str]:
    """The statuses of another question that are true of the asked set as well."""
    if other.key in own:
        return frozenset({"misclassified", "broken", "certified", "error", "survived"})
    if other.kind == "attack" and contains(asked, other):
        return frozenset({"misclassified", "broken"})
    if other.kind == "certificate" and contains(other, asked):
        return frozenset({"certified"})
    return frozenset()


def _settle(index: int, statuses: set[str], asked: QuestionRecord) -> str | None:
    try:
        return settle(statuses)
    except Alarm as alarm:
        raise Alarm(f"example {index} is both broken and certified under {asked.spec}", fix=alarm.fix) from alarm
