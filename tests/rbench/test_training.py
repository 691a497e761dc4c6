"""Training by recipe: every recipe runs, the same seed gives the same weights, a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rbench.attacks.lockstep import lockstep
from rbench.attacks.msd import MSD
from rbench.attacks.noise import Row
from rbench.attacks.pgd import PGD
from rbench.data import sources
from rbench.models import find
from rbench.training import loop
from rbench.training.loop import train
from rbench_core.errors import TrainingError, UnknownName, UsageError
from rbench_threats.composite import Union
from rbench_threats.lp import L1, L2, Linf
from rbench_zoo import recipe as recipes

ALL = [row["name"] for row in recipes.listing()]


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_gives_weights_card_and_log_that_the_zoo_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = train(name, out=tmp_path, epochs=1, name="fresh")
    monkeypatch.setenv("RBENCH_REGISTRY", str(tmp_path))
    found = find("fresh")
    assert found.dataset == "digits"
    log = [json.loads(line) for line in (tmp_path / "fresh.log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log[:-1]] == [1]
    data = sources.load("digits")
    with torch.no_grad():
        assert (found.module(data.x).argmax(1) == data.y).float().mean().item() == pytest.approx(log[-1]["clean_test_accuracy"])
    assert sorted(path.name for path in tmp_path.glob("fresh*")) == ["fresh.log.jsonl", "fresh.safetensors", card.name]


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train("linf-at", out=tmp_path / folder, epochs=1, seed=seed, name="net")
    one, same, other = ((tmp_path / folder / "net.safetensors").read_bytes() for folder in "abc")
    assert one == same != other


@pytest.mark.parametrize("recipe", ["standard", "eat"])
def test_a_training_that_was_stopped_goes_on(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe, out=tmp_path / "whole", epochs=2, name="net")
    whole, epochs = loop._epoch, 0

    def stopped(*args: object) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            raise KeyboardInterrupt
        whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "cut", epochs=2, name="net")
    with pytest.raises(TrainingError, match="another recipe, seed or number of epochs"):
        train(recipe, out=tmp_path / "cut", epochs=2, name="net", seed=5)
    monkeypatch.setattr(loop, "_epoch", whole)
    train(recipe, out=tmp_path / "cut", epochs=2, name="net")
    assert (tmp_path / "cut" / "net.safetensors").read_bytes() == (tmp_path / "whole" / "net.safetensors").read_bytes()
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")  # what `eat` counts is in them


def lines(folder: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (folder / "net.log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]


def test_unknown_recipes_and_data_sets_are_refused() -> None:
    with pytest.raises(UnknownName, match="linf-at"):
        train("linf-att")
    with pytest.raises(UsageError, match="not written for cifar10"):
        train("msd", dataset="cifar10")


def test_the_inner_attack_stays_in_its_set_and_does_more_harm_than_noise() -> None:
    data = sources.load("digits", n=64)
    net = find("digits-standard").module.requires_grad_(False)
    space = Linf(0.15)
    found = lockstep(net, space, PGD(steps=10, rate=0.25), data.x, data.y, spec="pgd", seed=0)
    assert (found - data.x).abs().max() <= 0.15 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    noisy = (data.x + 0.15 * torch.randn(data.x.shape, generator=torch.Generator().manual_seed(0)).sign()).clamp(0, 1)
    assert (net(found).argmax(1) == data.y).float().mean() < (net(noisy).argmax(1) == data.y).float().mean() - 0.3


@pytest.mark.parametrize("order", [0, 1, 2])
def test_msd_stays_in_the_union_whatever_the_order_of_its_members(order: int) -> None:
    sets = (Linf(0.15), L2(0.75), L1(2))
    members = Union(sets[order:] + sets[:order]).members
    data = sources.load("digits", n=32)
    net = find("digits-standard").module.requires_grad_(False)
    found = lockstep(net, members[0], MSD(members, (0.15, 0.15, 0.15), steps=10), data.x, data.y, spec="msd", seed=0)
    theta = (found - data.x).flatten(1)
    row = Row(*(torch.zeros(32, dtype=torch.long) for _ in range(6)))
    inside = [space.excess(space.context(data.x, row), theta) <= 1e-6 for space in sets]
    assert torch.stack(inside).any(0).all()
    assert (net(found).argmax(1) == data.y).float().mean() < 0.5
