"""Training recipes as data: what is trained, on which adversary, with which budget. The loop lives in rbench. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from rbench_core.catalogue import Entry, entries, only
from rbench_core.errors import CardError, UnknownName, UsageError

SCHEMES = ("standard", "adversarial", "msd")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One recipe on one data set. The learning rate rises linearly to `rate` over the first two fifths and falls to 0 (Maini et al. 2020).

    adversarial: every batch is replaced by what `attack` finds in `threat`. msd: multi steepest descent over the members of `threat`,
    `rates` radii per step each. Weights after the last epoch are kept; nothing is chosen by test accuracy.
    """

    name: str
    title: str
    summary: str
    source: str
    dataset: str
    scheme: str
    epochs: int
    batch: int
    rate: float
    factory: str
    arguments: dict[str, Any]
    threat: str | None = None
    attack: str | None = None
    steps: int = 0
    rates: tuple[float, ...] = ()
    weight_decay: float = 0.0


def recipe_files() -> dict[str, Entry]:
    """Every recipe file by name. Raises CardError."""
    return entries([("built in", Path(str(resources.files("rbench_zoo") / "recipes")))])


def listing() -> list[dict[str, Any]]:
    """One object per recipe: name, title, summary, source, the data sets it is written for."""
    return [
        {
            "name": e.name,
            "title": e.table.get("title", e.name),
            "summary": e.table.get("summary", ""),
            "source": e.table.get("source", ""),
            "datasets": sorted(e.table["on"]),
        }
        for e in recipe_files().values()
    ]


def read_recipe(name: str, dataset: str) -> Recipe:
    """The recipe for a data set. Raises UnknownName, UsageError, CardError."""
    found = recipe_files()
    if name not in found:
        raise UnknownName("recipe", name, found, fix="`rbench train --help` says where they are described.")
    entry = found[name]
    on = entry.table.get("on", {})
    if dataset not in on:
        raise UsageError(f"recipe {name} is not written for {dataset}", expected=f"one of: {', '.join(sorted(on))}")
    table = {**{key: value for key, value in entry.table.items() if key != "on"}, **on[dataset], "dataset": dataset}
    only(table, [field.name for field in fields(Recipe)], entry.path)
    return _checked(table, entry.path)


def _checked(table: dict[str, Any], path: Path) -> Recipe:
    try:
        recipe = Recipe(**{**table, "rates": tuple(table.get("rates", ()))})
    except TypeError as error:
        raise CardError(f"{path}: {error}") from error
    if recipe.scheme not in SCHEMES:
        raise CardError(f"{path}: scheme = {recipe.scheme!r}", expected=f"one of: {', '.join(SCHEMES)}")
    if (recipe.threat is None) != (recipe.scheme == "standard"):
        raise CardError(f"{path}: threat and scheme {recipe.scheme} do not go together", expected="a threat for every scheme but standard")
    return recipe
