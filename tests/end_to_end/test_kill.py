"""Killed at any moment and finished by the same command: the statuses of an undisturbed run, none lost, none doubled, every file whole.

What would pass a weaker test: a witness file written after its transaction (a kill between them leaves verdicts without evidence), a
chunk in several transactions, a site whose pages are written in place, a resume that forgets which member had broken an example.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from end_to_end.children import Nursery
from rbench.data import load as load_data
from rbench_core.files import sha256_bytes
from rbench_results.report import run_report
from rbench_results.store import Store

N, CHUNK = 200, 25
MEMBERS = ("linf(eps=0.1)", "l2(eps=0.6)")
CHUNKS = (len(MEMBERS) + 1) * N // CHUNK  # one question per member, and the certificates of linf
OPTIONS = {"threat": f"union({', '.join(MEMBERS)})", "dataset": "digits", "n": N, "plan": "plan(pgd(steps=10), slide(steps=5))"}
RANDOM_KILLS = 10

Statuses = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Known:
    """What a results folder says: statuses by member and index, the last run's joined verdicts and figures."""

    statuses: Statuses
    verdicts: list[tuple[int, int, str, dict[str, str]]]
    counts: dict[str, int]
    figures: list[Any]
    spent: int


def known(folder: Path) -> Known:
    with Store.open(folder, create=False) as store:
        report = run_report(store, "latest")
        statuses = {question.spec: store.answered(question.key) for question in store.questions()}
    verdicts = [(row["index"], row["label"], row["status"], row["members"]) for row in report["verdicts"]]
    figures = [report["clean"], report["robust"], {spec: (row["robust"], row["skipped"]) for spec, row in report["members"].items()}]
    assert report["state"] == "done"
    return Known(statuses, verdicts, report["counts"], figures, report["cost"]["this_run"]["forward"])


