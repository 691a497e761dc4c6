"""The laws of a set, as plain functions that raise AssertionError: the catalogue must obey them, and the sets of wrong_sets.py must not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from laws import formulas
from laws.given import Given, given_images, images, members, thetas
from rbench.questions import set_record
from rbench_core.errors import SpecError
from rbench_threats.catalogue import build
from rbench_threats.protocol import PIXEL_TOLERANCE, PerturbationSet, resized
from rbench_threats.spec import parse

REL = 1e-6  # of a radius: what DESIGN section 2 allows
RANDOM_SEARCH = {"squares", "swaps"}  # capabilities that bring `opening` and `move`


def law_members_are_inside(given: Given, seed: int) -> None:
    """start, project and what lies between them and 0 are inside, by the set's own word and by the formula; rendered, in [0, 1]."""
    for theta in (given.space.start(given.ctx, given.row), members(given, seed), torch.zeros(len(given.x), given.parameters)):
        _inside(given, theta)


def law_starts_differ(given: Given, seed: int) -> None:
    """A start is random: two rows, two restarts and 0 are different places."""
    theta = given.space.start(given.ctx, given.row)
    other = given.space.start(given.ctx, given.row._replace(key=given.row.key + 1))
    assert (theta != 0).any(1).all(), "a start stands still"
    assert (theta != other).any(1).all(), "another key starts at the same place"


def law_excess_is_the_formula(given: Given, seed: int) -> None:
    """`excess` and the formula agree on who is inside, by a hair and by a lot; NaN and infinity are outside."""
    inside = members(given, seed)
    wild = thetas(given, seed, 1.0)
    surface = given.space.project(given.ctx, 30 * wild)
    for theta in (inside, wild, surface * 1.0001, surface + 1e-4 * wild, surface * 0.9999, 0.01 * wild, _past_the_box(given, inside)):
        told = given.space.excess(given.ctx, theta).double().numpy()
        known = formulas.excess(given.space, _exact(given.x), _exact(theta))
        if known is None:
            return
        clear = np.abs(known) > 2e-7 * (1 + np.abs(_exact(theta)).max(1))  # float32 cannot tell nearer ones apart
        assert ((told <= 0) == (known <= 0))[clear].all(), f"excess {told}, formula {known}"
        np.testing.assert_allclose(told, known, rtol=1e-4, atol=1e-6)


def law_no_number_is_outside(given: Given, seed: int) -> None:
    """A θ with NaN or infinity in one place is in no set."""
    for value in (torch.nan, torch.inf, -torch.inf):
        theta = members(given, seed).clone()
        theta[:, seed % theta.shape[1]] = value
        assert not (given.space.excess(given.ctx, theta) <= 0).any(), f"{value} counts as inside"


def law_projection_lands_inside(given: Given, seed: int, scale: float) -> None:
    """Whatever the scale of θ and of the ball, and whether the ball's is a number or one per row."""
    theta = thetas(given, seed, scale)
    _inside(given, given.space.project(given.ctx, theta))
    for radius in (0.3, 1.0, _per_row(given, seed)):
        found = given.space.project(given.ctx, theta, radius)
        assert (given.space.gauge(given.ctx, found) <= radius * (1 + 2 * REL)).all(), f"outside {radius} times the ball"
        _inside(given, found)
    each = given.space.project(given.ctx, theta, torch.full((len(theta),), 0.3))
    torch.testing.assert_close(each, given.space.project(given.ctx, theta, 0.3), rtol=1e-6, atol=1e-9)


def law_interior_points_stay(given: Given, seed: int, scale: float) -> None:
    """Bit for bit. Every ball is star-shaped about 0, so half of a projection lies inside, off the surface.

    Idempotence alone would let a sphere pass.
    """
    once = given.space.project(given.ctx, thetas(given, seed, scale))
    inner = 0.5 * once
    assert torch.equal(given.space.project(given.ctx, inner), inner), "an interior point moved"
    zero = torch.zeros_like(once)
    assert torch.equal(given.space.project(given.ctx, zero), zero), "0 moved"
    torch.testing.assert_close(given.space.project(given.ctx, once), once, rtol=1e-5, atol=1e-6 * float(once.abs().max()))


