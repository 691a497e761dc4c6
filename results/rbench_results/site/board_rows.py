"""Rows of a board: a model under one plan, seed and engine, on one slice. Every figure is joined (DESIGN law 3) and over a whole slice."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rbench_results.audit import Pool
from rbench_results.curve import STAGE
from rbench_results.figures import Figure, certified, join, robust, tally
from rbench_results.records import ModelRecord, RunRecord
from rbench_results.report import run_report
from rbench_results.site import charts
from rbench_results.site.facts import Facts, Group
from rbench_results.site.standing import Standing
from rbench_results.site.words import digest_of, plural, span

Status = str | None


@dataclass(frozen=True)
class Member:
    """One set of a threat: `slug` names it in addresses, `label` in columns."""

    spec: str
    label: str
    slug: str


@dataclass
class Row:
    """One line of a board. `members` holds a settled status per image of the slice, None where nothing is known."""

    key: str  # unique on the board, stable between builds
    model: ModelRecord
    run: RunRecord
    plan: str  # with seed and engine where the board has several
    group: Group
    questions: dict[str, str]  # spec -> key
    first: int
    n: int
    members: dict[str, list[Status]]  # by spec
    clean: Figure | None
    passes: float | None  # forward + backward per image
    seconds: float
    alarms: list[str]
    standing: Standing | None = None
    masked: list[str] = field(default_factory=list)  # of the pilots: why the gradient counts as masked, by member
    pool: Pool | None = None  # the audits of its plan
    borrowed: int = 0  # images that fall only by a witness of another question
    counted: list[int] | None = None  # places of the slice that the figures are over; None: all
    invariance: dict[str, Any] | None = None  # of candidates with people's labels: rbench_results.invariance.figures
    asked_proof: bool = False  # of every member
    rank: int | None = None

    @cached_property
    def statuses(self) -> list[Status]:
        """The union's status per image."""
        return [join(column) for column in zip(*self.members.values(), strict=True)]

    def _of_figures(self, statuses: Sequence[Status]) -> list[Status]:
        """The statuses that the figures are over: candidates that people still call what they were say nothing of a model that follows."""
        return list(statuses) if self.counted is None else [statuses[place] for place in self.counted]

    @property
    def size(self) -> int:
        """The n of the figures."""
        return self.n if self.counted is None else len(self.counted)

    @cached_property
    def counts(self) -> dict[str, int]:
        return tally(self._of_figures(self.statuses))

    @cached_property
    def robust(self) -> Figure | None:
        return robust(self._of_figures(self.statuses))

    @cached_property
    def certified(self) -> Figure | None:
        """The lower bound, where a certificate was asked for: 0 where it proved nothing."""
        return certified(self._of_figures(self.statuses)) if self.asked_proof else None

    @property
    def bar(self) -> charts.Bar | None:
        return charts.bar(self.counts) if self.robust else None

    def member(self, spec: str) -> Figure | None:
        return robust(self._of_figures(self.members[spec]))

    @property
    def slice(self) -> str:
        return span(self.first, self.n)

    @property
    def why(self) -> str:
        """Why there is no figure."""
        state = {"running": "the run has not ended; ", "failed": "the run failed; "}.get(self.run.state, "")
        return f"no figure: {state}{self.counts['unanswered']:,} of {plural(self.n, 'image')} not asked"

    @property
    def flags(self) -> list[tuple[str, str]]:
        """(short, long): what a reader of the figure has to know: errors, the run's own warnings, what came from elsewhere."""
        found = [("alarm", text) for text in self.alarms]
        said = {warning.get("code", "warning"): warning.get("text", "") for warning in self.run.warnings}
        reasons = said.pop("errors", "")
        if self.counts["error"]:
            images = plural(self.counts["error"], "image")
            found.append(
                (plural(self.counts["error"], "error"), reasons or f"No answer for {images}. They stay in n and count as not robust.")
            )
        found += [(_words(code), text) for code, text in said.items()]
        found += [("gradient masked", text) for text in [" ".join(self.masked)] if text]
        if self.borrowed:
            images = plural(self.borrowed, "image")
            found.append(
                (f"{self.borrowed} fell elsewhere", f"{images} of this row fell to a witness that another plan or a smaller set found.")
            )
        return found

    def bits(self, members: Sequence[Member]) -> dict[str, object]:
        """What the script needs to judge the row under any choice of members; see `packed`."""
        columns = {member.slug: self._of_figures(self.members[member.spec]) for member in members}
        wrong = [any(status == "misclassified" for status in column) for column in zip(*columns.values(), strict=True)]
        return {"wrong": packed(wrong), "members": {name: _member_bits(column) for name, column in columns.items()}}


