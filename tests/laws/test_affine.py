"""Combinations: shares of the budget, the parts' own searches bit for bit, noise before the warp, and what theory says of linear models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rbench
from laws import attack_laws, set_laws
from laws.entries import entries
from laws.given import Given, given_batch, given_images, images, members, rows
from laws.runs import of_members, run, statuses
from rbench.attacks.apgd import APGD
from rbench.attacks.noise import Row
from rbench.attacks.pgd import PGD
from rbench.models import find
from rbench_core.errors import SpecError
from rbench_results.figures import FALLEN
from rbench_threats.affine import Affine, Mixed
from rbench_threats.boxes import Linf
from rbench_threats.catalogue import build
from rbench_threats.composite import Union
from rbench_threats.lp import L1, L2
from rbench_threats.protocol import PerturbationSet, Scale, resized
from rbench_threats.spatial import RotationTranslation
from rbench_threats.spec import Exact, parse

DIGITS = (1, 8, 8)
RT = "rotation-translation(degrees=30, shift=6/7)"
MORE = [  # beside the presets: fixed weights, a warp in front, three parts, a part without budget
    "affine(linf(eps=0.15), l1(eps=2), weights=fixed(1/3, 2/3))",
    f"affine({RT}, linf(eps=0.15), l2(eps=0.75), weights=fixed(0.5, 0.25, 0.25))",
    f"affine(l2(eps=0.75), {RT}, l1(eps=2), weights=uniform)",
    "affine(linf(eps=0.15), l2(eps=0.75), weights=fixed(0, 1))",
]
PRESETS = [(entry.space, entry.shape) for entry in entries() if "blocks" in entry.space.capabilities]
SMALL = [(space, shape) for space, shape in PRESETS if shape == DIGITS]


def affine(spec: str) -> Affine:
    found = build(parse(spec))
    assert isinstance(found, Affine)
    return found


@pytest.mark.parametrize("spec", MORE)
@pytest.mark.parametrize("law", [*set_laws.LAWS, *set_laws.SCALED_LAWS], ids=lambda law: law.__name__)
def test_combinations_without_a_preset_obey_the_laws_of_sets(law: Callable[..., None], spec: str) -> None:
    scales: list[tuple[float, ...]] = [(0.1,), (30.0,)] if law in set_laws.SCALED_LAWS else [()]
    for scale in scales:
        law(given_batch(affine(spec), DIGITS, 1), 1, *scale)


@pytest.mark.parametrize("spec", MORE)
def test_gradients_and_specs_without_a_preset(spec: str) -> None:
    set_laws.law_gradient_flows(affine(spec), DIGITS, 0)
    set_laws.law_specs_round_trip(affine(spec))


def law_a_part_with_all_the_budget_searches_as_if_it_were_alone(space: Affine, shape: tuple[int, int, int], place: int) -> None:
    """Bit for bit, at every look of PGD and APGD: the same start, the same steps; the other parts stay at 0."""
    part = space.parts[place]
    for attack in (PGD(steps=6), APGD(steps=30)):
        alone = attack_laws.begun(attack, part, shape, 3)
        row = alone.row._replace(restart=torch.full_like(alone.row.restart, place + 1))
        whole = Given(space, alone.x, row, space.context(alone.x, row))
        (block,) = [b for b in space.blocks(whole.ctx) if b.space is part and (b.weight == 1).all()]
        others = torch.arange(whole.parameters)
        others = others[(others < block.columns.start) | (others >= block.columns.stop)]
        apart = attack_laws.trajectory(attack, Given(part, alone.x, row, part.context(alone.x, row)), 12)
        for (theta, _), (own, _) in zip(attack_laws.trajectory(attack, whole, 12), apart, strict=True):
            assert torch.equal(theta[:, block.columns], own), "a part that has all the budget goes another way than alone"
            assert not theta[:, others].any(), "a part without budget moved"


@pytest.mark.parametrize(("space", "shape"), PRESETS, ids=str)
@pytest.mark.parametrize("place", [0, 1])
def test_unit_weights_are_the_parts(space: Affine, shape: tuple[int, int, int], place: int) -> None:
    law_a_part_with_all_the_budget_searches_as_if_it_were_alone(space, shape, place)


@pytest.mark.parametrize("place", [0, 1])
def test_fixed_unit_weights_are_the_parts(place: int) -> None:
    for space, shape in SMALL:
        unit = Affine(space.parts, (Exact(1 - place), Exact(place)))
        law_a_part_with_all_the_budget_searches_as_if_it_were_alone(unit, shape, place)
        given = given_batch(unit, shape, 0)
        assert torch.equal(unit.gauge(given.ctx, members(given, 0)), _part_of(unit, given, place, "gauge"))
        assert torch.equal(unit.render(given.ctx, members(given, 0)), _part_of(unit, given, place, "render"))


def _part_of(space: Affine, given: Given, place: int, method: str) -> Tensor:
    block = space.blocks(given.ctx)[place]
    found: Tensor = getattr(block.space, method)(block.ctx, members(given, 0)[:, block.columns])
    return found


def law_parts_do_not_share_noise(space: Affine, shape: tuple[int, int, int]) -> None:
    """Two equal parts that both have budget start at places that have nothing to do with each other."""
    given = given_images(space, 0.5 + 0 * images(shape, 24, 0), 0)
    first, second = (space.start(given.ctx, given.row)[:, block.columns] for block in space.blocks(given.ctx))
    mixed = (given.ctx.weight < 1).all(1)
    apart = torch.nn.functional.cosine_similarity(first[mixed], second[mixed])
    assert mixed.sum() > 8
    assert (apart.abs() < 0.6).all(), "the parts share their noise"


def test_parts_do_not_share_noise() -> None:
    law_parts_do_not_share_noise(affine("affine(linf(eps=0.1), linf(eps=0.1))"), DIGITS)


def test_weights_are_drawn_flat_per_example_and_restart_and_the_units_are_among_them() -> None:
    space = affine("affine(linf(eps=0.15), l2(eps=0.5), l1(eps=2))")
    count = 3000
    row = rows(count)._replace(restart=torch.arange(count) % 10)
    weight = space.context(torch.zeros(count, *DIGITS), row).weight.double()
    torch.testing.assert_close(weight.sum(1), torch.ones(count, dtype=torch.float64), atol=1e-6, rtol=0)
    for place in range(3):
        lone = weight[row.restart == place + 1]
        assert (lone[:, place] == 1).all()
    drawn = weight[(row.restart == 0) | (row.restart > 3)]
    assert len({tuple(one) for one in drawn.tolist()}) == len(drawn)
    for share in (0.1, 0.3, 0.6):  # a flat Dirichlet of three: P(β ≤ s) = 1 − (1 − s)²
        seen = (drawn <= share).double().mean(0)
        known = 1 - (1 - share) ** 2
        assert ((seen - known).abs() < 4 * np.sqrt(known * (1 - known) / len(drawn))).all()


def test_every_part_keeps_its_share_and_linf_with_l1_their_hull() -> None:
    """The hull's gauge in closed form: of all cuts of θ at a level t, the least t/ε∞ + Σ(|θ| − t)₊/ε₁."""
    (space,) = [space for space, _ in SMALL if space.parts[1].family == "l1"]
    given = given_batch(space, DIGITS, 0)
    radii = [float(part.extent["eps"]) for part in space.parts]
    for theta in (space.start(given.ctx, given.row), members(given, 1), space.project(given.ctx, 30 * members(given, 2))):
        for block in space.blocks(given.ctx):
            assert (block.space.gauge(block.ctx, theta[:, block.columns]) <= block.weight * (1 + 2e-6)).all()
        moved = (space.render(given.ctx, theta) - given.x).flatten(1).double().abs()
        levels = torch.cat([moved, torch.zeros(len(moved), 1)], 1)
        cost = levels / radii[0] + (moved[:, None] - levels[:, :, None]).clamp_min(0).sum(2) / radii[1]
        assert (cost.amin(1) <= 1 + 1e-5).all()


