"""Merging is a join: twice is once, the order does not matter, nothing is lost; and it takes no record that contradicts itself."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stored
from rbench_core.errors import StoreError
from rbench_results import merge as merging
from rbench_results.merge import add, merge, snapshot
from rbench_results.reading import read_snapshot, written
from rbench_results.records import CurveRow, PilotRecord, QuestionRecord, StageRecord, VerdictRecord
from rbench_results.seal import question_key, sealed
from rbench_results.snapshot import STATES, Snapshot
from rbench_results.store import Store


def asked(eps: str, **fields: object) -> QuestionRecord:
    record = stored.question(eps=eps, set={"family": "linf", "extent": {"eps": eps}}, **fields)
    return replace(record, key=question_key(record))


A, B, PROOF = asked("1/10"), asked("3/10"), asked("1/20", kind="certificate", plan="ibp", plan_json=[{"certificate": "ibp"}])
RUNS = ("r1", "r2", "r3")
STATUSES = {"attack": ("error", "survived", "broken", "misclassified"), "certificate": ("error", "open", "certified")}


# Drawn as plain values and made into records afterwards: the type checker of the tests looks at random elements of lists.
ROW = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2), st.sampled_from([16, 64]), st.booleans())
LAB = st.fixed_dictionaries(
    {
        "title": st.sampled_from(["one", "two"]),
        "runs": st.dictionaries(st.sampled_from(RUNS), st.tuples(st.sampled_from(STATES), st.booleans()), min_size=1),
        "rows": st.lists(st.lists(ROW, max_size=5), min_size=3, max_size=3),
        "costs": st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=3),
        "pilot": st.none() | st.integers(0, 2),
        "curve": st.dictionaries(st.integers(0, 3), st.sampled_from([None, 0.0, 1.0, 2.5]), max_size=3),
    }
)


def row_of(question: QuestionRecord, index: int, choice: int, run: str, width: int, kept: bool) -> VerdictRecord:
    statuses = STATUSES[question.kind]
    status = statuses[choice % len(statuses)]
    place = {"witness": "witnesses/0123456789abcdef/000000-00000000.safetensors", "row": 0} if kept and status == "broken" else {}
    return sealed(question.key, stored.verdict(index, status, run=run, width=width, **place))


def lab(drawn: dict[str, Any]) -> Snapshot:
    """What one lab may have: the same keys as the others, other words, verdicts and costs."""
    questions, here = [A, B, PROOF], sorted(drawn["runs"])
    runs = [
        stored.run(id, questions, started=f"2026-01-0{id[1]}T00:00:00+00:00", state=state, submitted={"name": "net"} if came else None)
        for id, (state, came) in drawn["runs"].items()
    ]
    verdicts = {}
    for question, rows in zip(questions, drawn["rows"], strict=True):
        made = [row_of(question, index, choice, here[run % len(here)], width, kept) for index, choice, run, width, kept in rows]
        verdicts[question.key] = list({row.index: row for row in made}.values())
    stages = [
        StageRecord(run=run, question=A.key, position=1, attack="pgd", forward=cost, pilot=pilot)
        for run, (cost, pilot) in zip(here, drawn["costs"])  # noqa: B905  as many as there are
    ]
    pilots = [] if drawn["pilot"] is None else [PilotRecord(question=A.key, run=here[0], facts=stored.facts(missed=drawn["pilot"]))]
    curve = [CurveRow(question=A.key, spec=A.spec, index=i, gauge=far, attack=drawn["title"]) for i, far in drawn["curve"].items()]
    curves = {here[0]: curve} if curve else {}
    models, datasets = [stored.model(title=drawn["title"])], [stored.dataset(note=drawn["title"])]
    return Snapshot(models, datasets, questions, runs, verdicts, stages, pilots, curves)


def store_of(*parts: Snapshot) -> Snapshot:
    """What a new store holds after the parts were merged into it, one after another."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder)) as store:
        for part in parts:
            merge(store, part)
        return snapshot(store)


