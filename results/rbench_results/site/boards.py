"""Boards: one per data set and threat, with the models ranked by robust accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rbench_results.audit import Pool
from rbench_results.records import DatasetRecord, RunRecord
from rbench_results.site.board_rows import Member, Row, read
from rbench_results.site.facts import Facts
from rbench_results.site.threats import explain
from rbench_results.site.words import digest_of, slug


@dataclass
class Board:
    """All rows of one data set under one threat."""

    slug: str
    name: str
    sentence: str
    words: str  # the same for a stranger
    spec: str
    dataset: DatasetRecord
    members: list[Member]
    objective: str = "sensitivity"
    rows: list[Row] = field(default_factory=list)

    @property
    def page(self) -> str:
        return f"board-{self.slug}.html"

    @property
    def compare(self) -> str:
        return f"compare-{self.slug}.html"

    @property
    def follows(self) -> bool:
        """Whether the figures say how often a model follows people, in place of how often it stays."""
        return self.objective == "invariance"

    @property
    def ranked(self) -> list[Row]:
        return [row for row in self.rows if row.robust]

    @property
    def best(self) -> dict[str, Row]:
        """Model digest -> its row with a figure: the largest n, then the newest run."""
        found: dict[str, Row] = {}
        for row in sorted(self.ranked, key=lambda row: (row.n, row.run.started)):
            found[row.model.digest] = row
        return found

    @property
    def slices(self) -> dict[str, int]:
        """Slice -> how many rows, the commonest first."""
        spans = [row.slice for row in self.rows]
        return dict(sorted(((name, spans.count(name)) for name in set(spans)), key=lambda item: (-item[1], item[0])))

    @property
    def plans(self) -> list[str]:
        return sorted({row.plan for row in self.rows})

    @property
    def pools(self) -> dict[str, Pool]:
        """By plan: how much it may miss, audited over all stored questions."""
        return {row.plan: row.pool for row in sorted(self.rows, key=lambda row: row.plan) if row.pool}

    def standing(self, digest: str) -> tuple[int, int] | None:
        """(place, of how many) of a model among those that have a figure."""
        order = list(dict.fromkeys(row.model.digest for row in self.ranked))
        return (order.index(digest) + 1, len(order)) if digest in order else None


def boards(facts: Facts) -> list[Board]:
    """Every board that has a row: of each threat that was asked for, then of members alone where some model answered all images."""
    found: list[Board] = []
    taken: set[str] = set()
    for asked in _asked(facts):
        board = _board(facts, asked, taken)
        board.rows = _rank(_rows(facts, board, asked.objective))
        if board.rows and (board.ranked or asked.runs):
            found.append(board)
            taken.add(board.slug)
    return found


@dataclass
class _Asked:
    """A threat on a data set: (key, spec) of its sets, and the runs that asked for it, the oldest first; no runs: only a union did."""

    dataset: str
    objective: str
    spec: str
    members: list[tuple[str, str]]
    runs: list[RunRecord]


def _asked(facts: Facts) -> list[_Asked]:
    """What the runs asked for, and after all that the members of their unions."""
    found: dict[tuple[str, str, str], _Asked] = {}
    whole = [run for run in facts.runs if run.dataset in facts.datasets and run.model in facts.models]
    known = [(run, facts.objective(run), facts.attacks(run)) for run in whole]
    for run, objective, members in known:
        if members:
            found.setdefault((run.dataset, objective, run.spec), _Asked(run.dataset, objective, run.spec, members, [])).runs.append(run)
    for run, objective, members in known:
        for key, spec in members:
            found.setdefault((run.dataset, objective, spec), _Asked(run.dataset, objective, spec, [(key, spec)], []))
    return list(found.values())


def _board(facts: Facts, asked: _Asked, taken: set[str]) -> Board:
    """The oldest board of a name has its address; another one (the same threat at another radius, data of the same name) adds a digest."""
    members = [Member(spec, facts.label(key), slug(facts.label(key).replace(" ", "-"))) for key, spec in asked.members]
    dataset = facts.datasets[asked.dataset]
    name = _name(asked, members)
    address = f"{slug(dataset.name)}-{slug(name.replace(' ', '-'))}"
    if address in taken:
        address = f"{address}-{digest_of(f'{asked.dataset} {asked.objective} {asked.spec}')[:8]}"
    sentence = asked.runs[-1].sentence if asked.runs else facts.questions[asked.members[0][0]].sentence
    words = explain([(facts.questions[key], facts.label(key)) for key, _ in asked.members], dataset.shape, sentence)
    return Board(
        slug=address,
        name=name,
        sentence=sentence,
        words=words,
        spec=asked.spec,
        dataset=dataset,
        members=members,
        objective=asked.objective,
    )


def _name(asked: _Asked, members: Sequence[Member]) -> str:
    """A set by its label (linf 0.3), what numbers do not name by its name in the catalogue, or else by its members."""
    named = [run.title for run in asked.runs if "(" not in run.title]
    if len(members) == 1 and (members[0].label != members[0].spec or not named):
        return members[0].label
    return named[0] if named else " + ".join(member.label for member in members)


def _rows(facts: Facts, board: Board, objective: str) -> list[Row]:
    """One row per group (model, plan, seed, engine, precision) that asked about every member."""
    rows = []
    for group, asked in facts.groups.items():
        if group[1:3] == (board.dataset.digest, objective) and all(member.spec in asked for member in board.members):
            rows.append(read(facts, group, {member.spec: asked[member.spec] for member in board.members}, board.spec))
    _tell_apart(rows)
    return rows


def _tell_apart(rows: Sequence[Row]) -> None:
    """Seed, engine and precision stand in the plan's name only where the board has several."""
    for at, word in ((4, "seed"), (5, "engine"), (6, "")):
        if len({row.group[at] for row in rows}) > 1:
            for row in rows:
                row.plan = f"{row.plan}, {word} {row.group[at]}".replace("  ", " ")


def _rank(rows: list[Row]) -> list[Row]:
    """By robust accuracy, ties by clean accuracy and name; rows without a figure last. Equal figures share a place."""
    rows.sort(key=_order)
    for row in rows:
        if row.robust:
            row.rank = 1 + sum(other.robust.accuracy > row.robust.accuracy for other in rows if other.robust)
    return rows


def _order(row: Row) -> tuple[float, float, str, str]:
    robust, clean = (-figure.accuracy if figure else 1.0 for figure in (row.robust, row.clean))
    return (robust, clean, row.model.name, row.key)
