"""The figures of invariance on a case worked out by hand, over no candidates, and where a proof contradicts a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rbench_results.figures import Alarm, Figure, wilson
from rbench_results.invariance import compare, figures
from stored import verdict


def row(index: int, h: int, y: int, p: int | None, q: int | None) -> Any:
    """p on the candidate, q on the clean image; people say h, the data y."""
    status = "error" if p is None else "survived" if p == h else "broken"
    return verdict(index, status, label=y, oracle=h, predicted=p, clean=q)


FOUR = [
    row(0, h=7, y=1, p=7, q=1),  # follows
    row(1, h=7, y=1, p=1, q=1),  # keeps
    row(2, h=8, y=3, p=5, q=5),  # neither, stuck, and wrong on the clean image
    row(3, h=4, y=4, p=4, q=4),  # people changed nothing
]


def counts(found: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (share["count"], share["n"]) for name, share in found.items() if isinstance(share, dict) and "count" in share}


def test_a_case_by_hand() -> None:
    found = figures(FOUR, {"strict": {1, 3}, "nominal": {0, 1, 2, 3}})
    assert counts(found) == {
        "agreement": (1, 3),
        "agreement_all": (2, 4),
        "keeps": (1, 3),
        "neither": (1, 3),
        "stuck": (2, 3),
        "agreement_if_clean_right": (1, 2),
        "clean": (3, 4),
        "human_change": (3, 4),
        "ceiling": (1, 4),
    }
    assert (found["n"], found["errors"]) == (4, 0)
    assert found["certified_but_wrong"] == {
        "strict": {"count": 1, "n": 3},
        "nominal": {"count": 2, "n": 3},
    }  # 2 is wrong on the clean image
    low, high = wilson(1, 3)
    assert found["agreement"] == {"accuracy": 1 / 3, "low": low, "high": high, "n": 3, "count": 1}


def test_agreement_keeps_and_neither_make_a_whole_without_errors() -> None:
    found = figures(FOUR)
    assert sum(found[name]["count"] for name in ("agreement", "keeps", "neither")) == found["agreement"]["n"]
    assert found["certified_but_wrong"] == {}


def test_an_error_stays_in_n_and_counts_for_nothing() -> None:
    found = figures([*FOUR, row(4, h=2, y=1, p=None, q=None), row(5, h=2, y=1, p=None, q=1)])
    told = counts(found)
    assert (told["agreement"], told["keeps"], told["neither"], told["stuck"]) == ((1, 5), (1, 5), (1, 5), (2, 5))
    assert (told["clean"], found["errors"]) == ((4, 6), 2)


@pytest.mark.parametrize("rows", [[], [FOUR[3]]], ids=["no rows", "no change"])
def test_over_no_candidates_there_is_no_number(rows: list[Any]) -> None:
    found = figures(rows, {"strict": set(), "nominal": set()})
    assert found["agreement"] == {"accuracy": None, "low": None, "high": None, "n": 0, "count": 0}
    assert found["n"] == len(rows)
    assert found["certified_but_wrong"]["strict"] == {"count": 0, "n": 0}


def test_rows_without_peoples_labels_do_not_enter() -> None:
    assert figures([*FOUR, replace(FOUR[0], index=9, oracle=None)]) == figures(FOUR)


def test_a_violated_proof_is_an_error_and_a_nominal_one_is_not() -> None:
    with pytest.raises(Alarm, match="candidate 0: its label is proved constant"):
        figures(FOUR, {"strict": {0}})
    assert figures(FOUR, {"nominal": {0}})["certified_but_wrong"] == {"nominal": {"count": 1, "n": 3}}


def test_the_reference_s_interval_of_nothing_in_21() -> None:
    rows = [row(i, h=7, y=1, p=1, q=1) for i in range(21)]
    found = figures(rows)["agreement"]
    assert found["accuracy"] == 0
    assert round(100 * found["high"], 1) == 15.5
    assert Figure.of(0, 21).high == found["high"]


def test_two_models_are_compared_on_the_changed_candidates_of_both() -> None:
    other = [row(0, 7, 1, 1, 1), row(1, 7, 1, 7, 1), row(2, 8, 3, 8, 3), row(3, 4, 4, 9, 4)]
    assert compare(FOUR, other) == {"only_a": 1, "only_b": 2, "n": 3, "p": 1.0}
    assert compare(FOUR, other[:1]) == {"only_a": 1, "only_b": 0, "n": 1, "p": 1.0}
    many = [row(i, 7, 1, 7, 1) for i in range(8)]
    none = [row(i, 7, 1, 1, 1) for i in range(8)]
    assert compare(many, none)["p"] == pytest.approx(2 / 2**8)
