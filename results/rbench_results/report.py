"""The report of one run as one object (DESIGN section 6), read from the store alone; a run that failed or goes on reports what is there.

It speaks of the run's own questions over the run's own slice, with raw verdicts; what other questions prove about them is the board's.
`cost` and `stages` add up all passes ever spent on these questions, in whichever run and slice, since that is what the figures rest on and
an answer taken from the store would otherwise look free; `cost["this_run"]` is what this run itself spent, `cost["pilot"]` what pilots
    did, `cost["curve"]` what the accuracy over eps took.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rbench_results.audit import Audited, evidence_of
from rbench_results.curve import STAGE, curve
from rbench_results.figures import FALLEN, Alarm, Figure, certified, join, robust, settle, tally
from rbench_results.invariance import figures
from rbench_results.records import RunRecord, StageRecord, VerdictRecord
from rbench_results.store import ADDED_UP, Store

PASSES = ("forward", "backward", "useful", "seconds", "model_seconds", "step_seconds")


@dataclass(slots=True)
class Member:
    """One set of the threat: the rows of its attack, the settled status of each answered example, and whether a proof was asked for."""

    spec: str
    rows: dict[int, VerdictRecord] = field(default_factory=dict)
    found: dict[int, list[str]] = field(default_factory=dict)
    statuses: dict[int, str | None] = field(default_factory=dict)
    alarms: list[int] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)  # of a proof about a ball with an answer inside it
    has_certificate: bool = False
    objective: str = "sensitivity"
    balls: list[tuple[Fraction, set[int]]] = field(default_factory=list)  # radius of a ball around candidates, examples certified in it

    def counts(self, index: int) -> bool:
        """Whether an example enters the figure: all do, but for candidates that people still call what they were."""
        row = self.rows.get(index)
        return row is None or row.oracle is None or row.oracle != row.label

    def invariance(self) -> dict[str, Any]:
        """The figures of a set of candidates with people's labels; `nominal` is the smallest ball around them, `strict` the largest."""
        balls = [proved for _, proved in sorted(self.balls, key=lambda ball: ball[0])]
        proved = {"nominal": balls[0], "strict": balls[-1]} if balls else {}
        try:
            return figures(self.rows.values(), proved)
        except Alarm as alarm:
            self.contradictions.append(str(alarm))
            return figures(self.rows.values())

    def settle(self) -> None:
        """Join what the attack and the certificate say of each example."""
        for index, found in self.found.items():
            try:
                self.statuses[index] = settle(found)
            except Alarm:  # the witness passed the referee; the warning says that the proof disagrees
                self.statuses[index] = "broken"
                self.alarms.append(index)


def run_report(store: Store, run_id: str, known: Sequence[Audited] | None = None) -> dict[str, Any]:
    """The report of a run, named by its id, a beginning of it or "latest". Raises UnknownName.

    A figure is null while one of its examples is unanswered, `certified` also where no certificate was asked for. Under the objective
    invariance `robust` is over the candidates whose label people changed: how often the model follows; `invariance` has the rest.
    known: `audit.audited(store)`, where somebody has it.
    """
    run = store.run(run_id)
    members = _members(store, run)
    indices = range(run.first, run.first + run.n)
    statuses = {index: join(member.statuses.get(index) for member in members) for index in indices}
    counted = {index: status for index, status in statuses.items() if all(member.counts(index) for member in members)}
    clean = _clean(members, indices)
    evidence = evidence_of(store, run, known)
    return {
        **_head(run),
        "objective": members[0].objective if members else "sensitivity",
        "clean": _dict(clean),
        "robust": _dict(robust(counted.values())),
        "certified": _dict(certified(counted.values()) if any(member.has_certificate for member in members) else None),
        "invariance": next((member.invariance() for member in members if member.objective == "invariance"), None),
        "audit": evidence.audit(counted, {member.spec: member.statuses for member in members}),
        "masking": evidence.masking(),
        "curve": _curves(store, run, members),
        "members": {member.spec: _member(member, members, counted, clean) for member in members},
        "counts": tally(counted.values()),
        "verdicts": [_verdict(index, status, members) for index, status in statuses.items()],
        **_costs(store, run),
        "warnings": run.warnings + [warning for member in members for warning in _alarms(member)],
        "alarm": any(member.alarms or member.contradictions for member in members),
        "site": _page(store, run),
    }


def _head(run: RunRecord) -> dict[str, Any]:
    return {
        "run": run.id,
        "state": run.state,
        "started": run.started,
        "finished": run.finished,
        "seconds": run.seconds,
        "model": run.model_name,
        "model_digest": run.model,
        "dataset": run.dataset_name,
        "dataset_digest": run.dataset,
        "threat": run.threat,
        "spec": run.spec,
        "title": run.title,
        "plan": run.plan,
        "seed": run.seed,
        "full": run.full,
        "n": run.n,
        "slice": {"first": run.first, "n": run.n},
        "command": run.command,
        "questions": [{"key": key, "spec": spec} for key, spec in run.questions],
        "environment": run.environment,
    }


