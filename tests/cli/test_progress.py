"""Bars are for a person who watches stderr; a pipe, a log and a cron mail get none."""

from __future__ import annotations

import sys

import pytest

from command import Screen
from rbench.cli.progress import Bars, Silent, stderr_progress


def drive() -> None:
    with stderr_progress() as progress:
        for done in range(4):
            progress.update("apgd [linf(eps=0.3)]", done, 3)
        progress.update("site", 1, 1)


def test_nothing_is_written_where_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    drive()
    with stderr_progress() as progress:
        assert isinstance(progress, Silent)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_each_stage_by_its_name_and_stdout_stays_empty(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    drive()
    assert "apgd [linf(eps=0.3)]" in screen.getvalue()  # brackets are no markup
    assert "3/3" in screen.getvalue()
    assert "site" in screen.getvalue()
    assert capfd.readouterr().out == ""


def test_bars_are_what_a_terminal_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen())
    with stderr_progress() as progress:
        assert isinstance(progress, Bars)
