"""The report of a run: every key of the interface, figures only over what was answered, partial runs as they stand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rbench_core.errors import UnknownName
from rbench_results.figures import wilson
from rbench_results.records import VerdictRecord
from rbench_results.report import run_report
from rbench_results.store import Store
from stored import filled, question, run, stage, verdict

LINF, L2 = question(), question("l2", eps="2")
PROOF = question(kind="certificate", plan="ibp")
PROMISED = {
    "run",
    "model",
    "dataset",
    "threat",
    "plan",
    "n",
    "clean",
    "robust",
    "certified",
    "members",
    "verdicts",
    "cost",
    "warnings",
    "site",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A union run over four examples: 0 holds, 1 falls to linf and is not asked of l2, 2 falls to l2, 3 is misclassified."""
    with filled(tmp_path, LINF, L2) as opened:
        opened.add_chunk(
            LINF.key,
            [verdict(0), broken(1), verdict(2), wrong(3)],
            [stage(LINF, entered=3, broken=1, forward=100, backward=90, useful=80, seconds=1.0)],
        )
        opened.add_chunk(
            L2.key, [verdict(0), broken(2, "fab"), wrong(3)], [stage(L2, forward=50, seconds=0.5), stage(L2, 1, backward=7, useful=5)]
        )
        yield opened


def broken(index: int, attack: str = "apgd") -> VerdictRecord:
    return verdict(index, "broken", predicted=2, attack=attack)


def wrong(index: int) -> VerdictRecord:
    return verdict(index, "misclassified", clean=0, predicted=0)


def figure(k: int, n: int) -> dict[str, Any]:
    low, high = wilson(k, n)
    return {"accuracy": k / n, "low": low, "high": high, "n": n}


def test_a_finished_union(store: Store) -> None:
    store.finish_run("r1", state="done", warnings=[{"code": "slow", "text": "took long"}], seconds=3.0)
    report = run_report(store, "latest")
    assert set(report) >= PROMISED
    json.dumps(report, allow_nan=False)
    named = {"run": "r1", "model": "net", "dataset": "digits", "threat": "union-lp", "plan": "apgd", "n": 4, "state": "done", "seed": 0}
    assert named.items() <= report.items()
    assert report["slice"] == {"first": 0, "n": 4}
    assert report["clean"] == figure(3, 4)
    assert report["robust"] == figure(1, 4)
    assert report["certified"] is None
    assert report["counts"] == {"certified": 0, "survived": 1, "broken": 2, "misclassified": 1, "error": 0, "unanswered": 0}
    assert report["warnings"] == [{"code": "slow", "text": "took long"}]
    assert report["alarm"] is False
    assert report["site"] is None


def test_members(store: Store) -> None:
    members = run_report(store, "r1")["members"]
    assert list(members) == [LINF.spec, L2.spec]
    both = {"clean": figure(3, 4), "certified": None, "broke": 1, "unanswered": 0}
    asked_of_all = {"robust": figure(2, 4), "asked": 4, "alone": None, "skipped": 0}  # alone: l2 might break the same example
    assert members[LINF.spec] == both | asked_of_all | {"statuses": {"survived": 2, "broken": 1, "misclassified": 1}}
    asked_of_three = {"robust": None, "asked": 3, "alone": 1, "skipped": 1}
    assert members[L2.spec] == both | asked_of_three | {"statuses": {"survived": 1, "broken": 1, "misclassified": 1}}


def test_verdicts(store: Store) -> None:
    verdicts = run_report(store, "r1")["verdicts"]
    assert [(v["index"], v["label"], v["status"], v["attack"], v["fell_to"]) for v in verdicts] == [
        (0, 1, "survived", None, None),
        (1, 1, "broken", "apgd", LINF.spec),
        (2, 1, "broken", "fab", L2.spec),
        (3, 1, "misclassified", None, None),
    ]
    assert [list(v["members"].values()) for v in verdicts] == [
        ["survived", "survived"],
        ["broken", "skipped"],
        ["survived", "broken"],
        ["misclassified", "misclassified"],
    ]
    assert verdicts[1]["predicted"] == 2


def test_cost_counts_every_run_of_the_questions(store: Store) -> None:
    store.start_run(run("r2", questions=[LINF], n=2, started="2026-01-02"))
    store.add_chunk(LINF.key, [], [stage(LINF, run="r2", forward=11, entered=2)])
    store.add_chunk(LINF.key, [], [stage(LINF, pilot=True, forward=1000, seconds=4.0, model_seconds=3.0, step_seconds=0.5)])
    none = {"model_seconds": 0.0, "step_seconds": 0.0}
    pilot = {"forward": 1000, "backward": 0, "useful": 0, "seconds": 4.0, "model_seconds": 3.0, "step_seconds": 0.5}
    cost = run_report(store, "r1")["cost"]
    assert cost.pop("this_run") == pilot | {"forward": 1150, "backward": 97, "useful": 85, "seconds": 5.5}
    assert cost.pop("pilot") == pilot
    assert cost.pop("curve") == dict.fromkeys(pilot, 0)
    assert cost == pilot | {"forward": 1161, "backward": 97, "useful": 85, "seconds": 5.5}
    assert run_report(store, "r2")["cost"]["this_run"] == {"forward": 11, "backward": 0, "useful": 0, "seconds": 0.0} | none
    second = run_report(store, "r2")
    assert (second["cost"]["forward"], second["cost"]["this_run"]["forward"]) == (1111, 11)
    told = [(s["spec"], s["position"], s["pilot"], s["entered"], s["forward"]) for s in second["stages"]]
    assert told == [(LINF.spec, 0, False, 5, 111), (LINF.spec, 0, True, 0, 1000)]
    assert second["n"] == 2
    assert second["robust"] == figure(1, 2)  # a smaller slice is answered by the same rows


