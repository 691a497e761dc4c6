"""Every figure that is drawn from verdicts: intervals, the joining of statuses, the comparison of two models. Plain Python.

Two joinings, not to be confused. `settle` takes all that is known of one example under ONE set: its attack's verdict and its certificates'.
`join` takes one settled status per member of a union: the adversary picks the worst member, so a proof for one member proves nothing for
the others, and it is no contradiction when one member breaks the example that is certified under another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rbench_core.errors import Failure

JOINED = ("certified", "survived", "broken", "misclassified", "error")  # the statuses of a board, in the order in which pages show them
FALLEN = frozenset({"misclassified", "broken"})
STANDING = frozenset({"certified", "survived"})
Z = 1.959963984540054  # the normal quantile of 0.975, for 95 %

_SETTLES = ("misclassified", "broken", "certified", "error", "survived")  # strongest first (DESIGN section 1)
_WORST = ("misclassified", "broken", "error", "survived", "certified")  # the adversary's choice first; error counts as not robust


class Alarm(Failure):
    """An example is both broken and certified: the attack's witness or the proof is wrong."""


@dataclass(frozen=True, slots=True)
class Figure:
    """An accuracy in [0, 1] with its 95 % Wilson interval, over n examples."""

    accuracy: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, k: int, n: int) -> Figure:
        """k of n examples, n ≥ 1."""
        low, high = wilson(k, n)
        return cls(k / n, low, high, n)

    def to_dict(self) -> dict[str, float | int]:
        """As it stands in reports."""
        return asdict(self)


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval for the probability behind k hits of n (Wilson 1927): the p with |k/n − p| ≤ z·√(p(1 − p)/n). 0 ≤ k ≤ n, n ≥ 1."""
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"wilson({k}, {n}): expected 0 <= k <= n and n >= 1")
    centre = (k + Z * Z / 2) / (n + Z * Z)
    half = Z / (n + Z * Z) * math.sqrt(k * (n - k) / n + Z * Z / 4)
    return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)  # exact at the ends, where rounding would cross them


def upper_limit(k: int, m: int, confidence: float = 0.95) -> float:
    """Exact one-sided upper limit for the probability behind k hits of m (Clopper & Pearson 1934): the p with P(hits ≤ k) = 1 − confidence.

    Of 0 ≤ k ≤ m; 1 where all hit, or nothing was looked at. To about 1e-12.
    """
    if not 0 <= k <= m:
        raise ValueError(f"upper_limit({k}, {m}): expected 0 <= k <= m")
    if k == m:
        return 1.0
    low, high = k / m, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _at_most(k, m, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(k: int, m: int, p: float) -> float:
    """The probability of at most k hits of m, each with probability 0 < p < 1."""
    whole = math.lgamma(m + 1)
    ways = (whole - math.lgamma(hits + 1) - math.lgamma(m - hits + 1) for hits in range(k + 1))
    return math.fsum(math.exp(way + hits * math.log(p) + (m - hits) * math.log1p(-p)) for hits, way in enumerate(ways))


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value (McNemar 1947, binomial form): b examples only the first model holds, c only the second; 1 if there are none.

    The probability, were both equally robust, of a split at least as uneven as b : c. Whole-number arithmetic, so exact for any b + c.
    """
    if b < 0 or c < 0:
        raise ValueError(f"mcnemar({b}, {c}): expected counts from 0")
    total, tail, term = b + c, 0, 1
    for hits in range(min(b, c) + 1):
        tail += term
        term = term * (total - hits) // (hits + 1)  # the next binomial coefficient
    return min(1.0, (2 * tail) / (1 << total))


def settle(statuses: Iterable[str | None]) -> str | None:
    """What is known of one example under one set, from its attack and its certificates. None: nothing yet; `open` alone says nothing.

    misclassified > broken > certified > error > survived. Raises Alarm for broken and certified.
    """
    found = set(statuses)
    if {"broken", "certified"} <= found:
        raise Alarm("an example is both broken and certified", fix="Its witness or its proof is wrong: please report it.")
    return next((status for status in _SETTLES if status in found), None)


def join(statuses: Iterable[str | None]) -> str | None:
    """One example under a union, from its settled status under each member. None: a member without an answer might break it.

    misclassified > broken > None > error > survived > certified. No members: None.
    """
    found = set(statuses)
    if None in found and not found & FALLEN:
        return None
    return next((status for status in _WORST if status in found), None)


def tally(statuses: Iterable[str | None]) -> dict[str, int]:
    """How many examples have each joined status, zeros included; `unanswered` for None."""
    counted = Counter("unanswered" if status is None else status for status in statuses)
    return {status: counted[status] for status in (*JOINED, "unanswered")}


def robust(statuses: Iterable[str | None]) -> Figure | None:
    """The upper bound (certified + survived) / n; None when an example is not answered or there is none."""
    return _share(list(statuses), STANDING)


def certified(statuses: Iterable[str | None]) -> Figure | None:
    """The lower bound certified / n, under the same condition."""
    return _share(list(statuses), frozenset({"certified"}))


def _share(statuses: list[str | None], counted: frozenset[str]) -> Figure | None:
    if not statuses or None in statuses:
        return None
    return Figure.of(sum(status in counted for status in statuses), len(statuses))
