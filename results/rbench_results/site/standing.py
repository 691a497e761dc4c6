"""Who vouches for a figure: whether its run was made here or came by a bundle, and what the newest verification confirmed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rbench_results.records import RunRecord, VerificationRecord
from rbench_results.site.words import count, when

BROUGHT = "It came by a bundle: somebody else made it, on a machine that nobody here saw."


@dataclass(frozen=True)
class Standing:
    """`text` is the badge, `title` the sentence behind it; `warn` where a reader must not trust the figure as it is."""

    text: str
    title: str
    warn: bool
    rank: int  # of several runs behind one figure the highest speaks: a failure, then what was submitted, then what was made here


def newest(runs: Iterable[RunRecord], found: Iterable[VerificationRecord]) -> dict[str, VerificationRecord]:
    """Run id -> its newest verification (`found`: the oldest first): of the stored run, or of the very bundle that it came by.

    Another bundle can name the same run and hold other verdicts; what was found in it says nothing of these.
    """
    bundles = {run.id: (run.submitted or {}).get("bundle") for run in runs}
    return {one.run: one for one in found if one.run in bundles and one.bundle in (None, bundles[one.run])}


def of_run(run: RunRecord, found: VerificationRecord | None) -> Standing | None:
    """None for a run that was made here and never verified."""
    said = "submitted, " if run.submitted else ""
    title = f"{BROUGHT} " if run.submitted else ""
    if found is None:
        return Standing("submitted, not re-verified", f"{title}Nobody has checked it here yet.", True, 2) if run.submitted else None
    if not found.ok:
        return Standing(f"{said}verification failed", f"{title}{_failure(found)}", True, 3)
    shares = f"{count(found.confirmed)} of {count(found.n)}"
    title += f"On {when(found.started)} {shares} verdicts were proved or computed again, with the same answer."
    text = f"{said}re-verified on {shares}" if said else f"verified on {shares}"
    return Standing(text, title, not found.confirmed, (2 if not found.confirmed else 1) if said else 0)


def of_runs(own: RunRecord, sources: Iterable[RunRecord], newest: Mapping[str, VerificationRecord]) -> Standing | None:
    """Of a figure that `own` asked for and whose verdicts `sources` gave: the weakest of them speaks for it, of equals its own run.

    What was verified of another local run says nothing about the rest of this one, so it does not count.
    """
    bearing = [found] if (found := of_run(own, newest.get(own.id))) else []
    for run in sources:
        if run.id != own.id and (found := of_run(run, newest.get(run.id))) and found.rank:
            bearing.append(replace(found, title=f"Some of its verdicts come from run {run.id}. {found.title}"))
    return max(bearing, key=lambda found: found.rank, default=None)


def columns(run: RunRecord, found: VerificationRecord | None) -> dict[str, Any]:
    """The same for a CSV."""
    return {
        "submitted": str((run.submitted or {}).get("name") or "yes") if run.submitted is not None else None,
        "verification": None if found is None else "ok" if found.ok else "failed",
        "confirmed": found.confirmed if found else None,
        "confirmed_of": found.n if found else None,
    }


def _failure(found: VerificationRecord) -> str:
    """The first problem, and how many more there are."""
    first = str(found.problems[0]) if found.problems else "it does not say why"
    more = f", and {len(found.problems) - 1} more" if len(found.problems) > 1 else ""
    return f"The verification of {when(found.started)} found: {first}{more}."
