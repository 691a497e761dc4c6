"""Data, disks, databases, keyboards and environments that fail: one line, exit code 1, what was stored stays, the same command goes on."""

from __future__ import annotations

import contextlib
import errno
import gzip
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command import rbench as process
from end_to_end.asking import PLAN, Ask, Behaving, Command, Done, Reported, one_line, statuses
from rbench.report import Report
from rbench_core.errors import RbenchError, StoreError
from rbench_results import database
from rbench_results.store import Store

# --- data files -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, an empty cache; returns the folder that RBENCH_DATA names."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.usefixtures("untouched")
def test_absent_data_without_a_network_is_one_line_in_seconds(offline: Path, means: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    done = process("run", "--model", means, "--dataset", "mnist", "--threat", "linf", "--results", str(tmp_path / "results"))
    one_line(done, 1, "mnist", str(offline / "MNIST"), "RBENCH_DATA")
    assert time.perf_counter() - started < 20  # of which torch's import may take half; the search for a network ends after 5


def idx(shape: tuple[int, ...]) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape) + bytes(math.prod(shape))


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-100],
    "cut in its head": lambda data: data[:10],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "of another type": lambda data: data[:2] + b"\x0d" + data[3:],
    "a web page": lambda data: b"<html>404</html>",
    "one that claims too much": lambda data: data[:4] + b"\xff" * 12 + data[16:],
}


