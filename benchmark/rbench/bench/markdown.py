"""Results of suites as Markdown for docs/performance.md: totals, pairs, disagreements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rbench.bench.text import number
from rbench.bench.totals import Result, Total, class_of, surprises, totals

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")


def markdown(results: Sequence[Result]) -> str:
    """The tables one after another, each figure with its n."""
    parts = [_totals(totals(results)), _pairs(results), *_disagreements(results)]
    odd = surprises(results)
    parts += [[f"- {line}" for line in odd]] if odd else []
    return "\n\n".join("\n".join(part) for part in parts if part)


def _totals(rows: Sequence[Total]) -> list[str]:
    head = ["norm", "class", "plan", "pairs, images", "broken by AutoAttack", "missed by its second seed", "missed", "broken more"]
    head += ["CPU ×", "worst pair", "passes ×", "worst pair", "audit: missed of standing (95 % limit)"]
    return _table(head, [_total(row) for row in rows])


def _total(row: Total) -> list[str]:
    second = f"{row.second} of {row.second_of}" if row.second_of else "–"
    bound = row.audit_bound
    audit = "–" if bound is None else f"{row.audit_missed} of {row.audited} ({bound:.1f} %)"
    costs = [number(row.cpu), number(row.worst_cpu), number(row.passes), number(row.worst_passes)]
    counts = [f"{row.pairs}, {row.images:,}", str(row.broken), second, str(row.missed), str(row.more)]
    return [row.norm, row.kind, f"`{row.plan}`", *counts, *costs, audit]


def _pairs(results: Sequence[Result]) -> list[str]:
    head = ["model", "set", "n", "class (gap, points)", "AutoAttack: robust, % (95 % interval)", "CE, T, FAB, Square broke"]
    head += ["second seed: misses, more", "plan", "robust, % (95 % interval)", "misses, more", "CPU ×", "passes ×", "detector"]
    return _table(head, [row for result in results for row in _pair(result)])


def _pair(result: Result) -> Iterator[list[str]]:
    found = result["masking"]
    kind = f"{class_of(result)}{', between' if found['between'] else ''} ({found['gap']:.1f})"
    second = ", ".join(f"{len(row['missed'])}, {len(row['more'])}" for row in result["yardstick"][:1]) or "–"
    left = [f"`{result['model']}`", f"`{result['spec']}`", str(result["n"]), kind, _robust(result["reference"]["robust"])]
    left += [_broken(result), second]
    for plan in result["plans"]:
        first = plan["rounds"][0]
        counts = [_robust(first["robust"]), f"{len(first['missed'])}, {len(first['more'])}"]
        yield [*left, f"`{plan['plan']}`", *counts, number(plan["cpu"]), number(plan["passes"]), plan["detected"] or "–"]


def _broken(result: Result) -> str:
    """What AutoAttack's four attacks broke in the first round, all members together."""
    rows = next(side for side in result["sides"] if side["side"] == "autoattack")["attacks"]
    return ", ".join(str(sum(row["broken"] for row in rows if row["attack"] == name)) for name in ATTACKS)


def _robust(figure: dict[str, Any]) -> str:
    return f"{100 * figure['accuracy']:.1f} ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def _disagreements(results: Sequence[Result]) -> Iterator[list[str]]:
    """Every example of the first rounds that a plan misses or breaks beyond AutoAttack, with who broke it."""
    rows = [row for result in results for row in _differing(result)]
    if rows:
        yield _table(["model", "set", "example", "plan", "AutoAttack, by seed", "the plan"], rows)


def _differing(result: Result) -> Iterator[list[str]]:
    sides, only = result["sides"], f" in {result['members'][0]}" if len(result["members"]) == 1 else ""
    said = {(side["side"], side["round"]): side["fell"] for side in sides}
    theirs = [fell for (name, _), fell in said.items() if name == "autoattack"]
    for plan in result["plans"]:
        first = plan["rounds"][0]
        for index in sorted([*first["missed"], *first["more"]]):
            them = "; ".join((fell.get(str(index)) or "stands").removesuffix(only) for fell in theirs)
            us = (said[plan["plan"], 1].get(str(index)) or "stands").removesuffix(only)
            yield [f"`{result['model']}`", f"`{result['spec']}`", str(index), f"`{plan['plan']}`", them, us]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
