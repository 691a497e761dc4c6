"""One real example per threat for the first page, drawn from stored witnesses: as far as they allow the same image, moved in every way.

A threat's example comes from its most robust model that has a witness: the image that most threats have one of, or else the smallest index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rbench_results.records import VerdictRecord
from rbench_results.site import pictures
from rbench_results.site.board_rows import Row
from rbench_results.site.boards import Board
from rbench_results.site.facts import Facts

TRIED = 8  # witnesses of a threat whose file is looked for

Found = tuple[str, VerdictRecord]  # spec of the set that broke the image, and its verdict


@dataclass(frozen=True)
class Example:
    """A picture and the row that it is from, or why there is none."""

    row: Row | None = None
    picture: pictures.Picture | None = None
    why: str = ""


def examples(facts: Facts, boards: Sequence[Board], name: str) -> tuple[list[Example], bytes | None]:
    """One per board, in their order, on the sheet NAME."""
    found = [_witnesses(facts, board) for board in boards]
    often = Counter(index for _, witnesses in found for index in witnesses)
    chosen = [(row, _readable(facts, witnesses, often)) for row, witnesses in found]
    sheet = pictures.draw(facts.store.folder, [witness for _, witness in chosen if witness], name)
    drawn = {(picture.member, picture.index): picture for picture in reversed(sheet.pictures)}
    return [
        _example(board, row, drawn.get((witness[0], witness[1].index)) if witness else None)
        for board, (row, witness) in zip(boards, chosen, strict=True)
    ], sheet.png


def _witnesses(facts: Facts, board: Board) -> tuple[Row | None, dict[int, Found]]:
    """The most robust row that has a witness, with all that it has, by image; of several members the first."""
    for row in board.rows:
        found: dict[int, Found] = {}
        for spec, key in row.questions.items():
            for verdict in facts.within(key, row.first, row.n):
                if verdict.status == "broken" and verdict.witness is not None and verdict.row is not None:
                    found.setdefault(verdict.index, (spec, verdict))
        if found:
            return row, found
    return None, {}


def _readable(facts: Facts, witnesses: dict[int, Found], often: Counter[int]) -> Found | None:
    tried = [witnesses[index] for index in sorted(witnesses, key=lambda index: (-often[index], index))[:TRIED]]
    pairs = pictures.read(facts.store.folder, [verdict for _, verdict in tried])
    return next((witness for witness, pair in zip(tried, pairs, strict=True) if pair is not None), None)


def _example(board: Board, row: Row | None, picture: pictures.Picture | None) -> Example:
    if picture is not None:
        return Example(row, picture)
    if row is not None:
        return Example(row, why="Picture missing: the witness file is gone or damaged.")
    if any(row.counts["broken"] for row in board.rows):
        return Example(why="No picture: the runs kept no witness.")
    return Example(why="No picture: no image fell.")
