"""Sums over the pairs of a suite: per norm, class and plan. Plain Python over the results' JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rbench.bench.compare import ratio
from rbench_results.figures import upper_limit

Result = dict[str, Any]


@dataclass(slots=True)
class Total:
    """One norm, class and plan. Counts are of the first round, seconds and passes of all rounds."""

    norm: str
    kind: str
    plan: str
    pairs: int = 0
    images: int = 0
    broken: int = 0  # by AutoAttack's first seed
    second: int = 0  # of these missed by its second seed, over the pairs that have one
    second_of: int = 0  # AutoAttack's falls on those pairs
    missed: int = 0
    more: int = 0
    theirs: dict[str, float] = field(default_factory=lambda: {"cpu": 0.0, "passes": 0.0})
    ours: dict[str, float] = field(default_factory=lambda: {"cpu": 0.0, "passes": 0.0})
    worst_cpu: float = 0.0
    worst_passes: float = 0.0
    audited: int = 0
    audit_missed: int = 0

    @property
    def cpu(self) -> float | None:
        """CPU seconds in AutoAttack's."""
        return ratio(self.ours["cpu"], self.theirs["cpu"])

    @property
    def passes(self) -> float | None:
        """Forward-equivalents in AutoAttack's."""
        return ratio(self.ours["passes"], self.theirs["passes"])

    @property
    def audit_bound(self) -> float | None:
        """The exact one-sided 95 % limit for the share of standing rows that the plan missed, in percent, from its pilots' audit."""
        return 100 * upper_limit(self.audit_missed, self.audited) if self.audited else None


def norm_of(result: Result) -> str:
    """linf, l2, l1, or union."""
    return "union" if len(result["members"]) > 1 else str(result["members"][0].partition("(")[0])


def class_of(result: Result) -> str:
    """honest or masked: what the suite says, which was fixed before; without that AutoAttack's counts in this run."""
    return str(result.get("kind") or result["masking"]["kind"])


def totals(results: Sequence[Result]) -> list[Total]:
    """One total per norm, class and plan, each with its pairs; norms and plans in order of appearance."""
    found: dict[tuple[str, str, str], Total] = {}
    for result in results:
        for plan in result["plans"]:
            key = (norm_of(result), class_of(result), plan["plan"])
            _add(found.setdefault(key, Total(*key)), result, plan)
    norms, plans = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 2))
    return [found[key] for key in sorted(found, key=lambda key: (norms.index(key[0]), key[1], plans.index(key[2])))]


def _add(total: Total, result: Result, plan: dict[str, Any]) -> None:
    first, yardstick = plan["rounds"][0], result["yardstick"][:1]
    total.pairs += 1
    total.images += result["n"]
    total.broken += result["reference"]["broken"]
    total.second += sum(len(other["missed"]) for other in yardstick)
    total.second_of += result["reference"]["broken"] if yardstick else 0
    total.missed += len(first["missed"])
    total.more += len(first["more"])
    for sums, name in ((total.theirs, "autoattack"), (total.ours, plan["plan"])):
        spent = [side["total"] for side in result["sides"] if side["side"] == name]
        sums["cpu"] += sum(each["cpu"] for each in spent)
        sums["passes"] += sum(each["forward"] + each["backward"] for each in spent)
    total.worst_cpu = max(total.worst_cpu, plan["cpu"] or 0.0)
    total.worst_passes = max(total.worst_passes, plan["passes"] or 0.0)
    audit = plan["audit"] or {"standing": 0, "missed": 0}
    total.audited += audit["standing"]
    total.audit_missed += audit["missed"]


def surprises(results: Sequence[Result]) -> list[str]:
    """Pairs whose class is not what the suite says, and pairs on which a plan's detector says otherwise, unless they lie between."""
    told = []
    for result in results:
        where, found = f"{result['model']} {result['spec']}", result["masking"]
        if result.get("kind") not in (None, found["kind"]):
            told.append(f"{where}: the suite says {result['kind']}, AutoAttack's counts {found['kind']} (gap {found['gap']:.1f} points)")
        for plan in result["plans"]:
            if plan["detected"] not in (None, class_of(result)) and not found["between"]:
                told.append(f"{where}: {plan['plan']}'s pilot says {plan['detected']}, the pair is {class_of(result)}")
    return told
