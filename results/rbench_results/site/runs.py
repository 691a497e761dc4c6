"""One page per run: what exactly happened, what it cost, the pictures, and how to make it again. Figures are the run's own, not joined."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rbench_results.curve import STAGE
from rbench_results.records import RunRecord, VerdictRecord, VerificationRecord
from rbench_results.report import run_report
from rbench_results.site import charts, curves, pictures
from rbench_results.site.evidence import MemberEvidence, evidence
from rbench_results.site.facts import Facts
from rbench_results.site.standing import Standing, columns
from rbench_results.site.words import count, duration, plural, slug, span

CLEAN_PASS = 0  # the position of the pass over the clean images; attacks of a plan count from 1
SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass
class Run:
    """A run with all that its page shows."""

    record: RunRecord
    report: dict[str, Any]
    slug: str
    labels: dict[str, str]  # spec of a member -> what columns call it
    classes: Sequence[str]
    pictures: list[pictures.Picture]
    sheet: bytes | None
    flows: list[tuple[str, charts.Flow]]
    steps: list[dict[str, Any]]
    evidence: list[MemberEvidence]
    curves: list[curves.Chart]
    from_others: dict[str, int]  # run id -> verdicts that this run found answered
    missing: list[int]  # images whose witness file is gone or damaged, of those that were to be shown
    standing: Standing | None
    verification: VerificationRecord | None

    @property
    def page(self) -> str:
        return f"run-{self.slug}.html"

    @property
    def bar(self) -> charts.Bar | None:
        return charts.bar(self.report["counts"]) if self.report["robust"] else None

    @property
    def images(self) -> str:
        """The slice in words: images 0–499."""
        return f"images {span(self.record.first, self.record.n)}"

    @property
    def passes(self) -> float | None:
        """Of the verdicts, without what a curve took."""
        cost, curve = self.report["cost"], self.report["cost"]["curve"]
        spent = sum(cost[name] - curve[name] for name in ("forward", "backward"))
        return spent / self.record.n if self.record.n and spent else None

    @property
    def check(self) -> str | None:
        """The command that verifies it, where a name is enough: a run that was asked for by names, or the bundle that it came by."""
        request, bundle = self.record.request, str((self.record.submitted or {}).get("name"))
        if self.record.submitted:
            return f"rbench verify {bundle}.rbench.zip" if SAFE.fullmatch(bundle) else None
        return (
            f"rbench verify {self.record.id}"
            if request.get("model") and request.get("dataset") and SAFE.fullmatch(self.record.id)
            else None
        )

    @property
    def complete(self) -> bool:
        """True where every member answered every image."""
        return all(member["robust"] for member in self.report["members"].values())


def read(facts: Facts, run: RunRecord) -> Run:
    """The run as the store has it; pictures come from its witness files."""
    report = {**run_report(facts.store, run.id, facts.audited), "site": None}
    name = run.id if SAFE.fullmatch(run.id) else slug(run.id)
    answers = {spec: facts.within(key, run.first, run.n) for key, spec in facts.attacks(run)}
    sheet = pictures.draw(facts.store.folder, pictures.choose(answers), f"img/run-{name}.png")
    from_others = _origin(run, answers)
    labels = {spec: facts.label(key) for key, spec in facts.attacks(run)}
    steps = _steps(report, labels)
    report["site"] = f"run-{name}.html"  # a site is read elsewhere than it was built: no path of this machine
    return Run(
        record=run,
        report=report,
        slug=name,
        labels=labels,
        classes=facts.classes(run.dataset),
        pictures=sheet.pictures,
        sheet=sheet.png,
        flows=_flows(facts, run, steps, labels),
        steps=steps,
        evidence=evidence(report, [step for step in steps if _is_attack(step)], labels),
        curves=[drawn for told in report["curve"] or () if (drawn := curves.chart(labels.get(told["spec"], told["spec"]), told))],
        from_others=from_others,
        missing=sorted({verdict.index for _, verdict in sheet.missing}),
        standing=facts.standing(run, from_others),
        verification=facts.verifications.get(run.id),
    )


def _origin(run: RunRecord, answers: dict[str, list[VerdictRecord]]) -> dict[str, int]:
    """How many of the verdicts other runs had already given."""
    return dict(Counter(verdict.run for verdicts in answers.values() for verdict in verdicts if verdict.run != run.id))


def _steps(report: dict[str, Any], labels: dict[str, str]) -> list[dict[str, Any]]:
    """The attacks as they worked: clean passes, proofs, pilots, then all members' screens, after them the other attacks, and curves."""
    stages = [{**stage, "member": labels.get(stage["spec"], stage["spec"]), **_worth(stage)} for stage in report["stages"]]
    clean = [{**stage, "member": "all"} for stage in stages if stage["position"] == CLEAN_PASS]
    proofs = [stage for stage in stages if stage["position"] < CLEAN_PASS]
    attacks = sorted((stage for stage in stages if _is_attack(stage)), key=_place(labels))
    own = _standing(_order([stage for stage in attacks if not stage["pilot"]]), report["full"])
    return clean + proofs + [stage for stage in attacks if stage["pilot"]] + own + [s for s in stages if s["position"] == STAGE]


