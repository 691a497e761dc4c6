"""Boards: a witness counts in every set that holds it, a proof in every set that it holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbench_results.board import contains, joined, joined_union
from rbench_results.figures import Alarm, robust
from rbench_results.records import QuestionRecord
from rbench_results.store import Store
from stored import dataset, digest, filled, model, question, verdict

SMALL, LARGE = question(eps="1/10"), question(eps="3/10")


def test_a_smaller_sets_witness_counts_and_nothing_else_does(tmp_path: Path) -> None:
    with filled(tmp_path, SMALL, LARGE) as store:
        small = ["broken", "survived", "error", "misclassified", "broken", "broken", "survived"]
        store.add_chunk(SMALL.key, [verdict(i, status) for i, status in enumerate(small)], [])
        large = ["survived", "survived", "survived", "survived", "error"]
        store.add_chunk(LARGE.key, [verdict(i, status) for i, status in enumerate(large)], [])
        assert joined(store, LARGE.key) == {0: "broken", 1: "survived", 2: "survived", 3: "misclassified", 4: "broken", 5: "broken"}
        assert joined(store, SMALL.key) == store.answered(SMALL.key)  # a larger set's verdicts say nothing about a smaller one
        assert store.answered(LARGE.key)[0] == "survived"  # what was stored stays


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        ({"plan": "autoattack"}, True),
        ({"seed": 7, "engine": "2", "precision": "bfloat16"}, True),
        ({"family": "l2"}, False),
        ({"objective": "invariance"}, False),
        ({"model": digest("other")}, False),
        ({"dataset": digest("other")}, False),
        ({"extent": {"eps": "31/100"}}, False),
        ({"extent": {"eps": "0.29"}}, True),
        ({"extent": {"eps": "6/20"}}, True),
        ({"extent": {"eps": "1/10", "shift": "1"}}, False),
        ({"extent": {}}, False),
    ],
    ids=str,
)
def test_whose_witnesses_count(tmp_path: Path, other: dict[str, object], counts: bool) -> None:
    with filled(tmp_path, LARGE) as store:
        store.put_model(model("other"))
        store.put_dataset(dataset("other"))
        store.put_question(source := question(**({"eps": "1/10"} | other)))  # type: ignore[arg-type]  # fields by name
        store.add_chunk(LARGE.key, [verdict(0)], [])
        store.add_chunk(source.key, [verdict(0, "broken")], [])
        assert joined(store, LARGE.key) == {0: "broken" if counts else "survived"}


def test_every_extent_must_be_held() -> None:
    def turned(degrees: str, shift: str) -> QuestionRecord:
        return question("rotation-translation", extent={"degrees": degrees, "shift": shift})

    assert contains(turned("30", "3"), turned("30", "2"))
    assert not contains(turned("30", "3"), turned("31", "2"))
    assert not contains(turned("30", "3"), turned("29", "4"))
    assert contains(turned("2", "100"), turned("10/6", "9"))  # numbers, not texts
    assert not contains(question("linf", "1"), question("l2", "1"))


def test_sets_without_a_size_hold_only_themselves() -> None:
    one, two = question("stored", extent={}, set={"sha256": "a"}), question("stored", extent={}, set={"sha256": "b"})
    assert contains(one, one)
    assert not contains(one, two)


def test_a_proof_for_a_larger_set_counts_and_for_a_smaller_one_does_not(tmp_path: Path) -> None:
    proof_small, proof_large = (question(eps=eps, kind="certificate", plan="ibp") for eps in ("1/10", "3/10"))
    with filled(tmp_path, SMALL, LARGE, proof_small, proof_large) as store:
        for attack in (SMALL, LARGE):
            store.add_chunk(attack.key, [verdict(0), verdict(1), verdict(2)], [])
        store.add_chunk(proof_large.key, [verdict(0, "certified"), verdict(1, "open"), verdict(3, "certified"), verdict(4, "open")], [])
        store.add_chunk(proof_small.key, [verdict(1, "certified"), verdict(2, "error")], [])
        assert joined(store, SMALL.key) == {0: "certified", 1: "certified", 2: "survived", 3: "certified"}
        assert joined(store, LARGE.key) == {0: "certified", 1: "survived", 2: "survived", 3: "certified"}
        assert joined(store, SMALL.key, proof_small.key)[2] == "error"  # its own certificate's rows count in full
        assert joined_union(store, [LARGE.key, proof_large.key], range(5)) == {
            0: "certified",
            1: "survived",
            2: "survived",
            3: "certified",
            4: None,
        }


def test_broken_inside_a_certified_set_is_an_alarm(tmp_path: Path) -> None:
    proof = question(eps="3/10", kind="certificate", plan="ibp")
    with filled(tmp_path, SMALL, LARGE, proof) as store:
        store.add_chunk(SMALL.key, [verdict(7, "broken")], [])
        store.add_chunk(proof.key, [verdict(7, "certified")], [])
        for key in (SMALL.key, LARGE.key):
            with pytest.raises(Alarm, match="example 7"):
                joined(store, key)


def test_unions_take_the_worst_member(tmp_path: Path) -> None:
    l2 = question("l2", eps="2")
    with filled(tmp_path, LARGE, l2, SMALL) as store:
        store.add_chunk(LARGE.key, [verdict(0), verdict(1, "broken"), verdict(2), verdict(3)], [])
        store.add_chunk(l2.key, [verdict(0), verdict(2, "broken")], [])
        store.add_chunk(SMALL.key, [verdict(3, "broken")], [])  # asked elsewhere, counts here
        assert joined_union(store, [LARGE.key, l2.key], range(6)) == {
            0: "survived",
            1: "broken",
            2: "broken",
            3: "broken",
            4: None,
            5: None,
        }


N = 6
TURN = itertools.count()
RADII = st.fractions(min_value=Fraction(1, 50), max_value=1, max_denominator=50)
STATUSES = st.lists(st.sampled_from(["broken", "survived", "misclassified"]), min_size=N, max_size=N)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with filled(tmp_path_factory.mktemp("board")) as opened:
        yield opened


@settings(max_examples=25, deadline=None)
@given(asked=st.dictionaries(RADII, STATUSES, min_size=2, max_size=4))
def test_joined_figures_never_rise_with_the_radius(shared: Store, asked: dict[Fraction, list[str]]) -> None:
    objective = f"sensitivity {next(TURN)}"  # keeps this example apart from the others in the store
    questions = {radius: question(eps=str(radius), objective=objective) for radius in asked}
    for radius, statuses in asked.items():
        shared.put_question(questions[radius])
        shared.add_chunk(questions[radius].key, [verdict(i, status) for i, status in enumerate(statuses)], [])
    boards = {radius: joined(shared, questions[radius].key) for radius in asked}
    figures = [robust(boards[radius].values()) for radius in sorted(asked)]
    held = [figure.accuracy for figure in figures if figure is not None]
    assert len(held) == len(asked)
    assert held == sorted(held, reverse=True)
    for radius, board in boards.items():  # an independent formula: fallen here or under any radius that is not larger
        fallen = {i for r, statuses in asked.items() if r <= radius for i, status in enumerate(statuses) if status != "survived"}
        assert {i for i, status in board.items() if status != "survived"} == fallen
