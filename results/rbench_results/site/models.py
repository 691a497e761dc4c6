"""One page per model: its card, its origin, what it did under every threat. What others reported stays apart from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rbench_results.figures import Figure
from rbench_results.records import ModelRecord
from rbench_results.site.board_rows import Row
from rbench_results.site.boards import Board
from rbench_results.site.facts import Facts
from rbench_results.site.runs import Run

SAID_ELSEWHERE = {"schema", "name", "title", "dataset"}  # of a card: the page's head says them
REPORTED = ("threat", "attack", "clean_accuracy", "robust_accuracy", "n", "where")  # the usual keys of a reported figure, in this order


@dataclass
class Model:
    """A model with all that its page shows."""

    record: ModelRecord
    card: list[tuple[str, list[object]]]
    reported: list[dict[str, Any]]
    rows: list[tuple[Board, Row]] = field(default_factory=list)  # every board that it stands on, its rows there
    history: list[tuple[Board, list[Run]]] = field(default_factory=list)  # boards with several runs, the newest run first
    runs: list[Run] = field(default_factory=list)  # the newest first

    @property
    def page(self) -> str:
        return model_page(self.record.digest)

    @property
    def clean(self) -> Figure | None:
        """On the largest slice that was ever answered."""
        found = [row.clean for _, row in self.rows if row.clean]
        return max(found, key=lambda figure: figure.n, default=None)

    @property
    def best(self) -> tuple[Board, Row, int, int] | None:
        """The board whose threat has most members, with the model's place there: (board, row, place, of)."""
        standing = [(board, board.best[self.record.digest], board.standing(self.record.digest)) for board, row in self.rows if row.robust]
        ranked = [(board, row, *place) for board, row, place in standing if place]
        return max(ranked, key=lambda item: (len(item[0].members), item[1].n), default=None)


def model_page(digest: str) -> str:
    """The address of a model's page."""
    return f"model-{digest[:12]}.html"


def read(facts: Facts, boards: Sequence[Board], runs: Sequence[Run]) -> list[Model]:
    """Every stored model, by name."""
    found = []
    for record in facts.models.values():
        own = [run for run in reversed(runs) if run.record.model == record.digest]
        model = Model(record, list(_lines(record.card)), _reported(record.card), runs=own)
        for board in boards:
            model.rows += [(board, row) for row in board.rows if row.model.digest == record.digest]
            asked = [run for run in own if (run.record.dataset, run.record.spec) == (board.dataset.digest, board.spec)]
            if len(asked) > 1:
                model.history.append((board, asked))
        found.append(model)
    return found


def _lines(card: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, list[object]]]:
    """A card as (what, values); tables within it as "training: recipe"; reported figures left out, the unknown is absent."""
    for name, value in card.items():
        if (not path and name in SAID_ELSEWHERE) or name == "reported" or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            yield from _lines(value, f"{path}{name}: ")
        else:
            yield f"{path}{name}".replace("_", " "), list(value) if isinstance(value, list | tuple) else [value]


def _reported(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures that others published, wherever the card holds them; keys in the usual order, unusual ones after."""
    found = [row for row in card.get("reported") or [] if isinstance(row, Mapping)]
    for value in card.values():
        if isinstance(value, Mapping):
            found += [row for row in value.get("reported") or [] if isinstance(row, Mapping)]
    return [{name: row[name] for name in (*REPORTED, *(key for key in row if key not in REPORTED)) if name in row} for row in found]


def threat_rows(model: Model) -> list[dict[str, Any]]:
    """The table of threats for the CSV."""
    return [
        {
            "threat": board.name,
            "spec": board.spec,
            "dataset": board.dataset.name,
            "plan": row.plan,
            "n": row.n,
            "first": row.first,
            **columns("clean", row.clean),
            **columns("certified", row.certified),
            **columns("robust", row.robust),
            "run": row.run.id,
        }
        for board, row in model.rows
    ]


def columns(name: str, figure: Figure | None) -> dict[str, float | None]:
    """A figure as three columns of a CSV."""
    return {
        name: figure.accuracy if figure else None,
        f"{name}_low": figure.low if figure else None,
        f"{name}_high": figure.high if figure else None,
    }


def summary(model: Model) -> dict[str, Any]:
    """The model as one row of the list of models."""
    record = model.record
    return {
        "name": record.name,
        "title": record.title,
        "dataset": record.dataset,
        "digest": record.digest,
        "parameters": record.parameters,
        "classes": record.classes,
        "boards": len({board.slug for board, _ in model.rows}),
        "runs": len(model.runs),
        **columns("clean", model.clean),
    }
