"""Figures against independent formulas; joining as a law."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest

from rbench_core.errors import Failure
from rbench_results.figures import JOINED, Alarm, Figure, certified, join, mcnemar, robust, settle, tally, upper_limit, wilson

MEMBER = st.sampled_from([None, "misclassified", "broken", "certified", "error", "survived"])
ROWS = st.lists(MEMBER, max_size=5)
COUNTS = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS)
def test_wilson_is_scipys(counts: tuple[int, int]) -> None:
    theirs = binomtest(*counts).proportion_ci(0.95, method="wilson")
    low, high = wilson(*counts)
    assert low == pytest.approx(theirs.low, abs=1e-12)
    assert high == pytest.approx(theirs.high, abs=1e-12)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@given(COUNTS)
def test_wilson_is_where_the_score_test_turns(counts: tuple[int, int]) -> None:
    k, n = counts
    for p in wilson(k, n):
        if 0 < p < 1:
            assert abs(k / n - p) / math.sqrt(p * (1 - p) / n) == pytest.approx(1.959963984540054, rel=1e-6)


def test_figures_without_examples_are_refused() -> None:
    for k, n in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError):
            Figure.of(k, n)
    assert Figure.of(1, 4).to_dict() == {
        "accuracy": 0.25,
        "low": pytest.approx(0.0456, abs=1e-4),
        "high": pytest.approx(0.6994, abs=1e-4),
        "n": 4,
    }


@given(st.integers(0, 300), st.integers(0, 3000))
def test_the_upper_limit_is_the_quantile_of_the_beta_distribution(k: int, misses: int) -> None:
    assert upper_limit(k, k + misses) == pytest.approx(beta.ppf(0.95, k + 1, misses) if misses else 1.0, rel=1e-9)


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.5, 0.99))
def test_the_upper_limit_rises_with_every_hit_and_falls_with_every_miss(k: int, misses: int, confidence: float) -> None:
    m = k + misses
    limit = upper_limit(k, m, confidence)
    assert upper_limit(k, m + 1, confidence) < limit or m == k  # of nothing but hits it stays 1 while there is no miss
    assert upper_limit(k + 1, m + 1, confidence) >= limit
    assert upper_limit(k, m, (1 + confidence) / 2) >= limit
    assert limit > k / m if misses else limit == 1.0


def test_upper_limits_by_hand() -> None:
    assert upper_limit(0, 30) == pytest.approx(1 - 0.05 ** (1 / 30), abs=1e-13)
    assert [round(100 * upper_limit(0, m), 2) for m in (1, 30, 60, 300)] == [95.0, 9.5, 4.87, 0.99]
    assert (upper_limit(0, 0), upper_limit(7, 7)) == (1.0, 1.0)
    for k, m in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError):
            upper_limit(k, m)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_of_large_counts_neither_overflows_nor_waits() -> None:
    assert mcnemar(5000, 5000) == 1.0
    assert 0 < mcnemar(4700, 5300) < 1e-8
    assert mcnemar(0, 10_000) == 0.0  # below the smallest float
    with pytest.raises(ValueError):
        mcnemar(-1, 3)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_members_never_matters(members: list[str | None], random: object) -> None:
    shuffled = sorted(members, key=lambda _: random.random())  # type: ignore[attr-defined]  # hypothesis' Random
    assert join(shuffled) == join(members)
    assert _settled(shuffled) == _settled(members)


def _settled(statuses: list[str | None]) -> object:
    try:
        return settle(statuses)
    except Alarm:
        return Alarm


@given(st.lists(st.lists(MEMBER, min_size=3, max_size=3), min_size=1, max_size=30))
def test_a_union_holds_no_more_than_any_member(rows: list[list[str | None]]) -> None:
    union = [join(row) for row in rows]
    for bound in (robust, certified):
        whole = bound(union)
        for member in zip(*rows, strict=True):
            alone = bound(member)
            if whole is not None and alone is not None:
                assert whole.accuracy <= alone.accuracy
    low, high = certified(union), robust(union)
    assert (low is None) == (high is None) == (None in union)
    if low is not None and high is not None:
        assert low.accuracy <= high.accuracy
        assert low.n == high.n == len(rows)


@given(ROWS)
def test_a_union_is_answered_when_the_adversary_has_won_or_everybody_was_asked(members: list[str | None]) -> None:
    status = join(members)
    if {"misclassified", "broken"} & set(members):
        assert status in {"misclassified", "broken"}
    elif None in members or not members:
        assert status is None
    else:
        assert status in members


def test_joining_in_full() -> None:
    """Every pair, written by hand: a proof for one member proves nothing for the other, and a fall of one is no contradiction."""
    order = ["misclassified", "broken", None, "error", "survived", "certified"]
    for (i, first), (j, second) in itertools.product(enumerate(order), repeat=2):
        assert join([first, second]) == order[min(i, j)], (first, second)
    assert join([]) is None


def test_settling_in_full() -> None:
    order = ["misclassified", "broken", "certified", "error", "survived", "open", None]
    for (i, first), (j, second) in itertools.product(enumerate(order), repeat=2):
        if {first, second} == {"broken", "certified"}:
            with pytest.raises(Alarm):
                settle([first, second])
        else:
            expected = order[min(i, j)]
            assert settle([first, second]) == (None if expected == "open" else expected), (first, second)
    assert settle([]) is None
    assert issubclass(Alarm, Failure)


@given(st.lists(MEMBER, max_size=40))
def test_a_tally_loses_nobody(statuses: list[str | None]) -> None:
    counts = tally(statuses)
    assert sum(counts.values()) == len(statuses)
    assert list(counts) == [*JOINED, "unanswered"]


def test_errors_are_not_robust_and_not_dropped() -> None:
    statuses = ["certified", "survived", "survived", "broken", "misclassified", "error"]
    assert (upper := robust(statuses)) is not None
    assert (lower := certified(statuses)) is not None
    assert (upper.accuracy, upper.n) == (3 / 6, 6)
    assert (lower.accuracy, lower.n) == (1 / 6, 6)
    assert robust([]) is None
    assert robust([*statuses, None]) is None
