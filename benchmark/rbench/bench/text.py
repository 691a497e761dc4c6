"""The result of one pair for a person: plain text in at most 100 columns. Reads the JSON object alone, so stored ones print as well."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rbench.bench.sides import AUTOATTACK, CLEAN
from rbench.bench.totals import surprises, totals

WIDTH = 100
NAME = 38
LISTED = 40  # disagreements that the text shows; the JSON has all

Result = Mapping[str, Any]


def result_text(result: Result) -> str:
    """Attacks of the first round, totals of all, accuracies, misses, disagreements."""
    parts = [_head(result), *(_attacks(result, side) for side in result["sides"] if side["round"] == 1)]
    parts += [_robust(result), _verdict(result), _masking(result), _disagreements(result)]
    return "\n\n".join("\n".join(part) for part in parts)


def pair_line(result: Result) -> str:
    """One pair in one line: misses and ratios of each plan."""
    told = []
    for plan in result["plans"]:
        first = plan["rounds"][0]
        told.append(f"{plan['plan']} misses {len(first['missed'])}, CPU × {number(plan['cpu'])}, passes × {number(plan['passes'])}")
    second = [len(other["missed"]) for other in result["yardstick"][:1]]
    yard = f"its second seed misses {second[0]}; " if second else ""
    return f"{result['model']} {result['spec']} n={result['n']}: AutoAttack breaks {result['reference']['broken']}; {yard}{'; '.join(told)}"


def _head(result: Result) -> Iterator[str]:
    asked, where = result["asked"], result["environment"]
    rounds = f"{asked['rounds']} rounds" if asked["rounds"] > 1 else "1 round"
    seeds = f"seeds {asked['seed']} to {asked['seed'] + asked['rounds'] - 1}" if asked["rounds"] > 1 else f"seed {asked['seed']}"
    yield f"{result['model']} under {result['spec']}: the first {result['n']} test images of {result['dataset']}"
    yield f"  {rounds} in turn, {seeds}; width {result['width']} (AutoAttack: one batch of all images), {asked['device']}"
    yield f"  {where['processor']}, threads {where['threads']}, torch {where['torch']}, pyautoattack {where['pyautoattack']}"
    if asked["certify"] == "none":
        yield "  attack against attack: no certificates (--certify auto lets them spare our plans examples)"
    else:
        yield "  certificates first: the examples that they cover are not attacked by our plans"


def _attacks(result: Result, side: Mapping[str, Any]) -> Iterator[str]:
    title = f"{side['side']}, seed {side['seed']}"
    columns = f"{'entered':>8}{'broken':>7}{'forward':>12}{'backward':>11}{'CPU s':>8}{'µs/pass':>8}{'steps %':>8}"
    yield from _row(title, columns)
    many = len(result["members"]) > 1
    for member, name, rows in _grouped(side["attacks"]):
        yield from _row(f"  {name}{f' in {member}' if many and member else ''}", _cells(rows))
    yield from _row("  total", _cells([side["total"]], total=True))


def _grouped(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """The rows to print: a member's pilot as one, what belongs to no attack as one at the end, the rest as they are."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    loose = [row["entered"] == 0 or row["attack"] == CLEAN for row in rows]
    for row, rest in sorted(zip(rows, loose, strict=True), key=lambda each: each[1] and not each[0]["pilot"]):
        key = ("", "the rest") if rest else (row["member"], row["attack"])
        key = (row["member"], "the pilot") if row["pilot"] and row["member"] else key
        found.setdefault(key, []).append(row)
    return [(member, name, group) for (member, name), group in found.items()]


def _cells(rows: Sequence[Mapping[str, Any]], total: bool = False) -> str:
    sums = {key: sum(row.get(key, 0) for row in rows) for key in ("broken", "forward", "backward", "cpu", "wall", "step_seconds")}
    passes = sums["forward"] + sums["backward"]
    entered = max(row.get("entered", 0) for row in rows)
    each = f"{1e6 * sums['cpu'] / passes:.0f}" if passes else "–"
    inside = f"{100 * sums['step_seconds'] / sums['wall']:.0f}" if sums["step_seconds"] and sums["wall"] else "–"
    counts = f"{'':>15}" if total or not entered else f"{entered:>8}{sums['broken']:>7}"
    return f"{counts}{sums['forward']:>12,}{sums['backward']:>11,}{sums['cpu']:>8.2f}{each:>8}{inside:>8}"


def _row(name: str, cells: str) -> Iterator[str]:
    """A name and its figures; a long name gets lines of its own."""
    if len(name) > NAME:
        yield from textwrap.wrap(name, WIDTH, initial_indent="", subsequent_indent="    ", drop_whitespace=False)
        name = ""
    yield f"{name:<{NAME}}{cells}".rstrip()


