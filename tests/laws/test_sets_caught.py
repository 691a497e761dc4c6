"""A test of the tests: for every law a set that breaks it, and the law says so. A law that catches nothing is no law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from laws import set_laws as laws
from laws import wrong_sets as wrong
from laws.given import SCALES, given_batch
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spatial import RotationTranslation

GREY, COLOUR = (1, 8, 8), (3, 6, 6)
CAUGHT: list[tuple[Callable[..., None], Any, tuple[int, int, int]]] = [
    (laws.law_members_are_inside, wrong.ForgetsTheBox("0.15"), GREY),
    (laws.law_starts_differ, wrong.StandsStill(1), GREY),
    (laws.law_excess_is_the_formula, wrong.ForgetsTheBox("0.15"), GREY),
    (laws.law_excess_is_the_formula, wrong.ExcessForgetsTheBox("0.75"), GREY),
    (laws.law_excess_is_the_formula, wrong.WidensItself(2), GREY),
    (laws.law_excess_is_the_formula, wrong.CountsValues(3), COLOUR),
    (laws.law_no_number_is_outside, wrong.SwallowsNaN("0.15"), GREY),
    (laws.law_projection_lands_inside, wrong.ForgetsTheBox("0.15"), GREY),
    (laws.law_projection_lands_inside, wrong.OneScaleForAll("0.75"), GREY),
    (laws.law_interior_points_stay, wrong.Sphere("0.75"), GREY),
    (laws.law_projection_is_nearest, wrong.ClipsAfterL1(2), GREY),
    (laws.law_projection_is_nearest, wrong.ClipsAfterL2("0.75"), GREY),
    (laws.law_projection_is_nearest, wrong.RescalesL1(2), GREY),
    (laws.law_projection_is_nearest, wrong.GivesUp("0.75"), GREY),
    (laws.law_no_member_is_nearer, wrong.GivesUp("0.75"), GREY),
    (laws.law_rows_are_islands, wrong.StepOfTheBatch("0.75"), GREY),
    (laws.law_rows_are_islands, wrong.WatchesNeighbours("0.75"), GREY),
    (laws.law_rows_are_islands, wrong.OneScaleForAll("0.75"), GREY),
    (laws.law_rows_are_islands, wrong.StartsFromTheGlobalGenerator("0.15"), GREY),
    (laws.law_steepest_is_steepest, wrong.Sign("0.75"), GREY),
    (laws.law_steepest_is_steepest, wrong.Underflows("0.75"), GREY),
    (laws.law_steepest_is_steepest, wrong.IgnoresShare(2), GREY),
    (laws.law_no_gradient_no_step, wrong.DividesByZero("0.75"), GREY),
    (laws.law_sparse_steps_move_their_share, wrong.IgnoresShare(2), GREY),
    (laws.law_free_drops_what_the_box_stops, wrong.PushesAtTheWall(2), GREY),
    (laws.law_rows_are_islands, wrong.OneSquareForAll("0.15"), GREY),
    (laws.law_moves_stay_inside, wrong.MovesTooFar("0.75"), GREY),
    (laws.law_moves_stay_inside, wrong.AddsPixels(3), COLOUR),
    (laws.law_gauge_is_the_smallest_scale, wrong.SquaredGauge("0.75"), GREY),
    (laws.law_gauge_is_the_smallest_scale, wrong.CountsTooFew(24), COLOUR),
    (laws.law_larger_sets_hold_smaller_ones, wrong.SmallerIsLarger("0.15"), GREY),
    (laws.law_box_holds_every_member, wrong.BoxWithoutTolerance("0.15"), GREY),
    (laws.law_rendering, wrong.Dims("0.15"), GREY),
    (laws.law_rendering, wrong.ForgetsTheBox("0.15"), GREY),
    (laws.law_rendering, wrong.BlursAtRest(30, 3), (1, 28, 28)),
]


def rejected(law: Callable[..., None], *arguments: object) -> bool:
    try:
        law(*arguments)
    except AssertionError:
        return True
    return False


def _id(value: object) -> str:
    return getattr(value, "__name__", "") or type(value).__name__


@pytest.mark.parametrize(("law", "space", "shape"), CAUGHT, ids=_id)
def test_a_wrong_set_is_caught(law: Callable[..., None], space: PerturbationSet, shape: tuple[int, int, int]) -> None:
    scales: list[tuple[float, ...]] = [(scale,) for scale in SCALES] if law in laws.SCALED_LAWS else [()]
    assert any(rejected(law, given_batch(space, shape, seed), seed, *scale) for seed in range(3) for scale in scales)


def test_every_law_catches_something() -> None:
    assert {law for law, _, _ in CAUGHT} == {*laws.LAWS, *laws.SCALED_LAWS}


def test_a_sphere_is_idempotent_and_yet_caught() -> None:
    """Why the law asks for interior points: projecting twice changes nothing on a sphere."""
    given = given_batch(wrong.Sphere("0.75"), GREY, 0).take(torch.arange(2, 24, 4))  # grey images: the box is far
    once = given.space.project(given.ctx, 3 * given.space.start(given.ctx, given.row))
    assert float((given.space.project(given.ctx, once) - once).abs().max()) < 1e-5


@pytest.mark.parametrize("space", [wrong.KeepsTheLargest(3), wrong.KeepsValues(3)], ids=_id)
def test_a_wrong_l0_projection_is_caught(space: PerturbationSet) -> None:
    assert any(rejected(laws.law_l0_is_nearest_of_all_choices, space, seed, scale) for seed in range(2) for scale in SCALES)


def test_a_cut_graph_is_caught() -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        laws.law_gradient_flows(wrong.CutsTheGraph("0.15"), (1, 8, 8), 0)


def test_a_rounded_spec_is_caught() -> None:
    assert rejected(laws.law_specs_round_trip, wrong.RoundsItsSpec("8/255"))


def test_the_right_sets_pass_where_the_wrong_ones_fail() -> None:
    """The draws of this page raise no false alarm."""
    for law, space, shape in CAUGHT:
        right = next(kind for kind in type(space).__mro__ if not kind.__module__.startswith("laws"))
        sound = right(*space.extent.values()) if right is RotationTranslation else right(float(space.radius))  # type: ignore[attr-defined]
        for scale in [(s,) for s in SCALES] if law in laws.SCALED_LAWS else [()]:
            law(given_batch(sound, shape, 0), 0, *scale)