def law_projection_is_nearest(given: Given, seed: int, scale: float) -> None:
    """The obtuse-angle law of convex sets: with gap = θ − project(θ), no member lies further along gap than project(θ).

    Where no support point is known in closed form, against members that the set makes. Rescaled or clipped "projections" fail this.
    """
    if "convex" not in given.space.capabilities:
        return
    theta = thetas(given, seed, scale)
    for radius in (torch.ones(len(theta)), _per_row(given, seed)):
        found = given.space.project(given.ctx, theta, radius)
        gap = _exact(theta) - _exact(found)
        far = _furthest(given, gap, _exact(radius))
        others = [far] if far is not None else [_exact(members(given, seed + turn)) * _exact(radius)[:, None] for turn in range(6)]
        for other in others:
            ahead = (gap * (other - _exact(found))).sum(1)
            reach = np.maximum(np.linalg.norm(other, axis=1), np.linalg.norm(_exact(found), axis=1))
            rounding = 2e-5 * np.linalg.norm(gap, axis=1) + 2e-6 * np.linalg.norm(_exact(found), axis=1)  # of the gap
            assert (ahead <= rounding * reach).all(), f"a member lies nearer: {(ahead / (rounding * reach + 1e-30)).max():.1f} roundings"


def law_no_member_is_nearer(given: Given, seed: int, scale: float) -> None:
    """Weaker than the obtuse angle, and true of every set: no member that the set makes lies nearer."""
    theta = thetas(given, seed, scale)
    own = (_exact(theta) - _exact(given.space.project(given.ctx, theta))) ** 2
    for turn in range(3):
        other = (_exact(theta) - _exact(members(given, seed + turn))) ** 2
        assert (own.sum(1) <= other.sum(1) * (1 + 1e-5) + 1e-12).all(), "a member lies nearer"


def law_l0_is_nearest_of_all_choices(space: PerturbationSet, seed: int, scale: float) -> None:
    """Not convex, so by enumeration: P ≤ 8, one and two channels, every budget."""
    for shape, pixels in (((1, 2, 4), 1), ((1, 2, 4), 3), ((2, 2, 2), 1), ((2, 2, 2), 2), ((2, 2, 2), 4)):
        given = given_images(replace(space, pixels=pixels), images(shape, 24, seed), seed)  # type: ignore[type-var]  # a dataclass
        theta = thetas(given, seed, scale)
        found = given.space.project(given.ctx, theta)
        _inside(given, found)
        own = ((_exact(theta) - _exact(found)) ** 2).sum(1)
        best = np.array([formulas.nearest_l0(_exact(x), _exact(row), pixels) for x, row in zip(given.x, theta, strict=True)])
        np.testing.assert_allclose(own, best, rtol=1e-5, atol=1e-10)


def law_rows_are_islands(given: Given, seed: int) -> None:
    """Bit for bit: alone, permuted or beside others, a row gets the same start, projection, step, gauge, excess and image."""
    theta, grad, radius = thetas(given, seed), thetas(given, seed + 7), _per_row(given, seed)
    together = _answers(given, theta, grad, radius)
    order = torch.randperm(len(theta), generator=torch.Generator().manual_seed(seed))
    places = [order, torch.tensor([seed % len(theta)]), order[:16], order[:17], order[:1].repeat(16)]
    for rows in places:
        apart = _answers(given.take(rows), theta[rows], grad[rows], radius[rows])
        for name, value in apart.items():
            assert torch.equal(value, together[name][rows]), f"{name} of a row depends on its neighbours"


def law_steepest_is_steepest(given: Given, seed: int) -> None:
    """Gauge 1, and no θ of gauge 1 has a larger inner product with the gradient; whatever the gradient's size."""
    others = [_exact(members(given, seed + turn)) for turn in range(3)]
    for size in (1e-30, 1e-6, 1.0, 1e8):
        grad = thetas(given, seed + 7, size)
        step = given.space.steepest(given.ctx, grad)
        gauge = given.space.gauge(given.ctx, step)
        assert (gauge <= 1 + 2 * REL).all(), "longer than one radius"
        if "support" not in given.space.capabilities:  # with l0 a pixel that has no room stays
            assert (gauge >= _shares(given, grad) - 1e-5).all(), "shorter than one radius"
        own = (_exact(grad) * _exact(step)).sum(1)
        known = _best_inner_product(given, _exact(grad))
        if known is not None:
            np.testing.assert_allclose(own, known, rtol=1e-5)
        for other in others:
            along = (_exact(grad) * other).sum(1)
            assert (own >= along - 1e-5 * np.abs(along)).all(), "a member of the ball lies further along the gradient"


def law_no_gradient_no_step(given: Given, seed: int) -> None:
    """A gradient of 0 gives a step of 0, not NaN."""
    zero = torch.zeros(len(given.x), given.parameters)
    assert torch.equal(given.space.steepest(given.ctx, zero), zero)


