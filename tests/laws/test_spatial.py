"""Rotation and translation: 775 points, the identity among them, whole pixels moved exactly, turns that agree with other people's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from laws.entries import Entry, drawn, entries
from laws.given import given_images, images, seeds
from laws.wrong_sets import BlursAtRest, Counterclockwise
from rbench_threats.spatial import RotationTranslation

ENTRIES = [entry for entry in entries() if "points" in entry.space.capabilities]
SPATIAL = [entry for entry in ENTRIES if entry.space.family == "rotation-translation"]


def law_points(space: RotationTranslation, shape: tuple[int, int, int], seed: int) -> None:
    """775 different points inside: 31 angles × 5 × 5 shifts, evenly spaced, the ends among them; the identity first, then outwards."""
    given = given_images(space, images(shape, 4, seed), seed)
    points = space.points(given.ctx)
    assert points.shape == (775, 3)
    assert len({tuple(point) for point in points.tolist()}) == 775
    assert not points[0].any(), "the identity is not first"
    gauges = space.gauge(given.take(torch.zeros(775, dtype=torch.long)).ctx, points)
    assert (gauges.diff() >= -1e-6).all(), "a point further in stands behind one further out"
    for column, (count, limit) in enumerate(zip((31, 5, 5), (space.degrees, space.shift, space.shift), strict=True)):
        known = np.linspace(-float(limit), float(limit), count)
        np.testing.assert_allclose(np.unique(points[:, column].numpy().round(4)), known, atol=1e-4)


def law_whole_pixels_move_exactly(space: RotationTranslation, shape: tuple[int, int, int], seed: int, right: int, down: int) -> None:
    """A shift by whole pixels copies values, bit for bit, and fills with 0; a turn by 0 is no blur."""
    given = given_images(space, images(shape, 4, seed), seed)
    theta = torch.tensor([[0.0, float(right), float(down)]]).repeat(4, 1)
    moved = np.stack([ndimage.shift(x.numpy(), (0, down, right), order=0, mode="constant", cval=0) for x in given.x])
    np.testing.assert_array_equal(space.render(given.ctx, theta).numpy(), moved)


def law_turns(space: RotationTranslation, shape: tuple[int, int, int], seed: int) -> None:
    """A quarter turn is torch.rot90 on square images; any other agrees with scipy's affine resampling, turn first, then shift."""
    given = given_images(space, images(shape, 8, seed), seed)
    quarter = space.render(given.ctx, torch.tensor([[90.0, 0.0, 0.0]]).repeat(8, 1))
    torch.testing.assert_close(quarter, given.x.rot90(-1, (2, 3)), rtol=0, atol=1e-5)
    theta = (2 * given.row.uniform(3, stream=5) - 1) * given.ctx.limits
    shown = space.render(given.ctx, theta).numpy()
    known = np.stack([[_resampled(channel, *at) for channel in x] for x, at in zip(given.x.double().numpy(), theta.tolist(), strict=True)])
    np.testing.assert_allclose(shown, known, atol=2e-5)


def _resampled(x: np.ndarray, degrees: float, right: float, down: float) -> np.ndarray:
    """scipy's order-1 resampling on a canvas padded with 0, output pixel p from R(−degrees)·(p − Δ), rows before columns."""
    padded = np.pad(x, 4)
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = (np.array(padded.shape) - 1) / 2
    offset = centre - turn @ (centre + np.array([down, right]))
    return np.asarray(ndimage.affine_transform(padded, turn, offset=offset, order=1, mode="constant", cval=0)[4:-4, 4:-4])


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@drawn
@given(seed=seeds)
def test_points_are_members(entry: Entry, seed: int) -> None:
    """Of any set that has a finite stand-in."""
    points = entry.space.points(given_images(entry.space, images(entry.shape, 1, seed)).ctx)  # type: ignore[attr-defined]  # the capability
    given = given_images(entry.space, images(entry.shape, 1, seed).repeat(len(points), 1, 1, 1))
    assert (entry.space.excess(given.ctx, points) <= 0).all()


@pytest.mark.parametrize("entry", SPATIAL, ids=str)
@drawn
@given(seed=seeds)
def test_the_775_points(entry: Entry, seed: int) -> None:
    law_points(entry.space, entry.shape, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("entry", SPATIAL, ids=str)
@drawn
@given(seed=seeds, right=st.integers(-3, 3), down=st.integers(-3, 3))
def test_shifts(entry: Entry, seed: int, right: int, down: int) -> None:
    law_whole_pixels_move_exactly(entry.space, entry.shape, seed, right, down)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 5), (2, 28, 28), (3, 7, 16)], ids=str)
def test_shifts_on_odd_sides(shape: tuple[int, int, int]) -> None:
    law_whole_pixels_move_exactly(RotationTranslation(30, 3), shape, 0, 2, -1)
    law_whole_pixels_move_exactly(RotationTranslation(30, 3), shape, 1, -3, 3)
    law_whole_pixels_move_exactly(RotationTranslation(30, 3), shape, 2, 0, 0)


@pytest.mark.parametrize("entry", SPATIAL, ids=str)
@drawn
@given(seed=seeds)
def test_turns(entry: Entry, seed: int) -> None:
    law_turns(entry.space, entry.shape, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("law", "arguments", "wrong"),
    [
        (law_whole_pixels_move_exactly, (2, 1), BlursAtRest(30, 3)),
        (law_whole_pixels_move_exactly, (2, 1), Counterclockwise(30, 3)),
        (law_turns, (), Counterclockwise(30, 3)),
        (law_turns, (), BlursAtRest(30, 3)),
    ],
)
def test_a_wrong_warp_is_caught(law: Callable[..., None], arguments: tuple[int, ...], wrong: RotationTranslation) -> None:
    law(RotationTranslation(30, 3), (1, 28, 28), 0, *arguments)
    with pytest.raises(AssertionError):
        law(wrong, (1, 28, 28), 0, *arguments)


class TooCoarse(RotationTranslation):
    """An even number of angles: the identity is between two of them."""

    def points(self, ctx: object) -> torch.Tensor:
        return torch.cartesian_prod(torch.linspace(-30, 30, 31) + 1, torch.linspace(-3, 3, 5), torch.linspace(-3, 3, 5))


def test_a_grid_without_the_identity_is_caught() -> None:
    law_points(RotationTranslation(30, 3), (1, 8, 8), 0)
    with pytest.raises(AssertionError):
        law_points(TooCoarse(30, 3), (1, 8, 8), 0)


def test_a_set_without_turn_or_without_shift() -> None:
    """Limits of 0 are limits: nothing moves along them, and nothing is divided by them."""
    for space in (RotationTranslation(30, 0), RotationTranslation(0, 2)):
        given = given_images(space, images((1, 8, 8), 4, 0))
        start = space.start(given.ctx, given.row)
        assert start.isfinite().all()
        assert (space.excess(given.ctx, start) <= 0).all()
        assert (space.gauge(given.ctx, start) <= 1).all()
        assert (space.gauge(given.ctx, torch.ones(4, 3)) == torch.inf).all()
        assert torch.equal(space.project(given.ctx, torch.zeros(4, 3)), torch.zeros(4, 3))
        assert replace(space, shift=space.shift) == space