def law_noise_comes_before_the_warp(space: Affine) -> None:
    """Noise on the last column is shifted out of the image with it; noise on the first moves along with its image."""
    given = given_images(space, torch.zeros(24, 1, 6, 6), 0)
    noise, warp = (block.columns for block in space.blocks(given.ctx))
    theta = torch.zeros(24, given.parameters)
    theta[:, warp] = torch.tensor([0.0, 1.0, 0.0])
    for column in (0, 5):
        theta[:, noise] = 0.1 * (torch.arange(36) % 6 == column)
        shown = space.render(given.ctx, theta)
        known = torch.zeros(6, 6)
        if column == 0:
            known[:, 1] = 0.1
        torch.testing.assert_close(shown, known.expand(24, 1, 6, 6), atol=1e-6, rtol=0)
    theta[:, noise] = 0.1
    (grad,) = torch.autograd.grad(space.render(given.ctx, theta.requires_grad_()).sum(), theta)
    assert torch.equal(grad[0, noise] != 0, torch.arange(36) % 6 < 5), "the gradient does not go through the warp"


def test_noise_comes_before_the_warp_wherever_it_stands() -> None:
    law_noise_comes_before_the_warp(affine("affine(linf(eps=0.15), rotation-translation(degrees=30, shift=2))"))
    first = affine("affine(rotation-translation(degrees=30, shift=2), linf(eps=0.15))")
    second = Affine(first.parts[::-1])
    given, turned = given_batch(first, DIGITS, 0), given_batch(second, DIGITS, 0)
    theta = members(given, 0)
    torch.testing.assert_close(second.render(turned.ctx, theta.roll(-3, 1)), first.render(given.ctx, theta), atol=0, rtol=0)