@pytest.mark.usefixtures("untouched", "offline")
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_data_file_that_is(damage: Callable[[bytes], bytes], ending: str, ask: Ask, offline: Path) -> None:
    files = {"t10k-images-idx3-ubyte": idx((20, 28, 28)), "t10k-labels-idx1-ubyte": idx((20,))}
    for name, data in files.items():
        whole = damage(data) if "images" in name else data
        (offline / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        (offline / "MNIST" / "raw" / f"{name}{ending}").write_bytes(gzip.compress(whole) if ending else whole)
    one_line(ask(dataset="mnist", n=5), 1, "t10k-images")
    if ending and damage is not DAMAGED["longer"]:  # the archive itself; gzip itself passes over zeros at its end
        (path := offline / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz").write_bytes(damage(gzip.compress(idx((20, 28, 28)))))
        one_line(ask(dataset="mnist", n=5), 1, path.name)


@pytest.mark.usefixtures("untouched")
def test_a_data_folder_that_is_none(ask: Ask, offline: Path) -> None:
    one_line(ask(dataset="mnist", data=offline / "nowhere"), 1, "nowhere")
    (offline / "file").touch()
    one_line(ask(dataset="mnist", data=offline / "file"), 2, "--data")


# --- the folder of results --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["/proc/results", "/dev/null/results", "file/results", "loop"])
def test_a_folder_that_cannot_be_made(folder: str, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    one_line(ask(results=tmp_path / folder), 1, "--results")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("part", ["site", "witnesses"])
def test_a_file_in_the_way_of_a_part_loses_nothing(part: str, ask: Ask, report: Reported, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / part).write_text("mine")
    one_line(ask(n=60), 1, part, "--results")
    assert (tmp_path / "results" / part).read_text() == "mine"
    (tmp_path / "results" / part).unlink()
    again = report()
    assert statuses(again) == statuses(report(results=None))
    assert (again["cost"]["this_run"]["forward"] == 0) == (part == "site")  # the site comes last: all verdicts were stored


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own at results/, of a size that can be changed."""
    folder = tmp_path / "results"
    folder.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size}" + (",remount" if folder.is_mount() else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
@pytest.mark.parametrize("size", ["4k", "180k", "300k", "600k"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    size: str, small_disk: Callable[[str], Path], ask: Ask, report: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbench.runner.CHUNK", 20)
    folder = small_disk(size)
    line = one_line(ask(n=200), 1, "ree space")
    assert "full" in line or "No space" in line
    before = {}
    with contextlib.suppress(StoreError), Store.open(folder, create=False) as store:
        before = {key: status for question in store.questions() for key, status in store.answered(question.key).items()}
    small_disk("64m")
    again = report(n=200)
    assert statuses(again) == statuses(report(n=200, results=None))
    assert all(again["verdicts"][index]["status"] == status for index, status in before.items())
    assert [path for path in folder.rglob(".*") if path.name not in (".lock", ".rbench-site.json")] == []


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
def test_a_file_system_that_became_read_only(small_disk: Callable[[str], Path], ask: Ask, command: Command) -> None:
    folder = small_disk("64m")
    assert ask().returncode == 0
    small_disk("64m,ro")
    one_line(ask(n=7), 1)
    shown = command("show", "latest", "--results", folder)
    assert shown.returncode == 0 or one_line(shown, 1)
    one_line(command("site", "--results", folder), 1)


@pytest.mark.parametrize("k", [1, 3, 4, 12])
def test_a_write_that_fails_leaves_no_half_file(
    k: int, ask: Ask, report: Reported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The k-th file that is synced meets a full disk: witness files first, then pages."""
    calls, sync = iter(range(1, 10**6)), os.fsync

    def fails(handle: int) -> None:
        if next(calls) >= k:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr("rbench.runner.CHUNK", 20)
    with monkeypatch.context() as patch:
        patch.setattr("rbench_core.files.os.fsync", fails)
        one_line(ask(n=60), 1, "No space left", "Free space")
    assert [path for path in (tmp_path / "results").rglob(".*.*.*") if path.name != ".rbench-site.json"] == []
    assert statuses(report()) == statuses(report(results=None))


# --- the database -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(ask: Ask, tmp_path: Path) -> Path:
    """The database of a run that went well, at rest."""
    assert ask().returncode == 0
    return tmp_path / "results" / "rbench.sqlite"


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()


def overwritten(path: Path) -> None:
    path.write_bytes(b"no database at all " * 999)


def torn(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\x55" * (len(data) - 4096))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE verdict (theirs)")
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [(newer, "newer rbench"), (overwritten, "not a database"), (torn, "damaged"), (cut, "damaged"), (foreign, "another program")],
)
def test_a_database_that_is_not_ours_to_use(spoil: Callable[[Path], None], hint: str, stored: Path, ask: Ask, command: Command) -> None:
    spoil(stored)
    before = stored.read_bytes()
    for done in (ask(), command("show", "latest", "--results", stored.parent), command("site", "--results", stored.parent)):
        one_line(done, 1, hint, str(stored))
    assert stored.read_bytes() == before


@pytest.mark.usefixtures("no_site")
def test_a_database_that_another_program_keeps_locked(stored: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT", 0.1)
    other = sqlite3.connect(stored)
    other.execute("BEGIN IMMEDIATE")
    one_line(ask(n=7), 1, "locked", "Try again")
    other.close()
    assert ask(n=7).returncode == 0


@pytest.mark.usefixtures("no_site")
def test_a_lock_that_comes_in_the_middle_of_a_run_loses_no_chunk(
    stored: Path, ask: Ask, report: Reported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT", 0.1)
    monkeypatch.setattr("rbench.runner.CHUNK", 20)
    other = sqlite3.connect(stored, isolation_level=None)
    whole = Store.add_chunk

    def add_chunk(store: Store, key: str, verdicts: Any, stages: Any) -> None:
        whole(store, key, verdicts, stages)
        if verdicts[-1].index == 39:
            other.execute("BEGIN IMMEDIATE")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_chunk", add_chunk)
        one_line(ask(n=60), 1, "locked", "Try again")
    other.close()
    again = report()
    assert statuses(again) == statuses(report(results=None))
    assert sum(stage["entered"] for stage in again["stages"] if stage["position"] == 0) == 60  # over both runs: none was asked twice


def test_witness_files_that_vanished_or_broke_are_one_line_or_a_gap(stored: Path, command: Command, ask: Ask, report: Reported) -> None:
    report()
    [*_, path] = sorted(stored.parent.glob("witnesses/*/*"))
    for spoil in (lambda: path.write_bytes(path.read_bytes()[:50]), path.unlink):
        spoil()
        with pytest.raises(RbenchError, match=path.name):
            Report.stored("latest", stored.parent).adversarial()
        assert command("site", "--results", stored.parent).returncode == 0  # the other pictures are drawn
        assert command("show", "latest", "--results", stored.parent).returncode == 0


# --- the keyboard -----------------------------------------------------------------------------------------------------------------------

SMALL_CHUNKS = "import sys, rbench.runner; rbench.runner.CHUNK = 10; from rbench.cli.app import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.usefixtures("no_site")
def test_control_c_is_one_line_and_the_run_goes_on_from_there(behaving: Behaving, ask: Ask, report: Reported, tmp_path: Path) -> None:
    model = behaving("time.sleep(float(os.environ.get('E2E_SLEEP', 0)))\nreturn self.net(x)")
    args = [
        "run",
        "--model",
        model,
        "--dataset",
        "digits",
        "--threat",
        "linf(eps=0.1)",
        "--n",
        "60",
        "--plan",
        PLAN,
        "--results",
        str(tmp_path / "results"),
    ]
    env = {**os.environ, "E2E_SLEEP": "0.1"}
    # a job in the background is born deaf to the keyboard
    heeding = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{SMALL_CHUNKS}"
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", heeding, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    while child.poll() is None and not answered(tmp_path / "results"):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    one_line(Done(args, child.returncode, out, err), 130, "stopped by the keyboard", "finished chunks are kept")
    before = answered(tmp_path / "results")
    assert 0 < before < 60
    with Store.open(tmp_path / "results", create=False) as store:
        assert [run.state for run in store.runs()] == ["failed"]
    again = report(model=model)
    assert statuses(again) == statuses(report(results=None))
    assert sum(stage["entered"] for stage in again["stages"] if stage["position"] == 0) < 60 + 10 + 1  # at most the chunk under way twice


def answered(folder: Path) -> int:
    """How many verdicts are stored; read without a lock on the writer."""
    try:
        with Store.open(folder, create=False) as store:
            return sum(len(store.answered(question.key)) for question in store.questions())
    except RbenchError:
        return 0


# --- the installed script ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
def test_the_script_says_the_same_as_the_function(means: str, tmp_path: Path) -> None:
    args = ["run", "--dataset", "digits", "--results", str(tmp_path / "results")]
    one_line(process(*args, "--model", means, "--threat", "linf(eps=8)"), 2, "8/255")
    one_line(process(*args, "--model", means, "--threat", "x\ny\x1b[2J"), 2)


def test_the_script_survives_an_environment_that_is_odd(tmp_path: Path, means: str) -> None:
    """No home, no UTF-8, and a results folder named by the environment that is a file."""
    (tmp_path / "file").write_text("mine")
    args = ["run", "--model", means, "--dataset", "digits", "--threat", "linf", "--n", "5", "--plan", PLAN]
    one_line(process(*args, RBENCH_RESULTS=str(tmp_path / "file")), 1, "file")
    done = process(*args, "--results", str(tmp_path / "results"), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", HOME="/nonexistent")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "mine"
