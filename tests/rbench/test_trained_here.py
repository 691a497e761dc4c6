"""The models that we trained: card, weights, recipe, log and the manual's table tell the same, and each defence defends."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from docs.pages import ROOT
from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench.models import find
from rbench.training.adversaries import Drawn, adversary
from rbench_core.errors import DataError
from rbench_core.files import sha256_bytes
from rbench_threats.catalogue import resolve
from rbench_zoo import catalogue
from rbench_zoo.card import Card
from rbench_zoo.recipe import Recipe, read_recipe

PACKAGE = Path(catalogue.__file__).parent
TRAINED = sorted(path.name.removesuffix(".log.jsonl") for path in (PACKAGE / "logs").glob("*.log.jsonl"))
LARGEST = 1_000_000  # bytes of weights


def read(name: str) -> tuple[Card, Recipe]:
    card = catalogue.find(name)
    return card, read_recipe(str(card.training.recipe), card.dataset)


def log(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PACKAGE / "logs" / f"{name}.log.jsonl").read_text().splitlines()]


def held(dataset: str, n: int | None = None) -> Dataset:
    try:
        return sources.load(dataset, n=n)
    except DataError as error:  # no files here, and none to be had
        pytest.skip(str(error))


@cache
def table() -> dict[str, list[str]]:
    """The rows of docs/recipes.md's table of models, by name."""
    rows = re.findall(r"^\| `((?:digits|mnist)-[\w-]+)` \|( `.+)\|$", (ROOT / "docs" / "recipes.md").read_text(), re.MULTILINE)
    return {name: [cell.strip().strip("`") for cell in cells.split("|")] for name, cells in rows}


def test_ten_models_of_digits_and_five_or_more_of_mnist_were_trained_here() -> None:
    assert sum(name.startswith("digits-") for name in TRAINED) >= 10
    assert sum(name.startswith("mnist-") for name in TRAINED) >= 5
    ours = [row["name"] for row in catalogue.listing() if catalogue.find(row["name"]).training.recipe is not None]
    assert sorted(name for name in ours if catalogue.find(name).path.parent == PACKAGE / "cards") == TRAINED


@pytest.mark.parametrize("name", TRAINED)
def test_the_card_is_what_the_recipe_says(name: str) -> None:
    card, recipe = read(name)
    assert name == f"{card.dataset}-{recipe.name}"
    assert (card.architecture.factory, card.architecture.arguments) == (recipe.factory, recipe.arguments)
    assert card.training.epochs == recipe.epochs
    assert card.training.threat == (str(resolve(recipe.threat, recipe.dataset)) if recipe.threat is not None else None)
    assert card.training.command == f"rbench train {recipe.name} --dataset {recipe.dataset} --seed {card.training.seed}"
    weights = (PACKAGE / "weights" / str(card.weights.file)).read_bytes()
    assert card.weights.sha256 == sha256_bytes(weights)
    assert len(weights) < LARGEST


@pytest.mark.parametrize("name", TRAINED)
def test_the_log_is_whole_and_ends_with_the_accuracy_that_the_weights_have(name: str) -> None:
    card, recipe = read(name)
    *epochs, last = log(name)
    assert [row["epoch"] for row in epochs] == list(range(1, recipe.epochs + 1))
    foe = adversary(recipe)
    if isinstance(foe, Drawn):
        foe.recall(epochs[-1])
        size = sources.find(card.dataset).train
        assert sum(foe.seen) == size * recipe.epochs
    data = held(card.dataset)
    assert accuracy(find(name).module, data.x, data.y) == pytest.approx(last["clean_test_accuracy"], abs=1.5 / len(data))


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return sum(int((net(part).argmax(1) == label).sum()) for part, label in zip(x.split(500), y.split(500), strict=True)) / len(y)


@pytest.mark.parametrize("name", [name for name in TRAINED if read(name)[1].threat is not None])
def test_a_defended_net_stands_where_the_undefended_one_falls(name: str) -> None:
    """By the recipe's own inner attack on test images: no figure for a board, but a net that learnt nothing does not pass."""
    card, recipe = read(name)
    data = held(card.dataset, n=100)
    for inner in adversary(recipe).inner:
        defended, bare = (
            accuracy(net, inner(net, data.x, data.y, 0), data.y)
            for net in (find(other).module.requires_grad_(False) for other in (name, f"{card.dataset}-standard"))
        )
        gained = 0.05 if "random(draws=1," in inner.spec else 0.2  # one draw is no search, and breaks few of the undefended
        assert defended > bare + gained, inner.spec


@pytest.mark.parametrize("name", TRAINED)
def test_the_manual_tells_each_model_as_its_log_does(name: str) -> None:
    card, recipe = read(name)
    *epochs, last = log(name)
    told = table()[name]
    seconds = sum(row["epoch_seconds"] for row in epochs)
    assert told[:5] == [
        recipe.name,
        str(card.training.seed),
        str(recipe.epochs),
        f"{seconds:.0f}",
        f"{100 * last['clean_test_accuracy']:.1f}",
    ]


def test_the_manual_tells_of_no_other_model_and_its_command_makes_them_all() -> None:
    assert sorted(table()) == TRAINED
    (loop,) = re.findall(r"^for model in (.+); do (.+); done$", (ROOT / "docs" / "recipes.md").read_text(), re.MULTILINE)
    assert sorted(loop[0].split()) == TRAINED
    assert loop[1] == "rbench train ${model#*-} --dataset ${model%%-*} --seed 0 --out zoo"