def _is_attack(stage: dict[str, Any]) -> bool:
    return bool(CLEAN_PASS < stage["position"] < STAGE)


def _worth(stage: dict[str, Any]) -> dict[str, Any]:
    spent = stage["forward"] + stage["backward"]
    return {"standing": None, "passes": spent, "price": spent / stage["broken"] if stage["broken"] else None}


def _place(labels: dict[str, str]) -> Callable[[dict[str, Any]], tuple[int, int]]:
    order = {spec: at for at, spec in enumerate(labels)}
    return lambda stage: (order.get(stage["spec"], 0), stage["position"])


def _order(attacks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Members by how many images they were asked about, within a member the plan's order; screens of all members before anybody's rest.

    A member's screens are the attacks at its beginning that every image met which stood under it.
    """
    members: dict[str, list[dict[str, Any]]] = {}
    for stage in attacks:
        members.setdefault(stage["spec"], []).append(stage)
    by_size = sorted(members.values(), key=lambda own: -own[0]["entered"])
    screens = [own[: _screens(own)] for own in by_size]
    return [stage for own in screens for stage in own] + [
        stage for own, first in zip(by_size, screens, strict=True) for stage in own[len(first) :]
    ]


def _screens(own: Sequence[dict[str, Any]]) -> int:
    """How many attacks at the beginning were met by all that still stood."""
    for at, (one, other) in enumerate(pairwise(own), start=1):
        if other["entered"] != one["entered"] - one["broken"]:
            return at
    return len(own)


def _standing(attacks: list[dict[str, Any]], full: bool) -> list[dict[str, Any]]:
    """With how many images stood after each: of the whole threat, or of each member where the members were asked apart."""
    whole = not full and _chained(attacks)
    left: dict[str, int] = {}
    for stage in attacks:
        who = "" if whole else stage["spec"]
        left[who] = left.get(who, stage["entered"]) - stage["broken"]
        stage["standing"] = left[who]
    return attacks


def _chained(attacks: Sequence[dict[str, Any]]) -> bool:
    """Whether no attack met an image that had fallen to one before it."""
    left = attacks[0]["entered"] if attacks else 0
    for stage in attacks:
        if stage["entered"] > left:
            return False
        left -= stage["broken"]
    return True


def _flows(facts: Facts, run: RunRecord, steps: Sequence[dict[str, Any]], labels: dict[str, str]) -> list[tuple[str, charts.Flow]]:
    """One chart for a chain of members that skip what already fell; one per member where each was asked about every image."""
    attacks = [step for step in steps if _is_attack(step) and not step["pilot"]]
    before = sum(step["passes"] for step in steps if step["position"] == CLEAN_PASS and not step["pilot"])
    specs = list(dict.fromkeys(step["spec"] for step in attacks))
    parts = [("", specs)] if len(specs) == 1 or (not run.full and _chained(attacks)) else [(labels[spec], [spec]) for spec in specs]
    keys = {spec: key for key, spec in facts.attacks(run)}
    found = []
    for title, part in parts:
        reach = {spec: facts.reach(keys[spec]) for spec in part}  # a pilot's images may lie beyond
        wrong = {v.index for spec in part for v in facts.verdicts(keys[spec]) if v.status == "misclassified" and v.index < reach[spec]}
        chain = [_step(step, title) for step in attacks if step["spec"] in part]
        chart = charts.flow(chain, len(wrong), before=before, bottom=charts.LOW if title else charts.TALL)
        if chart:
            found.append((title, chart))
    return found


def _step(step: dict[str, Any], title: str) -> charts.Step:
    name = step["attack"] if title else f"{step['member']}, {step['attack']}"
    return charts.Step(name, step["entered"], step["broken"], step["passes"])


def verdict_rows(run: Run) -> list[dict[str, Any]]:
    """One row per image for the CSV: labels by number and by name, the joined status, who broke it, and every member's status."""
    rows = []
    for verdict in run.report["verdicts"]:
        row = {name: verdict[name] for name in ("index", "label", "status", "attack", "fell_to", "clean", "predicted", "reason")}
        rows.append(row | {f"{spec}": status for spec, status in verdict["members"].items()})
    return rows


def member_rows(run: Run) -> list[dict[str, Any]]:
    """The table of members for the CSV."""
    rows = []
    for spec, member in run.report["members"].items():
        figure = member["robust"] or {}
        rows.append(
            {"member": run.labels[spec], "spec": spec}
            | {"robust": figure.get("accuracy"), "low": figure.get("low"), "high": figure.get("high")}
            | {"n": run.record.n, **{name: member[name] for name in ("asked", "broke", "alone", "skipped", "unanswered")}}
        )
    return rows


def stage_rows(run: Run) -> list[dict[str, Any]]:
    """The table of attacks for the CSV."""
    names = ("member", "spec", "position", "pilot", "attack", "entered", "broken", "standing", "refused", "errors")
    spent = ("forward", "backward", "useful", "seconds", "model_seconds", "step_seconds")
    return [{name: step[name] for name in (*names, *spent)} for step in run.steps]


def summary(run: Run) -> dict[str, Any]:
    """The run as one row of the list of runs."""
    figure, clean = run.report["robust"] or {}, run.report["clean"] or {}
    return {
        "run": run.record.id,
        "model": run.record.model_name,
        "model_digest": run.record.model,
        "dataset": run.record.dataset_name,
        "threat": run.record.title,
        "spec": run.record.spec,
        "plan": run.record.plan,
        "seed": run.record.seed,
        "n": run.record.n,
        "first": run.record.first,
        "clean": clean.get("accuracy"),
        "robust": figure.get("accuracy"),
        "low": figure.get("low"),
        "high": figure.get("high"),
        "state": run.record.state,
        "started": run.record.started,
        "finished": run.record.finished,
        **columns(run.record, run.verification),
    }


def record_of(facts: Facts, run: Run) -> list[tuple[str, str]]:
    """The run's own record: keys, digests, provenance, cost."""
    cost, own = run.report["cost"], run.report["cost"]["this_run"]
    questions = [facts.questions[key] for key, _ in run.record.questions]
    verdicts = [verdict for key, _ in run.record.questions for verdict in facts.within(key, run.record.first, run.record.n)]
    machines = sorted({f"{v.device}, width {v.width}, {plural(v.threads, 'thread')}, torch {v.torch}" for v in verdicts})
    return [
        *((f"question {run.labels[spec]}", key) for key, spec in run.record.questions),
        ("model digest", run.record.model),
        ("data digest", run.record.dataset),
        ("engine", ", ".join(sorted({f"{question.engine}, {question.precision}" for question in questions}))),
        ("verdicts made on", "; ".join(machines)),
        ("passes", f"{count(cost['forward'])} forward, {count(cost['backward'])} backward; {count(cost['useful'])} useful"),
        ("of these in this run", f"{count(own['forward'] + own['backward'])}, in {duration(run.record.seconds)}"),
        *((name, _plain(value)) for name, value in sorted(run.record.environment.items())),
    ]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
