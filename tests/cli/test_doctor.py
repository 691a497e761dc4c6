"""`rbench doctor`: it says what is broken, survives what it finds, asks no network, and leaves no trace."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from command import rbench as process
from rbench import doctor
from rbench.cli.app import main
from rbench.data import sources, torchvision_shim
from rbench.doctor import CHECKS, STATES, Finding, Place, guarded, holdings, machine, registry, stored, to_text
from rbench_results.database import FILE
from stored import filled, question, verdict
from zoo.cards import write_card

Findings = dict[str, Finding]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No network and nobody's data: a cache of this test's own, which must stay empty, and no folders named from outside."""

    def refuse(*_: object) -> None:
        raise AssertionError("a check asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("RBENCH_DATA", "RBENCH_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """check(name) -> the findings of one check by their names, looking at tmp_path / "results"."""

    def run(name: str, *, data: Path | None = None, results: Path | None = None) -> Findings:
        return {found.name: found for found in guarded(name, CHECKS[name], Place(data, results or tmp_path / "results"))}

    return run


def problem(found: Findings, name: str, *hints: str) -> Finding:
    """The finding of that name, a problem with a way out, that says all the hints."""
    finding = found[name]
    assert finding.state == "problem"
    assert finding.fix
    told = f"{finding.detail} {finding.fix}"
    assert "asked the network" not in told
    for hint in hints:
        assert hint in told, told
    return finding


# --- the whole ----------------------------------------------------------------------------------------------------------------------


def test_a_place_without_results_is_well_and_stays_as_it_was(tmp_path: Path) -> None:
    found = doctor.examine(results=tmp_path / "none")
    assert [finding for finding in found if finding.state == "problem"] == []
    names = {finding.name for finding in found}
    assert {"rbench", "packages", "torchvision", "cpu", "threads", "data digits", "cards", "database", "disk", "site", "browser"} <= names
    assert {finding.state for finding in found} == {"ok", "note"}
    assert list(tmp_path.iterdir()) == []


def test_what_is_a_problem_or_a_note_says_what_to_do(tmp_path: Path) -> None:
    for finding in doctor.examine(results=tmp_path / "none"):
        assert finding.state in STATES
        assert finding.detail
        assert finding.state == "ok" or finding.fix, finding


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), SystemExit(3), ImportError("no module"), MemoryError(), UnicodeError("x")], ids=repr
)
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_breaks_is_a_problem_of_its_own_name(
    name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, check: Any
) -> None:
    def broken(place: Place) -> Iterator[Finding]:
        yield Finding("before", "ok", "kept")
        raise error

    module, _, function = CHECKS[name].partition(":")
    monkeypatch.setattr({each.__name__: each for each in (machine, holdings, registry, stored)}[module], function, broken)
    found = check(name)
    assert found["before"].state == "ok"
    assert type(error).__name__ in found[name].detail
    assert found[name].state == "problem"


def test_one_broken_check_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = {finding.name for finding in doctor.examine(results=tmp_path / "none")}
    monkeypatch.setattr(machine, "devices", lambda place: 1 / 0)
    monkeypatch.setitem(CHECKS, "site", "rbench.doctor.nowhere:site")  # an import may be what is broken
    left = {finding.name: finding for finding in doctor.examine(results=tmp_path / "none")}
    assert whole - set(left) == {"cpu", "cuda"} & whole
    assert {name for name, finding in left.items() if finding.state == "problem"} == {"devices", "site"}


