"""Pilots, their audits and curves: from the store's door to the figures and the words of a report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rbench_core.errors import StoreError
from rbench_results.audit import audited
from rbench_results.curve import RADII
from rbench_results.figures import Figure, upper_limit
from rbench_results.records import CurveRow, QuestionRecord
from rbench_results.report import run_report
from rbench_results.store import Store
from rbench_results.table import report_table
from stored import facts, filled, question, run, stage, verdict

LINF, L2 = question(), question("l2", eps="2")
ALONE, OTHER_PLAN, OTHER_ENGINE = question("l1", eps="5"), question("l1", eps="6", plan_json=[]), question("l1", eps="7", engine="0")
PILOT = (1, 2, 7, 8)  # the first two lie in the slice of four


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A union run over images 0 to 3, all of which hold but 0; its pilots looked at four images and found 7 and 8 broken by l2."""
    with filled(tmp_path, LINF, L2) as opened:
        opened.put_question(ALONE)
        opened.start_run(run("r2", [ALONE], started="2026-01-02"))
        opened.add_chunk(LINF.key, rows({0: "broken", **dict.fromkeys((1, 2, 3, 7, 8), "survived")}), [stage(LINF, forward=5)])
        opened.add_chunk(L2.key, rows({1: "survived", 2: "survived", 3: "survived", 7: "broken", 8: "broken"}), [])
        opened.put_pilot(LINF.key, "r1", facts(PILOT, standing=4))
        opened.put_pilot(L2.key, "r1", facts(PILOT, standing=2))
        yield opened


def rows(statuses: dict[int, str], **fields: Any) -> list[Any]:
    return [verdict(index, status, **fields) for index, status in statuses.items()]


def point(of: QuestionRecord, index: int, gauge: float | None) -> CurveRow:
    return CurveRow(question=of.key, spec=of.spec, index=index, gauge=gauge, attack=None if gauge is None else "apgd")


# --- the store's door ---------------------------------------------------------------------------------------------------------------


def test_a_pilot_comes_back_and_gives_way_to_a_newer_one(store: Store) -> None:
    assert (store.pilot(ALONE.key), store.pilot("0" * 64)) == (None, None)
    assert store.pilot(LINF.key) == facts(PILOT, standing=4)
    store.put_pilot(LINF.key, "r2", facts(PILOT, standing=3, missed=1))
    assert [(pilot.run, pilot.facts["audit"]) for pilot in store.pilots([LINF.key])] == [("r2", {"standing": 3, "missed": 1})]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"masked": None}, "masked = None"),
    ({"audit": {"standing": 3, "missed": 0}}, "audit ="),  # more than it has images
    ({"audit": {"standing": 2, "missed": True}}, "audit ="),
    ({"families": [{"family": "fab"}]}, "families ="),
    ({"close": {"0.2": "near"}}, "close ="),
    ({"close": {"nearest": 1.0}}, "close ="),
    ({"cost": {"forward": None}}, "cost ="),
    ({"late": -1}, "late ="),
    ({"close": {"0.2": math.inf}}, "plain JSON"),
    ({"cost": {"forward": object()}}, "plain JSON"),
    ({"indices": [-1, 2]}, "indices ="),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=repr)