@settings(max_examples=15, deadline=None)
@given(drawn=st.tuples(LAB, LAB, LAB))
def test_merging_is_idempotent_commutative_and_associative(drawn: tuple[dict[str, Any], ...]) -> None:
    a, b, c = map(lab, drawn)
    whole = store_of(a, b, c)
    assert store_of(c, b, a) == whole
    assert store_of(b, store_of(a, c)) == whole
    assert store_of(a, b, c, b, whole) == whole


@settings(max_examples=15, deadline=None)
@given(drawn=st.tuples(LAB, LAB))
def test_nothing_is_lost_and_no_answer_is_weakened(drawn: tuple[dict[str, Any], ...]) -> None:
    a, b = map(lab, drawn)
    whole = store_of(a, b)
    for key, rows_ in whole.verdicts.items():
        held = {row.index: row for row in rows_}
        for row in a.verdicts[key] + b.verdicts[key]:
            assert merging.STRENGTH.get(held[row.index].status, 2) >= merging.STRENGTH.get(row.status, 2)
        assert all(row in a.verdicts[key] + b.verdicts[key] for row in rows_)
    assert {pilot.question for pilot in whole.pilots} == {pilot.question for pilot in a.pilots + b.pilots}
    for run in a.curves.keys() | b.curves.keys():
        given_ = a.curves.get(run, []) + b.curves.get(run, [])
        for index in {row.index for row in given_}:
            reach = [math.inf if row.gauge is None else row.gauge for row in given_ if row.index == index]
            (kept,) = [row.gauge for row in whole.curves[run] if row.index == index]
            assert (math.inf if kept is None else kept) == min(reach)


def test_a_merge_that_keeps_what_came_last_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    weak, strong = (stored.verdict(0, status) for status in ("survived", "broken"))
    one, two = (
        Snapshot([stored.model()], [stored.dataset()], [A], [stored.run("r1", [A])], {A.key: [sealed(A.key, row)]})
        for row in (weak, strong)
    )
    assert store_of(one, two) == store_of(two, one)
    monkeypatch.setattr(merging, "_won", lambda stored, given, key, rank=None: list(given))
    assert store_of(one, two) != store_of(two, one)


def test_records_survive_json(tmp_path: Path) -> None:
    with stored.filled(tmp_path, A) as store:
        store.add_chunk(A.key, [stored.verdict(0, "broken", margin=-0.1 / 3)], [stored.stage(A, forward=3, pilot=True)])
        store.put_pilot(A.key, "r1", stored.facts())
        store.put_curve("r1", [CurveRow(question=A.key, spec=A.spec, index=index, gauge=gauge) for index, gauge in ((0, 0.1), (1, None))])
        here = snapshot(store)
    table = json.loads(json.dumps(written(here)))
    assert read_snapshot(table) == here
    old = {key: rows for key, rows in table.items() if key not in ("pilots", "curves")}  # of an older bundle
    assert read_snapshot(old) == replace(here, pilots=[], curves={})