def test_the_command_prints_lines_or_objects_and_exits_by_the_problems(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = ["--results", str(tmp_path / "none")]
    assert main(["doctor", *results]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 100 + len(str(tmp_path))
    assert out.splitlines()[-1].endswith(" 0 problems")
    assert main(["doctor", "--json", *results, "--data", str(tmp_path / "gone")]) == 1
    rows = json.loads(capfd.readouterr().out)
    assert all(set(row) == {"name", "state", "detail", "fix"} for row in rows)
    assert [row["name"] for row in rows if row["state"] == "problem"] == ["data folder"]


def test_a_process_of_its_own_says_nothing_on_stderr(tmp_path: Path) -> None:
    """A fresh interpreter, where no filter of the tests hides what libraries say when they are imported."""
    done = process("doctor", "--json", "--results", str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["name"] == "rbench"


def test_text_is_folded_with_the_way_out_below() -> None:
    text = to_text([Finding("a", "ok", "word " * 50), Finding("long name", "problem", "two\nlines", "Do it.")])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "problem  long name  two lines" in lines
    assert lines[-3].strip() == "→ Do it."
    assert lines[-1] == "1 ok, 0 notes, 1 problems"


# --- the machine --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "holds"),
    [
        ("2.13.0+cpu", "<2.14,>=2.7", True),
        ("2.14.0", "<2.14,>=2.7", False),
        ("2.6.9", "<2.14,>=2.7", False),
        ("2.7", ">=2.7.0", True),
        ("0.2.0", "==0.2.0", True),
        ("0.2.1", "==0.2.0", False),
        ("10.0", ">=9", True),
        ("3.0rc1", ">=3.0", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, holds: bool) -> None:
    assert machine.meets(version, wanted) is holds


def test_a_package_that_is_absent_too_old_or_broken_is_a_problem(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    wanted = ["no-such-thing>=1", "click>=99", "rich>=13", "numpy>=2", 'tox>=4; extra == "test"']
    monkeypatch.setattr(machine.metadata, "requires", lambda name: wanted)
    real = machine.import_module

    def broken(name: str) -> types.ModuleType:
        if name == "numpy":
            raise ImportError("undefined symbol")
        return real(name)

    monkeypatch.setattr(machine, "import_module", broken)
    found = check("packages")
    problem(found, "package no-such-thing", "not installed", "pip install 'no-such-thing>=1'")
    problem(found, "package click", ">=99")
    problem(found, "package numpy", "undefined symbol")
    assert found["packages"].detail.startswith("rich ")
    assert "package tox" not in found


def test_torchvision_is_plain_or_shimmed_or_a_problem(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    state = "shimmed" if torchvision_shim.load_torchvision() and torchvision_shim.is_shimmed() else "plain"
    assert f", {state}:" in check("torchvision")["torchvision"].detail
    monkeypatch.setattr(torchvision_shim, "_KEEP", [] if state == "shimmed" else [object()])
    assert f", {'plain' if state == 'shimmed' else 'shimmed'}:" in check("torchvision")["torchvision"].detail

    def broken() -> types.ModuleType:
        raise OSError("libc10.so")

    monkeypatch.setattr(torchvision_shim, "load_torchvision", broken)
    problem(check("torchvision"), "torchvision", "libc10.so")


def test_a_device_that_computes_wrongly_or_not_at_all_is_a_problem(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    assert check("devices")["cpu"].state == "ok"
    right = machine._gradient
    monkeypatch.setattr(machine, "_gradient", lambda x, w: right(x, w) * (1 if x.dtype == torch.float64 else 1.01))
    problem(check("devices"), "cpu", "off by")
    monkeypatch.setattr(machine, "_gradient", lambda x, w: right(x, w) * (1 if x.dtype == torch.float64 else float("nan")))
    problem(check("devices"), "cpu", "off by")


def test_each_gpu_has_a_line_and_a_dead_one_does_not_hide_the_next(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    def memory(number: int) -> tuple[int, int]:
        if number == 0:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return 3 << 30, 8 << 30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {number}")
    found = check("devices")
    problem(found, "cuda:0", "launch failure", "--device cpu")
    if not torch.backends.cuda.is_built():  # the computation itself then fails, as on a machine whose driver is broken
        problem(found, "cuda:1", "Card 1, 3.0 GiB of 8.0 GiB free")


def test_threads_that_wait_for_each_other_are_told(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0, 0))
    monkeypatch.setattr(machine, "_cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert check("threads")["threads"].state == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert "performance.md" in str(check("threads")["threads"].fix)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert "OMP_NUM_THREADS=4" in str(check("threads")["threads"].fix)


def test_no_browser_is_a_note(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    assert check("browser")["browser"].state == "note"


# --- data and weights ---------------------------------------------------------------------------------------------------------------


def cifar(folder: Path, **batches: int) -> Path:
    """A data folder with CIFAR-10 batches of so many images."""
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    for name, n in batches.items():
        (place / f"{name}.bin").write_bytes(bytes(3073 * n))
    return folder


def test_data_is_here_in_part_or_to_be_downloaded_and_nothing_is(tmp_path: Path, check: Any) -> None:
    found = check("data", data=cifar(tmp_path / "data", test_batch=3, data_batch_1=2))
    assert found["data digits"].state == "ok"
    assert found["data cifar10"].state == "note"
    assert "3 of 10,000 test images; training 10,000 of 50,000" in found["data cifar10"].detail
    assert found["data mnist"].state == "note"
    assert str(tmp_path / "data" / "MNIST") in str(found["data mnist"].fix)


def test_a_damaged_file_and_a_folder_that_is_not_there_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    data = cifar(tmp_path / "data", test_batch=1)
    (data / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(bytes(100))
    found = check("data", data=data)
    problem(found, "data cifar10", "test_batch.bin", "100 bytes")
    assert found["data digits"].state == "ok"
    problem(check("data", data=tmp_path / "gone"), "data folder", "gone")
    monkeypatch.setenv("RBENCH_DATA", str(tmp_path / "named"))
    problem(check("data"), "data folder", "named")


def test_an_error_that_nobody_foresaw_in_one_data_set_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, check: Any, tmp_path: Path
) -> None:
    real = sources.load

    def load(name: str, *args: Any, **options: Any) -> Any:
        if name == "digits":
            raise ZeroDivisionError("odd")
        return real(name, *args, **options)

    monkeypatch.setattr(sources, "load", load)
    found = check("data", data=cifar(tmp_path / "data", test_batch=3))
    problem(found, "data digits", "ZeroDivisionError")
    assert "3 of 10,000" in found["data cifar10"].detail


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that RBENCH_REGISTRY names."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("RBENCH_REGISTRY", str(folder))
    return folder


def test_weights_are_found_by_content_or_the_card_says_where_they_are(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Any
) -> None:
    for seed, name in enumerate(("beside", "mirrored", "online", "nowhere", "damaged")):
        url = {'file = "online.safetensors"': 'url = "https://example.invalid/w.safetensors"'} if name == "online" else {}
        write_card(registered, name, seed, url)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (registered / "mirrored.safetensors").rename(mirror / "other name.safetensors")
    for name in ("online", "nowhere"):
        (registered / f"{name}.safetensors").unlink()
    with (registered / "damaged.safetensors").open("ab") as stream:
        stream.write(b"x")
    monkeypatch.setenv("RBENCH_WEIGHTS", str(mirror))
    found = check("weights")
    assert {"beside", "mirrored", "digits-linf-at"} <= set(found["weights here"].detail.replace(",", "").split())
    assert "online" in found["weights to fetch"].detail
    assert "nowhere" in found["weights in a mirror"].detail
    problem(found, "weights damaged", "SHA-256")
    assert sum(found[name].detail.count("mirrored") for name in ("weights to fetch", "weights in a mirror")) == 0


def test_a_large_mirror_is_not_read_whole(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    write_card(registered, "known")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (registered / "known.safetensors").rename(mirror / "known.safetensors")
    (mirror / "a large one.safetensors").write_bytes(bytes(10_000))
    monkeypatch.setenv("RBENCH_WEIGHTS", str(mirror))
    monkeypatch.setattr(holdings, "BUDGET", 9_000)
    found = check("weights")
    assert "known" in found["weights here"].detail  # the card's name goes first
    assert "not every file" in found["weights to fetch"].detail


def test_a_mirror_that_is_not_there_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    monkeypatch.setenv("RBENCH_WEIGHTS", str(tmp_path / "gone"))
    problem(check("weights"), "weights folder", "RBENCH_WEIGHTS")


def test_a_broken_card_is_named_with_its_reason_and_the_others_count(registered: Path, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    write_card(registered, "good")
    write_card(registered, "bad", changes={"seed = 0": 'seed = "0"'})
    (registered / "torn.toml").write_text("schema = ")
    found = check("registry")
    assert "1 cards" in found["registry"].detail
    problem(found, "card bad", "training.seed", "a whole number")
    problem(found, "card torn", "torn.toml")
    monkeypatch.setenv("RBENCH_REGISTRY", str(registered / "gone"))
    problem(check("registry"), f"card {registered / 'gone'}", "no such folder")


def test_an_entry_point_that_fails_is_a_problem_and_the_next_is_loaded(monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    def load() -> None:
        raise SystemExit(1)

    points = {
        "bad": types.SimpleNamespace(name="bad", value="theirs:net", load=load),
        "good": types.SimpleNamespace(name="good", value="ours:net", load=lambda: 1),
    }
    assert check("entry points")["entry points"].state == "ok"
    monkeypatch.setattr(registry, "installed", lambda group: points if group == "rbench.models" else {})
    found = check("entry points")
    problem(found, "entry point bad", "theirs:net", "SystemExit")
    assert found["entry point good"].state == "ok"


# --- what is stored -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a database of one run and something in place of a site."""
    asked = question()
    with filled(tmp_path / "results", asked) as store:
        store.add_chunk(asked.key, [verdict(index) for index in range(4)], [])
    (tmp_path / "results" / "site").mkdir()
    (tmp_path / "results" / "site" / "index.html").write_text("")
    return tmp_path / "results"


def test_a_database_is_read_and_nothing_is_made(results: Path, check: Any) -> None:
    before = sorted(results.rglob("*"))
    found = check("database")
    assert "1 runs, 4 verdicts" in found["database"].detail
    assert {finding.state for finding in found.values()} == {"ok"}
    assert check("site")["site"].state == "ok"
    assert sorted(results.rglob("*")) == before


def test_a_database_that_another_program_writes_is_read_as_it_stands(results: Path, check: Any) -> None:
    connection = sqlite3.connect(results / FILE)
    connection.execute("DELETE FROM verdict WHERE [index] = 3")
    connection.commit()  # in the write-ahead log, not yet in the file
    assert "3 verdicts" in check("database")["database"].detail
    connection.close()


def changed(results: Path, statement: str) -> None:
    connection = sqlite3.connect(results / FILE)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_schemas(results: Path, check: Any) -> None:
    changed(results, "UPDATE alembic_version SET version_num = '0001'")
    assert check("database")["database"].state == "note"
    changed(results, "UPDATE alembic_version SET version_num = '9999'")
    problem(check("database"), "database", "newer rbench", "9999")
    changed(results, "DROP TABLE alembic_version")
    problem(check("database"), "database", "another program")


def test_a_file_that_is_no_database_or_damaged_is_a_problem(results: Path, check: Any) -> None:
    whole = (results / FILE).read_bytes()
    page = int.from_bytes(whole[16:18], "big")
    torn = bytearray(whole)
    for at in range(2 * page, len(whole), page):  # the first pages hold the schema
        torn[at : at + 64] = b"\xff" * 64
    (results / FILE).write_bytes(torn)
    assert any(finding.state == "problem" and FILE in finding.detail for finding in check("database").values())
    (results / FILE).write_bytes(b"<html>" * 1000)
    problem(check("database"), "database", "not a database")
    (results / FILE).unlink()
    (results / FILE).mkdir()
    problem(check("database"), "database", FILE)


def test_damage_that_only_the_whole_check_sees_is_a_problem(results: Path, check: Any) -> None:
    torn = bytearray((results / FILE).read_bytes())
    torn[36:40] = (5).to_bytes(4, "big")  # the header's count of free pages
    (results / FILE).write_bytes(torn)
    found = check("database")
    assert found["database"].state == "ok"
    problem(found, "database whole", "Restore a copy")


def test_a_check_that_takes_too_long_is_stopped(results: Path, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    monkeypatch.setattr(stored, "PATIENCE", -1.0)
    monkeypatch.setattr(stored, "STEP", 1)
    assert check("database")["database whole"].state == "note"


def test_missing_witness_files_are_counted(results: Path, check: Any) -> None:
    (results / "here.safetensors").write_bytes(b"")
    changed(results, "UPDATE verdict SET witness = CASE [index] WHEN 0 THEN 'here.safetensors' ELSE 'gone/' || [index] END")
    problem(check("database"), "witnesses", "3 of 4 files")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(results: Path, check: Any) -> None:
    results.chmod(0o555)
    try:
        problem(check("database"), "database writable", "--results")
        problem(check("database", results=results / "new"), "database", "cannot be written")
    finally:
        results.chmod(0o755)


def test_what_the_system_says_about_writing_is_believed(results: Path, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    monkeypatch.setattr(stored.os, "access", lambda path, mode: False)
    problem(check("database"), "database writable", "--results")
    problem(check("database", results=results / "new"), "database", "cannot be written")


def test_a_file_in_place_of_the_folder_is_a_problem(tmp_path: Path, check: Any) -> None:
    (tmp_path / "results").write_text("")
    problem(check("database"), "database", "is no folder")


@pytest.mark.parametrize(("free", "state"), [(10 << 30, "ok"), (500 << 20, "note"), (1 << 20, "problem")])
def test_a_full_disk_is_told(free: int, state: str, monkeypatch: pytest.MonkeyPatch, check: Any) -> None:
    monkeypatch.setattr(stored.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
    assert check("disk")["disk"].state == state
