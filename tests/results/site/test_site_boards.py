"""Boards: which rows, which slice, and the same joined figures as `rbench_results.board`."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

from rbench_results.board import joined_union
from rbench_results.figures import join, mcnemar, robust
from rbench_results.site.boards import Board, boards
from rbench_results.site.compare import first_pair, image_rows, names, pair
from rbench_results.site.facts import Facts
from rbench_results.site.overview import matrices
from rbench_results.site.runs import read
from rbench_results.site.words import slug
from results.site.synthetic import FORMULA, TITLE, Maker, Site
from stored import digest, model, verdict


def board(maker: Maker, name: str = TITLE) -> Board:
    (found,) = [b for b in boards(Facts(maker.store)) if b.name == name]
    return found


def test_figures_are_the_stores_own_joining(site: Site) -> None:
    for one in boards(Facts(site.store)):
        for row in one.rows:
            known = joined_union(site.store, row.questions.values(), range(row.first, row.first + row.n))
            assert row.statuses == list(known.values())
            assert row.robust == robust(known.values())


def test_a_board_per_threat_and_per_member_that_some_model_answered_whole(site: Site) -> None:
    found = {one.name: one for one in boards(Facts(site.store))}
    assert list(found) == [TITLE, "l2 2", "linf 0.3", "l1 10"]
    assert [row.model.name for row in found[TITLE].rows][-1] == FORMULA
    assert found[TITLE].rows[-1].robust is None
    assert "not asked" in found[TITLE].rows[-1].why
    assert found[TITLE].slices == {"0–63": 5, "0–29": 1, "0–39": 1}
    assert found[TITLE].plans == ["apgd", "pgd"]


def test_a_member_that_no_model_answered_whole_has_no_board(maker: Maker) -> None:
    maker.run("net", {"linf": 0.5, "l2": 0.5})
    assert [one.name for one in boards(Facts(maker.store))] == [TITLE, "linf 0.3"]


def test_the_largest_slice_stands_then_the_newest(maker: Maker) -> None:
    maker.run("net", {"linf": 0.9}, n=20)
    maker.run("net", {"linf": 0.9}, n=40)
    newest = maker.run("net", {"linf": 0.9}, n=40)
    maker.run("net", {"linf": 0.9}, n=10)
    (row,) = board(maker, "linf 0.3").rows
    assert (row.n, row.run.id) == (40, newest)


def test_an_unfinished_larger_slice_does_not_hide_a_whole_one(maker: Maker) -> None:
    maker.run("net", {"linf": 0.9}, n=20)
    maker.run("net", {"linf": 0.9}, n=60, left_out=30, state="failed")
    (row,) = board(maker, "linf 0.3").rows
    assert row.n == 20
    assert row.robust


def test_plans_and_seeds_are_rows_of_their_own(maker: Maker) -> None:
    maker.run("net", {"linf": 0.9})
    maker.run("net", {"linf": 0.9}, plan="pgd")
    maker.run("net", {"linf": 0.9}, plan="pgd", seed=1)
    found = board(maker, "linf 0.3")
    assert found.plans == ["apgd, seed 0", "pgd, seed 0", "pgd, seed 1"]
    assert len({row.key for row in found.rows}) == 3


def test_a_witness_of_another_plan_counts_and_is_said(maker: Maker) -> None:
    maker.run("net", {"linf": 0.95}, plan="weak")
    maker.run("net", {"linf": 0.2}, plan="strong")
    rows = {row.plan: row for row in board(maker, "linf 0.3").rows}
    assert rows["weak"].borrowed > 0
    assert any("fell elsewhere" in short for short, _ in rows["weak"].flags)
    facts = Facts(maker.store)
    raw = read(facts, facts.runs[0]).report["robust"]["accuracy"]
    assert rows["weak"].robust is not None
    assert rows["weak"].robust.accuracy < raw


def test_errors_stay_in_n_and_are_said(maker: Maker) -> None:
    maker.run("net", {"linf": 1.0}, errors=3, warnings=[{"code": "errors", "text": "3 images: not a number"}])
    (row,) = board(maker, "linf 0.3").rows
    assert row.counts["error"] == 3
    assert row.robust is not None
    assert row.robust.n == 64
    assert row.flags == [("3 errors", "3 images: not a number")]


def test_a_contradiction_stands_on_the_board(maker: Maker) -> None:
    maker.run("net", {"linf": 0.2})
    asked = maker.store.questions()[0]
    proof = replace(asked, key=digest("proof"), kind="certificate", plan="ibp")
    maker.store.put_question(proof)
    maker.store.add_chunk(proof.key, [verdict(i, "certified", run="t001") for i in range(64)], [])
    (row,) = board(maker, "linf 0.3").rows
    assert row.counts["broken"] > 0
    assert row.flags[0][0] == "alarm"
    assert "both broken and certified" in row.flags[0][1]


def test_certificates_are_the_lower_bound(maker: Maker) -> None:
    maker.run("net", {"linf": 0.6})
    asked = maker.store.questions()[0]
    holds = [i for i, status in maker.store.answered(asked.key).items() if status == "survived"]
    proof = replace(asked, key=digest("proof"), kind="certificate", plan="ibp")
    maker.store.put_question(proof)
    maker.store.add_chunk(proof.key, [verdict(i, "certified", run="t001") for i in holds[:10]], [])
    (row,) = board(maker, "linf 0.3").rows
    assert row.counts["certified"] == 10
    assert row.certified is not None
    assert row.robust is not None
    assert (round(row.certified.accuracy * 64), round(row.robust.accuracy * 64)) == (10, len(holds))


def test_union_rows_can_come_from_runs_of_the_members(maker: Maker) -> None:
    maker.model("whole")
    maker.run("whole", {"linf": 0.8, "l2": 0.8}, full=True)
    maker.run("net", {"linf": 0.8})
    maker.run("net", {"l2": 0.8})
    rows = {row.model.name: row for row in board(maker).rows}
    assert rows["net"].robust is not None
    assert rows["net"].statuses == [join(column) for column in zip(*rows["net"].members.values(), strict=True)]


def test_boards_of_one_name_have_two_addresses(maker: Maker) -> None:
    maker.run("net", {"linf": 0.5, "l2": 0.5})
    maker.run("net", {"linf": 0.5, "l1": 0.5})
    pages = [one.page for one in boards(Facts(maker.store)) if one.name == TITLE]
    assert pages[0] == f"board-test-only-{TITLE}.html"
    assert len(set(pages)) == 2


def test_bits_say_what_the_statuses_say(site: Site) -> None:
    for one in boards(Facts(site.store)):
        for row in one.rows:
            bits = row.bits(one.members)
            for member in one.members:
                found = bits["members"][member.slug]  # type: ignore[index]
                for status, name in {"broken": "broken", "error": "error", None: "unanswered"}.items():
                    flags = np.unpackbits(np.frombuffer(base64.b64decode(found.get(name, "")), np.uint8))[: row.n]
                    assert [i for i, flag in enumerate(flags) if flag] == [i for i, s in enumerate(row.members[member.spec]) if s == status]


def test_the_first_pair_is_counted_on_the_images_of_both(site: Site) -> None:
    (one,) = [b for b in boards(Facts(site.store)) if b.name == TITLE]
    found = first_pair(one)
    assert found is not None
    assert found.n == min(found.a.n, found.b.n)
    assert found.p == ("< 0.0001" if (p := mcnemar(len(found.only_a), len(found.only_b))) < 1e-4 else f"{p:.4f}")
    swapped = pair(found.b, found.a)
    assert swapped is not None
    assert (swapped.only_a, swapped.only_b) == (found.only_b, found.only_a)
    rows = image_rows(one)
    assert len(rows) == 64
    assert len(rows[0]) == 1 + len(one.rows)


def test_one_image_stands_for_the_threats_where_it_can(site: Site) -> None:
    facts = Facts(site.store)
    (matrix,) = matrices(facts, boards(facts))
    indices = [strip.example.picture.index for strip in matrix.strips if strip.example.picture]
    assert len(indices) == len(matrix.strips)
    assert max(indices.count(i) for i in indices) >= 2
    assert matrix.n is None  # 64 images in most cells, 30 in others: said in the cells
    assert [len(strip.best) <= 3 for strip in matrix.strips]


def test_two_models_of_one_name_are_told_apart(maker: Maker) -> None:
    maker.run("net", {"linf": 0.5})
    maker.store.put_model(model("net", digest=digest("twin"), dataset="test-only"))
    maker.run("twin", {"linf": 0.5})
    one = board(maker, "linf 0.3")
    assert [row.model.name for row in one.rows] == ["net", "net"]
    assert len(set(names(one).values())) == 2


@pytest.mark.parametrize(("a", "b"), [("Net", "net"), ("a b", "a-b"), ("größe", "gr-e"), ("", "x"), ("w" * 70, "w" * 60), ("../x", "x")])
def test_two_names_never_share_a_file(a: str, b: str) -> None:
    assert slug(a) != slug(b)
    assert all(
        set(slug(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") and not slug(name).startswith((".", "-")) for name in (a, b)
    )
