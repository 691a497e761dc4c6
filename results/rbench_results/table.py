"""A report as plain text for a terminal: clean, each member, the union, intervals, cost, warnings, and where the page is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

WIDTH = 100


def report_table(report: Mapping[str, Any]) -> str:
    """The object of DESIGN section 6 in at most 100 columns."""
    return "\n".join([*_head(report), "", *_figures(report), "", *_counts(report), *_foot(report)])


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{report['model']} under {report['threat']}"
    if report["spec"] != report["threat"]:
        yield f"  {report['spec']}"
    yield f"  {report['dataset']}, images 0 to {report['n'] - 1} (n = {report['n']}); plan {report['plan']}, seed {report['seed']}"


def _figures(report: Mapping[str, Any]) -> Iterator[str]:
    members = report["members"]
    width = max(len(name) for name in ["worst member of each image", *members]) + 2
    yield f"{'accuracy, %':<{width}}{'':>7}  {'95 % interval':<14}"
    yield f"{'clean':<{width}}{_figure(report['clean'])}"
    for name, member in members.items():
        yield f"{name:<{width}}{_figure(member['robust'])}  {_asked(member, report['n'])}".rstrip()
    if len(members) > 1:
        yield f"{'worst member of each image':<{width}}{_figure(report['robust'])}"
    yield f"{'certified':<{width}}{_figure(report['certified']) if report['certified'] else '    n/a  no certificate was asked for'}"
    if any(member["skipped"] for member in members.values()):
        yield "–: an image that fell to one member is not asked of the next; --full asks every member of all"


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


def _foot(report: Mapping[str, Any]) -> Iterator[str]:
    for warning in report["warnings"]:
        yield textwrap.fill(f"! {warning['text']}", WIDTH, subsequent_indent="  ")
    if report["state"] != "done":
        yield f"! the run is {report['state']}: run the same command again to go on"
    yield f"run:    {report['run']}"
    if report["site"] is not None:
        yield f"page:   {report['site']}"
