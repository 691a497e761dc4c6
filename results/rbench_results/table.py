"""A report as plain text for a terminal: clean, each member, the union, intervals, cost, warnings, and where the page is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 100


def report_table(report: Mapping[str, Any]) -> str:
    """The object of DESIGN section 6 in at most 100 columns."""
    return "\n".join([*_head(report), "", *_figures(report), "", *_counts(report), *_evidence(report), *_foot(report)])


def overview_table(reports: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> str:
    """One line per threat of one model, then the threats that do not apply, with the reason; n and interval in every line."""
    first = reports[0]
    width = max(len(name) for name in [*(report["threat"] for report in reports), *skipped, "threat"]) + 2
    lines = [f"{first['model']} under every threat; {first['dataset']}, plan {first['plan']}, seed {first['seed']}", ""]
    lines.append(f"{'threat':<{width}}{'n':>5}  {'clean %':>7}  {'certified %':>11}  {'robust %':>8}  95 % interval   seconds")
    lines += [_line(report, width) for report in reports]
    lines += [f"{name:<{width}}    –  {reason}" for name, reason in skipped.items()]
    followed = [report["threat"] for report in reports if report.get("invariance")]
    if followed:
        lines += ["", textwrap.fill(f"{', '.join(followed)}: how often the model follows people where they changed the label.", WIDTH)]
    warnings = {(warning["code"], warning["text"]): None for report in reports for warning in report["warnings"]}
    lines += [textwrap.fill(f"! {text}", WIDTH, subsequent_indent="  ") for _, text in warnings]
    pages = [report["site"] for report in reports if report["site"] is not None]
    return "\n".join([*lines, "", *([f"pages:  {pages[0].rpartition('run-')[0]}index.html"] if pages else [])])


def _line(report: Mapping[str, Any], width: int) -> str:
    robust, proved = report["robust"], report["certified"]
    n = robust["n"] if robust else report["n"]
    shown = (
        f"{100 * robust['accuracy']:>8.1f}  {100 * robust['low']:>5.1f} – {100 * robust['high']:<6.1f}" if robust else f"{'–':>8}{'':<17}"
    )
    bound = f"{100 * proved['accuracy']:>11.1f}" if proved else f"{'–':>11}"
    clean = f"{100 * report['clean']['accuracy']:>7.1f}" if report["clean"] else f"{'–':>7}"
    return f"{report['threat']:<{width}}{n:>5}  {clean}  {bound}  {shown} {report['seconds']:>8.1f}"


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{report['model']} under {report['threat']}"
    if report["spec"] != report["threat"]:
        yield f"  {report['spec']}"
    yield f"  {report['dataset']}, images 0 to {report['n'] - 1} (n = {report['n']}); plan {report['plan']}, seed {report['seed']}"


def _figures(report: Mapping[str, Any]) -> Iterator[str]:
    if report.get("invariance"):
        yield from _people(report["invariance"])
        return
    members = report["members"]
    width = max(len(name) for name in ["worst member of each image", *members]) + 2
    yield f"{'accuracy, %':<{width}}{'':>7}  {'95 % interval':<14}"
    yield f"{'clean':<{width}}{_figure(report['clean'])}"
    for name, member in members.items():
        yield f"{name:<{width}}{_figure(member['robust'])}  {_asked(member, report['n'])}".rstrip()
    if len(members) > 1:
        yield f"{'worst member of each image':<{width}}{_figure(report['robust'])}"
    none = "    n/a  no certificate was asked for, or none is known"
    yield f"{'certified':<{width}}{_figure(report['certified']) if report['certified'] else none}"
    if any(member["skipped"] for member in members.values()):
        yield "–: an image that fell to one member is not asked of the next; --full asks every member of all"


PEOPLE = {  # of rbench_results.invariance.figures
    "clean": "right on the clean images",
    "agreement": "follows people where they changed the label",
    "keeps": "keeps the clean image's label there",
    "neither": "says something else there",
    "stuck": "says there what it said of the clean image",
    "agreement_all": "follows people on all candidates",
    "ceiling": "people kept the label: a constant model's ceiling",
}


def _people(figures: Mapping[str, Any]) -> Iterator[str]:
    """What a model does on candidates with people's labels."""
    width = max(map(len, PEOPLE.values())) + 2
    yield f"{'of candidates, %':<{width}}{'':>7}  {'95 % interval':<14}     n"
    for key, words in PEOPLE.items():
        found = figures[key]
        yield f"{words:<{width}}{_figure(found if found['n'] else None)}  {found['n']:>4}"
    for ball, found in figures["certified_but_wrong"].items():
        yield f"certified and wrong, {ball} ball: {found['count']} of {found['n']} changed"


