"""Training recipes as data: what is trained, on which adversary, with which budget. The loop lives in rbench. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from rbench_core.catalogue import Entry, entries, only
from rbench_core.errors import CardError, UnknownName, UsageError

SCHEMES = {  # how many inner attacks each asks for; None: one per member of a union, so two or more
    "standard": 0,
    "adversarial": 1,
    "msd": 0,
    "avg": None,
    "max": None,
    "eat": None,
    "harder": 1,
    "ibp": 0,
    "ibp-budgets": 0,
}
CERTIFIED = ("ibp", "ibp-budgets")
TEXTS = ("attacks",)
NUMBERS = ("chances", "rates", "falls")
SCALARS = ("rate", "weight_decay", "warmup", "clip", "ramp", "kappa", "above")
BUDGETS = {"form": str, "volume": float, "low": float, "high": float, "rate": float, "width": int}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One recipe on one data set. The learning rate rises linearly to `rate` over the first two fifths and falls to 0 (Maini et al. 2020),
    or, with `falls`, it is `rate` from the start and falls to a fifth after each of these shares of the epochs.

    adversarial: every batch is replaced by what `attacks` finds in `threat`. avg, max, eat: `attacks` has one per member of `threat`;
    trained on are all of them, the worst per image, or one drawn per batch, by `chances` where given. msd: multi steepest descent over the
    members, `rates` radii per step each. Over the first `warmup` epochs the radius grows linearly to its full size. ibp: the loss of
    interval bounds over a box set at `above` times its radius; after `warmup` epochs without a bound the radius grows over `ramp` epochs,
    and the clean loss keeps the weight `kappa`. ibp-budgets: likewise, and the half-widths are learned with the net: `budgets`, published
    under the name that `threat` gives. `start` is the recipe whose model lends its weights; `clip` the largest norm of a gradient, 0: any.
    Weights after the last epoch are kept; nothing is chosen by test accuracy. `net` is the architecture in words.
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
    net: str = "Small CNN"
    threat: str | None = None
    attacks: tuple[str, ...] = ()
    chances: tuple[float, ...] = ()
    steps: int = 0
    rates: tuple[float, ...] = ()
    weight_decay: float = 0.0
    warmup: float = 0.0
    falls: tuple[float, ...] = ()
    clip: float = 0.0
    start: str | None = None
    ramp: float = 0.0
    kappa: float = 0.0
    above: float = 1.0
    budgets: dict[str, Any] = field(default_factory=dict)


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
    only(table, [each.name for each in fields(Recipe)], entry.path)
    return _checked(table, entry.path)


def _checked(table: dict[str, Any], path: Path) -> Recipe:
    _check_values(table, path)
    lists = {key: tuple(table.get(key, ())) for key in TEXTS} | {key: tuple(map(float, table.get(key, ()))) for key in NUMBERS}
    try:
        recipe = Recipe(**{**table, **lists, **{key: float(table[key]) for key in SCALARS if key in table}})
    except TypeError as error:
        raise CardError(f"{path}: {error}") from error
    if recipe.scheme not in SCHEMES:
        raise CardError(f"{path}: scheme = {recipe.scheme!r}", expected=f"one of: {', '.join(SCHEMES)}")
    if (recipe.threat is None) != (recipe.scheme == "standard"):
        raise CardError(f"{path}: threat and scheme {recipe.scheme} do not go together", expected="a threat for every scheme but standard")
    _check_attacks(recipe, path)
    _check_chances(recipe, path)
    _check_certified(recipe, path)
    return recipe


def _check_values(table: dict[str, Any], path: Path) -> None:
    """Types, before the attacks' names and the data set's budget are looked at. Raises CardError."""
    for keys, kinds, words in ((TEXTS, (str,), "strings"), (NUMBERS, (int, float), "numbers")):
        for key in keys:
            given = table.get(key, [])
            if not isinstance(given, list) or any(type(value) not in kinds for value in given):
                raise CardError(f"{path}: {key} = {given!r}", expected=f"a list of {words}")
    for key in ("epochs", "batch"):
        if key in table and (type(table[key]) is not int or table[key] < 1):
            raise CardError(f"{path}: {key} = {table[key]!r}", expected="a whole number from 1 on")
    bounded = {
        "rate": (1e-12, "a learning rate above 0"), "warmup": (0.0, "epochs, from 0 on"), "ramp": (0.0, "epochs, from 0 on"),
        "clip": (0.0, "a norm, from 0 on"), "kappa": (0.0, "a weight from 0 to 1"), "weight_decay": (0.0, "a number from 0 on"),
        "above": (1.0, "a factor from 1 on"),
    }  # fmt: skip
    for key, (low, expected) in bounded.items():
        value = table.get(key, 1)
        if type(value) not in (int, float) or not low <= value < float("inf"):
            raise CardError(f"{path}: {key} = {value!r}", expected=expected)


def _check_attacks(recipe: Recipe, path: Path) -> None:
    asked, given = SCHEMES[recipe.scheme], len(recipe.attacks)
    if given != asked and (asked is not None or given < 2):
        expected = "one per member of a union, so two or more" if asked is None else str(asked)
        raise CardError(f"{path}: {given} attacks for scheme {recipe.scheme}", expected=expected)


def _check_chances(recipe: Recipe, path: Path) -> None:
    chances = recipe.chances
    if not chances:
        return
    fit = recipe.scheme == "eat" and len(chances) == len(recipe.attacks)
    if not fit or not all(0 <= chance < float("inf") for chance in chances) or sum(chances) == 0:
        raise CardError(
            f"{path}: chances = {list(chances)} for scheme {recipe.scheme}",
            expected="with scheme eat only: one number from 0 on per attack, not all 0",
        )


def _check_certified(recipe: Recipe, path: Path) -> None:
    """What only certified schemes know, and what they need."""
    given = {key for key in ("ramp", "kappa", "budgets") if getattr(recipe, key)} | ({"above"} if recipe.above != 1 else set())
    if recipe.scheme not in CERTIFIED and given:
        raise CardError(f"{path}: {min(given)} for scheme {recipe.scheme}", expected=f"it with {' or '.join(CERTIFIED)} only")
    if recipe.kappa > 1 or not all(0 < fall < 1 for fall in recipe.falls):
        raise CardError(f"{path}: kappa = {recipe.kappa}, falls = {list(recipe.falls)}", expected="shares from 0 to 1")
    wanted = set(BUDGETS) - ({"width"} if recipe.budgets.get("form") == "map" else set()) if recipe.scheme == "ibp-budgets" else set()
    right = set(recipe.budgets) == wanted and all(type(recipe.budgets[key]) in (BUDGETS[key], *_also(BUDGETS[key])) for key in wanted)
    if not right:
        raise CardError(f"{path}: budgets = {recipe.budgets}", expected=f"{', '.join(sorted(wanted)) or 'none'} for scheme {recipe.scheme}")


def _also(kind: type) -> tuple[type, ...]:
    return (int,) if kind is float else ()
