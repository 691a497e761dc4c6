"""What a plan that gives images up early may have missed, and whether its pilot found the gradient masked (docs/plans.md).

The pilot's images got the plan's full budget. Of those that the ordinary way leaves standing, m in all, k fell to it: so of the images that
the plan left standing elsewhere at most the exact one-sided 95 % limit of k of m would fall to the full budget too. Under a union an image
counts that stands under every member whose gate is closed; members share the pilot's images, so their late falls are one sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rbench_results.figures import Alarm, settle, upper_limit
from rbench_results.records import PilotRecord, QuestionRecord, RunRecord
from rbench_results.store import Store

Audited = tuple[QuestionRecord, PilotRecord]  # a question and what its pilot found


@dataclass(frozen=True, slots=True)
class Pool:
    """The audits of all questions of one plan record and engine: of `rows` images left standing `missed` fell to the full budget."""

    questions: int
    rows: int
    missed: int

    @property
    def limit(self) -> float:
        """At most this share of what the plan leaves standing would fall, with 95 % confidence."""
        return upper_limit(self.missed, self.rows)


def audited(store: Store) -> list[Audited]:
    """Every question of a store that has a pilot."""
    pilots = {pilot.question: pilot for pilot in store.pilots()}
    return [(question, pilots[question.key]) for question in store.questions() if question.key in pilots] if pilots else []


def pool(like: QuestionRecord, known: Iterable[Audited], strangers: frozenset[str] = frozenset()) -> Pool:
    """The audits of all questions with the plan record and engine of this one; those of strangers' runs are left out."""
    asked = like.plan_json, like.engine, like.precision
    counts = [
        pilot.facts["audit"]
        for question, pilot in known
        if (question.plan_json, question.engine, question.precision) == asked and pilot.run not in strangers
    ]
    return Pool(len(counts), sum(count["standing"] for count in counts), sum(count["missed"] for count in counts))


@dataclass(frozen=True, slots=True)
class Evidence:
    """The pilots of one run, by the spec of the member; `pooled` is over the whole store.

    rows: pilot images that the ordinary way leaves standing under every member with a closed gate; None where not all of their verdicts
    are here, as in a bundle: then every member is bounded apart, and the bounds add up.
    """

    pilots: dict[str, PilotRecord]
    pooled: Pool | None
    rows: int | None

    @property
    def gated(self) -> dict[str, PilotRecord]:
        """The members that give images up; where a late fall opened the gate, every image met everything, and nothing is missed."""
        return {spec: pilot for spec, pilot in self.pilots.items() if not pilot.facts["opened"]}

    @property
    def indices(self) -> frozenset[int]:
        """The pilots' images: they got everything, so nothing of them was missed."""
        return frozenset(index for pilot in self.pilots.values() for index in pilot.facts["indices"])

    def audit(self, joined: Mapping[int, str | None], members: Mapping[str, Mapping[int, str | None]]) -> dict[str, Any] | None:
        """The bounds in points of robust accuracy, null while an image is unanswered; pooled, null where all audits are strangers'.

        Statuses by index, joined and by member.
        """
        if self.pooled is None:
            return None
        left = [index for index, status in joined.items() if status == "survived" and index not in self.indices]
        whole = None not in joined.values() and len(joined) > 0
        asked = {spec: sum(members[spec].get(index) != "certified" for index in left) for spec in self.gated}
        pooled, counts = self.pooled, [_counts(pilot) for pilot in (self.gated or self.pilots).values()]
        missed = sum(count["missed"] for count in counts)  # of several members, at worst those of different images
        return {
            "rows": sum(count["rows"] for count in counts) if self.rows is None else self.rows,
            "missed": missed,
            "bound": 100 * min(self._missed(asked, len(left)) / len(joined), 1.0) if whole else None,
            "members": [{"spec": spec, **_counts(pilot)} for spec, pilot in self.pilots.items()],
            "pooled": {
                "questions": pooled.questions,
                "rows": pooled.rows,
                "missed": pooled.missed,
                "limit": pooled.limit,
                "bound": 100 * min(pooled.limit * sum(asked.values()) / len(joined), 1.0) if whole and pooled.questions else None,
            },
        }

    def _missed(self, asked: Mapping[str, int], left: int) -> float:
        """At most so many of the images left standing were missed, with 95 % confidence."""
        counts = {spec: _counts(pilot) for spec, pilot in self.gated.items()}
        if not counts:
            return 0.0
        if self.rows is not None:
            return left * upper_limit(sum(count["missed"] for count in counts.values()), self.rows)
        confidence = 1 - 0.05 / len(counts)  # all of them hold together
        return sum(asked[spec] * upper_limit(count["missed"], count["rows"], confidence) for spec, count in counts.items())

    def masking(self) -> list[dict[str, Any]] | None:
        """What the detector said of each member, and what every family of attacks broke in the pilot; null where there was none."""
        told = ("masked", "why", "opened", "late", "families", "cost")
        return [{"spec": spec, **{name: pilot.facts[name] for name in told}} for spec, pilot in self.pilots.items()] or None


def _counts(pilot: PilotRecord) -> dict[str, int]:
    return {"rows": pilot.facts["audit"]["standing"], "missed": pilot.facts["audit"]["missed"]}


def evidence_of(store: Store, run: RunRecord, known: Sequence[Audited] | None = None) -> Evidence:
    """The pilots that answered a run's questions. known: `audited(store)`, where somebody has it."""
    known = audited(store) if known is None else known
    asked = dict(run.questions)
    own = {asked[question.key]: (question, pilot) for question, pilot in known if question.key in asked}
    pilots = {spec: own[spec][1] for _, spec in run.questions if spec in own}
    if not pilots:
        return Evidence({}, None, None)
    strangers = frozenset(other.id for other in store.runs() if other.submitted is not None)
    pooled = pool(next(question for question, _ in own.values()), known, strangers)
    found = Evidence(pilots, pooled, None)
    return replace(found, rows=_together(store, run, found.gated or pilots))


def _together(store: Store, run: RunRecord, pilots: Mapping[str, PilotRecord]) -> int | None:
    """How many pilot images stand on the ordinary way under all members; None where a verdict of one is not here."""
    counts = [_counts(pilot) for pilot in pilots.values()]
    if len(counts) == 1:
        return counts[0]["rows"]
    images = {index for pilot in pilots.values() for index in pilot.facts["indices"]}
    keys = {key: spec for key, spec in run.questions if spec in pilots and store.question(key).spec == spec}  # no proof of another ball
    found: dict[int, dict[str, list[str]]] = {index: {spec: [] for spec in pilots} for index in images}
    for key, index, status in store.statuses(keys, at=images):
        found[index][keys[key]].append(status)
    stand = [{_settled(statuses) for statuses in members.values()} for members in found.values()]
    if any(None in settled for settled in stand):
        return None
    late = sum(count["missed"] for count in counts)  # these stood before they fell
    return sum(settled <= {"survived", "certified"} and "survived" in settled for settled in stand) + late


def _settled(statuses: Sequence[str]) -> str | None:
    try:
        return settle(statuses)
    except Alarm:
        return "broken"
