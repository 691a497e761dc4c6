"""Certified training: the ramp, the weights to start from, gradients into the budgets, constant volume, honest bounds, matching cards."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rbench.attacks.lockstep import lockstep
from rbench.attacks.pgd import PGD
from rbench.certificates import ibp
from rbench.certificates.graph import trace
from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench.models import find
from rbench.training.adversaries import Moment, adversary
from rbench.training.certified import Bounded, Joint, smooth, spread_thin
from rbench.training.loop import train
from rbench_core.errors import CardError, DataError, UnknownName
from rbench_threats import cards
from rbench_threats.catalogue import resolve
from rbench_zoo import catalogue
from rbench_zoo import recipe as recipes
from rbench_zoo.architectures import Layers, SmallCNN
from rbench_zoo.recipe import read_recipe

ROOT = Path(catalogue.__file__).parent
TOGETHER = [("contextual", "budgets"), ("contextual-map", "budgets-map")]
DATASETS = ("digits", "mnist")


def held(dataset: str, n: int | None = None) -> Dataset:
    try:
        return sources.load(dataset, n=n)
    except DataError as error:
        pytest.skip(str(error))


def begun(name: str = "contextual") -> tuple[nn.Module, Bounded, Dataset]:
    torch.manual_seed(0)
    recipe, net = read_recipe(name, "digits"), find("digits-ibp").module
    foe = adversary(replace(recipe, start="ibp"))
    assert isinstance(foe, Bounded)
    foe.begin(net)
    return net, foe, sources.load("digits", split="train", n=64)


def test_the_ramp_is_continuous_with_one_slope_and_reaches_the_whole_radius() -> None:
    at = [smooth(done / 1000, 1.0, 4.0) for done in range(7000)]
    assert at[:1001] == [0.0] * 1001
    assert set(at[5000:]) == {1.0}
    steps = [b - a for a, b in pairwise(at)]
    assert min(steps) >= 0
    middle = 2000  # a quarter of the ramp after the warm-up
    assert steps[middle] == pytest.approx(steps[middle - 1], rel=0.01)
    assert max(steps) == pytest.approx(steps[4000], rel=1e-6)
    assert smooth(0.0, 0.0, 0.0) == 1.0
    assert smooth(0.5, 1.0, 0.0) == 0.0


def test_initial_weights_are_as_narrow_as_the_fan_in_asks() -> None:
    net = SmallCNN(channels=(64, 64), hidden=64)
    before = [parameter.clone() for parameter in net.parameters()]
    spread_thin(net)
    layers = [module for module in net if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers[1:-1]:
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / layer.weight[0].numel(), rel=0.05)
        assert (layer.bias == 0).all()
    assert torch.equal(layers[-1].weight, before[-2]), "the last layer keeps its own"


@pytest.mark.parametrize("name", ["contextual", "contextual-map"])
def test_the_budgets_learn_from_the_first_step_although_they_start_uniform(name: str) -> None:
    net, foe, data = begun(name)
    assert isinstance(foe, Joint)
    assert (foe.module(data.x) == torch.tensor(0.15)).all()
    foe.lesson(net, data.x, data.y, Moment(0, 0.0)).loss.backward()
    last = list(foe.module.parameters())[-2 if name == "contextual" else 0]
    assert last.grad is not None
    assert last.grad.abs().max() > 1e-6


def test_the_loss_falls_along_the_gradient_of_the_budgets_and_the_volume_stays() -> None:
    net, foe, data = begun()
    assert isinstance(foe, Joint)
    optimiser, losses = torch.optim.Adam(foe.module.parameters(), lr=0.003), []
    for step in range(12):
        loss = foe.lesson(net, data.x, data.y, Moment(step, 0.0)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        eps = foe.module(data.x).detach()
        assert ((eps.double().log().flatten(1).mean(1) - math.log(0.15)).abs() < 1e-6).all()
    assert losses[-1] < 0.9 * losses[0]
    assert eps.std() > 0.001


def test_the_loss_is_clean_and_verified_cross_entropy_in_the_shares_of_the_hour() -> None:
    """Written out again, half-way up the ramp."""
    net, _, data = begun()
    recipe = replace(read_recipe("ibp", "digits"), warmup=0.0, ramp=2.0, kappa=0.2)
    foe = adversary(replace(recipe, start="ibp"))
    foe.begin(net)
    share = smooth(1.0, 0.0, 2.0)
    lesson = foe.lesson(net, data.x, data.y, Moment(0, 1.0))
    eps, graph = 0.15 * share, trace(net, (1, 8, 8))
    worst = ibp.margins(graph, (data.x - eps).clamp_min(0), (data.x + eps).clamp_max(1), data.y)
    verified = (1 + (-worst).exp().sum(1)).log().mean()
    kappa = 1 - share * 0.8
    expected = kappa * functional.cross_entropy(net(data.x), data.y) + (1 - kappa) * verified
    assert 0.1 < share < 0.9
    assert lesson.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert foe.tally()["certified"] == pytest.approx((worst > 0).all(1).float().mean().item(), abs=1 / 64)
    assert foe.tally() == {}, "counted per epoch"


def test_batch_norm_bounds_see_the_statistics_of_the_clean_batch() -> None:
    """At radius 0 the margins are those of the train-mode logits, not those of the running statistics; these move once."""
    torch.manual_seed(0)
    net = Layers([["conv", 4, 3, 1, 1], ["batchnorm"], ["relu"], ["flatten"], ["linear", 10]], (1, 8, 8))
    data, recipe = sources.load("digits", split="train", n=32), read_recipe("ibp", "digits")
    arguments = {"shape": [1, 8, 8]}
    foe = adversary(replace(recipe, threat="linf(eps=0.000001)", arguments=arguments, warmup=0.0, ramp=0.0))
    foe.begin(net)
    before = net[1].running_mean.clone()  # type: ignore[operator,union-attr]
    lesson = foe.lesson(net, data.x, data.y, Moment(0, 0.0))
    moved = net[1].running_mean.clone()  # type: ignore[operator,union-attr]
    twin = net.train()(data.x)
    torch.testing.assert_close(lesson.logits, twin, rtol=1e-4, atol=1e-5)
    assert lesson.loss.item() == pytest.approx(functional.cross_entropy(twin, data.y).item(), rel=1e-3)
    mean = nn.Sequential(net[0])(data.x).mean((0, 2, 3)).detach()
    torch.testing.assert_close(moved, 0.9 * before + 0.1 * mean)


@pytest.mark.parametrize("name", ["ibp", "contextual"])
def test_above_the_radius_means_a_wider_box(name: str) -> None:
    net, _, data = begun()
    recipe = replace(read_recipe(name, "digits"), start="ibp", warmup=0.0, ramp=0.0)
    losses = []
    for above in (1.0, 1.2):
        foe = adversary(replace(recipe, above=above))
        foe.begin(net)
        losses.append(foe.lesson(net, data.x, data.y, Moment(0, 0.0)).loss.item())
    eps = 0.15 * 1.2
    worst = ibp.margins(trace(net, (1, 8, 8)), (data.x - eps).clamp_min(0), (data.x + eps).clamp_max(1), data.y)
    assert losses[1] == pytest.approx((1 + (-worst).exp().sum(1)).log().mean().item(), rel=1e-3)
    assert losses[1] > 1.2 * losses[0]


def test_a_threat_that_is_no_box_is_refused() -> None:
    recipe = read_recipe("ibp", "digits")
    for threat in ("l2", "union(linf(eps=0.1), l2(eps=1))"):
        with pytest.raises(CardError, match="one set that is a box"):
            adversary(replace(recipe, threat=threat))


def test_recipe_tables_that_make_no_sense_are_refused() -> None:
    table = {"scheme": "ibp-budgets", "threat": "contextual(x)"} | {
        key: getattr(read_recipe("contextual", "digits"), key)
        for key in ("name", "title", "summary", "source", "dataset", "epochs", "batch", "rate", "factory", "arguments", "budgets")
    }
    good = recipes._checked(dict(table), Path("r.toml"))
    assert good.budgets["form"] == "generator"
    for change, told in (
        ({"budgets": {**good.budgets, "volume": "0.15"}}, "budgets"),
        ({"budgets": {key: value for key, value in good.budgets.items() if key != "low"}}, "budgets"),
        ({"scheme": "ibp"}, "budgets"),
        ({"scheme": "adversarial", "attacks": ["pgd"], "budgets": {}, "kappa": 0.5}, "kappa"),
        ({"kappa": 2}, "kappa"),
        ({"falls": [1.5]}, "falls"),
        ({"ramp": -1}, "ramp"),
        ({"above": 0.9}, "above"),
        ({"scheme": "adversarial", "attacks": ["pgd"], "budgets": {}, "above": 1.1}, "above"),
    ):
        with pytest.raises(CardError, match=told):
            recipes._checked({**table, **change}, Path("r.toml"))


def test_a_recipe_that_starts_from_another_net_or_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = read_recipe("ibp-longer", "digits")
    for change, error in (({"start": "linf-at-wide"}, CardError), ({"start": "never"}, UnknownName)):
        monkeypatch.setattr("rbench.training.loop.read_recipe", lambda *_, change=change: replace(good, **change))
        with pytest.raises(error):
            train("ibp-longer", out=tmp_path, epochs=1)


def test_training_writes_net_and_budgets_that_know_each_other(tmp_path: Path) -> None:
    path = train("contextual", out=tmp_path, epochs=1, name="fresh")
    made = cards.load("budgets", str(tmp_path / "digits-budgets.toml"))
    text = path.read_text()
    assert f'budgets = "{made.sha256}"' in text
    assert made.table["training"]["model_sha256"] in text
    assert made.table["quality"]["volume"] == pytest.approx(0.15, abs=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "digits-budgets.safetensors", "digits-budgets.toml", "fresh.log.jsonl", "fresh.safetensors", "fresh.toml",
    ]  # fmt: skip


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(("recipe", "budgets"), TOGETHER)
def test_the_shipped_net_and_its_budgets_know_each_other(dataset: str, recipe: str, budgets: str) -> None:
    card, made = catalogue.find(f"{dataset}-{recipe}"), cards.load("budgets", f"{dataset}-{budgets}")
    assert card.training.budgets == made.sha256  # type: ignore[union-attr]
    assert card.training.threat == f"contextual({dataset}-{budgets})"  # type: ignore[union-attr]
    assert (made.table["training"]["model"], made.table["training"]["model_sha256"]) == (card.name, card.weights.sha256)  # type: ignore[union-attr]
    given = read_recipe(recipe, dataset).budgets
    assert made.table["budget"] == {key: given[key] for key in ("form", "volume", "low", "high")}
    assert made.table["quality"]["volume"] == pytest.approx(given["volume"], abs=1e-5)


def proved(net: nn.Module, spec: str, data: Dataset) -> Tensor:
    """Which rows interval bounds certify."""
    (space,) = resolve(spec).members
    lower, upper = space.box(space.context(data.x, _rows(len(data))))  # type: ignore[attr-defined]
    return (ibp.margins(trace(net, data.shape), lower, upper, data.y) > 0).all(1)


def _rows(count: int) -> object:
    from rbench.attacks.noise import Row

    index, zero = torch.arange(count), torch.zeros(count, dtype=torch.long)
    return Row(index, zero, zero, zero, zero, zero)


@pytest.mark.parametrize(("dataset", "n"), [("digits", 500), ("mnist", 1000)])
@pytest.mark.parametrize("recipe", ["ibp", "contextual"])
def test_verified_error_is_never_below_that_of_an_attack(dataset: str, n: int, recipe: str) -> None:
    data, found = held(dataset, n), find(f"{dataset}-{recipe}")
    net, spec = found.module.eval().requires_grad_(False), str(found.source["card"]["training"]["threat"])
    (space,) = resolve(spec).members
    x = lockstep(net, space, PGD(steps=20, rate=0.25), data.x, data.y, spec="pgd", seed=0)
    held_up, sure = net(x).argmax(1) == data.y, proved(net, spec, data)
    assert not (sure & ~held_up).any(), "a certified example fell"
    assert sure.float().mean() > 0.7, "trained for it"
    assert (~held_up).any(), "an attack that never wins tells nothing"


@pytest.mark.parametrize("dataset", DATASETS)
def test_at_equal_volume_context_certifies_more_than_equal_budgets_and_than_one_map(dataset: str) -> None:
    data = held(dataset, 1000)
    share = {
        recipe: proved(find(f"{dataset}-{recipe}").module.eval(), spec, data).float().mean().item()
        for recipe, spec in (
            ("ibp-longer", str(resolve("linf", dataset))),
            ("contextual-map", f"contextual({dataset}-budgets-map)"),
            ("contextual", f"contextual({dataset}-budgets)"),
        )
    }
    assert share["ibp-longer"] + 0.02 < share["contextual-map"] < share["contextual"], share


@pytest.mark.parametrize("name", [f"{dataset}-{recipe}" for dataset in DATASETS for recipe in ("ibp", "contextual")])
def test_the_log_says_what_was_certified_in_each_epoch(name: str) -> None:
    *epochs, _ = [json.loads(line) for line in (ROOT / "logs" / f"{name}.log.jsonl").read_text().splitlines()]
    assert epochs[-1]["certified"] > 0.7
