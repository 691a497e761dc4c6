"""Every model under every threat of the catalogue that anybody asked for, all data sets in one table; a dash where a threat was not run.

A column is the name under which a threat was asked (union-lp); its limits are those of each model's own data set and stand in the cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rbench_results.figures import Figure
from rbench_results.records import ModelRecord
from rbench_results.site.board_rows import Row
from rbench_results.site.boards import Board
from rbench_results.site.facts import Facts
from rbench_results.site.models import columns


@dataclass
class Cell:
    """A model under one threat: its row on the board, or why there is none."""

    board: Board | None = None
    row: Row | None = None
    why: str = "not run"


@dataclass
class Line:
    """One model, on the data set that it is for."""

    dataset: str
    model: ModelRecord
    clean: Figure | None
    cells: list[Cell]


@dataclass
class Whole:
    """The table: the threats' names and one line per model, data set by data set."""

    threats: list[str]
    lines: list[Line]


def whole(facts: Facts, boards: Sequence[Board]) -> Whole:
    """From the boards of all threats that were asked for by name, and what runs of all threats said does not apply."""
    named = _named(facts)
    skipped = _skipped(facts)
    threats = sorted({name for name, _, _ in named} | {name for reasons in skipped.values() for name in reasons})
    by_board = {(board.dataset.digest, board.spec): board for board in boards}
    models: dict[tuple[str, str], dict[str, tuple[Board, Row]]] = {}
    for name, dataset, spec in named:
        board = by_board.get((dataset, spec))
        for digest, row in (board.best if board else {}).items():
            assert board is not None
            models.setdefault((board.dataset.of or board.dataset.name, digest), {})[name] = (board, row)
    often = Counter(name for cells in models.values() for name in cells)
    threats.sort(key=lambda name: -often[name])  # what most models were asked first, what applies to none last
    lines = [_line(facts, key, cells, threats, skipped.get(key[1], {})) for key, cells in models.items()]
    return Whole(threats, sorted(lines, key=lambda line: (line.dataset, line.model.name)))


def _named(facts: Facts) -> list[tuple[str, str, str]]:
    """(name, data set, spec) of every threat that a run asked for by a name of the catalogue."""
    found = {(run.threat, run.dataset, run.spec): None for run in facts.runs if "(" not in run.threat}
    return list(found)


def _skipped(facts: Facts) -> dict[str, dict[str, str]]:
    """Model -> threat -> why it does not apply, from runs of all threats."""
    found: dict[str, dict[str, str]] = {}
    for run in facts.runs:
        reasons = run.request.get("skipped")
        if isinstance(reasons, dict):
            found.setdefault(run.model, {}).update({str(name): str(why) for name, why in reasons.items()})
    return found


def _line(facts: Facts, key: tuple[str, str], found: dict[str, tuple[Board, Row]], threats: Sequence[str], skipped: dict[str, str]) -> Line:
    dataset, digest = key
    cells = [Cell(*found[name]) if name in found else Cell(why=skipped.get(name, "not run")) for name in threats]
    clean = [row.clean for board, row in found.values() if row.clean and board.dataset.of is None]
    return Line(dataset, facts.models[digest], max(clean, key=lambda figure: figure.n, default=None), cells)


def rows(table: Whole) -> list[dict[str, Any]]:
    """The table for the CSV: per threat limits, figure, interval, n and certified."""
    found = []
    for line in table.lines:
        row: dict[str, Any] = {
            "dataset": line.dataset,
            "model": line.model.name,
            "digest": line.model.digest,
            **columns("clean", line.clean),
        }
        for name, cell in zip(table.threats, line.cells, strict=True):
            figure = cell.row.robust if cell.row else None
            row |= {
                f"{name}_spec": cell.board.spec if cell.board else None,
                **columns(name, figure),
                f"{name}_n": figure.n if figure else None,
            }
            row[f"{name}_certified"] = cell.row.certified.accuracy if cell.row and cell.row.certified else None
        found.append(row)
    return found
