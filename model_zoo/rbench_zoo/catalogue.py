"""The models by name: cards of the package, of the folders in RBENCH_REGISTRY, and entry points of installed packages. No torch.

A broken card of a registry does not take the others down: it is listed with its reason, and the reason is the error of who asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from rbench_core.catalogue import installed, read_toml
from rbench_core.errors import CardError, UnknownName
from rbench_zoo.card import Card, parse

GROUP = "rbench.models"
BUILT_IN = Path(__file__).parent / "cards"


@dataclass(slots=True)
class Catalogue:
    """What was found: cards, entry points (never imported here) and, by name, why something cannot be used."""

    cards: dict[str, Card] = field(default_factory=dict)
    points: dict[str, EntryPoint] = field(default_factory=dict)
    broken: dict[str, CardError] = field(default_factory=dict)


def read() -> Catalogue:
    """Everything that is there now; nothing is cached, so a card that was just written is seen."""
    found = Catalogue()
    for origin, folder in folders():
        if not folder.is_dir():
            found.broken[str(folder)] = CardError(f"{folder}: no such folder", fix="It is named by RBENCH_REGISTRY.")
        for path in sorted(folder.glob("*.toml")):
            _add_card(found, path, origin)
    try:
        found.points = installed(GROUP)
    except CardError as error:
        found.broken[f"entry points {GROUP}"] = error
    for name in found.cards.keys() & found.points.keys():
        found.broken[name] = _twice(name, found.cards[name].path, f"the entry point {found.points[name].value}")
    return found


def cards() -> dict[str, Card]:
    """Every card that can be used, by name, sorted."""
    found = read()
    return {name: card for name, card in sorted(found.cards.items()) if name not in found.broken}


def find(name: str) -> Card | EntryPoint:
    """The model of that name. Raises CardError with its reason for a broken one, UnknownName with the nearest names."""
    found = read()
    if name in found.broken:
        raise found.broken[name]
    if name in found.cards:
        return found.cards[name]
    if name in found.points:
        return found.points[name]
    raise UnknownName("model", name, [*found.cards, *found.points], fix="Your own: FILE.py:FACTORY, with --dataset.")


def listing() -> list[dict[str, Any]]:
    """One plain object per model. `broken` is None, or the line that says why it cannot be used."""
    found = read()
    rows = [_row(card) for card in found.cards.values()]
    rows += [_row_of_point(point) for point in found.points.values() if point.name not in found.cards]
    broken = [_broken_row(name, error) for name, error in found.broken.items()]
    taken = {row["name"] for row in broken}
    return sorted([row for row in rows if row["name"] not in taken] + broken, key=lambda row: str(row["name"]))


def folders() -> Iterator[tuple[str, Path]]:
    """(origin in words, folder) of every place where cards lie: the package, then RBENCH_REGISTRY's."""
    yield "built in", BUILT_IN
    for named in os.environ.get("RBENCH_REGISTRY", "").split(os.pathsep):
        if named.strip():
            folder = Path(named.strip()).expanduser()
            yield f"registry {folder}", folder


def _add_card(found: Catalogue, path: Path, origin: str) -> None:
    name = path.stem
    try:
        table = read_toml(path)
        name = table["name"] if isinstance(table.get("name"), str) else name
        card = parse(table, path, origin)
    except CardError as error:
        found.broken[name if name not in found.cards else str(path)] = error  # a name that works stays usable
        return
    if name in found.cards:
        found.broken[name] = _twice(name, found.cards[name].path, path)
    else:
        found.cards[name] = card


def _twice(name: str, one: object, other: object) -> CardError:
    return CardError(f"the name {name!r} stands in {one} and in {other}", expected="one model per name", fix="Rename one of them.")


_EMPTY = dict.fromkeys(("name", "title", "dataset", "origin", "architecture", "parameters", "training", "gradient", "paper", "broken"))


def _row(card: Card) -> dict[str, Any]:
    training = card.training
    return {
        **_EMPTY,
        "name": card.name,
        "title": card.title,
        "dataset": card.dataset,
        "origin": card.origin,
        "architecture": card.architecture.factory.rpartition(":")[2],
        "parameters": card.parameters,
        "training": training.recipe or training.summary or training.threat,
        "gradient": card.gradient,
        "paper": card.source.paper,
    }


def _row_of_point(point: EntryPoint) -> dict[str, Any]:
    return {**_EMPTY, "name": point.name, "title": point.name, "origin": f"entry point {point.value}"}


def _broken_row(name: str, error: CardError) -> dict[str, Any]:
    return {**_EMPTY, "name": name, "title": name, "origin": "broken", "broken": str(error)}
