"""Bad input: one line on stderr that begins with `rbench: `, 2 for a wrong request, 1 for a failure, nothing on stdout."""

from __future__ import annotations

import os
import subprocess

import click
import pytest

from command import SCRIPT
from rbench.cli import app, compute, listings
from rbench_core.errors import Failure, UsageError

WRONG = {
    "unknown command": (["rnu"], "run"),
    "unknown option": (["run", "--model", "x", "--treat", "linf"], "--threat"),
    "unknown option of a listing": (["models", "--jsn"], "--json"),
    "unknown global option": (["--hlep"], "--help"),
    "model missing": (["run"], "--model"),
    "value missing": (["run", "--model"], "--model"),
    "extra argument": (["models", "more"], "more"),
    "n zero": (["run", "--model", "x", "--n", "0"], "--n"),
    "n negative": (["run", "--model", "x", "--n", "-3"], "--n"),
    "n in words": (["run", "--model", "x", "--n", "ten"], "all"),
    "n fractional": (["run", "--model", "x", "--n", "1.5"], "--n"),
    "seed negative": (["run", "--model", "x", "--seed", "-1"], "--seed"),
    "width zero": (["run", "--model", "x", "--width", "0"], "--width"),
    "certify unknown": (["run", "--model", "x", "--certify", "perhaps"], "auto"),
    "witnesses unknown": (["run", "--model", "x", "--witnesses", "few"], "sample"),
    "results is a file": (["run", "--model", "x", "--results", __file__], "--results"),
    "recipe missing": (["train"], "RECIPE"),
    "epochs zero": (["train", "standard", "--epochs", "0"], "--epochs"),
    "run missing": (["show"], "RUN"),
}


@pytest.mark.parametrize(("args", "hint"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_one_line_and_exit_2(args: list[str], hint: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("rbench: ")
    assert err.count("\n") == 1
    assert hint in err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`models` replaced by a command that raises what the test says."""
    monkeypatch.setattr(listings, "models", click.Command("models"))
    return monkeypatch


def raises(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def callback() -> None:
        raise error

    patch.setattr(listings.models, "callback", callback)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no", expected="yes", fix="Say yes."), 2, "rbench: no; expected yes. Say yes.\n"),
        (Failure("disk\nfull \x1b[31mred\x07"), 1, "rbench: disk full \\x1b[31mred\\x07\n"),
        (KeyboardInterrupt(), 130, "rbench: stopped by the keyboard.\n"),
        (ValueError("odd\nthing"), 1, "rbench: ValueError: odd thing. Rerun with RBENCH_DEBUG=1 for the traceback.\n"),
        (MemoryError(), 1, "rbench: MemoryError. Rerun with RBENCH_DEBUG=1 for the traceback.\n"),
    ],
    ids=["usage", "failure with control characters", "keyboard", "our own slip", "memory"],
)
def test_each_kind_of_end_has_its_line_and_code(
    failing: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    raises(failing, error)
    assert app.main(["models"]) == code
    assert capfd.readouterr() == ("", line)


def test_a_stopped_run_says_that_nothing_is_lost(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compute.run, "callback", stopped)
    assert app.main(["run", "--model", "x"]) == 130
    assert "finished chunks are kept" in capfd.readouterr().err


def test_debug_shows_the_traceback_above_the_line(failing: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    raises(failing, ValueError("odd"))
    failing.setenv("RBENCH_DEBUG", "1")
    assert app.main(["models"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("rbench: ValueError: odd")


def test_a_reader_that_goes_away_hears_nothing() -> None:
    process = subprocess.Popen([str(SCRIPT), "threats", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(timeout=60)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(SCRIPT), "threats"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("rbench: OSError")
    assert done.stderr.count("\n") == 1