WRONG: dict[str, tuple[Callable[[Snapshot], Snapshot], str]] = {
    "a verdict's status": (lambda s: replace(s, verdicts={A.key: [replace(s.verdicts[A.key][0], status="survived")]}), "seal"),
    "a verdict's label": (lambda s: replace(s, verdicts={A.key: [replace(s.verdicts[A.key][0], label=2)]}), "seal"),
    "a verdict of another question": (lambda s: replace(s, questions=[A, B], verdicts={B.key: s.verdicts[A.key]}), "seal"),
    "a question's radius": (lambda s: replace(s, questions=[replace(A, set={"family": "linf", "extent": {"eps": "1/2"}})]), "another key"),
    "a question's extent alone": (lambda s: replace(s, questions=[replace(A, extent={"eps": "1/2"})]), "not that of its set"),
    "a question's family alone": (lambda s: replace(s, questions=[replace(A, family="l2")]), "not that of its set"),
    "a radius of a billion digits": (lambda s: replace(s, questions=[asked("1e999999999")], verdicts={}, runs=[]), "exact radii"),
    "a question that is not there": (lambda s: replace(s, questions=[B]), "not there"),
    "a run named as a path": (lambda s: replace(s, runs=[replace(s.runs[0], id="../../x")]), "expected an id"),
    "a run of no examples": (lambda s: replace(s, runs=[replace(s.runs[0], n=0)]), "expected a slice"),
    "a witness outside": (
        lambda s: replace(s, verdicts={A.key: [sealed(A.key, replace(s.verdicts[A.key][0], witness="../w", row=0, seal=""))]}),
        "inside",
    ),
    "a run beyond its data": (lambda s: replace(s, runs=[replace(s.runs[0], n=2**62)]), "expected a slice"),
    "a run named latest": (lambda s: replace(s, runs=[replace(s.runs[0], id="latest")]), "expected an id"),
    "a run twice": (lambda s: replace(s, runs=[s.runs[0], replace(s.runs[0], n=2)]), "twice"),
    "a verdict twice": (lambda s: replace(s, verdicts={A.key: [*s.verdicts[A.key], sealed(A.key, stored.verdict(0))]}), "twice"),
    "a question of another kind": (lambda s: replace(s, questions=[replace(A, kind="weird")]), "kind 'weird'"),
    "a witness that is a page": (
        lambda s: replace(
            s, verdicts={A.key: [sealed(A.key, replace(s.verdicts[A.key][0], witness="witnesses/x/p-0.html", row=0, seal=""))]}
        ),
        "witness file",
    ),
    "a pilot of a question that is not there": (
        lambda s: replace(s, pilots=[PilotRecord(question=B.key, run="r1", facts=stored.facts())]),
        "not there",
    ),
    "a pilot without facts": (lambda s: replace(s, pilots=[PilotRecord(question=A.key, run="r1", facts={})]), "expected facts"),
    "a pilot that missed more than stood": (
        lambda s: replace(s, pilots=[PilotRecord(question=A.key, run="r1", facts=stored.facts(standing=1, missed=2))]),
        "audit =",
    ),
    "a curve of a question that is not there": (
        lambda s: replace(s, curves={"r1": [CurveRow(question=B.key, spec="", index=0, gauge=1.0)]}),
        "not there",
    ),
    "a curve of a run that is not there": (
        lambda s: replace(s, curves={"r9": [CurveRow(question=A.key, spec="", index=0, gauge=1.0)]}),
        "refuses",
    ),
    "a run of no model": (lambda s: replace(s, models=[]), "refuses"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_refused_whole(name: str, tmp_path: Path) -> None:
    change, words = WRONG[name]
    row = sealed(A.key, stored.verdict(0, "broken"))
    good = Snapshot([stored.model()], [stored.dataset()], [A], [stored.run("r1", [A])], {A.key: [row]})
    with Store.open(tmp_path) as store:
        with pytest.raises(StoreError, match=words):
            merge(store, change(good))
        assert snapshot(store) == Snapshot()
        merge(store, good)
        assert snapshot(store).verdicts == {A.key: [row]}


WRITER = """
import sys
from pathlib import Path
from dataclasses import replace
import stored
from rbench_results.merge import merge
from rbench_results.snapshot import Snapshot
from rbench_results.seal import question_key, sealed
from rbench_results.store import Store
record = stored.question(eps="1/10", set={"family": "linf", "extent": {"eps": "1/10"}})
A = replace(record, key=question_key(record))
run, first = sys.argv[2], int(sys.argv[3])
with Store.open(Path(sys.argv[1])) as store:
    for index in range(first, first + 60):
        row = sealed(A.key, stored.verdict(index, "survived", run=run))
        merge(store, Snapshot([stored.model()], [stored.dataset()], [A], [stored.run(run, [A], n=200)], {A.key: [row]}))
print("done")
"""


def test_two_processes_that_merge_into_one_store_lose_nothing(tmp_path: Path) -> None:
    children = [stored.python(WRITER, tmp_path, run, first) for run, first in (("r1", 0), ("r2", 40))]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert (out, err) == ("done\n", "")
    with Store.open(tmp_path, create=False) as store:
        assert [row.index for row in store.verdicts(A.key)] == list(range(100))
        assert {run.id for run in store.runs()} == {"r1", "r2"}


def test_reading_names_the_field() -> None:
    good = written(Snapshot(verdicts={A.key: [stored.verdict(0)]}))
    for field, value, words in (
        ("label", "1", "a whole number"),
        ("label", True, "a whole number"),
        ("index", 2**70, "a whole number"),
        ("status", 3, "text"),
        ("margin", "low", "a number"),
        ("extra", 1, "unknown field"),
    ):
        row = {**vars_of(good), field: value}
        with pytest.raises(StoreError, match=words):
            read_snapshot({**good, "verdicts": {A.key: [row]}})
    with pytest.raises(StoreError, match="no field 'status'"):
        read_snapshot({**good, "verdicts": {A.key: [{k: v for k, v in vars_of(good).items() if k != "status"}]}})
    with pytest.raises(StoreError, match="expected the keys"):
        read_snapshot([])


def vars_of(table: dict[str, object]) -> dict[str, object]:
    return table["verdicts"][A.key][0]  # type: ignore[index, no-any-return]


# --- what a stranger sends ----------------------------------------------------------------------------------------------------------


def part(status: str, **fields: Any) -> Snapshot:
    row = sealed(A.key, stored.verdict(0, status))
    missed, gauge = (0, 1.0) if status == "survived" else (1, 0.5)
    pilots = [PilotRecord(question=A.key, run="r1", facts=stored.facts(missed=missed))]
    curves = {"r1": [CurveRow(question=A.key, spec=A.spec, index=0, gauge=gauge)]}
    runs, stages = [stored.run("r1", [A])], [stored.stage(A, forward=7)]
    return Snapshot([stored.model(**fields)], [stored.dataset()], [A], runs, {A.key: [row]}, stages, pilots, curves)


def test_what_is_added_changes_nothing_that_is_there(tmp_path: Path) -> None:
    own, other = part("survived"), part("broken", title="zzz")
    other.verdicts[A.key].append(sealed(A.key, stored.verdict(1, "survived")))
    with Store.open(tmp_path) as store:
        add(store, own)
        before = snapshot(store)
        done = add(store, other)
        after = snapshot(store)
    assert (done.runs, done.verdicts, done.replaced) == (0, 1, 0)
    assert after.verdicts[A.key] == [*before.verdicts[A.key], other.verdicts[A.key][1]]
    assert replace(after, verdicts={}) == replace(before, verdicts={})


ELSEWISE: dict[str, Callable[[Snapshot], Snapshot]] = {
    "a run of the same id": lambda s: replace(s, runs=[replace(s.runs[0], n=3)]),
    "a model with other classes": lambda s: replace(s, models=[replace(s.models[0], classes=7)]),
    "a model with other answers": lambda s: replace(s, models=[replace(s.models[0], probe=[[9.0, 9.0, 9.0]])]),
    "a data set of another size": lambda s: replace(s, datasets=[replace(s.datasets[0], size=400)]),
    "a question of another kind": lambda s: replace(s, questions=[replace(A, kind="certificate")]),
}


@pytest.mark.parametrize("name", ELSEWISE)
def test_what_is_there_with_other_content_is_refused(name: str, tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        merge(store, part("survived"))
        before = snapshot(store)
        for how in (add, merge) if "kind" in name or "answers" in name else (add,):
            with pytest.raises(StoreError):
                how(store, ELSEWISE[name](part("broken")))
        assert snapshot(store) == before


def test_tables_that_no_reader_can_walk_are_refused() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    good = written(part("survived"))
    for value in (deep, float("nan"), {"a": [float("inf")]}):
        with pytest.raises(StoreError, match="plain values"):
            read_snapshot(json.loads(json.dumps({**good, "models": [{**good["models"][0], "card": {"x": value}}]})))
    with pytest.raises(StoreError, match="a number"):
        read_snapshot(json.loads(json.dumps({**good, "runs": [{**good["runs"][0], "seconds": float("inf")}]})))
