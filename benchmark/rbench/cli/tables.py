"""A listing on stdout: a table for people, one JSON list for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

WIDTH = 100
"""Columns that a table may take where stdout is no terminal."""


def print_listing(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """All keys as JSON, or the given columns (those that some row fills) as a table."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=2, ensure_ascii=False, default=str))
    elif not rows:
        click.echo("none")
    else:
        filled = [column for column in columns if any(row.get(column) not in (None, "", [], ()) for row in rows)]
        click.echo(_table(rows, filled))


def cell(value: object) -> str:
    """A value as a person writes it; the unknown is a dash. Words and pairs stand one to a line: specs hold commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "\n".join(f"{key}: {cell(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ("\n" if all(isinstance(each, str) for each in value) else ", ").join(cell(each) for each in value)
    return str(value)


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(column))) for column in columns))  # Text: a bracket in a spec is no markup
    console = Console(width=None if terminal else WIDTH)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
