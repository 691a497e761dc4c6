"""One page per model: its card, its origin, what it did under every threat. What others reported stays apart from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rbench_results.figures import Figure
from rbench_results.records import ModelRecord
from rbench_results.site import curves
from rbench_results.site.board_rows import Row
from rbench_results.site.boards import Board
from rbench_results.site.facts import Facts
from rbench_results.site.runs import Run
from rbench_results.site.standing import Standing
from rbench_results.site.words import DASH, percent

SAID_ELSEWHERE = frozenset({"schema", "name", "title", "dataset", "reported"})  # of a card: other parts of the page say them
GROUPS = (("Source", ("source",)), ("Training", ("training",)), ("Network", ("gradient", "parameters", "architecture", "weights")))
ACCURACIES = ("clean_accuracy", "certified_accuracy", "robust_accuracy")


@dataclass(frozen=True)
class Reported:
    """What somebody else published, and our own figure for the same threat where there is one."""

    threat: str
    figures: list[str]  # ACCURACIES, as they are printed
    said: dict[str, object]  # attack, n, where, and whatever else
    measured: tuple[Board, Row] | None
    clean: Figure | None


@dataclass
class Model:
    """A model with all that its page shows."""

    record: ModelRecord
    card: list[tuple[str, list[tuple[str, list[object]]]]]  # headings over (what, values)
    reported: list[Reported] = field(default_factory=list)
    rows: list[tuple[Board, Row]] = field(default_factory=list)  # every board that it stands on, its rows there
    history: list[tuple[Board, list[Run]]] = field(default_factory=list)  # boards with several runs, the newest run first
    runs: list[Run] = field(default_factory=list)  # the newest first

    @property
    def curves(self) -> list[tuple[Run, curves.Chart]]:
        """Accuracy over eps under each set, of the newest run that has it."""
        found: dict[tuple[str, str], tuple[Run, curves.Chart]] = {}
        for run in self.runs:
            for chart in run.curves:
                found.setdefault((run.record.dataset, chart.name), (run, chart))
        return list(found.values())

    @property
    def page(self) -> str:
        return model_page(self.record.digest)

    @property
    def asked_as(self) -> list[str]:
        """What people wrote to get this model: a name of a catalogue, FILE.py:FACTORY."""
        return sorted({str(run.record.request["model"]) for run in self.runs if run.record.request.get("model")})

    @property
    def bundles(self) -> list[dict[str, Any]]:
        """The bundles that its runs came by."""
        found = {str(run.record.submitted.get("bundle")): run.record.submitted for run in self.runs if run.record.submitted}
        return list(found.values())

    @property
    def standings(self) -> list[Standing]:
        """Who vouches for its figures, without repetition."""
        return list(dict.fromkeys(row.standing for _, row in self.rows if row.standing))

    @property
    def gradient(self) -> bool:
        """False where the card declares that there is no usable one."""
        tables = [self.record.card, *(value for value in self.record.card.values() if isinstance(value, Mapping))]
        return all(table.get("gradient") is not False for table in tables)

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
        model = Model(record, _groups(record.card), runs=own)
        for board in boards:
            model.rows += [(board, row) for row in board.rows if row.model.digest == record.digest]
            asked = [run for run in own if (run.record.dataset, run.record.spec) == (board.dataset.digest, board.spec)]
            if len(asked) > 1:
                model.history.append((board, asked))
        model.reported = [_beside(row, model) for row in _reported(record.card)]
        found.append(model)
    return found


def _groups(card: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, list[object]]]]]:
    """A card as headed lists of (what, values): where it comes from, how it was trained, what it is; then whatever else it says."""
    found = []
    for heading, names in GROUPS:
        part = {name: card[name] for name in names if name in card}
        lines = [line for name, value in part.items() for line in _lines(value if isinstance(value, Mapping) else {name: value})]
        found.append((heading, lines))
    taken = SAID_ELSEWHERE.union(*(names for _, names in GROUPS))
    found.append(("Further", list(_lines({name: value for name, value in card.items() if name not in taken}))))
    return [(heading, lines) for heading, lines in found if lines]


def _lines(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, list[object]]]:
    """(what, values); tables within as "input: mean"; reported figures left out, the unknown is absent."""
    for name, value in table.items():
        if name == "reported" or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            yield from _lines(value, f"{path}{name}: ")
        else:
            yield f"{path}{name}".replace("_", " "), list(value) if isinstance(value, list | tuple) else [value]


def _reported(card: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Figures that others published, wherever the card holds them."""
    tables = [card, *(value for value in card.values() if isinstance(value, Mapping))]
    return [row for table in tables for row in table.get("reported") or [] if isinstance(row, Mapping)]


def _beside(row: Mapping[str, Any], model: Model) -> Reported:
    """A reported figure with our own of the same threat on the same data set, if there is one."""
    threat = str(row.get("threat") or "clean images")
    own = [(board, standing) for board, standing in model.rows if board.dataset.name == model.record.dataset and standing.robust]
    same = [pair for pair in own if threat in (pair[0].spec, pair[0].name)]
    measured = max(same, key=lambda pair: pair[1].n, default=None)
    return Reported(
        threat=threat,
        figures=[_percent(row.get(name)) for name in ACCURACIES],
        said={name.replace("_", " "): value for name, value in row.items() if name not in ("threat", *ACCURACIES)},
        measured=measured,
        clean=measured[1].clean if measured else None if row.get("threat") else model.clean,
    )


def _percent(value: object) -> str:
    """A share as the pages print it; anything else as it stands, since the card is somebody else's."""
    if value is None:
        return DASH
    return percent(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else str(value)


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
            "standing": row.standing.text if row.standing else None,
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