def test_on_linear_models_without_a_box_the_combination_is_the_union() -> None:
    """max over β of Σ βᵢ εᵢ ‖w‖ is reached at a unit vector (Tramèr & Boneh 2019, sec. 4): by formula, and by the steepest member."""
    space = affine("affine(linf(eps=0.02), l2(eps=0.1), l1(eps=0.3))")
    radii = {"linf": (0.02, 1), "l2": (0.1, 2), "l1": (0.3, np.inf)}
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        w = torch.randn(64, generator=random) * torch.rand(64, generator=random) ** 3
        best = [eps * float(torch.linalg.vector_norm(w.double(), dual)) for eps, dual in radii.values()]
        given = given_images(space, torch.full((40, *DIGITS), 0.5), 0)
        reach = (space.steepest(given.ctx, w.repeat(40, 3)) * w.repeat(40, 3)).double().sum(1)
        assert reach.max() == pytest.approx(max(best), rel=1e-6)
        torch.testing.assert_close(reach, given.ctx.weight.double() @ torch.tensor(best, dtype=torch.float64), rtol=1e-5, atol=0)


W7 = torch.tensor([0.6, 0.6, 0.6, 1.0, 0.6, 0.6, 0.6])


def test_the_seven_pixels_where_it_is_more_than_the_union() -> None:
    """One bright pixel of seven, w·x > 0.5; no box: worst by a shift +0.100, by noise +0.050, by both −0.161 at a third for the shift."""
    eps, warp = 0.45 / float(W7.sum()), RotationTranslation(0, 3)
    x = torch.zeros(1, 1, 7, 7)
    x[..., 3] = 1.0  # all rows alike: shifts up and down leave the middle row as it is

    def worst(share: float) -> float:
        shifts = torch.linspace(-3 * share, 3 * share, 121)
        noisy = (x - (1 - share) * eps).expand(121, 1, 7, 7)
        moved = warp.warp(noisy, torch.stack([0 * shifts, shifts, 0 * shifts], 1))
        return float((moved[:, 0, 3] @ W7 - 0.5).min())

    assert worst(1.0) == pytest.approx(0.100, abs=5e-4)
    assert worst(0.0) == pytest.approx(0.050, abs=5e-4)
    assert worst(1 / 3) == pytest.approx(-0.161, abs=5e-4)