def law_sparse_steps_move_their_share(given: Given, seed: int) -> None:
    """share is a number per row of coordinates (for l0 of pixels); the step stays in the ball, goes uphill, and moves the steepest ones."""
    if "sparse" not in given.space.capabilities:
        return
    grad = thetas(given, seed + 7)
    share = torch.linspace(0.001, 1, len(grad))
    step = given.space.steepest(given.ctx, grad, share)
    groups = step.unflatten(1, (given.x.shape[1], -1)) != 0 if "support" in given.space.capabilities else (step != 0)[:, None]
    moved, units = groups.any(1).sum(1), groups.shape[2]
    assert (moved <= (share * units).round().clamp_min(1)).all(), "more coordinates moved than asked for"
    assert (given.space.gauge(given.ctx, step) <= 1 + 2 * REL).all()
    assert ((grad * step) >= 0).all(), "a coordinate moves downhill"
    if "support" not in given.space.capabilities:
        still = torch.where(step == 0, grad.abs(), 0).amax(1)
        least = torch.where(step != 0, grad.abs(), torch.inf).amin(1)
        assert (least >= still).all(), "a flatter coordinate moved while a steeper one stood"
        assert (given.space.gauge(given.ctx, step) >= 1 - 1e-5).all()


def law_free_drops_what_the_box_stops(given: Given, seed: int) -> None:
    """`free` keeps the gradient where a step has room and puts 0 where the box is reached."""
    if "sparse" not in given.space.capabilities:
        return
    theta, grad = members(given, seed), thetas(given, seed + 7)
    kept = given.space.free(given.ctx, theta, grad)  # type: ignore[attr-defined]  # the capability
    flat = given.x.flatten(1)
    stuck = ((grad > 0) & (theta >= 1 - flat)) | ((grad < 0) & (theta <= -flat))
    assert torch.equal(kept, torch.where(stuck, 0.0, grad))


def law_moves_stay_inside(given: Given, seed: int) -> None:
    """What random search starts from and comes to, move upon move, from members too, is inside; a move moves."""
    if not given.space.capabilities & RANDOM_SEARCH:
        return
    theta = given.space.opening(given.ctx, given.row)  # type: ignore[attr-defined]  # the capability
    _inside(given, theta)
    for step, share in enumerate((0.8, 0.2, 0.05, 1e-4)):
        shares, row = torch.full((len(theta),), share), given.row._replace(step=given.row.step + step)
        for before in (theta, members(given, seed + step)):
            after = given.space.move(given.ctx, before, shares, row)  # type: ignore[attr-defined]
            _inside(given, after)
            assert (after != before).any(), "no row moved"
        theta = given.space.move(given.ctx, theta, shares, row)  # type: ignore[attr-defined]


def law_gauge_is_the_smallest_scale(given: Given, seed: int) -> None:
    """A θ in the box stays under any scale from its gauge on, and not under a smaller one; 0 has gauge 0."""
    theta = given.space.project(given.ctx, members(given, seed), _per_row(given, seed))
    gauge = given.space.gauge(given.ctx, theta)
    assert (gauge <= 1 + 2 * REL).all()
    blocks = "blocks" in given.space.capabilities
    ctx = given.space.around(given.ctx, theta) if blocks else given.ctx  # type: ignore[attr-defined]  # of all slices, that of θ
    torch.testing.assert_close(given.space.project(ctx, theta, gauge), theta, rtol=1e-5, atol=1e-6 * float(theta.abs().max()))
    smaller = given.space.project(ctx, theta, 0.9 * gauge)
    assert ((smaller != theta).any(1) | (gauge == 0)).all(), "a smaller ball held it"
    assert (given.space.gauge(given.ctx, torch.zeros_like(theta)) == 0).all()
    half = given.space.gauge(given.ctx, 0.5 * theta)
    assert (half <= gauge).all(), "nearer to 0 and yet further out"


def law_larger_sets_hold_smaller_ones(given: Given, seed: int) -> None:
    """`extent` orders the sets of a family: what the board relies on when a witness counts for a larger radius."""
    for name in given.space.extent:
        wider = _widened(given.space, name)
        if wider is not None:
            assert wider.family == given.space.family
            assert all(wider.extent[key] >= value for key, value in given.space.extent.items())
            outside = wider.excess(wider.context(given.x, given.row), members(given, seed)) > 0
            assert not outside.any(), f"{wider} does not hold {given.space}"


