"""What goes into the store comes out of it, chunk by whole chunk, whoever else writes and whenever somebody is killed."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbench_core.errors import ModelError, StoreError, UnknownName
from rbench_results import schema
from rbench_results.database import FILE
from rbench_results.records import ATTACK_STATUSES, CERTIFICATE_STATUSES, VerdictRecord
from rbench_results.rows import to_row
from rbench_results.seal import sealed
from rbench_results.store import Store
from stored import dataset, digest, filled, model, printed, python, question, run, stage, verdict

Q = question()
PROOF = question(kind="certificate", plan="ibp")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with filled(tmp_path, Q, PROOF) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store for the examples of a property; each of them uses an index of its own."""
    with filled(tmp_path_factory.mktemp("shared"), Q, PROOF) as opened:
        yield opened


# what goes in comes out


def test_records_come_back_as_they_went_in(store: Store) -> None:
    other = model("other", probe=[[math.nan, math.inf], [1e-300, -0.0]], card={"deep": {"list": [1, None, "ü"]}})
    noted = dataset("part", note="10,000 of 50,000", shape=(3, 32, 32))
    store.put_model(other)
    store.put_dataset(noted)
    back = next(m for m in store.models() if m.name == "other")
    assert repr(back) == repr(other)  # NaN is not equal to itself
    assert next(d for d in store.datasets() if d.name == "part") == noted
    assert store.question(Q.key) == Q
    assert store.run("r1") == run(questions=[Q, PROOF])
    full = verdict(
        3, "broken", predicted=2, attack="fab", margin=-0.5, gauge=0.9, target=2, restart=1, witness="witnesses/ab/c.safetensors", row=7
    )
    store.add_chunk(
        Q.key, [full], [spent := stage(Q, entered=5, broken=1, refused=2, errors=1, forward=100, backward=90, useful=80, seconds=1.5)]
    )
    assert store.verdicts(Q.key) == [sealed(Q.key, full)]
    assert store.stages() == [spent]


def test_slices(store: Store) -> None:
    store.add_chunk(Q.key, [verdict(i, "broken" if i % 2 else "error") for i in (9, 3, 4, 5)], [])
    assert store.answered(Q.key, 3, 2) == {3: "broken", 4: "error"}
    assert store.answered(Q.key, 0, 3) == {}
    assert [v.index for v in store.verdicts(Q.key)] == [3, 4, 5, 9]
    assert [v.index for v in store.verdicts(Q.key, 4)] == [4, 5, 9]
    assert store.verdicts(Q.key, 9, 1)[0].status == "broken"
    assert store.answered("0" * 64, 0, 10) == {}
    assert sorted(store.statuses([Q.key, PROOF.key])) == [
        (Q.key, 3, "broken"),
        (Q.key, 4, "error"),
        (Q.key, 5, "broken"),
        (Q.key, 9, "broken"),
    ]


def test_putting_again_changes_only_what_is_editorial(store: Store) -> None:
    store.put_model(model(title="Renamed", card={"new": 1}, parameters=99))
    (found,) = store.models()
    assert (found.title, found.card, found.parameters) == ("Renamed", {"new": 1}, 10)
    store.put_question(dataclasses.replace(Q, title="Again", seed=7))
    assert (store.question(Q.key).title, store.question(Q.key).seed) == ("Again", 0)
    store.put_dataset(dataset(note="whole"))
    assert store.datasets()[0].note == "whole"


@pytest.mark.parametrize("probe", [[[0.5, -1.0, 2.002]], [[0.5, -1.0]], [[0.5, -1.0, 2.0]] * 2, [[math.nan, -1.0, 2.0]]])
def test_a_model_that_answers_the_probe_otherwise_is_refused(store: Store, probe: list[list[float]]) -> None:
    with pytest.raises(ModelError) as caught:
        store.put_model(model(probe=probe, title="Impostor"))
    assert "\n" not in str(caught.value)
    assert store.models()[0].title == "The net"


def test_a_model_that_answers_the_probe_alike_is_not(store: Store) -> None:
    store.put_model(model(probe=[[0.5005, -1.0, 1.9995]]))
    store.put_model(model(probe=[]))  # not probed
    store.put_model(silent := model("silent", probe=[[math.nan, math.inf]]))
    store.put_model(silent)


def test_values_that_are_not_plain_become_plain(store: Store) -> None:
    odd = SimpleNamespace(index=np.int64(3), margin=np.float32(0.5), gauge=np.float64("nan"), attack="\udcff", row=None)
    assert to_row(schema.Verdict, odd) == {"index": 3, "margin": 0.5, "gauge": None, "attack": "\\udcff", "row": None}
    assert type(to_row(schema.Verdict, odd)["index"]) is int
    store.start_run(run("r2", command="rbench run --model caf\udce9.py", started="2026-01-02"))  # an argument that is not UTF-8
    assert store.run("r2").command == "rbench run --model caf\\udce9.py"


