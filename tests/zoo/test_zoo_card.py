"""A card is data with types: what is wrong in it is refused with the file and the key."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rbench_core.errors import CardError
from rbench_zoo.card import Original, Reported, Scaling, parse

FULL = """
schema = 1
name = "digits-linf-at"
title = "Small CNN, linf adversarial training"
dataset = "digits"
parameters = 38282
gradient = false
[architecture]
factory = "rbench_zoo.architectures:SmallCNN"
channels = [16, 32]
input = { mean = [0.5], std = [0.25] }
[weights]
file = "digits-linf-at.safetensors"
url = "https://example.org/digits-linf-at.safetensors"
sha256 = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[weights.source]
url = "https://example.org/0123456/original.pt"
sha256 = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
format = "state-dict"
entry = "state_dict"
prefix = "module."
[training]
recipe = "linf-at"
seed = 0
epochs = 20
threat = "linf(eps=0.3)"
command = "rbench train linf-at --dataset digits --seed 0"
summary = "as in the paper"
[source]
paper = "arXiv:1706.06083"
repository = "owner/name@0123456:file.pth"
licence = "MIT"
note = "as published"
[[source.reported]]
threat = "linf(eps=0.3)"
attack = "PGD-40"
robust_accuracy = 0.5
certified_accuracy = 0
clean_accuracy = 1.0
n = 100
where = "T1"
"""
PATH = Path("folder/digits-linf-at.toml")


def full() -> dict[str, Any]:
    return tomllib.loads(FULL)


def keys(table: dict[str, Any], prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value and table of a card, but not the factory's own arguments."""
    for key, value in table.items():
        if (*prefix, key) == ("architecture", "channels"):
            continue
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from keys(value, (*prefix, key))
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from keys(value[0], (*prefix, key, 0))


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The full card with one value replaced."""
    table = full()
    place: Any = table
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return table


def refused(table: dict[str, Any]) -> str:
    with pytest.raises(CardError) as error:
        parse(table, PATH)
    line = str(error.value)
    assert "\n" not in line
    assert str(PATH) in line
    assert error.value.exit_code == 2
    return line


def test_every_value_of_a_card_arrives_in_its_type() -> None:
    card = parse(full(), PATH, "built in")
    assert (card.name, card.dataset, card.parameters, card.origin) == ("digits-linf-at", "digits", 38282, "built in")
    assert card.architecture.arguments == {"channels": [16, 32]}
    assert card.architecture.scaling == Scaling((0.5,), (0.25,))
    assert card.gradient is False
    assert card.weights.original == Original(
        "https://example.org/0123456/original.pt", "b" * 64, "state-dict", entry="state_dict", prefix="module."
    )
    assert (card.training.recipe, card.training.seed, card.training.epochs) == ("linf-at", 0, 20)
    assert card.source.reported == (Reported("linf(eps=0.3)", "PGD-40", 0.5, 0.0, 1.0, 100, "T1"),)
    assert type(card.source.reported[0].certified_accuracy) is float
    assert card.table == full()


def test_what_is_absent_is_unknown() -> None:
    table = full()
    del table["training"], table["source"], table["parameters"], table["weights"]["url"], table["architecture"]["input"]
    del table["gradient"], table["weights"]["source"]
    card = parse(table, PATH)
    assert (card.gradient, card.weights.original, card.weights.needs_mirror) == (True, None, None)
    assert (card.parameters, card.weights.url, card.training.recipe, card.source.paper, card.source.reported) == (
        None,
        None,
        None,
        None,
        (),
    )
    assert card.architecture.scaling is None
    assert parse(changed(("architecture", "input"), "0..1"), PATH).architecture.scaling is None


@pytest.mark.parametrize("path", [*keys(full())], ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_type_is_refused_by_its_key(path: tuple[str | int, ...]) -> None:
    """Whatever stands there: a number as a string, a string as a number, a bool as either, a list or a table in place of a value."""
    value: Any = full()
    for step in path:
        value = value[step]
    others = [
        str(value) if not isinstance(value, str) else 3,
        True if not isinstance(value, bool) else 1,
        [] if not isinstance(value, list) else {},
        {} if isinstance(value, list) else [1],
    ]
    for other in others:
        assert str(path[-1]) in refused(changed(path, other))


TABLES = [(), ("weights",), ("weights", "source"), ("training",), ("source",), ("source", "reported", 0), ("architecture", "input")]


@pytest.mark.parametrize("table", TABLES)
def test_an_unknown_key_is_refused_by_its_name(table: tuple[str | int, ...]) -> None:
    assert "robust_acc" in refused(changed((*table, "robust_acc"), 0.5))


REQUIRED = [
    ("schema",),
    ("name",),
    ("title",),
    ("dataset",),
    ("architecture", "factory"),
    ("weights", "sha256"),
    *(("weights", "source", key) for key in ("url", "sha256", "format")),
]


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_key_is_named(path: tuple[str, ...]) -> None:
    table = full()
    place = table
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    assert path[-1] in refused(table)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema",), 2, "Update"),
        (("name",), "../../etc", "letters"),
        (("name",), "<b>", "letters"),
        (("name",), "", "letters"),
        (("parameters",), 0, "more than 0"),
        (("architecture", "factory"), "SmallCNN", "module"),
        (("architecture", "input"), "0..255", "0..1"),
        (("architecture", "input", "std"), [0.0], "positive"),
        (("architecture", "input", "std"), [0.1, 0.1], "as many"),
        (("architecture", "input", "mean"), ["0.5"], "numbers"),
        (("architecture", "input", "mean"), [float("nan")], "numbers"),
        (("weights", "file"), "../secret.safetensors", "plain name"),
        (("weights", "file"), "weights.pt", "safetensors"),
        (("weights", "url"), "http://example.org/a.safetensors", "https"),
        (("weights", "url"), "file:///etc/passwd", "https"),
        (("weights", "sha256"), "A" * 64, "hex"),
        (("weights", "sha256"), "abc", "hex"),
        (("weights", "source", "url"), "http://example.org/a.pt", "https"),
        (("weights", "source", "sha256"), "abc", "hex"),
        (("weights", "source", "format"), "pickle", "one of: state-dict"),
        (("source", "reported", 0, "robust_accuracy"), 80.24, "fraction"),
        (("source", "reported", 0, "robust_accuracy"), float("nan"), "fraction"),
        (("source", "reported"), [3], "table"),
    ],
)
def test_values_that_cannot_be_are_refused(path: tuple[str | int, ...], value: Any, words: str) -> None:
    assert words in refused(changed(path, value))


def test_what_needs_the_mirror_has_no_address() -> None:
    assert "needs_mirror" in refused(changed(("weights", "needs_mirror"), "ten files were joined"))
    table = changed(("weights", "needs_mirror"), "ten files were joined")
    del table["weights"]["url"], table["weights"]["source"]
    assert parse(table, PATH).weights.needs_mirror == "ten files were joined"


def test_weights_need_a_place() -> None:
    table = full()
    del table["weights"]["url"], table["weights"]["file"]
    assert "neither file nor url" in refused(table)


def test_a_card_does_not_share_what_it_was_made_of() -> None:
    table = full()
    card = parse(table, PATH)
    before = copy.deepcopy(card)
    table["architecture"]["channels"].append(64)
    table["title"] = "another"
    assert (card, card.table) == (before, before.table)