def same(found: Known, expected: Known) -> None:
    """The spent passes differ: a resumed run computes less."""
    assert found.statuses == expected.statuses
    assert found.verdicts == expected.verdicts
    assert found.counts == expected.counts
    assert found.figures == expected.figures


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, means: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Known, float]:
    """The run that nobody kills, and its seconds from fork to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    end = nursery.run(folder, model=means, **OPTIONS)
    assert end.code == 0, end.err
    whole(folder)
    return known(folder), end.seconds


def finish(nursery: Nursery, folder: Path, means: str) -> Known:
    """The same command again, in a new process; then everything that lies in the folder is looked at."""
    end = nursery.run(folder, model=means, **OPTIONS)
    assert end.code == 0, end.err
    assert end.err == ""
    whole(folder)
    return known(folder)


# --- what must hold of a folder -------------------------------------------------------------------------------------------------------


def whole(folder: Path) -> None:
    database_is_sound(folder)
    evidence_is_there(folder)
    pages_are_whole(folder / "site")


def database_is_sound(folder: Path) -> None:
    with sqlite3.connect(folder / "rbench.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        doubled = 'SELECT question_id, "index" FROM verdict GROUP BY 1, 2 HAVING count(*) > 1'
        assert connection.execute(doubled).fetchall() == []
    connection.close()


def evidence_is_there(folder: Path) -> None:
    """Every broken row has its witness, in a file of the digest in its name, at its row, inside its ball; no file is nobody's.

    A kill may leave one hidden temporary file: no reader looks at those, and a second writer might still be filling it.
    """
    x, files = load_data("digits", n=N).x, {path.relative_to(folder).as_posix(): read(path) for path in folder.glob("witnesses/*/[!.]*")}
    named = set()
    with Store.open(folder, create=False) as store:
        for question in store.questions():
            for row in store.verdicts(question.key):
                assert (row.witness is not None) == (row.status == "broken")
                if row.witness is None:
                    continue
                named.add(row.witness)
                part = files[row.witness]
                assert part["index"][row.row] == row.index
                assert torch.equal(part["x"][row.row], x[row.index])
                assert inside(question.spec, (part["x_adv"] - part["x"])[row.row].flatten())
    assert named == set(files)


def read(path: Path) -> dict[str, torch.Tensor]:
    data = path.read_bytes()
    assert sha256_bytes(data) == path.stem.rpartition("-")[2]
    found: dict[str, torch.Tensor] = load(data)
    return found


def inside(spec: str, moved: torch.Tensor) -> bool:
    order = float("inf") if spec.startswith("linf") else 2
    return bool(torch.linalg.vector_norm(moved.double(), order) <= float(spec.partition("=")[2].rstrip(")")) + 1e-6)


def pages_are_whole(site: Path) -> None:
    """Every page and picture has its end, every JSON parses, every link within the site leads somewhere; nothing else lies there."""
    listed = json.loads((site / ".rbench-site.json").read_text())["files"]
    there = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert there - {".lock", ".rbench-site.json"} == set(listed)
    for name in listed:
        data = (site / name).read_bytes()
        if name.endswith(".html"):
            assert data.rstrip().endswith(b"</html>"), name
            links = re.findall(r'(?:href|src)="([^"#:?]+)', data.decode())
            assert [link for link in links if not (site / link).exists()] == [], name
        elif name.endswith(".json"):
            json.loads(data)
        elif name.endswith(".png"):
            assert data.endswith(b"IEND\xaeB`\x82"), name
        else:
            assert data.endswith(b"\n"), name


# --- kill -9 --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(RANDOM_KILLS))
def test_a_run_killed_at_a_random_moment_ends_as_if_undisturbed(
    place: int, nursery: Nursery, means: str, undisturbed: tuple[Known, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    after = seconds * (place + random.Random(place).random()) / RANDOM_KILLS  # one moment in each tenth of the run
    while not nursery.run(folder := tmp_path / f"{after:.4f}", model=means, after=after, **OPTIONS).killed:
        after /= 2  # this machine is faster now than it was for the undisturbed run
    same(finish(nursery, folder, means), expected)


INJECTED = {
    "while the tables are made": ("sql:CREATE TABLE", 4, "after"),
    "before the run is noted": ("rbench_results.store:Store.start_run", 1, "before"),
    "before the first witness file": ("rbench.runner:store_witnesses", 1, "before"),
    "while a witness file is written": ("os:replace", 3, "before"),
    "between witness file and transaction": ("rbench.runner:store_witnesses", 4, "after"),
    "inside a transaction, verdicts written": ("sql:INSERT INTO verdict", 5, "after"),
    "at a commit": ("sql:COMMIT", 12, "before"),
    "between two members of a chunk": ("rbench_results.store:Store.add_chunk", 7, "after"),
    "after the last chunk": ("rbench_results.store:Store.add_chunk", CHUNKS, "after"),
    "between the last chunk and the end of the run": ("rbench_results.store:Store.finish_run", 1, "before"),
    "between the run and the site": ("rbench_results.site.build:build_site", 1, "before"),
    "in the middle of the site": ("rbench_results.site.output:Folder.write", 9, "after"),
    "while a page is written": ("rbench_results.site.output:atomic_write", 6, "before"),
    "between a page and its name": ("os:replace", 20, "before"),
    "before the site's manifest": ("rbench_results.site.output:Folder.finish", 1, "before"),
    "after the site": ("rbench_results.site.build:build_site", 1, "after"),
}


@pytest.mark.parametrize(("call", "k", "when"), INJECTED.values(), ids=INJECTED)
def test_a_run_killed_between_two_steps_ends_as_if_undisturbed(
    call: str, k: int, when: str, nursery: Nursery, means: str, undisturbed: tuple[Known, float], tmp_path: Path
) -> None:
    end = nursery.run(tmp_path, model=means, die={"call": call, "k": k, "when": when}, **OPTIONS)
    assert end.killed, end.err
    same(finish(nursery, tmp_path, means), undisturbed[0])


def test_a_run_killed_again_and_again_ends_as_if_undisturbed(
    nursery: Nursery, means: str, undisturbed: tuple[Known, float], tmp_path: Path
) -> None:
    """Each child stores two chunks and dies after the file of a third; so the run needs half as many children as it has chunks.

    Or some more: who fell to one member is not asked under the other, and is asked again where the fall was not stored yet.
    """
    deaths = 0
    while nursery.run(tmp_path, model=means, die={"call": "rbench.runner:store_witnesses", "k": 3, "when": "after"}, **OPTIONS).killed:
        deaths += 1
    assert CHUNKS // 2 - 1 <= deaths < CHUNKS
    same(known(tmp_path), undisturbed[0])
    whole(tmp_path)


def test_two_processes_that_ask_the_same_at_once_agree(
    nursery: Nursery, means: str, undisturbed: tuple[Known, float], tmp_path: Path
) -> None:
    for end in nursery.together(tmp_path, 2, model=means, **OPTIONS):
        assert (end.code, end.err) == (0, "")
    same(known(tmp_path), undisturbed[0])
    whole(tmp_path)