def test_facts_that_nobody_could_judge_by_are_refused(store: Store, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        store.put_pilot(LINF.key, "r1", facts(**fields))
    assert "\n" not in str(caught.value)
    assert store.pilot(LINF.key) == facts(PILOT, standing=4)


def test_a_curve_replaces_the_runs_older_one_whole_or_not_at_all(store: Store) -> None:
    store.put_curve("r1", [point(LINF, index, 1.0) for index in range(4)])
    store.put_curve("r2", other := [point(ALONE, 0, 0.5)])
    store.put_curve("r1", new := [point(LINF, 0, 0.25), point(L2, 3, None)])
    assert (store.curve("r1"), store.curve("r2"), store.curve("r9")) == (new, other, [])
    for wrong in ([point(OTHER_PLAN, 0, 1.0)], [point(LINF, 0, -0.1)], [point(LINF, -1, 1.0)], [point(LINF, 0, 1.0)] * 2):
        with pytest.raises(StoreError):
            store.put_curve("r1", [point(LINF, 1, 2.0), *wrong])
        assert store.curve("r1") == new
    store.put_curve("r1", [point(LINF, 0, math.inf)])  # no adversarial point is known
    assert [row.gauge for row in store.curve("r1")] == [None]


def test_the_costs_of_a_pilot_stand_apart(store: Store) -> None:
    for _ in range(2):
        store.add_chunk(LINF.key, [], [stage(LINF, pilot=True, forward=100, model_seconds=1.0, step_seconds=0.25)])
    assert store.stages(question=LINF.key) == [
        stage(LINF, forward=5),
        stage(LINF, pilot=True, forward=200, model_seconds=2.0, step_seconds=0.5),
    ]


# --- audits -------------------------------------------------------------------------------------------------------------------------


def test_the_bound_of_a_union_is_of_the_images_that_stand_under_every_member(store: Store) -> None:
    """Of the pilot 1 and 2 stand; of the slice only 3 was given up, since the pilot's images got everything."""
    audit = run_report(store, "r1")["audit"]
    assert (audit["rows"], audit["missed"]) == (2, 0)
    assert audit["bound"] == pytest.approx(100 * upper_limit(0, 2) * 1 / 4)
    assert audit["members"] == [{"spec": LINF.spec, "rows": 4, "missed": 0}, {"spec": L2.spec, "rows": 2, "missed": 0}]
    pooled = {"questions": 2, "rows": 6, "missed": 0, "limit": upper_limit(0, 6), "bound": pytest.approx(100 * upper_limit(0, 6) * 2 / 4)}
    assert audit["pooled"] == pooled  # either member may have missed image 3


def test_late_falls_and_proofs_count_where_they_must(store: Store) -> None:
    store.put_pilot(L2.key, "r1", facts(PILOT, standing=2, missed=1))
    assert run_report(store, "r1")["audit"]["rows"] == 3  # the fallen one stood on the ordinary way
    assert run_report(store, "r1")["audit"]["bound"] == pytest.approx(100 * upper_limit(1, 3) / 4)
    store.put_question(proof := question(kind="certificate", plan="ibp"))
    store.start_run(run("r3", [proof, LINF, L2], started="2026-01-03"))
    store.add_chunk(proof.key, rows({0: "open", 1: "open", 2: "open", 3: "certified"}), [])
    audit = run_report(store, "r3")["audit"]
    assert audit["bound"] == pytest.approx(100 * upper_limit(1, 3) / 4)  # l2 may still have missed it
    assert audit["pooled"]["bound"] == pytest.approx(100 * upper_limit(1, 6) * 1 / 4)  # and linf not


def test_where_the_pilots_verdicts_are_not_here_the_members_bounds_add_up(store: Store) -> None:
    """As in a bundle, which brings the verdicts of its slice and the facts of its pilots. Each holds at 97.5 %, so both hold at 95 %."""
    store.put_pilot(LINF.key, "r1", facts((1, 2, 7, 9), standing=4))
    audit = run_report(store, "r1")["audit"]
    assert (audit["rows"], audit["missed"]) == (6, 0)
    assert audit["bound"] == pytest.approx(100 * (upper_limit(0, 4, 0.975) + upper_limit(0, 2, 0.975)) / 4)


def test_an_opened_gate_misses_nothing(store: Store) -> None:
    store.put_pilot(L2.key, "r1", facts(PILOT, standing=3, opened=True, late=1))
    audit = run_report(store, "r1")["audit"]
    assert audit["bound"] == pytest.approx(100 * upper_limit(0, 4) / 4)  # of linf alone
    store.put_pilot(LINF.key, "r1", facts(PILOT, standing=4, opened=True, late=1))
    assert [run_report(store, "r1")["audit"][key] for key in ("bound", "missed")] == [0.0, 0]
    assert run_report(store, "r1")["audit"]["pooled"]["bound"] == 0.0


def test_a_single_question_is_counted_by_its_own_pilot(store: Store) -> None:
    assert run_report(store, "r2")["audit"] is None
    store.put_pilot(ALONE.key, "r2", facts(range(40, 70), standing=30))
    assert run_report(store, "r2")["audit"]["bound"] is None  # nothing is answered yet
    store.add_chunk(ALONE.key, rows(dict.fromkeys(range(4), "survived")), [])
    audit = run_report(store, "r2")["audit"]
    assert audit["bound"] == pytest.approx(9.5, abs=0.01)
    assert (audit["pooled"]["questions"], audit["pooled"]["rows"]) == (3, 36)


def test_only_the_same_plan_and_engine_are_pooled_and_nobody_elses_word(store: Store) -> None:
    store.start_run(run("r4", submitted={"name": "theirs"}, started="2026-01-03"))
    for other, owner in ((OTHER_PLAN, "r1"), (OTHER_ENGINE, "r1"), (ALONE, "r4")):
        store.put_question(other)
        store.put_pilot(other.key, owner, facts(range(100), standing=100))
    assert len(audited(store)) == 5
    assert run_report(store, "r1")["audit"]["pooled"]["rows"] == 6


def test_what_the_text_says(store: Store) -> None:
    text = " ".join(report_table(run_report(store, "r1")).split())
    assert "the plan may have missed at most 19.4 points (95 %): of 2 images that it left standing the full budget broke none" in text
    assert "pooled over 2 questions (0 of 6): 19.7 points" in text
    assert "masked" not in text
    store.put_pilot(L2.key, "r1", facts(PILOT, standing=2, masked=True, why="of 4 pilot images APGD left 3"))
    store.put_pilot(LINF.key, "r1", facts(PILOT, standing=4, opened=True, late=1))
    lines = report_table(run_report(store, "r1")).splitlines()
    assert f"masked: {L2.spec}: of 4 pilot images APGD left 3; every image met every kind of attack" in lines
    assert any(line.startswith(f"opened: {LINF.spec}: 1 pilot image fell") for line in lines)
    assert max(map(len, lines)) <= 100


def test_masking_is_told_by_member(store: Store) -> None:
    told = run_report(store, "r1")["masking"]
    assert [(row["spec"], row["masked"], row["families"][0]["broken"]) for row in told] == [(LINF.spec, False, 0), (L2.spec, False, 2)]
    assert run_report(store, "r2")["masking"] is None


# --- curves -------------------------------------------------------------------------------------------------------------------------


def points(store: Store) -> list[dict[str, Any]]:
    return run_report(store, "r1")["curve"]


def test_a_curve_is_the_share_whose_closest_point_lies_further_out(store: Store) -> None:
    assert points(store) is None
    gauges: Sequence[float | None] = (0.5, 1.2, 1.20001, None)
    store.put_curve("r1", [point(LINF, index, gauge) for index, gauge in enumerate(gauges)])
    (told,) = points(store)
    assert (told["spec"], told["eps"], told["asked"], told["n"]) == (LINF.spec, 0.3, 4, 4)
    assert [p["eps"] for p in told["points"]] == pytest.approx([0.03 * step for step in range(21)])
    assert [p["robust"] for p in told["points"]] == [1.0] * 5 + [0.75] * 7 + [0.5] + [0.25] * 8
    half = Figure.of(2, 4)
    assert told["points"][12] == {"eps": pytest.approx(0.36), "robust": 0.5, "low": half.low, "high": half.high, "n": 4}
    json.dumps(told, allow_nan=False)
    assert len(RADII) == 21


def test_at_the_asked_radius_a_curve_is_the_figure(store: Store) -> None:
    """A witness on the surface may measure a rounding beyond 1; what is misclassified falls at radius 0; a proof changes nothing."""
    store.add_chunk(LINF.key, rows({1: "broken", 2: "misclassified"}), [])
    store.put_curve("r1", [point(LINF, 0, None), point(LINF, 1, 1 + 2e-6), point(LINF, 2, 1.5), point(LINF, 3, None)])
    (told,) = points(store)
    assert [told["points"][step]["robust"] for step in (0, 9, 10)] == [0.75, 0.75, 0.25]
    assert told["points"][10]["robust"] == run_report(store, "r1")["members"][LINF.spec]["robust"]["accuracy"]


def test_a_curve_of_some_images_has_no_figure(store: Store) -> None:
    store.put_curve("r1", [point(LINF, index, 1.0) for index in (0, 1)] + [point(L2, index, 1.0) for index in range(4)])
    part, whole = points(store)
    assert (part["points"], part["asked"], part["n"]) == ([], 2, 4)
    assert (whole["eps"], len(whole["points"])) == (2.0, 21)