def test_a_run_that_has_not_come_far(store: Store) -> None:
    store.start_run(run("r2", questions=[LINF, L2], n=6, started="2026-01-02"))
    report = run_report(store, "r2")
    assert report["state"] == "running"
    assert report["clean"] is None
    assert report["robust"] is None
    assert report["counts"]["unanswered"] == 2
    assert report["verdicts"][5] == {
        "index": 5, "label": None, "status": None, "attack": None, "fell_to": None, "clean": None, "predicted": None, "reason": None,
        "members": {LINF.spec: None, L2.spec: None},
    }  # fmt: skip
    assert report["members"][L2.spec]["unanswered"] == 2


def test_a_run_that_failed_before_its_first_question(store: Store) -> None:
    store.start_run(run("r2", started="2026-01-02"))
    store.finish_run("r2", state="failed", warnings=[], seconds=0.1)
    report = run_report(store, "r2")
    assert (report["state"], report["robust"], report["clean"], report["members"]) == ("failed", None, None, {})
    json.dumps(report, allow_nan=False)


def test_a_member_that_is_missing_leaves_the_union_open(store: Store) -> None:
    third = question("l1", eps="10")
    store.put_question(third)
    store.start_run(run("r2", questions=[LINF, third], started="2026-01-02"))
    report = run_report(store, "r2")
    assert [v["status"] for v in report["verdicts"]] == [None, "broken", None, "misclassified"]
    assert report["robust"] is None
    assert report["members"][LINF.spec]["robust"] == figure(2, 4)


def test_errors_count_as_not_robust_and_an_unknown_clean_answer_as_wrong(tmp_path: Path) -> None:
    with filled(tmp_path, LINF) as store:
        store.add_chunk(
            LINF.key, [verdict(0), verdict(1, "error", clean=None, reason="NaN"), verdict(2, "error", reason="raised"), verdict(3)], []
        )
        report = run_report(store, "r1")
    assert report["clean"] == figure(3, 4)
    assert report["robust"] == figure(2, 4)
    assert report["counts"]["error"] == 2
    assert report["verdicts"][1]["reason"] == "NaN"


def test_members_that_disagree_about_the_clean_answer(store: Store) -> None:
    store.add_chunk(L2.key, [verdict(0, clean=2)], [])
    assert run_report(store, "r1")["clean"] == figure(2, 4)


def test_a_slice_that_does_not_begin_at_the_beginning(store: Store) -> None:
    store.start_run(run("r2", questions=[LINF], first=1, n=2, started="2026-01-02"))
    report = run_report(store, "r2")
    assert [v["index"] for v in report["verdicts"]] == [1, 2]
    assert report["robust"] == figure(1, 2)


def test_certificates_join_their_own_set_only(tmp_path: Path) -> None:
    with filled(tmp_path, PROOF, LINF, L2) as store:
        store.add_chunk(PROOF.key, [verdict(0, "certified"), verdict(1, "open"), verdict(2, "certified"), verdict(3, "open")], [])
        store.add_chunk(LINF.key, [verdict(1), broken(3)], [])
        store.add_chunk(L2.key, [verdict(0), verdict(1), broken(2), verdict(3)], [])
        report = run_report(store, "r1")
    assert report["alarm"] is False  # 2 falls to l2 and is certified under linf: no contradiction
    assert [v["status"] for v in report["verdicts"]] == ["survived", "survived", "broken", "broken"]
    assert report["members"][LINF.spec]["certified"] == figure(2, 4)
    assert report["members"][LINF.spec]["robust"] == figure(3, 4)
    assert report["members"][L2.spec]["certified"] is None
    assert report["certified"] == figure(0, 4)  # linf alone is proved, the union is not
    assert report["robust"] == figure(2, 4)


def test_an_alarm_is_loud(tmp_path: Path) -> None:
    with filled(tmp_path, LINF, PROOF, n=2) as store:
        store.add_chunk(LINF.key, [verdict(0), broken(1), broken(2)], [])  # 2 lies outside the slice
        store.add_chunk(PROOF.key, [verdict(i, "certified") for i in range(3)], [])
        report = run_report(store, "r1")
    assert report["alarm"] is True
    assert [w["code"] for w in report["warnings"]] == ["alarm"]
    assert "example 1" in report["warnings"][0]["text"]
    assert [(v["status"], v["attack"]) for v in report["verdicts"]] == [("certified", None), ("broken", "apgd")]


def test_the_page_of_the_run(store: Store) -> None:
    page = store.folder / "site" / "run-r1.html"
    page.parent.mkdir()
    page.touch()
    assert run_report(store, "r1")["site"] == str(page)


def test_an_unknown_run(store: Store) -> None:
    with pytest.raises(UnknownName):
        run_report(store, "nothing")
