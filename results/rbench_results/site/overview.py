"""The first page: every threat with a real picture and the models that hold best, and every model under every threat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rbench_results.figures import Figure
from rbench_results.records import DatasetRecord, ModelRecord
from rbench_results.site.board_rows import Row
from rbench_results.site.boards import Board
from rbench_results.site.examples import Example, examples
from rbench_results.site.facts import Facts
from rbench_results.site.models import columns
from rbench_results.site.words import slug

BEST = 3


@dataclass
class Strip:
    """A threat on the first page: a witness, and its best models."""

    board: Board
    example: Example
    best: list[Row]


@dataclass
class Line:
    """A model in the matrix: its clean accuracy and one row per board, None where it was not run."""

    model: ModelRecord
    clean: Figure | None
    rows: list[Row | None]


@dataclass
class Matrix:
    """All boards of one data set."""

    dataset: DatasetRecord
    slug: str
    boards: list[Board]
    strips: list[Strip]
    sheet: bytes | None  # of the strips' pictures
    lines: list[Line]

    @property
    def n(self) -> int | None:
        """The number of images, where all figures agree on it."""
        found = {row.size for line in self.lines for row in line.rows if row}
        return found.pop() if len(found) == 1 else None


def matrices(facts: Facts, boards: Sequence[Board]) -> list[Matrix]:
    """One per data set, the one with most rows first."""
    homes = {board.dataset.name: board.dataset.digest for board in boards if board.dataset.of is None}
    by_dataset: dict[str, list[Board]] = {}
    for board in sorted(boards, key=lambda board: board.dataset.of is not None):
        by_dataset.setdefault(homes.get(board.dataset.of or "", board.dataset.digest), []).append(board)
    names = Counter(own[0].dataset.name for own in by_dataset.values())
    found = [_matrix(facts, own, names[own[0].dataset.name] > 1) for own in by_dataset.values()]
    return sorted(found, key=lambda matrix: (-sum(len(board.rows) for board in matrix.boards), matrix.slug))


def _matrix(facts: Facts, boards: list[Board], ambiguous: bool) -> Matrix:
    dataset = boards[0].dataset
    name = slug(dataset.name) + (f"-{dataset.digest[:8]}" if ambiguous else "")
    ordered = sorted(boards, key=lambda board: -len(board.members))  # unions first: they rank
    shown, sheet = examples(facts, ordered, f"img/threats-{name}.png")
    return Matrix(
        dataset=dataset,
        slug=name,
        boards=ordered,
        strips=[Strip(board, example, list(_leaders(board))) for board, example in zip(ordered, shown, strict=True)],
        sheet=sheet,
        lines=_lines(ordered),
    )


def _leaders(board: Board) -> list[Row]:
    """The best row of each of the three best models."""
    return sorted(board.best.values(), key=lambda row: row.rank or 0)[:BEST]


def _lines(boards: Sequence[Board]) -> list[Line]:
    best = [board.best for board in boards]
    models = {row.model.digest: row.model for board in boards for row in board.rows}
    lines = []
    for digest, model in models.items():
        rows = [rows.get(digest) for rows in best]
        clean = [row.clean for board in boards for row in board.rows if row.model.digest == digest and row.clean]
        lines.append(Line(model, max(clean, key=lambda figure: figure.n, default=None), rows))
    return sorted(lines, key=_place)


def _place(line: Line) -> tuple[Any, ...]:
    """By the first board (a union where there is one), missing last."""
    accuracies = [-row.robust.accuracy if row and row.robust else 1.0 for row in line.rows]
    return (accuracies, line.model.name)


def matrix_rows(matrix: Matrix) -> list[dict[str, Any]]:
    """The matrix for the CSV: per threat accuracy, interval and n."""
    found = []
    for line in matrix.lines:
        row: dict[str, Any] = {"model": line.model.name, "digest": line.model.digest, **columns("clean", line.clean)}
        for board, cell in zip(matrix.boards, line.rows, strict=True):
            row |= {**columns(board.name, cell.robust if cell else None), f"{board.name}_n": cell.size if cell else None}
        found.append(row)
    return found
