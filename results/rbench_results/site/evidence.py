"""What each family of attacks broke and what it cost, the detector's verdict, and the curves over eps: the Evidence of a run's page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rbench_results.site.words import plural

RADII_OF_THE_SET = "radii of the set"
SUMMED = ("entered", "broken", "passes", "seconds", "model_seconds", "step_seconds")


@dataclass
class Family:
    """Attacks of one kind under one member: what they did for ordinary images, and for those of the pilot."""

    name: str
    attacks: list[str] = field(default_factory=list)  # as the plan writes them
    own: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0))
    pilot: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0))

    @property
    def steps(self) -> float | None:
        """The share of its seconds that went into the attacks' own steps; None where nobody measured it."""
        parts = (self.own, self.pilot)
        seconds = sum(part["seconds"] for part in parts)
        measured = sum(part["model_seconds"] + part["step_seconds"] for part in parts)
        return sum(part["step_seconds"] for part in parts) / seconds if seconds and measured else None


@dataclass(frozen=True)
class MemberEvidence:
    """One member: its families in the plan's order, and what its pilot found, null where it has none."""

    label: str
    families: list[Family]
    pilot: Mapping[str, Any] | None  # of the report's `masking`
    audit: Mapping[str, Any] | None  # of the report's `audit`: its own rows and falls

    @property
    def verdict(self) -> tuple[str, str]:
        """(short, long): what the detector said and why."""
        if self.pilot is None:
            return "no pilot", "Every image met every attack of the plan: nothing was given up early."
        why = f"{str(self.pilot['why'])[:1].upper()}{str(self.pilot['why'])[1:]}."
        if self.pilot["masked"]:
            return "gradient masked", f"{why} Margins mean nothing there, so every image met attacks of every kind."
        if self.pilot["opened"]:
            fell = plural(self.pilot["late"], "pilot image")
            return "gate opened", f"{why} {fell} fell that the gate would have kept out, so every image met the full budget."
        return "not masked", why

    @property
    def warns(self) -> bool:
        """Whether the model hides its gradient, or the gate was wrong."""
        return self.pilot is not None and bool(self.pilot["masked"] or self.pilot["opened"])


def evidence(report: Mapping[str, Any], attacks: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[MemberEvidence]:
    """The members that were attacked, in the order of the threat."""
    pilots = {row["spec"]: row for row in report["masking"] or ()}
    audits = {row["spec"]: row for row in (report["audit"] or {}).get("members", ())}
    found = []
    for spec, label in labels.items():
        own = [step for step in attacks if step["spec"] == spec]
        if own:
            found.append(MemberEvidence(label, _families(own), pilots.get(spec), audits.get(spec)))
    return found


def _families(attacks: Sequence[Mapping[str, Any]]) -> list[Family]:
    """Of several attacks of one family the falls add up, and the most that entered one of them is what entered."""
    found: dict[str, Family] = {}
    for step in sorted(attacks, key=lambda step: (step["position"], step["pilot"])):
        family = found.setdefault(family_of(step["attack"]), Family(family_of(step["attack"])))
        if step["attack"] not in family.attacks:
            family.attacks.append(step["attack"])
        part = family.pilot if step["pilot"] else family.own
        part["entered"] = max(part["entered"], step["entered"])
        for name in SUMMED[1:]:
            part[name] += step[name]
    return list(found.values())


def family_of(attack: str) -> str:
    """The kind of an attack: its name, where all that climb one loss by APGD at the full radius are one kind."""
    name = re.split(r"[( ]", attack, maxsplit=1)[0]
    return "apgd" if re.fullmatch(r"apgd(-(ce|t|sparse|dlr))?", name) else name


def curve_rows(curves: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The curves for the CSV."""
    return [
        {"member": labels.get(curve["spec"], curve["spec"]), "spec": curve["spec"], "unit": "pixels" if curve["eps"] else RADII_OF_THE_SET}
        | dict(point)
        for curve in curves
        for point in curve["points"]
    ]
