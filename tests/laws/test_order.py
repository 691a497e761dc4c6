"""More attacks, more members, larger radii: figures never rise (DESIGN law 3)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest

from laws.entries import Entry, entries, threats
from laws.runs import Statuses, of_members, run, statuses, stored
from rbench.attacks import build
from rbench_results.board import joined
from rbench_results.figures import FALLEN, join

QUICK = "plan(pgd(steps=4), slide(steps=4), topk(steps=4))"
DIGITS = [entry for entry in entries() if entry.shape == (1, 8, 8)]
UNIONS = [str(threat) for dataset, threat in threats() if dataset == "digits" and len(threat.members) > 1]
SMALL_UNION = "union(linf(eps=0.04), l2(eps=0.2), l1(eps=0.5), l0(pixels=1), rotation-translation(degrees=5, shift=0.1))"


def law_a_union_is_its_worst_member(union: Statuses, members: Mapping[str, Statuses]) -> None:
    """Per example: fallen exactly if a member fell, so never more robust than any of them."""
    assert len(members) > 1
    for index, status in union.items():
        own = [member.get(index) for member in members.values()]
        assert status == join(own)
        assert (status in FALLEN) == any(one in FALLEN for one in own)
    counts = [sum(one not in FALLEN for one in member.values()) for member in members.values()]
    assert sum(status not in FALLEN for status in union.values()) <= min(counts)


def law_a_longer_plan_breaks_no_less(short: Statuses, long: Statuses) -> None:
    """Example by example: what the shorter plan broke, the longer one, which begins with it, breaks too."""
    assert set(short) == set(long)
    assert not {index for index in short if short[index] == "broken" and long[index] != "broken"}, "a longer plan lost a fall"


@pytest.mark.parametrize("union", [*UNIONS, SMALL_UNION])
def test_unions(union: str, tmp_path: Path) -> None:
    plan = QUICK if "rotation" not in union else f"{QUICK[:-1]}, grid)"
    full = run(tmp_path / "full", threat=union, plan=plan, full=True)
    assert {status for member in of_members(full).values() for status in member.values()} <= {"misclassified", "broken", "survived"}
    law_a_union_is_its_worst_member(statuses(full), of_members(full))
    quick = run(tmp_path / "quick", threat=union, plan=plan)
    assert {i: s in FALLEN for i, s in statuses(quick).items()} == {i: s in FALLEN for i, s in statuses(full).items()}
    assert quick.data["cost"]["forward"] < full.data["cost"]["forward"], "members were asked about examples that had fallen"


@pytest.mark.parametrize("entry", DIGITS, ids=str)
def test_plans_that_begin_alike(entry: Entry, tmp_path: Path) -> None:
    spec = str(entry.space)
    plans = [
        "plan(pgd(steps=1, rate=0.5), slide(steps=1), topk(steps=1))",
        "plan(pgd(steps=1, rate=0.5), slide(steps=1), topk(steps=1), apgd(steps=5), apgd-sparse(steps=5), topk(steps=9), "
        "square(queries=9), sparse-rs(queries=9), grid)",
    ]
    short, long = (statuses(run(tmp_path / str(place), threat=spec, plan=plan)) for place, plan in enumerate(plans))
    law_a_longer_plan_breaks_no_less(short, long)


def test_a_plan_whose_noise_depends_on_the_plan_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the plan part of an attack's noise, a longer plan would throw other dice, and now and then lose."""
    threat, lost = "rotation-translation(degrees=20, shift=0.5)", 0
    short = statuses(run(tmp_path / "0", threat=threat, plan="pgd(steps=1, rate=0.01)", n=100))
    assert "broken" in short.values()
    spec_of = build.spec_of
    for turn in range(1, 4):
        monkeypatch.setattr(build, "spec_of", lambda attack, turn=turn: f"{spec_of(attack)} in plan {turn}")
        long = statuses(run(tmp_path / str(turn), threat=threat, plan="plan(pgd(steps=1, rate=0.01), pgd(steps=1, rate=0.02))", n=100))
        try:
            law_a_longer_plan_breaks_no_less(short, long)
        except AssertionError:
            lost += 1
    assert lost


def test_a_union_that_takes_the_best_member_is_caught(tmp_path: Path) -> None:
    full = run(tmp_path, threat=SMALL_UNION, plan=f"{QUICK[:-1]}, grid)", full=True)
    members = of_members(full)
    kindest = ["broken", "misclassified", "survived"].index
    best = {index: max((member[index] for member in members.values()), key=kindest) for index in range(40)}
    with pytest.raises(AssertionError):
        law_a_union_is_its_worst_member(best, members)


@pytest.mark.parametrize(
    ("family", "radii"), [("linf(eps={})", ("0.02", "0.05", "0.1")), ("l2(eps={})", ("0.1", "0.3", "0.6")), ("l0(pixels={})", (1, 2, 4))]
)
def test_joined_figures_never_rise_with_the_radius(family: str, radii: tuple[object, ...], tmp_path: Path) -> None:
    """The smallest radius gets the strongest plan, the largest the weakest: raw verdicts may rise, the board's may not."""
    plans = ["apgd(steps=20), topk(steps=20)", "pgd(steps=3), topk(steps=3)", "pgd(steps=1, rate=0.001), topk(steps=1, rate=0.01)"]
    reports = [run(tmp_path, threat=family.format(radius), plan=f"plan({plan})") for radius, plan in zip(radii, plans, strict=True)]
    with stored(tmp_path) as store:
        boards = [_fallen(joined(store, report.data["questions"][0]["key"])) for report in reports]
        raw = [store.answered(report.data["questions"][0]["key"]) for report in reports]
    for smaller, larger in itertools.pairwise(boards):
        assert smaller <= larger
    for report, answers in zip(reports, raw, strict=True):
        assert statuses(report) == answers, "a report speaks of its own verdicts"
    assert len(_fallen(raw[-1])) < len(boards[-1]), "the weak plan found all: the test would test nothing"


def test_a_proof_holds_for_every_smaller_radius_and_for_no_larger_one(tmp_path: Path) -> None:
    """On boards: what is proved at 0.02 is proved at 0.01, where the run itself proved nothing, and not at 0.03."""
    weak = "pgd(steps=1, rate=0.001)"
    radii = {"0.01": "none", "0.02": "auto", "0.03": "none"}
    reports = {eps: run(tmp_path, threat=f"linf(eps={eps})", plan=weak, certify=certify) for eps, certify in radii.items()}
    proved = {index for index, status in statuses(reports["0.02"]).items() if status == "certified"}
    assert proved
    with stored(tmp_path) as store:
        for eps, held in (("0.01", True), ("0.03", False)):
            board = joined(store, reports[eps].data["questions"][0]["key"])
            assert {index for index in proved if board.get(index) == "certified"} == (proved if held else set())
            assert "certified" not in statuses(reports[eps]).values(), "a run speaks of its own questions"


def _fallen(answers: Statuses) -> set[int]:
    return {index for index, status in answers.items() if status in FALLEN}