def _robust(result: Result) -> Iterator[str]:
    yield from _row("robust accuracy, % (95 % interval)", "")
    sides = [("autoattack", result["reference"]["robust"], result["asked"]["seed"])]
    sides += [(other["side"], other["robust"], other["seed"]) for other in result["yardstick"]]
    sides += [(row["side"], row["robust"], row["seed"]) for plan in result["plans"] for row in plan["rounds"]]
    for name, robust, seed in sides:
        low, high = 100 * robust["low"], 100 * robust["high"]
        yield from _row(f"  {name}, seed {seed}", f"{100 * robust['accuracy']:>7.1f}   ({low:.1f} to {high:.1f}), n = {robust['n']}")


def _verdict(result: Result) -> Iterator[str]:
    """What everybody misses of AutoAttack's first seed, and costs in its units."""
    columns = f"{'misses':>8}{'breaks more':>13}{'CPU ×':>9}{'(by round)':>17}{'passes ×':>11}"
    yield from _row(f"against AutoAttack, seed {result['asked']['seed']}", columns)
    for other in result["yardstick"]:
        yield from _row(f"  AutoAttack, seed {other['seed']}", f"{len(other['missed']):>8}{len(other['more']):>13}")
    for plan in result["plans"]:
        rounds = ", ".join(number(each) for each in plan["cpu_rounds"])
        for place, row in enumerate(plan["rounds"]):
            cells = f"{len(row['missed']):>8}{len(row['more']):>13}"
            cost = f"{number(plan['cpu']):>9}{f'({rounds})':>17}{number(plan['passes']):>11}" if place == 0 else ""
            yield from _row(f"  {plan['plan']}, seed {row['seed']}", cells + cost)


def _masking(result: Result) -> Iterator[str]:
    found = result["masking"]
    near = ", which is near the limit" if found["between"] else ""
    told = f"by AutoAttack's counts the pair is {found['kind']}: its APGDs leave {found['gap']:.1f} points more than all four{near}"
    yield from textwrap.wrap(told, WIDTH, subsequent_indent="  ")
    for side in result["sides"]:
        for member, facts in side["pilots"].items():
            if side["round"] == 1:
                verdict = "masked" if facts["masked"] else "honest"
                opened = ", the gate was opened" if facts["opened"] else ""
                audit = facts["audit"]
                told = f"{facts['why']}; audit: {audit['missed']} of {audit['standing']} missed{opened}"
                said = f"{side['side']}'s pilot says {verdict} for {member}: {told}"
                yield from textwrap.wrap(said, WIDTH, subsequent_indent="  ")
    errors = sum(len(side["errors"]) for side in result["sides"])
    if errors:
        yield f"! {errors} examples have an error in place of an answer and count here as not broken"
    for warning in dict.fromkeys(row["text"] for side in result["sides"] for row in side["warnings"]):
        yield from textwrap.wrap(f"! {warning}", WIDTH, subsequent_indent="  ")
    if result["reference"]["refused"]:
        refused = next(side for side in result["sides"] if side["side"] == AUTOATTACK)["refused"]
        told = "; ".join(f"{index} ({reason})" for index, reason in refused.items())
        yield from textwrap.wrap(f"! falls of AutoAttack that our referee would refuse: {told}", WIDTH, subsequent_indent="  ")


def _disagreements(result: Result) -> Iterator[str]:
    rows = result["disagreements"]
    yield f"examples on which not all agree: {len(rows)}"
    for row in rows[:LISTED]:
        only = f" in {result['members'][0]}" if len(result["members"]) == 1 else ""
        told = "; ".join(f"{name}: {(by or 'stands').removesuffix(only)}" for name, by in row["sides"].items())
        yield from textwrap.wrap(f"  {row['index']}  {told}", WIDTH, subsequent_indent="      ")
    if len(rows) > LISTED:
        yield f"  … and {len(rows) - LISTED} more: --json FILE has all"


def number(value: float | None) -> str:
    """A ratio with two significant digits or three decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def totals_text(results: Sequence[dict[str, Any]]) -> str:
    """Per norm, class and plan, over all pairs; then what does not agree with the suite or the detectors."""
    lines = []
    for norm in dict.fromkeys(total.norm for total in totals(results)):
        columns = f"{'pairs':>6}{'broken':>8}{'2nd seed':>9}{'missed':>8}{'more':>6}{'CPU ×':>8}{'worst':>7}{'passes ×':>10}"
        lines += [*_row(norm, columns)]
        for total in totals(results):
            if total.norm == norm:
                second = str(total.second) if total.second_of else "–"
                counts = f"{total.pairs:>6}{total.broken:>8}{second:>9}{total.missed:>8}{total.more:>6}"
                cells = f"{counts}{number(total.cpu):>8}{number(total.worst_cpu):>7}{number(total.passes):>10}"
                lines += [*_row(f"  {total.plan}, {total.kind}", cells)]
        lines.append("")
    lines += [line for text in surprises(results) for line in textwrap.wrap(f"! {text}", WIDTH, subsequent_indent="  ")]
    return "\n".join(lines).rstrip()
