"""Robust accuracy against following people: one panel per set of candidates, joined from the boards. Figures of two norms never meet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rbench_results.figures import Figure
from rbench_results.records import ModelRecord
from rbench_results.site.board_rows import Row
from rbench_results.site.boards import Board
from rbench_results.site.facts import Facts
from rbench_results.site.models import columns
from rbench_results.site.pictures import Picture
from rbench_results.site.sets import SetPage
from rbench_results.site.words import exactly, number

BALL = re.compile(r"linf\(eps=([0-9./]+)\)")  # what a set of candidates declares
SHOWN = 3  # pictures per set


@dataclass(frozen=True)
class Point:
    """A model under one set of candidates: how often it follows people, and how robust it is in the ball of the same size, where asked."""

    model: ModelRecord
    row: Row  # on the set's board
    robust: Figure | None
    certified: Figure | None
    over: bool = False  # robust accuracy above the ceiling
    within: bool = False  # above it by less than the ceiling's interval
    front: bool = False

    @property
    def follows(self) -> dict[str, Any]:
        return dict((self.row.invariance or {})["agreement"])

    @property
    def clean(self) -> dict[str, Any]:
        """On the sources of the candidates."""
        return dict((self.row.invariance or {})["clean"])

    @property
    def proved_wrong(self) -> int | None:
        """Changed candidates on which the old label is proved to stay, by a ball that holds them; None where no proof was asked for."""
        found = (self.row.invariance or {})["certified_but_wrong"].get("strict")
        return None if found is None else int(found["count"])

    @property
    def reading(self) -> str:
        """What the place in the panel means."""
        over = "above the ceiling" + (", within its interval" if self.within else "")
        said = (["Pareto front"] if self.front else []) + ([over] if self.over else [])
        return "; ".join(said)


@dataclass
class Panel:
    """One set of candidates. eps: of the linf ball that it declares, None where its candidates share no radius."""

    board: Board
    home: str  # the data set whose boards give the robust accuracy
    eps: Fraction | None
    points: list[Point]
    ceiling: dict[str, Any]
    pictures: list[tuple[Picture, int]] = field(default_factory=list)  # with what people call the candidate

    @property
    def name(self) -> str:
        return self.board.name

    @property
    def ball(self) -> str | None:
        return None if self.eps is None else f"linf {number(f'{self.eps.numerator}/{self.eps.denominator}')}"

    @property
    def placed(self) -> list[Point]:
        """The points that have both coordinates."""
        return [point for point in self.points if point.robust and point.follows["n"]]

    @property
    def changed(self) -> int:
        """|C|: the candidates that people call something else."""
        return int(self.points[0].follows["n"])


@dataclass
class Tradeoff:
    """All panels, by data set at home."""

    panels: list[Panel]

    @property
    def homes(self) -> dict[str, list[Panel]]:
        found: dict[str, list[Panel]] = {}
        for panel in self.panels:
            found.setdefault(panel.home, []).append(panel)
        return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))

    def proofs(self, home: str) -> bool:
        """Whether a proof was asked for around any candidate."""
        return any(point.proved_wrong is not None for panel in self.homes[home] for point in panel.points)

    def lowest(self, home: str) -> dict[str, Panel]:
        """Per ball the set with the lowest ceiling: people's labels bound a model by the hardest set known."""
        found: dict[str, Panel] = {}
        for panel in self.homes[home]:
            if panel.ball and (panel.ball not in found or panel.ceiling["accuracy"] < found[panel.ball].ceiling["accuracy"]):
                found[panel.ball] = panel
        return found

    def lines(self, home: str) -> list[tuple[ModelRecord, list[Point | None]]]:
        """One line per model, a cell per panel; those who follow most on the last panel first."""
        panels = self.homes[home]
        known = [{point.model.digest: point for point in panel.points} for panel in panels]
        models = {digest: point.model for points in known for digest, point in points.items()}
        lines = [(model, [points.get(digest) for points in known]) for digest, model in models.items()]
        return sorted(lines, key=lambda line: ([-(p.follows["accuracy"] or 0) if p else 1 for p in reversed(line[1])], line[0].name))


def tradeoff(facts: Facts, boards: Sequence[Board], pictures: Mapping[str, Sequence[Picture]], sets: Sequence[SetPage]) -> Tradeoff | None:
    """The page's content; None where no model was asked about candidates with people's labels."""
    panels = [panel for board in boards if board.follows and (panel := _panel(facts, board, boards, pictures, sets))]
    panels.sort(key=lambda panel: (panel.home, panel.eps is None, panel.eps or 0, -panel.ceiling["n"], panel.name))
    return Tradeoff(panels) if panels else None