def test_a_seed_that_no_column_holds_is_one_line(store: Store) -> None:
    with pytest.raises(StoreError, match="cannot hold"):
        store.put_question(question(seed=2**70))


# the door


@settings(max_examples=30, deadline=None)
@given(status=st.text(max_size=12) | st.sampled_from(["skipped", "Broken", "robust", "open", "certified", "", "survived "]))
def test_statuses_outside_the_list_are_refused(shared: Store, status: str) -> None:
    for asked, known in ((Q, ATTACK_STATUSES), (PROOF, CERTIFICATE_STATUSES)):
        if status not in known:
            with pytest.raises(StoreError):
                shared.add_chunk(asked.key, [verdict(0, "error"), verdict(10**6, status)], [stage(asked, entered=1)])
            assert shared.answered(asked.key, 0, 1) == {}  # the rest of the chunk did not come in either
            assert shared.stages(question=asked.key) == []


@settings(max_examples=40, deadline=None)
@given(index=st.integers(1, 1000), margin=st.floats(), gauge=st.floats())
def test_numbers_that_are_not_finite_become_null(shared: Store, index: int, margin: float, gauge: float) -> None:
    shared.add_chunk(Q.key, [verdict(index, "broken", margin=margin, gauge=gauge)], [])
    (found,) = shared.verdicts(Q.key, index, 1)
    assert found.margin == (margin if math.isfinite(margin) else None)
    assert found.gauge == (gauge if math.isfinite(gauge) else None)
    json.dumps(dataclasses.asdict(found), allow_nan=False)


@pytest.mark.parametrize(
    "wrong", [{"index": -1}, {"witness": "/etc/passwd"}, {"witness": "witnesses/../../secret"}, {"run": "never started"}]
)
def test_verdicts_that_no_reader_could_follow_are_refused(store: Store, wrong: dict[str, object]) -> None:
    with pytest.raises(StoreError) as caught:
        store.add_chunk(Q.key, [verdict(0), dataclasses.replace(verdict(1), **wrong)], [])
    assert "\n" not in str(caught.value)
    assert store.answered(Q.key, 0, 10) == {}


def test_what_refers_to_nothing_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="not in the store"):
        store.add_chunk("0" * 64, [verdict(0)], [])
    with pytest.raises(StoreError, match="a stage of"):
        store.add_chunk(Q.key, [verdict(0)], [stage(PROOF)])
    with pytest.raises(StoreError):
        store.put_question(question("l2", model=digest("nobody")))
    with pytest.raises(StoreError):
        store.put_question(question("l2", kind="guess"))
    with pytest.raises(StoreError, match="not in the store"):
        store.start_run(run("r2", questions=[Q, question("l1")]))
    with pytest.raises(StoreError):
        store.start_run(run("r1"))  # an id that is taken
    assert [r.id for r in store.runs()] == ["r1"]
    assert store.answered(Q.key, 0, 10) == {}


# what stands and what gives way

STRENGTH = {"error": 0, "survived": 1, "open": 1, "broken": 2, "misclassified": 2, "certified": 2}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), index=st.integers(2000, 10**9))
def test_a_verdict_gives_way_only_to_one_that_says_as_much(shared: Store, data: st.DataObject, index: int) -> None:
    asked, known = data.draw(st.sampled_from([(Q, ATTACK_STATUSES), (PROOF, CERTIFICATE_STATUSES)]))
    stands: VerdictRecord | None = next(iter(shared.verdicts(asked.key, index, 1)), None)
    for status in data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=6)):
        new = verdict(index, status, width=data.draw(st.sampled_from([16, 64])))
        shared.add_chunk(asked.key, [new], [])
        if stands is None or STRENGTH[status] >= STRENGTH[stands.status]:
            stands = sealed(asked.key, new)
        assert shared.verdicts(asked.key, index, 1) == [stands]  # the whole row, not its status alone


def test_stages_add_up_by_run_question_and_position(store: Store) -> None:
    store.start_run(run("r2", questions=[Q], started="2026-01-02"))
    for _ in range(3):
        store.add_chunk(Q.key, [], [stage(Q, 0, entered=5, forward=100, seconds=0.5), stage(Q, 1, broken=2, useful=7)])
    store.add_chunk(Q.key, [], [stage(Q, 0, run="r2", entered=1)])
    store.add_chunk(PROOF.key, [], [stage(PROOF, 0, errors=4, refused=1, backward=9)])
    mine = [stage(Q, 0, entered=15, forward=300, seconds=1.5), stage(Q, 1, broken=6, useful=21)]
    proof = stage(PROOF, 0, errors=4, refused=1, backward=9)
    assert store.stages(run="r1") == [*mine, proof]
    assert store.stages(question=Q.key) == [*mine, stage(Q, 0, run="r2", entered=1)]
    assert store.stages(run="r2", question=PROOF.key) == []
    assert len(store.stages()) == 4


