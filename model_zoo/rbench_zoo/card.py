"""A model's card: what it is, how to build it, which weights, how it was trained and what others reported of it.

Read from TOML, typed, frozen. Unknown keys, numbers as strings and percentages in place of fractions are refused with one line that
names the file and the key. What is absent is unknown. No torch.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbench_core.errors import CardError
from rbench_zoo.table import Table

SCHEMA = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")  # it becomes part of file names and addresses
SHA256 = re.compile(r"[0-9a-f]{64}")
FORMATS = ("state-dict", "safetensors")


@dataclass(frozen=True, slots=True)
class Scaling:
    """The model's own input layer, (x - mean) / std per channel of x in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """`factory` is "package.module:NAME", or "FILE.py:NAME" beside the card; `arguments` go to it by keyword. No scaling: input is 0..1."""

    factory: str
    arguments: dict[str, Any]
    scaling: Scaling | None = None


@dataclass(frozen=True, slots=True)
class Original:
    """The file as its authors published it, at a fixed commit, with its own digest: fetched where no safetensors file is found.

    `format` is "state-dict" (read by torch.load with weights_only) or "safetensors". `entry` names the state dict within a checkpoint,
    `prefix` is cut off every key.
    """

    url: str
    sha256: str
    format: str
    entry: str | None = None
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Weights:
    """A safetensors file by its digest: `file` lies in the package, beside the card or in a mirror; `url` is fetched.

    `original` is another way to the same tensors; `needs_mirror` says why there is none and the file must be had from somewhere.
    """

    sha256: str
    file: str | None = None
    url: str | None = None
    original: Original | None = None
    needs_mirror: str | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """How the weights came about: a recipe of ours with its seed makes them again; `summary` tells it of others' nets.

    budgets: the digest of the budgets that were trained with the net.
    """

    recipe: str | None = None
    seed: int | None = None
    epochs: int | None = None
    threat: str | None = None
    command: str | None = None
    summary: str | None = None
    budgets: str | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """A figure that somebody else published: never a result of ours. Without a threat it is of clean images."""

    threat: str | None = None
    attack: str | None = None
    robust_accuracy: float | None = None
    certified_accuracy: float | None = None
    clean_accuracy: float | None = None
    n: int | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from: the paper, the repository (owner/name@commit:path) and its licence."""

    paper: str | None = None
    repository: str | None = None
    licence: str | None = None
    note: str | None = None
    reported: tuple[Reported, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """One model. `path` is the file it was read from, `origin` the folder in words, `table` the file's content for a snapshot.

    `gradient` is False where the card declares that no useful gradient reaches the input: plans then leave gradient attacks out.
    """

    name: str
    title: str
    dataset: str
    architecture: Architecture
    weights: Weights
    training: Training
    source: Origin
    parameters: int | None
    gradient: bool
    path: Path
    origin: str
    table: dict[str, Any] = field(repr=False, compare=False)


def parse(table: dict[str, Any], path: Path, origin: str = "file") -> Card:
    """The card in a TOML table that was read from `path`. Raises CardError."""
    table = copy.deepcopy(table)
    top = Table(table, str(path))
    if top.take("schema", int, required=True) != SCHEMA:
        raise CardError(f"{path}: schema={table['schema']}", expected=str(SCHEMA), fix="Update rbench, or the card.")
    card = Card(
        name=top.take("name", str, required=True, check=_is_name),
        title=top.take("title", str, required=True),
        dataset=top.take("dataset", str, required=True, check=_is_name),
        parameters=top.take("parameters", int, check=_is_positive),
        gradient=top.take("gradient", bool) is not False,
        architecture=_architecture(top.table_at("architecture", required=True)),
        weights=_weights(top.table_at("weights", required=True)),
        training=_training(top.table_at("training")),
        source=_source(top.table_at("source")),
        path=path,
        origin=origin,
        table=table,
    )
    top.finish()
    return card


def _architecture(table: Table) -> Architecture:
    factory = table.take("factory", str, required=True, check=_is_factory)
    scaling = _scaling(table)
    return Architecture(factory, table.rest(), scaling)


def _scaling(table: Table) -> Scaling | None:
    """`input = "0..1"` (or none) means the pixels as they are; `input = { mean = [...], std = [...] }` a layer that scales them."""
    if not isinstance(table.table.get("input"), dict):
        table.take("input", str, check=lambda text: None if text == "0..1" else '"0..1", or { mean = [...], std = [...] }')
        return None
    scale = table.table_at("input")
    mean, std = (tuple(scale.take(key, list, required=True, check=_are_numbers)) for key in ("mean", "std"))
    scale.finish()
    if len(mean) != len(std) or min(std) <= 0:
        raise scale.wrong("std", list(std), "one positive number per channel, as many as in mean")
    return Scaling(tuple(map(float, mean)), tuple(map(float, std)))


def _weights(table: Table) -> Weights:
    weights = Weights(
        sha256=table.take("sha256", str, required=True, check=_is_sha256),
        file=table.take("file", str, check=_is_weight_file),
        url=table.take("url", str, check=_is_https),
        original=_original(table.table_at("source")) if "source" in table.table else None,
        needs_mirror=table.take("needs_mirror", str),
    )
    table.finish()
    if weights.file is None and weights.url is None:
        raise CardError(f"{table.where}: weights has neither file nor url", expected="one of them")
    if weights.needs_mirror is not None and (weights.url or weights.original):
        raise CardError(f"{table.where}: weights.needs_mirror stands beside an address", expected="one or the other")
    return weights


def _original(table: Table) -> Original:
    original = Original(
        url=table.take("url", str, required=True, check=_is_https),
        sha256=table.take("sha256", str, required=True, check=_is_sha256),
        format=table.take("format", str, required=True, check=lambda text: None if text in FORMATS else f"one of: {', '.join(FORMATS)}"),
        entry=table.take("entry", str),
        prefix=table.take("prefix", str) or "",
    )
    table.finish()
    return original


def _training(table: Table) -> Training:
    training = Training(
        recipe=table.take("recipe", str, check=_is_name),
        seed=table.take("seed", int),
        epochs=table.take("epochs", int, check=_is_positive),
        threat=table.take("threat", str),
        command=table.take("command", str),
        summary=table.take("summary", str),
        budgets=table.take("budgets", str, check=_is_sha256),
    )
    table.finish()
    return training


def _source(table: Table) -> Origin:
    rows = table.take("reported", list) or []
    reported = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise table.wrong(f"reported[{i}]", row, "a table")
        reported.append(_reported(Table(row, table.where, f"{table.prefix}reported[{i}].")))
    texts = {key: table.take(key, str) for key in ("paper", "repository", "licence", "note")}
    table.finish()
    return Origin(reported=tuple(reported), **texts)


def _reported(table: Table) -> Reported:
    keys = ("robust_accuracy", "certified_accuracy", "clean_accuracy")
    accuracies = {key: table.take(key, float, check=_is_fraction) for key in keys}
    row = Reported(
        threat=table.take("threat", str),
        attack=table.take("attack", str),
        n=table.take("n", int, check=_is_positive),
        where=table.take("where", str),
        **accuracies,
    )
    table.finish()
    return row


def _is_name(text: str) -> str | None:
    return None if NAME.fullmatch(text) else "letters, digits, dots, dashes and underscores, at most 80"


def _is_positive(number: int) -> str | None:
    return None if number > 0 else "more than 0"


def _is_fraction(number: float) -> str | None:
    return None if 0 <= number <= 1 else "a fraction of 1, such as 0.802 for 80.2 %"


def _is_factory(text: str) -> str | None:
    module, _, name = text.rpartition(":")
    return None if module and name.isidentifier() else '"package.module:NAME" or "FILE.py:NAME"'


def _is_sha256(text: str) -> str | None:
    return None if SHA256.fullmatch(text) else "64 lower-case hex digits"


def _is_https(text: str) -> str | None:
    return None if text.startswith("https://") else "an https:// address"


def _is_weight_file(text: str) -> str | None:
    plain = text.endswith(".safetensors") and not any(c in text for c in "/\\") and not text.startswith(".")
    return None if plain else "the plain name of a .safetensors file, without folders"


def _are_numbers(values: list[Any]) -> str | None:
    return None if values and all(type(value) in (int, float) and math.isfinite(value) for value in values) else "a list of numbers"
