"""What a batch becomes: each scheme does what it says, and a recipe that asks for something else is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rbench.attacks.noise import Row
from rbench.attacks.pgd import PGD, Slide
from rbench.data import sources
from rbench.models import find
from rbench.training import loop
from rbench.training.adversaries import FULL, Average, Clean, Drawn, Harder, Inner, Single, Worst, adversary, shrunk
from rbench.training.loop import _radius
from rbench_core.catalogue import entries
from rbench_core.errors import CardError
from rbench_threats.catalogue import build, resolve
from rbench_threats.learned import Learned
from rbench_threats.lp import L1, Linf
from rbench_threats.spec import parse
from rbench_zoo import recipe as recipes
from rbench_zoo.recipe import read_recipe

SEED = 20
MEMBERS = (
    Inner((Linf(0.15),), lambda _: PGD(steps=3, rate=0.5), "linf"),  # neither is the worse one for every image: l1 for 17 of 64
    Inner((L1(2),), lambda _: Slide(steps=5, rate=0.3, share=0.05), "l1"),
)


@pytest.fixture(scope="module")
def batch() -> tuple[nn.Module, Tensor, Tensor]:
    data = sources.load("digits", n=64)
    return find("digits-standard").module.requires_grad_(False).eval(), data.x, data.y


def alone(net: nn.Module, x: Tensor, label: Tensor) -> list[Tensor]:
    return [member(net, x, label, SEED) for member in MEMBERS]


def loss(net: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    return functional.cross_entropy(net(x), label, reduction="none")


def test_max_takes_per_image_the_example_of_larger_loss(batch: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, label = batch
    found, same = Worst(MEMBERS).batch(net, x, label, SEED)
    first, second = alone(net, x, label)
    worse = loss(net, second, label) > loss(net, first, label)
    assert 5 < int(worse.sum()) < len(x) - 5
    assert torch.equal(found, torch.where(worse[:, None, None, None], second, first))
    assert torch.equal(same, label)


def test_harder_takes_per_image_itself_or_what_was_found(batch: tuple[nn.Module, Tensor, Tensor]) -> None:
    """In a learned set, which need not hold the clean image: a step of next to nothing finds easier images for some rows."""
    net, x, label = batch
    inner = Inner((Learned("digits-rts", "0.2"),), lambda _: PGD(steps=1, rate=0.1), "learned")
    found, same = Harder((inner,)).batch(net, x, label, SEED)
    other = inner(net, x, label, SEED)
    worse = loss(net, other, label) > loss(net, x, label)
    assert 5 < int(worse.sum()) < len(x) - 5
    assert torch.equal(found, torch.where(worse[:, None, None, None], other, x))
    assert torch.equal(same, label)


def test_avg_trains_on_every_member_and_its_gradient_is_the_mean_of_theirs(batch: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, label = batch
    found, labels = Average(MEMBERS).batch(net, x, label, SEED)
    assert len(found) == len(labels) == 2 * len(x)
    weights = [parameter.detach().clone().requires_grad_() for parameter in net.parameters()]
    names = [name for name, _ in net.named_parameters()]

    def gradient(images: Tensor, labels: Tensor) -> list[Tensor]:
        logits = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), images)
        return list(torch.autograd.grad(functional.cross_entropy(logits, labels), weights))

    first, second = (gradient(images, label) for images in alone(net, x, label))
    for both, one, other in zip(gradient(found, labels), first, second, strict=True):
        torch.testing.assert_close(both, (one + other) / 2, atol=1e-6, rtol=1e-4)
    assert any((one - other).abs().max() > 1e-4 for one, other in zip(first, second, strict=True))


def shares(foe: Drawn, draws: int = 10_000) -> float:
    return sum(foe.draw(seed) for seed in range(draws)) / draws


@pytest.mark.parametrize(
    ("right", "second"),
    [((90, 30), 7 / 8), ((100, 100), 1 / 2), ((0, 0), 1 / 2), ((100, 50), 1.0)],
    ids=["by error", "nothing errs", "all err", "one never errs"],
)
def test_eat_draws_the_member_by_its_running_error(right: tuple[int, int], second: float) -> None:
    foe = Drawn(MEMBERS)
    for member, hits in enumerate(right):
        foe.last = member
        foe.told(hits // 2, 50)
        foe.told(hits - hits // 2, 50)
    assert foe.odds().tolist() == pytest.approx([1 - second, second])
    assert shares(foe) == pytest.approx(second, abs=4 * np.sqrt(second * (1 - second) / 10_000))


def test_eat_starts_even_until_every_member_was_met() -> None:
    foe = Drawn(MEMBERS)
    foe.told(0, 100)  # member 0 alone was met, and errs always
    assert foe.odds().tolist() == [0.5, 0.5]


def test_eat_by_fixed_chances() -> None:
    foe = Drawn(MEMBERS, (1.0, 3.0))
    foe.told(100, 100)
    assert foe.odds().tolist() == [0.25, 0.75]
    assert shares(foe) == pytest.approx(0.75, abs=0.02)
    assert {Drawn(MEMBERS, (0.0, 3.0)).draw(seed) for seed in range(200)} == {1}


def test_eat_trains_on_the_member_drawn_and_books_what_it_is_told_there(batch: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, label = batch
    for seed in range(20):
        foe = Drawn(MEMBERS)
        found, same = foe.batch(net, x[:4], label[:4], seed)
        drawn = foe.draw(seed)
        assert torch.equal(found, MEMBERS[drawn](net, x[:4], label[:4], seed))
        assert torch.equal(same, label[:4])
        foe.told(3, 4)
        assert (foe.right[drawn], foe.seen[drawn], sum(foe.seen)) == (3, 4, 4)
        again = Drawn(MEMBERS)
        again.recall(foe.tally())
        assert (again.right, again.seen) == (foe.right, foe.seen)


def test_the_undefended_scheme_leaves_the_batch_alone(batch: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, label = batch
    assert Clean().batch(net, x, label, SEED) == (x, label)


@pytest.mark.parametrize("name", ["linf-at", "msd", "eat", "avg", "max"])
def test_a_smaller_radius_is_kept_by_every_scheme_and_used(name: str, batch: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, label = batch
    recipe = read_recipe(name, "digits")
    found, _ = adversary(recipe).batch(net, x, label, SEED, Fraction(1, 5))
    moved = (found - x.repeat(len(found) // len(x), 1, 1, 1)).flatten(1)
    members = resolve(str(recipe.threat), "digits").members
    row = Row(*(torch.zeros(len(moved), dtype=torch.long) for _ in range(6)))
    gauge = torch.stack([space.gauge(space.context(found, row), moved) for space in members]).amin(0)
    assert gauge.max() <= 0.2 + 1e-5
    assert gauge.max() > 0.19


def test_a_combination_shrinks_part_by_part_and_trains_over_all_splits(batch: tuple[nn.Module, Tensor, Tensor]) -> None:
    """A third of every radius; one row per image, and yet each image with a split of its own."""
    space = build(parse("affine(linf(eps=0.15), rotation-translation(degrees=30, shift=6/7))"))
    third = shrunk(space, Fraction(1, 3))
    assert str(third) == "affine(linf(eps=1/20), rotation-translation(degrees=10, shift=2/7), weights=uniform)"
    net, x, label = batch
    seen: list[Tensor] = []

    class Watched(PGD):
        def step(self, space: Any, ctx: Any, row: Row, state: Any, seen_: Any, phase: int) -> Any:
            seen.append(ctx.weight[:, 0])
            return PGD.step(self, space, ctx, row, state, seen_, phase)

    found = Inner((space,), lambda _: Watched(steps=3), "both")(net, x, label, SEED, Fraction(1, 3))
    assert len(set(seen[0].tolist())) == len(x)
    row = Row(*(torch.zeros(len(x), dtype=torch.long) for _ in range(6)))
    assert (third.excess(third.context(x, row), third.start(third.context(x, row), row)) <= 0).all()
    assert (loss(net, found, label) > loss(net, x, label)).float().mean() > 0.8


def test_the_radius_grows_linearly_over_the_warm_up() -> None:
    recipe = replace(read_recipe("linf-at", "digits"), warmup=2.0)
    assert [_radius(recipe, done) for done in (0.0, 0.1, 0.99, 1.0, 1.5, 1.999, 2.0, 9.0)] == [
        *(Fraction(n, 20) for n in (1, 1, 9, 10, 15, 19)),
        1,
        1,
    ]
    assert _radius(replace(recipe, warmup=0.0), 0.0) == 1


def test_the_loop_attacks_at_the_radius_of_the_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Fraction] = []
    recipe = replace(read_recipe("linf-at", "digits"), warmup=1.0, batch=650)

    def batch(self: Single, net: nn.Module, x: Tensor, label: Tensor, seed: int, scale: Fraction = FULL) -> tuple[Tensor, Tensor]:
        asked.append(scale)
        return x, label

    monkeypatch.setattr(loop, "read_recipe", lambda *_: recipe)
    monkeypatch.setattr(Single, "batch", batch)
    loop.train("linf-at", out=tmp_path, epochs=2)
    assert asked == [Fraction(1, 20), 1, 1, 1]  # 1,297 images: two batches, the last begins where one epoch is done


EAT = """name = "mine"
title = "mine"
summary = ""
source = ""
scheme = "eat"
attacks = ["pgd(steps=2)", "slide(steps=2)"]
[on.digits]
threat = "union(linf(eps=0.15), l1(eps=2))"
epochs = 2
batch = 64
rate = 0.003
factory = "rbench_zoo.architectures:SmallCNN"
arguments = { }
"""
BOTH = '["pgd(steps=2)", "slide(steps=2)"]'


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(recipes, "recipe_files", lambda: entries([("test", tmp_path)]))
    return tmp_path / "mine.toml"


def test_the_recipe_that_the_next_test_spoils_is_sound(written: Path) -> None:
    written.write_text(EAT)
    assert isinstance(adversary(read_recipe("mine", "digits")), Drawn)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"eat"', '"feast"', "scheme = 'feast'; expected one of: standard, adversarial, msd, avg, max, "),
        (BOTH, '["pgd(steps=2)"]', "1 attacks for scheme eat; expected one per member of a union, so two or more"),
        (BOTH, '"pgd(steps=2)"', r"attacks = 'pgd\(steps=2\)'; expected a list of strings"),
        ('"eat"', '"adversarial"', "2 attacks for scheme adversarial; expected 1"),
        ('"union(linf(eps=0.15), l1(eps=2))"', '"linf"', "2 attacks for the 1 members of linf; expected one attack per member"),
        ('"union(linf(eps=0.15), l1(eps=2))"', '"union-lp"', "2 attacks for the 3 members of union-lp; expected one attack per member"),
        ('threat = "union(linf(eps=0.15), l1(eps=2))"', "", "threat and scheme eat do not go together; expected a threat"),
        ('scheme = "eat"', 'scheme = "eat"\nchances = [-0.5, 1.5]', r"chances = \[-0.5, 1.5\].*one number from 0 on per attack"),
        ('scheme = "eat"', 'scheme = "eat"\nchances = [0, 0]', "not all 0"),
        ('scheme = "eat"', 'scheme = "eat"\nchances = [1]', "one number from 0 on per attack"),
        ('scheme = "eat"', 'scheme = "eat"\nchances = ["a", "b"]', "expected a list of numbers"),
        ('scheme = "eat"', 'scheme = "max"\nchances = [0.5, 0.5]', "chances = .* for scheme max; expected with scheme eat only"),
        ('"pgd(steps=2)"', '"pgd(steps=2, restarts=3)"', "expected an untargeted attack without restarts"),
        ('"pgd(steps=2)"', '"apgd(loss=dlr-targeted)"', "expected an untargeted attack without restarts"),
        (BOTH, '["slide(steps=2)", "pgd(steps=2)"]', r"slide\(steps=2\) on linf\(eps=0.15\); expected a set that is"),
        ("epochs = 2", "epochs = 0", "epochs = 0; expected a whole number from 1 on"),
        ("batch = 64", 'batch = "64"', "batch = '64'; expected a whole number from 1 on"),
        ("rate = 0.003", "rate = nan", "rate = nan; expected a learning rate above 0"),
        ("rate = 0.003", "rate = 0.003\nwarmup = -1", "warmup = -1; expected epochs, from 0 on"),
        ("rate = 0.003", "", "rate"),
        ("rate = 0.003", "rate = 0.003\nheat = 1", "heat"),
    ],
)
def test_a_recipe_that_asks_for_nonsense_is_refused_in_one_line(written: Path, old: str, new: str, told: str) -> None:
    assert EAT.count(old) == 1
    written.write_text(EAT.replace(old, new))
    with pytest.raises(CardError, match=told) as caught:
        adversary(read_recipe("mine", "digits"))
    assert "\n" not in str(caught.value)
    assert "mine" in str(caught.value)
