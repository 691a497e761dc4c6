"""Listings: aligned text of at most 100 columns for pipes, a ruled table for terminals, every key as JSON."""

from __future__ import annotations

import json
import sys

import pytest

from command import Screen
from rbench.cli.tables import cell, print_listing

ROWS = [
    {"name": "a[bold]b", "specs": {"digits": "linf(eps=0.3)"}, "note": None, "sentence": "long " * 60},
    {"name": "second", "specs": {}, "note": "", "sentence": "short", "hidden": [1, 2]},
]


def test_text_fits_wraps_and_leaves_out_columns_that_nobody_fills(capsys: pytest.CaptureFixture[str]) -> None:
    print_listing(ROWS, ["name", "specs", "note", "sentence"], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "specs", "sentence"]
    assert max(map(len, lines)) <= 100
    assert " ".join(lines).count("long") == 60
    assert "a[bold]b" in lines[1]
    assert all(line == line.rstrip() for line in lines)


def test_json_has_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    print_listing(ROWS, ["name"], as_json=True)
    assert json.loads(capsys.readouterr().out) == ROWS


def test_an_empty_listing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_listing([], ["name"], as_json=False)
    print_listing([], ["name"], as_json=True)
    assert capsys.readouterr().out == "none\n[]\n"


def test_a_terminal_gets_a_rule_under_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    print_listing(ROWS, ["name", "sentence"], as_json=False)
    assert "──" in screen.getvalue()


CELLS = [
    (None, "–"),
    (True, "yes"),
    (False, "no"),
    ([1, "b"], "1, b"),
    ((), ""),
    ({"a": None, "b": 1}, "a: –\nb: 1"),
    (["a(b, c)", "d"], "a(b, c)\nd"),
    (0.5, "0.5"),
]


@pytest.mark.parametrize(("value", "text"), CELLS)
def test_cells_read_as_people_write(value: object, text: str) -> None:
    assert cell(value) == text
