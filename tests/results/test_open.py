"""Opening a results folder: made once, migrated when needed, refused in one line when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbench_core.errors import StoreError
from rbench_results import database
from rbench_results.database import FILE
from rbench_results.store import Store
from stored import filled, printed, question, verdict


def refused(folder: Path, *, create: bool = True) -> str:
    """The line with which the folder is refused."""
    with pytest.raises(StoreError) as caught:
        Store.open(folder, create=create)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    return line


def test_a_new_folder_is_made_and_opens_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    with Store.open(folder) as store:
        assert store.folder == folder
        assert store.runs() == []
    with Store.open(folder, create=False) as store:
        assert store.models() == []


def test_an_absent_database_is_not_made_by_reading(tmp_path: Path) -> None:
    line = refused(tmp_path / "none", create=False)
    assert "no results in" in line
    assert "`rbench run`" in line
    assert not (tmp_path / "none").exists()


def test_odd_folder_names(tmp_path: Path) -> None:
    for name in ("50 % done", "a?b#c&mode=memory", "file:x", "Ünïcode ✓", "quote'\""):
        with filled(tmp_path / name, question()):
            assert (tmp_path / name / FILE).is_file()


def test_settings_hold_on_every_connection(tmp_path: Path) -> None:
    engine = database.open_database(tmp_path, create=True)
    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            settings = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
            }
            assert settings == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 1, "busy_timeout": 10_000}
    engine.dispose()


def test_an_up_to_date_database_opens_without_alembic(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    code = """
import sys, pathlib
from rbench_results.store import Store
assert "alembic" not in sys.modules
Store.open(pathlib.Path(sys.argv[1])).close()
print("alembic" in sys.modules)
"""
    assert printed(code, tmp_path) == "False\n"


def test_records_cost_no_sqlalchemy() -> None:
    assert printed("import sys, rbench_results.records, rbench_results.figures; print('sqlalchemy' in sys.modules)") == "False\n"


def test_a_newer_schema(tmp_path: Path) -> None:
    filled(tmp_path, question()).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = (tmp_path / FILE).read_bytes()
    line = refused(tmp_path)
    assert "newer rbench" in line
    assert "Update" in line
    assert refused(tmp_path, create=False) == line
    assert (tmp_path / FILE).read_bytes() == before


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("my diary, " * 500)
    for create in (True, False):
        assert "not a database" in refused(tmp_path, create=create)
    assert (tmp_path / FILE).read_text() == "my diary, " * 500


def test_a_database_of_another_program(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("CREATE TABLE run (theirs)")
    connection.close()
    before = (tmp_path / FILE).read_bytes()
    assert "another program" in refused(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_damaged_database(tmp_path: Path) -> None:
    with filled(tmp_path, question()) as store:
        store.add_chunk(question().key, [verdict(i) for i in range(2000)], [])
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:4096] + b"\x55" * (len(whole) - 4096))
    with pytest.raises(StoreError, match="damaged"), Store.open(tmp_path) as store:
        store.runs()


def test_an_empty_file_is_an_empty_database(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()  # what a process leaves that was killed before its first migration
    with filled(tmp_path, question()) as store:
        assert len(store.runs()) == 1


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "--results" in refused(folder)
    (tmp_path / "dir" / FILE).mkdir(parents=True)
    refused(tmp_path / "dir")


def test_locked_by_another_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, question()).close()
    monkeypatch.setattr(database, "WAIT", 0.05)
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert "locked" in refused(tmp_path)
        with Store.open(tmp_path, create=False) as store:  # readers do not wait for writers
            assert len(store.runs()) == 1
    finally:
        other.close()


# A child gives up root's rights, since root may write everywhere; files of the test lie where that child may look.
AS_NOBODY = """
import os, sys, pathlib
from rbench_core.errors import StoreError
from rbench_results.store import Store
import alembic.command, alembic.script, alembic.config
if os.geteuid() == 0:
    os.setuid(65534)
for create in (True, False):
    try:
        with Store.open(pathlib.Path(sys.argv[1]), create=create) as store:
            print("opened", len(store.runs()))
    except StoreError as error:
        print(error)
"""


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        os.chmod(name, 0o755)


def test_a_read_only_folder(shared_folder: Path) -> None:
    os.chmod(shared_folder, 0o555)
    writing, reading = printed(AS_NOBODY, shared_folder / "new").splitlines()
    assert "Permission denied" in writing
    assert "no results" in reading


def test_a_read_only_database(shared_folder: Path) -> None:
    filled(shared_folder, question()).close()
    os.chmod(shared_folder / FILE, 0o444)
    os.chmod(shared_folder, 0o555)
    writing, reading = printed(AS_NOBODY, shared_folder).splitlines()
    for line in (writing, reading):
        assert "cannot be" in line
        assert "--results" in line


def test_a_read_only_file_in_a_writable_folder_is_refused_before_any_work(shared_folder: Path) -> None:
    filled(shared_folder, question()).close()
    os.chmod(shared_folder / FILE, 0o444)
    os.chmod(shared_folder, 0o777)
    writing, reading = printed(AS_NOBODY, shared_folder).splitlines()
    assert "cannot be written" in writing
    assert reading == "opened 1" or "cannot be" in reading


FULL_DISK = """
import resource, sys, pathlib
from rbench_core.errors import StoreError
from rbench_results.store import Store
from stored import question, verdict
store = Store.open(pathlib.Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
for chunk in range(1000):
    try:
        store.add_chunk(question().key, [verdict(100 * chunk + i) for i in range(100)], [])
    except StoreError as error:
        print(chunk, error)
        break
"""


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path) -> None:
    filled(tmp_path, question()).close()
    told, line = printed(FULL_DISK, tmp_path).split(" ", 1)
    assert "full" in line
    assert "Free space" in line
    assert int(told) > 3
    with Store.open(tmp_path) as store:
        assert sorted(store.answered(question().key)) == list(range(100 * int(told)))


RACE = """
import multiprocessing, sys, pathlib
import alembic.command, alembic.script  # once, before the fork
from rbench_results.store import Store
from stored import model
processes = multiprocessing.get_context("fork")

def opens(folder, barrier, who):
    barrier.wait()
    with Store.open(folder) as store:
        store.put_model(model(f"net {who}"))

for turn in range(4):
    folder, barrier = pathlib.Path(sys.argv[1]) / str(turn), processes.Barrier(5)
    workers = [processes.Process(target=opens, args=(folder, barrier, who)) for who in range(5)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    with Store.open(folder) as store:
        print([worker.exitcode for worker in workers], len(store.models()))
"""


def test_processes_that_make_the_database_at_once_all_succeed(tmp_path: Path) -> None:
    assert printed(RACE, tmp_path) == "[0, 0, 0, 0, 0] 5\n" * 4