# runs


def test_runs_by_name(store: Store) -> None:
    for id, started in (("20260103-aa", "2026-01-03"), ("20260102-bb", "2026-01-02"), ("20260102-bc", "2026-01-02")):
        store.start_run(run(id, questions=[Q], started=started))
    assert [r.id for r in store.runs()] == ["r1", "20260102-bb", "20260102-bc", "20260103-aa"]
    assert store.run("latest").id == "20260103-aa"
    assert store.run("20260103").id == "20260103-aa"
    assert store.run("r").questions == [(Q.key, Q.spec), (PROOF.key, PROOF.spec)]
    for name in ("2026", "20260102-b", "", "nothing", "%", "_1", "R1"):
        with pytest.raises(UnknownName) as caught:
            store.run(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownName, match=r"20260102-b[bc], 20260102-b[bc]. Several"):
        store.run("20260102-b")


def test_an_id_that_begins_another_one_is_found(store: Store) -> None:
    store.start_run(run("r1-again", started="2026-01-02"))
    assert store.run("r1").id == "r1"


def test_no_runs(tmp_path: Path) -> None:
    with Store.open(tmp_path) as empty, pytest.raises(UnknownName, match="No run"):
        empty.run("latest")


def test_a_run_is_finished_once_it_was_started(store: Store) -> None:
    store.finish_run("r1", state="done", warnings=[{"code": "random", "text": "answers differ"}], seconds=2.5)
    found = store.run("r1")
    assert (found.state, found.warnings, found.seconds) == ("done", [{"code": "random", "text": "answers differ"}], 2.5)
    assert found.finished is not None
    assert found.finished.endswith("+00:00")
    with pytest.raises(StoreError):
        store.finish_run("r9", state="done", warnings=[], seconds=0.0)
    with pytest.raises(StoreError):
        store.finish_run("r1", state="finished", warnings=[], seconds=0.0)


# many processes

WRITERS = """
import multiprocessing, sys, pathlib
from rbench_results.store import Store
from stored import question, stage, verdict
processes = multiprocessing.get_context("fork")
folder, key = pathlib.Path(sys.argv[1]), question().key

def writes(who):
    with Store.open(folder) as store:
        for chunk in range(30):
            first = 1000 * who + 10 * chunk
            store.add_chunk(key, [verdict(first + i, "broken") for i in range(10)], [stage(question(), entered=10)])
            assert len(store.answered(key, first, 10)) == 10

workers = [processes.Process(target=writes, args=(who,)) for who in range(3)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
print([worker.exitcode for worker in workers])
"""


def test_processes_that_write_at_once_lose_nothing(store: Store) -> None:
    assert printed(WRITERS, store.folder) == "[0, 0, 0]\n"
    assert sorted(store.answered(Q.key)) == sorted(1000 * who + i for who in range(3) for i in range(300))
    assert [s.entered for s in store.stages()] == [900]


ENDLESS = """
import itertools, sys, pathlib
from rbench_results.store import Store
from stored import question, stage, verdict
with Store.open(pathlib.Path(sys.argv[1])) as store:
    for chunk in itertools.count(int(sys.argv[2])):
        store.add_chunk(question().key, [verdict(50 * chunk + i, "broken") for i in range(50)], [stage(question(), entered=50)])
"""


def test_a_killed_process_leaves_whole_chunks(store: Store) -> None:
    for start, pause in ((0, 0.0), (10**5, 0.011), (2 * 10**5, 0.123)):
        child = python(ENDLESS, store.folder, start)
        while len(store.answered(Q.key, 50 * start)) < 100:  # however slow the machine is
            assert child.poll() is None
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        found = sorted(i // 50 for i in store.answered(Q.key))
        chunks = sorted(set(found))
        assert len(found) == 50 * len(chunks)
        assert [s.entered for s in store.stages()] == [len(found)]  # verdicts and costs are one transaction
        mine = [chunk - start for chunk in chunks if chunk >= start]
        assert mine == list(range(len(mine)))
    connection = sqlite3.connect(store.folder / FILE)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_a_thousand_verdicts_are_one_quick_transaction(store: Store) -> None:
    start = time.process_time()
    store.add_chunk(Q.key, [verdict(i) for i in range(1000)], [])
    assert time.process_time() - start < 1.0  # about 0.02 s; the beartype hook makes it more