class Brightest(nn.Module):
    """The same seven weights in the middle of a row of thirteen, over a background that leaves the noise room; two classes."""

    def __init__(self, background: float) -> None:
        super().__init__()
        self.w = nn.Parameter(W7.clone(), requires_grad=False)
        self.threshold = background * float(W7.sum()) + (1 - background) * 0.5

    def forward(self, x: Tensor) -> Tensor:
        margin = 10 * (x[:, 0, 6, 3:10] @ self.w - self.threshold)
        return torch.stack([0 * margin, margin], 1)


def test_a_run_finds_it_while_the_union_holds(tmp_path: Path) -> None:
    """With the box on: margins (1 − b) times 0.1, 0.05 and, since the noise reaches past the window, 0.1 − 0.3 at a third for the shift."""
    background = 0.1
    x = torch.full((1, 1, 13, 13), background)
    x[..., 6] = 1.0
    eps = (1 - background) * 0.45 / float(W7.sum())
    parts = f"linf(eps={eps:.6f}), rotation-translation(degrees=0, shift=3)"
    found = {}
    asked: dict[str, Any] = {"dataset": (x, torch.ones(1, dtype=torch.long)), "site": False, "name": "seven", "results": tmp_path}
    asked |= {"plan": "plan(random(draws=20), apgd(steps=40), mixture(steps=40, restarts=4))", "width": 16}
    for kind in ("union", "affine"):
        report = rbench.evaluate(Brightest(background).eval(), threat=f"{kind}({parts})", **asked)
        found[kind] = set(statuses(report).values())
    assert found == {"union": {"survived"}, "affine": {"broken"}}


NETS = ["digits-linf-at", "digits-max"]
QUICK = "plan(random(draws=3), pgd(steps=3, rate=0.4), slide(steps=4, rate=0.3), mixture(steps=4))"


@pytest.mark.parametrize("model", NETS)
@pytest.mark.parametrize("parts", ["linf(eps=0.06), l1(eps=0.8)", "linf(eps=0.06), rotation-translation(degrees=12, shift=0.3)"])
def test_no_net_is_more_robust_to_a_combination_than_to_its_parts(model: str, parts: str, tmp_path: Path) -> None:
    """Example by example, by a weak plan, and some fall to the combination alone or not at all."""
    net = find(model).module
    union = run(tmp_path / "union", net, threat=f"union({parts})", plan=QUICK, n=60, full=True)
    both = run(tmp_path / "affine", net, threat=f"affine({parts})", plan=QUICK, n=60)
    fallen, all_ = ({i for i, s in statuses(report).items() if s in FALLEN} for report in (union, both))
    assert fallen <= all_, "an example that a part breaks survived the combination"
    assert len(fallen) > 3
    assert len(of_members(union)) == 2


def test_the_union_of_a_set_with_itself_is_the_set() -> None:
    for spec in ("linf(eps=0.15)", MORE[0], RT):
        assert build(parse(f"union({spec}, {spec})")) == Union((build(parse(spec)),))