def _members(store: Store, run: RunRecord) -> list[Member]:
    """The run's questions, those about one set together, in the order of the threat."""
    members: dict[str, Member] = {}
    for key, spec in run.questions:
        member, question = members.setdefault(spec, Member(spec)), store.question(key)
        is_certificate = question.kind == "certificate"
        rows = store.verdicts(key, run.first, run.n)
        if is_certificate and question.spec != spec:  # about a ball around the candidates, not about them
            radius = max(map(Fraction, question.extent.values()), default=Fraction(0))
            member.balls.append((radius, {row.index for row in rows if row.status == "certified"}))
            continue
        member.has_certificate |= is_certificate
        member.objective = question.objective
        for row in rows:
            member.found.setdefault(row.index, []).append(row.status)
            if not is_certificate or row.index not in member.rows:
                member.rows[row.index] = row
    for member in members.values():
        member.settle()
    return list(members.values())


def _curves(store: Store, run: RunRecord, members: Sequence[Member]) -> list[dict[str, Any]] | None:
    """The curves over eps that the run was asked for, in the order of the members."""
    rows, found = store.curve(run.id), []
    for member in members:
        own = [row for row in rows if row.spec == member.spec]
        if own:
            extent = store.question(own[0].question).extent
            found.append(curve(member.spec, own, member.statuses, range(run.first, run.first + run.n), extent).to_dict())
    return found or None


def _clean(members: list[Member], indices: Sequence[int]) -> Figure | None:
    """Clean accuracy; None while an example has no row. A prediction that the model did not give, or gave otherwise elsewhere, is wrong."""
    right = 0
    for index in indices:
        rows = [member.rows[index] for member in members if index in member.rows]
        if not rows:
            return None
        known = {row.clean for row in rows if row.clean is not None}
        right += known == {rows[0].label}
    return Figure.of(right, len(indices)) if indices else None


def _member(member: Member, members: list[Member], statuses: Mapping[int, str | None], clean: Figure | None) -> dict[str, Any]:
    """A member's figures, null where the run did not ask it of every example; the clean images are the same for all members."""
    own = [member.statuses.get(index) for index in statuses]
    missing = [index for index, status in zip(statuses, own, strict=True) if status is None]
    skipped = sum(statuses[index] in FALLEN for index in missing)
    return {
        "clean": _dict(clean),
        "robust": _dict(robust(own)),
        "certified": _dict(certified(own) if member.has_certificate else None),
        "asked": len(own) - len(missing),
        "broke": own.count("broken"),
        "alone": _alone(member, members, statuses),
        "skipped": skipped,
        "unanswered": len(missing) - skipped,
        "statuses": dict(Counter(status for status in own if status is not None)),
    }


def _alone(member: Member, members: list[Member], statuses: Mapping[int, str | None]) -> int | None:
    """Examples that this member breaks and every other one was asked and did not; None where the others were not asked of all."""
    others = [other for other in members if other is not member]
    if any(other.statuses.get(index) is None for other in others for index in statuses):
        return None
    return sum(member.statuses.get(i) == "broken" and all(other.statuses[i] not in FALLEN for other in others) for i in statuses)


def _verdict(index: int, status: str | None, members: list[Member]) -> dict[str, Any]:
    """One example: its joined status, who decided it, each member's status: "skipped" when it fell to another, null while unanswered."""
    rows = [member.rows[index] for member in members if index in member.rows]
    decisive = next((member for member in members if status is not None and member.statuses.get(index) == status), None)
    row = decisive.rows[index] if decisive is not None else rows[0] if rows else None
    unasked = "skipped" if status in FALLEN else None
    return {
        "index": index,
        "label": row.label if row else None,
        "status": status,
        "attack": row.attack if row and status == "broken" else None,
        "fell_to": decisive.spec if decisive is not None and status == "broken" else None,
        "clean": row.clean if row else None,
        "predicted": row.predicted if row else None,
        **({"oracle": row.oracle} if row and row.oracle is not None else {}),
        "reason": row.reason if row else None,
        "members": {member.spec: member.statuses.get(index) or unasked for member in members},
    }


def _costs(store: Store, run: RunRecord) -> dict[str, Any]:
    """`cost` in images passed and seconds, and the plan's stages behind it, summed over runs."""
    specs = dict(run.questions)
    stages = [stage for key in specs for stage in store.stages(question=key)]
    summed: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for stage in stages:
        entry = summed.setdefault(
            (stage.question, stage.position, stage.pilot),
            {"spec": specs[stage.question], "position": stage.position, "attack": stage.attack, "pilot": stage.pilot},
        )
        for name in ADDED_UP:
            entry[name] = entry.get(name, 0) + getattr(stage, name)
    parts = {
        "this_run": [stage for stage in stages if stage.run == run.id],
        "pilot": [stage for stage in stages if stage.pilot],
        "curve": [stage for stage in stages if stage.position == STAGE],
    }
    return {"cost": {**_sum(stages), **{name: _sum(part) for name, part in parts.items()}}, "stages": list(summed.values())}


def _sum(stages: Sequence[StageRecord]) -> dict[str, Any]:
    return {name: sum(getattr(stage, name) for stage in stages) for name in PASSES}


def _alarms(member: Member) -> list[dict[str, str]]:
    both = [f"example {index} is both broken and certified under {member.spec}: a witness or a proof is wrong" for index in member.alarms]
    return [{"code": "alarm", "text": text} for text in both + member.contradictions]


def _dict(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else figure.to_dict()


def _page(store: Store, run: RunRecord) -> str | None:
    page = store.folder / "site" / f"run-{run.id}.html"
    return str(page) if page.is_file() else None
