"""Two models on the same images: what the page shows before the script is asked for another pair, and what the script needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbench_results.figures import STANDING, Figure, mcnemar
from rbench_results.site.board_rows import Row
from rbench_results.site.boards import Board
from rbench_results.site.facts import class_name
from rbench_results.site.pictures import Picture
from rbench_results.site.words import cut

SHOWN = 12  # pictures on each side


@dataclass(frozen=True)
class Pair:
    """Which images hold: both, only one, neither; over the images that both rows cover."""

    a: Row
    b: Row
    both: int
    only_a: list[int]
    only_b: list[int]
    neither: int

    @property
    def n(self) -> int:
        return self.both + len(self.only_a) + len(self.only_b) + self.neither

    @property
    def p(self) -> str:
        """McNemar's p as it is printed."""
        p = mcnemar(len(self.only_a), len(self.only_b))
        return "< 0.0001" if p < 0.0001 else f"{p:.4f}"

    @property
    def figure_a(self) -> Figure:
        return Figure.of(self.both + len(self.only_a), self.n)

    @property
    def figure_b(self) -> Figure:
        return Figure.of(self.both + len(self.only_b), self.n)

    @property
    def difference(self) -> str:
        """A − B in points, with its sign."""
        points = 100 * abs(len(self.only_a) - len(self.only_b)) / self.n
        return ("+" if len(self.only_a) >= len(self.only_b) else "−") + f"{points:.1f}"

    @property
    def parts(self) -> list[tuple[str, float, float]]:
        """The bar: (name, x, width) in percent."""
        found, x = [], 0.0
        for name, count in (("both", self.both), ("only-a", len(self.only_a)), ("only-b", len(self.only_b)), ("neither", self.neither)):
            found.append((name, x, 100 * count / self.n))
            x += 100 * count / self.n
        return found


def first_pair(board: Board) -> Pair | None:
    """The two best rows whose slices overlap; None where no two do."""
    rows = board.ranked
    return next((found for at, a in enumerate(rows) for b in rows[at + 1 :] if (found := pair(a, b))), None)


def pair(a: Row, b: Row) -> Pair | None:
    """Two complete rows on the images of both; None where they share none."""
    start, end = max(a.first, b.first), min(a.first + a.n, b.first + b.n)
    holds = [(a.statuses[i - a.first] in STANDING, b.statuses[i - b.first] in STANDING, i) for i in range(start, end)]
    if not holds:
        return None
    return Pair(
        a,
        b,
        both=sum(x and y for x, y, _ in holds),
        only_a=[i for x, y, i in holds if x and not y],
        only_b=[i for x, y, i in holds if y and not x],
        neither=sum(not x and not y for x, y, _ in holds),
    )


def names(board: Board) -> dict[str, str]:
    """Row key -> its name in a select, told apart by plan and digest where two are alike."""
    plain = {row.key: cut(row.model.name) for row in board.rows}
    often = Counter(plain.values())
    return {row.key: f"{name}, {row.plan}, {row.model.digest[:8]}" if often[name := plain[row.key]] > 1 else name for row in board.rows}


def script_data(board: Board, pictures: Mapping[str, Sequence[Picture]]) -> list[tuple[str, str]]:
    """(row key, JSON) for every row: slice, bits of the verdicts, witnesses that have a picture."""
    found = []
    for row in board.rows:
        shown = [_picture(board, picture) for picture in pictures.get(row.run.id, ()) if picture.member in row.members]
        data = {"first": row.first, "n": row.n, **row.bits(board.members), "pictures": shown}
        found.append((row.key, json.dumps(data, separators=(",", ":"))))
    return found


def _picture(board: Board, picture: Picture) -> dict[str, Any]:
    classes = board.dataset.classes
    return {
        "index": picture.index,
        "label": class_name(classes, picture.label),
        "predicted": class_name(classes, picture.predicted),
        "member": next(member.slug for member in board.members if member.spec == picture.member),
        "set": next(member.label for member in board.members if member.spec == picture.member),
        "sheet": [picture.sheet, picture.row, picture.rows, picture.width, picture.height],
        "times": f"{picture.times:g}",
    }


def shown(fallen: Row, only: Sequence[int], pictures: Mapping[str, Sequence[Picture]]) -> list[Picture]:
    """Witnesses of the images that only the other row holds, by index."""
    found = {picture.index: picture for picture in reversed(pictures.get(fallen.run.id, ())) if picture.member in fallen.members}
    return [found[index] for index in only if index in found][:SHOWN]


def image_rows(board: Board) -> list[dict[str, Any]]:
    """One row per image, one column per row of the board: the joined status, empty outside its slice."""
    titles = names(board)
    start, end = min(row.first for row in board.rows), max(row.first + row.n for row in board.rows)
    by_row = [("index (model)" if titles[row.key] == "index" else titles[row.key], row.first, row.statuses) for row in board.rows]
    return [
        {"index": index}
        | {name: statuses[index - first] if 0 <= index - first < len(statuses) else None for name, first, statuses in by_row}
        for index in range(start, end)
    ]
