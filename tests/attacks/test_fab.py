"""FAB: where its steps land, what a success changes, where restarts begin, how near it gets, and that it finds what AutoAttack's finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from laws import truth
from laws.given import Given, given_images
from rbench.api import load_model
from rbench.attacks.build import build_attack, spec_of
from rbench.attacks.fab import FAB
from rbench.attacks.pgd import Position
from rbench.attacks.protocol import Seen
from rbench.attacks.sealed import library, sealed
from rbench.attacks.search import Examples, Search
from rbench.attacks.stage import part_of
from rbench.data import sources
from rbench_core.errors import SpecError
from rbench_threats.catalogue import build
from rbench_threats.lp import L1, L2, Linf
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spec import Call, parse

ROWS, P = 6, 16
BALLS = (Linf("0.02"), L2("0.1"), L1("0.3"))
ORDER = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}
published = pytest.mark.skipif(
    not (os.environ.get("RBENCH_WEIGHTS") and (Path(os.environ.get("RBENCH_DATA") or "nowhere") / "MNIST").is_dir()),
    reason="needs RBENCH_WEIGHTS, and RBENCH_DATA with MNIST",
)


def grey(space: PerturbationSet, restart: int = 0) -> Given:
    given = given_images(space, torch.full((ROWS, 1, 4, 4), 0.5))
    return Given(space, given.x, given.row._replace(restart=torch.full((ROWS,), restart)), given.ctx)


def seen(loss: Tensor, grad: Tensor | None) -> Seen:
    sound = torch.ones(len(loss), dtype=torch.bool)
    return Seen(torch.zeros(len(loss), 2), -loss, loss, sound, grad, sound)


def stepped(given: Given, theta: Tensor, told: Seen, phase: int) -> Tensor:
    return FAB().step(given.space, given.ctx, given.row, Position(theta), told, phase).theta


@pytest.mark.parametrize("space", BALLS, ids=str)
def test_from_the_image_a_step_lands_five_percent_beyond_the_plane(space: PerturbationSet) -> None:
    given = grey(space)
    w = torch.rand(ROWS, P, generator=torch.Generator().manual_seed(1)) - 0.3
    moved = stepped(given, torch.zeros(ROWS, P), seen(torch.full((ROWS,), -0.1), w), 0)
    torch.testing.assert_close((w * moved).sum(1), torch.full((ROWS,), 0.105), rtol=2e-4, atol=0)
    dual = torch.linalg.vector_norm(w, {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[space.family], dim=1)
    torch.testing.assert_close(torch.linalg.vector_norm(moved, ORDER[space.family], dim=1), 0.105 / dual, rtol=2e-4, atol=0)


def test_the_clean_image_pulls_with_at_most_a_tenth() -> None:
    """Beside the plane, far from the image: the step leaves nine tenths of the way there, and takes one of the way from the image."""
    given, w = grey(BALLS[1]), torch.zeros(ROWS, P)
    w[:, 0] = 1.0
    theta = torch.zeros(ROWS, P)
    theta[:, 0], theta[:, 1] = 0.1, 0.3
    moved = stepped(given, theta, seen(torch.full((ROWS,), -0.1), w), 0)  # at 0.2: as far from here as from 0, half each
    torch.testing.assert_close(moved[:, 0], torch.full((ROWS,), 0.9 * (0.1 + 1.05 * 0.1) + 0.1 * 1.05 * 0.2), rtol=2e-4, atol=0)
    torch.testing.assert_close(moved[:, 1], torch.full((ROWS,), 0.9 * 0.3), rtol=1e-5, atol=0)
    near = stepped(given, theta, seen(torch.full((ROWS,), -0.001), w), 0)
    assert (near[:, 1] > 0.295).all(), "a step of nearly no length may not be pulled far"


def test_what_fell_goes_back_and_nothing_else() -> None:
    given, theta = grey(BALLS[1]), torch.full((ROWS, P), 0.1)
    loss = torch.tensor([1.0, -1.0, 0.0, 0.5, -0.5, 2.0])
    moved = stepped(given, theta, seen(loss, None), 1)
    torch.testing.assert_close(moved[:, 0], torch.tensor([0.09, 0.1, 0.1, 0.09, 0.1, 0.09]))
    assert torch.equal(theta, torch.full((ROWS, P), 0.1)), "the state before is left alone"


def test_restarts_begin_at_random() -> None:
    first, other = (FAB(restarts=3).begin(BALLS[1], given.ctx, given.row).theta for given in (grey(BALLS[1]), grey(BALLS[1], restart=2)))
    assert not first.any()
    assert ((BALLS[1].gauge(grey(BALLS[1]).ctx, other) - 0.5).abs() < 1e-3).all()
    assert (other[0] != other[1]).any()


def test_its_spec_is_its_own_and_budgets_are_checked() -> None:
    made = build_attack(Call("fab", (), ()))
    assert made == FAB()
    assert build_attack(parse(spec_of(made))) == made  # type: ignore[arg-type]
    for wrong in ({"steps": 0}, {"restarts": 0}, {"back": 1.5}, {"bias": -0.1}, {"beyond": 0.9}, {"top": 0}):
        with pytest.raises(SpecError):
            FAB(**wrong)


@pytest.mark.parametrize("space", BALLS, ids=str)
def test_in_minimum_norm_mode_it_comes_within_a_percent(space: PerturbationSet) -> None:
    net, affine = truth.two_layers((1, 6, 6), 5, 3)
    examples = truth.at_distance(space, affine, net, 12, False, 5, (1, 6, 6))
    attack = FAB(steps=30, top=4)
    best = Search(net, space, attack, examples, spec=spec_of(attack), seed=0, width=64, nearest=True).run()
    assert (best.gauge >= 0.999).all()
    assert (best.gauge <= 1.01).all()


def clean_examples(net: nn.Module, count: int) -> Examples:
    data = sources.load("mnist", n=count)
    with torch.no_grad():
        clean = net(data.x)
    right = (clean.argmax(1) == data.y).nonzero().squeeze(1)
    return part_of(Examples(data.x, data.y, torch.arange(count), clean), right.tolist())


@published
def test_it_finds_what_autoattacks_finds() -> None:
    """On a net that masks its gradient in l2 (APGD leaves three quarters): nearly the same images, seeded, two targets each."""
    net, space = load_model("mnist-fast-pgd").requires_grad_(False), build(parse("l2(eps=2)"))
    examples, attack = clean_examples(net, 60), FAB(top=2)
    mine = Search(net, space, attack, examples, spec=spec_of(attack), seed=0, width=64).run().fell
    kind = library("pyautoattack.fab_pt").FABAttack_PT
    theirs = kind(net, norm="L2", n_iter=100, eps=2.0, seed=0, targeted=True, device="cpu", n_target_classes=2)
    with sealed(net, 0, examples.x.device):
        images = theirs.perturb(examples.x, examples.label)
    other = (net(images).argmax(1) != examples.label) & ((images - examples.x).flatten(1).norm(dim=1) <= 2.0 + 1e-5)
    assert int(other.sum()) > 45
    assert int((other & ~mine).sum()) <= 2
    assert int(mine.sum()) >= int(other.sum()) - 1