def read(facts: Facts, group: Group, asked: dict[str, list[tuple[RunRecord, str]]], spec: str) -> Row:
    """The row's slice: the largest that is answered whole, and of equal ones the newest; the largest where none is."""
    keys = {spec: runs[-1][1] for spec, runs in asked.items()}
    by_slice: dict[tuple[int, int], RunRecord] = {}
    asking = {run.id: run for runs in asked.values() for run, _ in runs}.values()
    for run in sorted(
        asking, key=lambda run: (run.spec == spec, run.started)
    ):  # a slice is named after the run that asked for this very threat
        by_slice[run.first, run.n] = run
    candidates = sorted(by_slice.values(), key=lambda run: (run.n, run.started), reverse=True)
    first = _on_slice(facts, candidates[0], group, keys)
    rest = (_on_slice(facts, run, group, keys) for run in candidates[1:])
    return first if first.robust else next((row for row in rest if row.robust), first)


def _on_slice(facts: Facts, run: RunRecord, group: Group, keys: dict[str, str]) -> Row:
    indices = range(run.first, run.first + run.n)
    known = {spec: facts.joined(key) for spec, key in keys.items()}
    own = {spec: {verdict.index: verdict.status for verdict in facts.within(key, run.first, run.n)} for spec, key in keys.items()}
    asked = [source for key in keys.values() for source in (key, *facts.certificates(key))]  # one of them made the clean pass
    stages = [stage for key in asked for stage in facts.stages_of_question[key] if stage.position != STAGE]  # no board shows a curve
    images = len({verdict.index for key in asked for verdict in facts.verdicts(key)})
    row = Row(
        key=f"{group[0][:12]}-{digest_of(repr(group))[:6]}",
        model=facts.models[group[0]],
        run=run,
        plan=group[3],
        group=group,
        questions=keys,
        first=run.first,
        n=run.n,
        members={spec: [answers.get(index) for index in indices] for spec, answers in known.items()},
        clean=facts.clean(group, run.first, run.n),
        passes=sum(stage.forward + stage.backward for stage in stages) / images if stages and images else None,
        seconds=float(sum(stage.seconds for stage in stages)),
        alarms=[facts.alarms[key] for key in keys.values() if key in facts.alarms],
    )
    pilots = {spec: facts.pilots[key] for spec, key in keys.items() if key in facts.pilots}
    row.masked = [f"The gradient is masked under {spec}: {pilot['why']}." for spec, pilot in pilots.items() if pilot["masked"]]
    row.pool = next((facts.pool(keys[spec]) for spec in pilots), None)
    row.asked_proof = all(facts.has_certificate(key) for key in keys.values())
    if group[2] == "invariance":
        row.invariance = run_report(facts.store, run.id)["invariance"]
        rows = [verdict for key in keys.values() for verdict in facts.within(key, run.first, run.n)]
        row.counted = sorted({verdict.index - run.first for verdict in rows if verdict.oracle != verdict.label})
    row.standing = facts.standing(run, (v.run for key in keys.values() for v in facts.within(key, run.first, run.n)))
    row.borrowed = sum(
        status == "broken" and join(answers.get(index) for answers in own.values()) != "broken"
        for index, status in zip(indices, row.statuses, strict=True)
    )
    return row


def packed(flags: Sequence[bool]) -> str:
    """Bits as base64, image 0 first, most significant bit first."""
    return base64.b64encode(np.packbits(np.asarray(flags, dtype=bool)).tobytes()).decode()


def _member_bits(statuses: Sequence[Status]) -> dict[str, str]:
    """One string of bits per status that occurs; `survived` is what remains, `misclassified` is the model's and stands once per row."""
    names = {"broken": "broken", "certified": "certified", "error": "error", None: "unanswered"}
    return {name: packed([status == kind for status in statuses]) for kind, name in names.items() if kind in statuses}


def _words(code: str) -> str:
    return code.replace("-", " ").replace("_", " ")