def test_other_radii() -> None:
    space = affine(MORE[1])
    third = resized(space, {name: value / 3 for name, value in space.extent.items()})
    assert str(third) == "affine(rotation-translation(degrees=10, shift=2/7), linf(eps=1/20), l2(eps=1/4), weights=fixed(0.5, 0.25, 0.25))"
    assert third.family == space.family
    assert space.extent["1.shift"] == 3 * third.extent["1.shift"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("affine(linf(eps=0.3), l1(eps=10), weights=fixed(1))", r"weights=fixed\(1\), 1 of them; expected 2, one per set"),
        ("affine(linf(eps=0.3), l1(eps=10), weights=fixed(1.5, -0.5))", "expected numbers from 0 on that add up to 1"),
        ("affine(linf(eps=0.3), l1(eps=10), weights=fixed(0.3, 0.3))", "expected numbers from 0 on that add up to 1"),
        ("affine(linf(eps=0.3), l1(eps=10), weights=drawn)", "weights=drawn; expected weights=uniform, or one number per set"),
        ("affine(linf(eps=0.3), l1(eps=10), weights=fixed(linf, 1))", "expected weights=uniform, or one number per set"),
        ("affine(linf(eps=0.3), l1(eps=10), weight=uniform)", "weight=...; expected sets and weights"),
        ("affine(linf(eps=0.3), 0.5)", "affine: 0.5; expected sets"),
        ("affine()", "affine of 0 sets; expected two or more"),
        ("affine(linf(eps=0.3))", "affine of 1 sets; expected two or more"),
        (f"affine({RT}, {RT})", "expected at most one set that moves the image"),
        ("affine(linf(eps=0.3), l0(pixels=4))", r"l0\(pixels=4\); expected convex sets"),
        ("affine(linf(eps=0.3), union(l2(eps=1), l1(eps=2)))", "expected convex sets that add to the image or move it"),
        ("affine(linf(eps=0.3), affine(l2(eps=1), l1(eps=2)))", "expected convex sets that add to the image or move it"),
    ],
)
def test_bad_combinations_are_refused_in_one_line(spec: str, told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        build(parse(spec))
    assert "\n" not in str(caught.value)


class WarpsFirst(Affine):
    """The reverse order: its noise is neither resampled nor cropped."""

    def render(self, ctx: Mixed, theta: Tensor) -> Tensor:
        image = ctx.x
        for block in sorted(self.blocks(ctx), key=lambda block: "warp" not in block.space.capabilities):
            part = theta[:, block.columns]
            image = block.space.warp(image, part) if "warp" in block.space.capabilities else image + part.view_as(image)  # type: ignore[attr-defined]
        return image.clamp(0, 1)


class SharesNoise(Affine):
    """Every part draws the row's own noise."""

    def start(self, ctx: Mixed, row: Row) -> Tensor:
        return torch.cat([block.weight[:, None] * block.space.start(block.ctx, row) for block in self.blocks(ctx)], 1)


class FullBudgets(Affine):
    """Every part has all of its budget at once."""

    def project(self, ctx: Mixed, theta: Tensor, scale: Scale = 1.0) -> Tensor:
        return torch.cat([block.space.project(block.ctx, theta[:, block.columns], scale) for block in self.blocks(ctx)], 1)


class AsksTheParts(Affine):
    """Inside is what is inside each part."""

    def excess(self, ctx: Mixed, theta: Tensor) -> Tensor:
        return torch.stack([block.space.excess(block.ctx, theta[:, block.columns]) for block in self.blocks(ctx)], 1).amax(1)


class MovesAlong(Affine):
    """A part without budget draws its start all the same, and rounds what it has."""

    def start(self, ctx: Mixed, row: Row) -> Tensor:
        return self.project(ctx, super().start(ctx, row) + 1e-9 * row.uniform(1, stream=3))


PAIR: tuple[PerturbationSet, ...] = (Linf("0.15"), RotationTranslation(30, 2))


@pytest.mark.parametrize(
    ("kind", "law", "arguments"),
    [
        (WarpsFirst, law_noise_comes_before_the_warp, ()),
        (SharesNoise, law_parts_do_not_share_noise, (DIGITS,)),
        (MovesAlong, law_a_part_with_all_the_budget_searches_as_if_it_were_alone, (DIGITS, 0)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_combination_is_caught(kind: type[Affine], law: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    parts = (Linf("0.1"), Linf("0.1")) if kind is SharesNoise else PAIR
    law(Affine(parts), *arguments)
    with pytest.raises(AssertionError):
        law(kind(parts), *arguments)


@pytest.mark.parametrize(
    ("kind", "law", "scale"),
    [(FullBudgets, set_laws.law_projection_lands_inside, (30.0,)), (AsksTheParts, set_laws.law_excess_is_the_formula, ())],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_combination_breaks_the_laws_of_sets(kind: type[Affine], law: Callable[..., None], scale: tuple[float, ...]) -> None:
    parts = (L2("0.75"), L1(2))
    law(given_batch(Affine(parts), DIGITS, 0), 0, *scale)
    with pytest.raises(AssertionError):
        law(given_batch(kind(parts), DIGITS, 0), 0, *scale)