def _panel(
    facts: Facts, board: Board, boards: Sequence[Board], pictures: Mapping[str, Sequence[Picture]], sets: Sequence[SetPage]
) -> Panel | None:
    rows = [row for row in board.best.values() if row.invariance]
    if not rows:
        return None
    ceiling = dict(rows[0].invariance["ceiling"])  # type: ignore[index]  # of the set alone: the same for every model
    ball = _declared(sets, rows[0].questions)
    eps = exactly(BALL.fullmatch(ball)[1]) if ball else None  # type: ignore[index]  # _declared matched it
    home = board.dataset.of or board.dataset.name
    robust = _at(boards, home, ball)
    points = [_point(row, robust.get(row.model.digest), ceiling) for row in rows]
    panel = Panel(board, home, eps, _fronted(points), ceiling)
    panel.pictures = list(_pictured(facts, rows, pictures))
    return panel


def _declared(sets: Sequence[SetPage], specs: Iterable[str]) -> str | None:
    """The linf ball that a set says its candidates lie in, as a spec, from what was stored of the set; None: none, or not known."""
    told = [str(fact["value"]) for page in sets if page.spec in specs for fact in page.facts if fact["name"] == "declared ball"]
    return told[0] if told and BALL.fullmatch(told[0]) else None


def _at(boards: Sequence[Board], home: str, ball: str | None) -> dict[str, Row]:
    """Model digest -> its row on the board of this ball, on the data set at home."""
    return next((board.best for board in boards if board.dataset.name == home and board.spec == ball and not board.follows), {})


def _point(row: Row, robust: Row | None, ceiling: Mapping[str, Any]) -> Point:
    found = robust.robust if robust else None
    over = found is not None and found.accuracy > ceiling["accuracy"]
    within = found is not None and over and found.accuracy <= ceiling["high"]
    return Point(row.model, row, found, robust.certified if robust else None, over, within)


def _fronted(points: Sequence[Point]) -> list[Point]:
    """Marks those that no other one beats: at least as good on both, better on one. Equal ones stay together."""
    placed = [(point.robust.accuracy, point.follows["accuracy"]) for point in points if point.robust and point.follows["n"]]
    front = [here for here in placed if not any(_beats(other, here) for other in placed)]
    marked = []
    for point in points:
        at = (point.robust.accuracy, point.follows["accuracy"]) if point.robust and point.follows["n"] else None
        marked.append(Point(point.model, point.row, point.robust, point.certified, point.over, point.within, at in front))
    return marked


def _beats(other: tuple[float, float], here: tuple[float, float]) -> bool:
    return other != here and other[0] >= here[0] and other[1] >= here[1]


def _pictured(facts: Facts, rows: Sequence[Row], pictures: Mapping[str, Sequence[Picture]]) -> Iterator[tuple[Picture, int]]:
    """Candidates that people call something else and some model did not follow, each once, with people's label."""
    seen: set[int] = set()
    for row in rows:
        said = {v.index: v for key in row.questions.values() for v in facts.within(key, row.first, row.n)}
        for picture in pictures.get(row.run.id, ()):
            verdict = said.get(picture.index)
            oracle = verdict.oracle if verdict else None
            if oracle is not None and oracle != picture.label and picture.index not in seen and len(seen) < SHOWN:
                seen.add(picture.index)
                yield picture, oracle


def readings(panels: Sequence[Panel], points: Sequence[Point | None]) -> list[tuple[str, str]]:
    """(set, what the model's place there means), where there is something to say and a ball to say it of."""
    pairs = [(panel.name, point.reading) for panel, point in zip(panels, points, strict=True) if panel.ball and point]
    return [(name, reading) for name, reading in pairs if reading]


def table_rows(page: Tradeoff) -> list[dict[str, Any]]:
    """One row per set and model, for the CSV."""
    found = []
    for panel in page.panels:
        for point in panel.points:
            invariance = point.row.invariance or {}
            found.append(
                {
                    "dataset": panel.home,
                    "set": panel.name,
                    "ball": panel.ball,
                    "model": point.model.name,
                    "digest": point.model.digest,
                    **{f"follows{end}": value for end, value in _flat(point.follows)},
                    **{f"clean_on_sources{end}": value for end, value in _flat(point.clean)},
                    **{f"keeps{end}": value for end, value in _flat(invariance["keeps"])},
                    **{f"agreement_all{end}": value for end, value in _flat(invariance["agreement_all"])},
                    **columns("robust", point.robust),
                    "robust_n": point.robust.n if point.robust else None,
                    **columns("certified", point.certified),
                    **{f"ceiling{end}": value for end, value in _flat(panel.ceiling)},
                    "certified_but_wrong_strict": point.proved_wrong,
                    "pareto": point.front,
                    "above_ceiling": point.over if point.robust else None,
                }
            )
    return found


def _flat(share: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [("", share["accuracy"]), ("_low", share["low"]), ("_high", share["high"]), ("_count", share["count"]), ("_n", share["n"])]