def _figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return f"{'–':>7}  {'':<14}"
    return f"{100 * figure['accuracy']:>7.1f}  {100 * figure['low']:>5.1f} – {100 * figure['high']:<6.1f}"


def _asked(member: Mapping[str, Any], n: int) -> str:
    """What a member did; it has no figure of its own where fallen images were not asked again."""
    broke = f"broke {member['broke']} of {member['asked']} asked"
    if member["skipped"]:
        return f"{broke}; {member['skipped']} had fallen before"
    return f"{broke}; {member['unanswered']} unanswered" if member["unanswered"] else broke


def _counts(report: Mapping[str, Any]) -> Iterator[str]:
    counts = {name: count for name, count in report["counts"].items() if name is not None}
    yield "images: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    cost, n = report["cost"], max(report["n"], 1)
    own = cost["this_run"]["seconds"]
    spent = (
        f"{cost['forward']:,} forward and {cost['backward']:,} backward passes ({(cost['forward'] + cost['backward']) / n:,.0f} per image)"
    )
    line = f"cost:   {spent}, {cost['seconds']:.1f} s" + (f", of which this run {own:.1f} s" if own < 0.99 * cost["seconds"] else "")
    yield textwrap.fill(line, WIDTH, subsequent_indent=" " * 8)


def _evidence(report: Mapping[str, Any]) -> Iterator[str]:
    """What the plan may have missed, and where the gradient is masked."""
    for line in (*audit_lines(report), *masking_lines(report)):
        yield textwrap.fill(line, WIDTH, subsequent_indent=" " * 8)


def audit_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """One line: the bound of the run, and of its plan over all stored questions; of a run without a pilot none."""
    audit = report.get("audit")
    if not audit or audit["bound"] is None:
        return
    pooled, missed = audit["pooled"], f"{audit['missed']} of {audit['rows']}"
    told = f"of {audit['rows']} images that it left standing the full budget broke {missed if audit['missed'] else 'none'}"
    together = f"; pooled over {pooled['questions']} questions ({pooled['missed']} of {pooled['rows']}): {_points(pooled['bound'])}"
    yield f"audit:  the plan may have missed at most {_points(audit['bound'])} (95 %): {told}" + (together if pooled["questions"] else "")


def _points(bound: float) -> str:
    return f"{bound:.1f} points"


def masking_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """One line per member whose gradient is masked, or whose gate was opened."""
    for row in report.get("masking") or ():
        if row["masked"]:
            yield f"masked: {row['spec']}: {row['why']}; every image met every kind of attack"
        elif row["opened"]:
            falls = "1 pilot image fell" if row["late"] == 1 else f"{row['late']} pilot images fell"
            yield f"opened: {row['spec']}: {falls} that the gate would have kept out, so every image met the full budget"


def _foot(report: Mapping[str, Any]) -> Iterator[str]:
    for warning in report["warnings"]:
        yield textwrap.fill(f"! {warning['text']}", WIDTH, subsequent_indent="  ")
    if report["state"] != "done":
        yield f"! the run is {report['state']}: run the same command again to go on"
    yield f"run:    {report['run']}"
    if report["site"] is not None:
        yield f"page:   {report['site']}"