def law_box_holds_every_member(given: Given, seed: int) -> None:
    """`box` is outward: every θ that `excess` lets through renders into it, to the last float32 number at the corners; and it is tight."""
    if "box" not in given.space.capabilities:
        return
    lower, upper = given.space.box(given.ctx)  # type: ignore[attr-defined]  # the capability
    assert lower.shape == upper.shape == given.x.shape
    for theta in (members(given, seed), *_corners(given, lower, upper)):
        shown = given.space.render(given.ctx, theta)
        inside = (given.space.excess(given.ctx, theta) <= 0)[:, None, None, None]
        assert ((lower <= shown) & (shown <= upper) | ~inside).all(), "a member lies outside the box"
    widths = formulas.half_widths(given.space, _exact(given.x))
    if widths is not None:
        x, reach = _exact(given.x), widths.reshape(given.x.shape)
        assert np.abs(_exact(lower) - np.maximum(x - reach, 0)).max() < 1.3e-6, "looser than the tolerance below"
        assert np.abs(_exact(upper) - np.minimum(x + reach, 1)).max() < 1.3e-6, "looser than the tolerance above"


def _corners(given: Given, lower: Tensor, upper: Tensor) -> list[Tensor]:
    """θ at and around both ends of the box, a float32 number at a time: some inside, some not. Small boxes leave x's own rounding to θ."""
    found = []
    for end, way in ((lower, -torch.inf), (upper, torch.inf)):
        theta = (end.double() - given.x.double()).float().flatten(1)
        further = torch.nextafter(theta, torch.full_like(theta, way))
        back = torch.nextafter(theta, torch.zeros_like(theta))
        found += [theta, further, back, torch.nextafter(back, torch.zeros_like(theta)), back * (1 - 2e-6)]
    lone = [torch.where(torch.arange(theta.shape[1]) == place, theta, 0.0) for theta in found for place in (0, theta.shape[1] // 2)]
    return [*found, *lone]


def law_rendering(given: Given, seed: int) -> None:
    """render(x, 0) is x (not of latent codes); members land in [0, 1]; images keep shape and type; θ of an image renders to that image."""
    zero = torch.zeros(len(given.x), given.parameters)
    theta = members(given, seed)
    if "latent" not in given.space.capabilities:
        torch.testing.assert_close(given.space.render(given.ctx, zero), given.x, rtol=0, atol=PIXEL_TOLERANCE)
    shown = given.space.render(given.ctx, theta)
    assert shown.shape == given.x.shape
    assert shown.dtype == given.x.dtype
    if "additive" in given.space.capabilities:
        assert torch.equal(given.space.render(given.ctx, zero), given.x)
        assert shown.min() >= 0, "exactly: models with a strict input range exist"
        assert shown.max() <= 1
        back = given.space.from_images(given.ctx, shown)  # type: ignore[attr-defined]  # the capability
        torch.testing.assert_close(given.space.render(given.ctx, back), shown, rtol=0, atol=1e-7)


def law_gradient_flows(space: PerturbationSet, shape: tuple[int, int, int], seed: int) -> None:
    """d render / d θ is what finite differences say, in float64; on 5 × 6 pixels where the set takes any canvas, else on its own."""
    try:
        space.check(small := (shape[0], 5, 6))
        own = False
    except SpecError:
        small, own = shape, True
    given = given_images(space, images(small, 4, seed).double(), seed)
    theta = 0.37 * members(given, seed).double() + 1e-3
    assert torch.autograd.gradcheck(lambda at: space.render(given.ctx, at), theta.requires_grad_(), fast_mode=own)


def law_specs_round_trip(space: PerturbationSet) -> None:
    """str → parse → build is the same value with the same text and the same record; 0.3 and 3/10 are one set."""
    again = build(parse(str(space)))
    assert again == space
    assert str(again) == str(space)
    assert hash(again) == hash(space)
    reduced = resized(space, {name: Fraction(value.numerator, value.denominator) for name, value in space.extent.items()})
    assert reduced == space
    assert set_record(reduced) == set_record(again) == set_record(space)


def _furthest(given: Given, gap: formulas.Array, radius: formulas.Array) -> formulas.Array | None:
    """The support point; of a combination the parts' own, each with its share of the radius."""
    if "blocks" not in given.space.capabilities:
        return formulas.furthest(given.space, _exact(given.x), gap, radius)
    blocks = given.space.blocks(given.ctx)  # type: ignore[attr-defined]  # the capability
    found = [formulas.furthest(b.space, _exact(given.x), gap[:, b.columns], radius * _exact(b.weight)) for b in blocks]
    return None if any(one is None for one in found) else np.concatenate(found, 1)


def _best_inner_product(given: Given, grad: formulas.Array) -> formulas.Array | None:
    if "blocks" not in given.space.capabilities:
        return formulas.best_inner_product(given.space, _exact(given.x), grad)
    blocks = given.space.blocks(given.ctx)  # type: ignore[attr-defined]  # the capability
    found = [(formulas.best_inner_product(b.space, _exact(given.x), grad[:, b.columns]), _exact(b.weight)) for b in blocks]
    return None if any(best is None for best, _ in found) else np.sum([best * weight for best, weight in found if best is not None], 0)


def _shares(given: Given, grad: Tensor) -> Tensor | float:
    """The gauge of a steepest step: 1, less the shares of a combination's parts that have no gradient."""
    if "blocks" not in given.space.capabilities:
        return 1.0
    blocks = given.space.blocks(given.ctx)  # type: ignore[attr-defined]  # the capability
    return torch.stack([(grad[:, b.columns] != 0).any(1) * b.weight for b in blocks]).sum(0)


def _inside(given: Given, theta: Tensor) -> None:
    assert theta.isfinite().all(), "not a number"
    assert (given.space.excess(given.ctx, theta) <= 0).all(), f"outside by its own word: {given.space.excess(given.ctx, theta).max():.2e}"
    known = formulas.excess(given.space, _exact(given.x), _exact(theta))
    assert known is None or (known <= 0).all(), f"outside by the formula: {known.max():.2e}"
    shown = given.space.render(given.ctx, theta)
    assert shown.min() >= -PIXEL_TOLERANCE, f"{shown.min():.2e} is below 0"
    assert shown.max() <= 1 + PIXEL_TOLERANCE, f"{shown.max():.8f} is above 1"


def _answers(given: Given, theta: Tensor, grad: Tensor, radius: Tensor) -> dict[str, Tensor]:
    space, ctx = given.space, given.ctx
    inside = space.project(ctx, theta)
    found = {
        "start": space.start(ctx, given.row),
        "project": inside,
        "project with a scale": space.project(ctx, theta, radius),
        "steepest": space.steepest(ctx, grad),
        "gauge": space.gauge(ctx, inside),
        "excess": space.excess(ctx, theta),
        "render": space.render(ctx, inside),
    }
    if "sparse" in space.capabilities:
        found["sparse step"] = space.steepest(ctx, grad, radius.clamp(0.01, 1))
        found["free"] = space.free(ctx, inside, grad)  # type: ignore[attr-defined]  # the capability
    if space.capabilities & RANDOM_SEARCH:
        found["opening"] = space.opening(ctx, given.row)  # type: ignore[attr-defined]
        found["move"] = space.move(ctx, inside, radius.clamp(0.001, 1), given.row)  # type: ignore[attr-defined]
    return found


def _per_row(given: Given, seed: int) -> Tensor:
    """A scale per row from 0.001 to 1."""
    return (torch.rand(len(given.x), generator=torch.Generator().manual_seed(seed)) * 6.9).neg().exp()


def _past_the_box(given: Given, theta: Tensor) -> Tensor:
    """θ with one value 1e-4 outside the box, which only a small change of x can be; elsewhere θ is small."""
    flat = given.x.flatten(1)
    if flat.shape != theta.shape:
        return theta
    place = flat.argmin(1, keepdim=True)
    return (1e-3 * theta).scatter(1, place, -flat.gather(1, place) - 1e-4)


def _widened(space: PerturbationSet, name: str) -> PerturbationSet | None:
    values = {key: 2 * value if key == name else value for key, value in space.extent.items()}
    try:
        return resized(space, values)  # type: ignore[no-any-return]
    except SpecError:  # no larger one exists
        return None


def _exact(tensor: Tensor) -> formulas.Array:
    return tensor.detach().double().numpy()


LAWS = (
    law_members_are_inside,
    law_starts_differ,
    law_excess_is_the_formula,
    law_no_number_is_outside,
    law_rows_are_islands,
    law_steepest_is_steepest,
    law_no_gradient_no_step,
    law_sparse_steps_move_their_share,
    law_free_drops_what_the_box_stops,
    law_moves_stay_inside,
    law_gauge_is_the_smallest_scale,
    law_larger_sets_hold_smaller_ones,
    law_box_holds_every_member,
    law_rendering,
)
SCALED_LAWS = (law_projection_lands_inside, law_interior_points_stay, law_projection_is_nearest, law_no_member_is_nearer)
