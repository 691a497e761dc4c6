"""Two sides held against each other: ratios of cost, who missed what, and which models count as masked. Plain Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rbench.bench.sides import Row, Side
from rbench_results.figures import Figure

MASKED = 10.0  # points of robust accuracy that APGD leaves above all four attacks, from which a pair counts as masked
BETWEEN = (5.0, 15.0)  # where the detector of a plan may say either
CLIMBS = ("apgd-ce", "apgd-t")


def masking(rows: Sequence[Row], n: int) -> dict[str, Any]:
    """From AutoAttack's counts on n images: by how many points its APGDs overstate robust accuracy, member by member, and what that means.

    kind: "masked" or "honest"; between: a gap so near the limit that either may be said. Of a union the member with the largest gap counts.
    """
    late: dict[str, int] = {}
    for row in rows:
        late[row.member] = late.get(row.member, 0) + (0 if row.attack in CLIMBS else row.broken)
    gaps = {member: 100 * count / n for member, count in late.items()}
    gap = max(gaps.values(), default=0.0)
    return {"gap": gap, "kind": "masked" if gap >= MASKED else "honest", "between": BETWEEN[0] <= gap <= BETWEEN[1], "members": gaps}


def figure(side: Side) -> dict[str, float | int]:
    """Robust accuracy with its 95 % Wilson interval."""
    return Figure.of(len(side.stands), side.n).to_dict()


def against(reference: Side, other: Side) -> dict[str, Any]:
    """missed: what the reference broke and the other leaves; more: what the other broke and the reference leaves; indices."""
    ours, theirs = set(other.fell), set(reference.fell)
    return {
        "side": other.name,
        "round": other.round,
        "seed": other.seed,
        "robust": figure(other),
        "missed": sorted(theirs & other.stands),
        "more": sorted(ours & reference.stands),
    }


def costs(theirs: Sequence[Side], ours: Sequence[Side]) -> dict[str, Any]:
    """Ours divided by AutoAttack's over all rounds, and CPU round by round; None where AutoAttack spent nothing."""
    return {
        "cpu": ratio(sum(side.total("cpu") for side in ours), sum(side.total("cpu") for side in theirs)),
        "cpu_rounds": [ratio(a.total("cpu"), b.total("cpu")) for a, b in zip(ours, theirs, strict=True)],
        "passes": ratio(sum(side.passes for side in ours), sum(side.passes for side in theirs)),
        "pilot_cpu": sum(row.cpu for side in ours for row in side.rows if row.pilot) / max(len(ours), 1),
    }


def ratio(a: int | float, b: int | float) -> float | None:
    """a / b, None where there is nothing to divide by."""
    return a / b if b > 0 and math.isfinite(a / b) else None


def disagreements(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """The examples that not all sides answer alike: index, and by side who broke it (None: it stands)."""
    found = []
    for index in sorted({index for side in sides for index in (*side.fell, *side.wrong)}):
        told = {label(side): "misclassified" if index in set(side.wrong) else side.fell.get(index) for side in sides}
        if len({answer is None for answer in told.values()}) > 1 or len({answer == "misclassified" for answer in told.values()}) > 1:
            found.append({"index": index, "sides": told})
    return found


def label(side: Side) -> str:
    """The side and its seed, as tables name it."""
    return f"{side.name}, seed {side.seed}"


def compared(theirs: Sequence[Side], plans: Mapping[str, Sequence[Side]]) -> dict[str, Any]:
    """AutoAttack's first round is the reference; its other rounds show how far two seeds of one attack differ."""
    first = theirs[0]
    everybody = [*theirs, *(side for sides in plans.values() for side in sides)]
    return {
        "masking": masking(first.rows, first.n),
        "reference": {"robust": figure(first), "broken": len(first.fell), "refused": sorted(first.refused)},
        "yardstick": [against(first, other) for other in theirs[1:]],
        "plans": [
            {"plan": name, **costs(theirs, sides), "rounds": [against(first, side) for side in sides], **detector(sides[0])}
            for name, sides in plans.items()
        ],
        "disagreements": disagreements(everybody),
    }


def detector(side: Side) -> dict[str, Any]:
    """What the plan's pilots said: {"detected": "masked", "honest" or None without a pilot, "audit": {"standing", "missed"}}."""
    if not side.pilots:
        return {"detected": None, "audit": None}
    facts = list(side.pilots.values())
    audit = {name: sum(one["audit"][name] for one in facts) for name in ("standing", "missed")}
    return {"detected": "masked" if any(one["masked"] for one in facts) else "honest", "audit": audit}
