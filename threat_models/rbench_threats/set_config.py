"""Configs of learned sets as data: which pairs, which networks, which schedules. The loop that follows one lives in rbench. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from rbench_core.catalogue import Entry, entries, only, read_toml
from rbench_core.errors import CardError, UnknownName
from rbench_core.files import canonical_json

KEYS = ("name", "title", "summary", "source", "dataset", "pairs", "network", "training")
TRAINING = ("likelihood", "epochs", "batch", "lr", "beta", "weight_decay", "validation", "passes")
LIKELIHOODS = ("bernoulli", "gaussian")
Points: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class SetConfig:
    """How one learned set is made. lr and beta: (epoch, value) points, linear between them; `validation` images (or groups of a folder)
    are held out of the training split, and `passes` fresh partners of each give the radius."""

    name: str
    title: str
    summary: str
    source: str
    dataset: str
    pairs: dict[str, Any]
    network: dict[str, Any]
    likelihood: str
    epochs: int
    batch: int
    lr: Points
    beta: Points
    weight_decay: float
    validation: int
    passes: int
    path: Path

    def record(self) -> str:
        """All that decides the weights, as one text."""
        return canonical_json(
            {name: getattr(self, name) for name in self.__slots__ if name not in ("name", "title", "summary", "source", "path")}
        )


def config_files() -> dict[str, Entry]:
    """Every built-in config by name. Raises CardError."""
    return entries([("built in", Path(str(resources.files("rbench_threats") / "configs")))])


def listing() -> list[dict[str, Any]]:
    """One object per built-in config: name, title, summary, source, data set."""
    return [
        {"name": e.name, **{key: str(e.table.get(key, "")) for key in ("title", "summary", "source", "dataset")}}
        for e in config_files().values()
    ]


def read_config(name: str) -> SetConfig:
    """The config of a name, or of a file that ends in .toml. Raises UnknownName, CardError."""
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        return _checked(read_toml(path), path)
    found = config_files()
    if name not in found:
        raise UnknownName("set config", name, found, fix="A file of your own is named by its path, NAME.toml.")
    return _checked(found[name].table, found[name].path)


def _checked(table: dict[str, Any], path: Path) -> SetConfig:
    only(table, KEYS, path)
    for key, kind in (("pairs", dict), ("network", dict), ("training", dict), ("dataset", str)):
        if not isinstance(table.get(key), kind):
            raise CardError(f"{path}: {key} = {table.get(key)!r}", expected="a data set's name" if kind is str else f"a table [{key}]")
    training = {"weight_decay": 0.0, "passes": 1, **table["training"]}
    only(training, TRAINING, path)
    if missing := [key for key in TRAINING if key not in training]:
        raise CardError(f"{path}: [training] without {missing[0]}", expected=", ".join(TRAINING))
    _check_numbers(training, path)
    words = {key: str(table.get(key, "")) for key in ("title", "summary", "source", "dataset")}
    points = {key: _points(training[key], key, path) for key in ("lr", "beta")}
    rest: dict[str, Any] = {**words, **points, **{key: training[key] for key in ("likelihood", "epochs", "batch", "validation", "passes")}}
    rest |= {"weight_decay": float(training["weight_decay"]), "pairs": table["pairs"], "network": table["network"]}
    return SetConfig(name=str(table.get("name", path.stem)), path=path, **rest)


def _check_numbers(training: dict[str, Any], path: Path) -> None:
    if training["likelihood"] not in LIKELIHOODS:
        raise CardError(f"{path}: likelihood = {training['likelihood']!r}", expected=" or ".join(LIKELIHOODS))
    for key in ("epochs", "batch", "validation", "passes"):
        if type(training[key]) is not int or training[key] < 1:
            raise CardError(f"{path}: {key} = {training[key]!r}", expected="a whole number from 1 on")
    decay = training["weight_decay"]
    if type(decay) not in (int, float) or not 0 <= decay < float("inf"):
        raise CardError(f"{path}: weight_decay = {decay!r}", expected="a number from 0 on")


def _points(value: Any, key: str, path: Path) -> Points:
    """[[0, 0.0], [10, 1e-3]]: epochs that rise, values from 0 on."""
    try:
        points = tuple((float(epoch), float(height)) for epoch, height in value)
    except (TypeError, ValueError):
        points = ()
    rising = all(a[0] < b[0] for a, b in pairwise(points))
    if not points or not rising or not all(0 <= number < float("inf") for point in points for number in point):
        raise CardError(f"{path}: {key} = {value!r}", expected="points [epoch, value] with rising epochs and values from 0 on")
    return points
