"""Random search: whose squares and pixels, where, how large, and what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from laws.attack_laws import begun, trajectory
from laws.given import Given, given_images, images, rows
from rbench.attacks.evaluate import Passes, look
from rbench.attacks.noise import Row
from rbench.attacks.protocol import Seen
from rbench.attacks.sealed import library
from rbench.attacks.square import SparseRS, Square
from rbench_core.errors import SpecError
from rbench_threats import squares
from rbench_threats.lp import L0, L1, L2, Linf
from rbench_threats.protocol import PerturbationSet

SHAPES = [(1, 8, 8), (3, 5, 9), (2, 9, 4), (1, 28, 28)]
BALLS = (Linf("0.15"), L2("0.75"), L1(2))
MANY = 2000


def grey(space: PerturbationSet, shape: tuple[int, int, int], count: int) -> Given:
    """Images of one grey: every value may move both ways."""
    return given_images(space, torch.full((count, *shape), 0.5))


def moved(space: PerturbationSet, given: Given, share: float, theta: Tensor | None = None) -> Tensor:
    """What one move leaves, (rows, c, h, w); of θ = 0 unless another is given."""
    zero = torch.zeros(len(given.x), given.x[0].numel())
    shares = torch.full((len(given.x),), share)
    return space.move(given.ctx, zero if theta is None else theta, shares, given.row).view_as(given.x)  # type: ignore[attr-defined]


def covered(corner: tuple[Tensor, Tensor], side: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Which pixels a window covers, (rows, 1, h, w)."""
    (down, across), (i, j) = corner, (torch.arange(shape[1]), torch.arange(shape[2]))
    one, two = ((k >= first[:, None]) & (k < (first + side)[:, None]) for k, first in ((i, down), (j, across)))
    return one[:, None, :, None] & two[:, None, None, :]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_window_is_all_its_pixels(shape: tuple[int, int, int]) -> None:
    """Of every channel, whatever the sizes of the windows beside it; and its bump lies over it, of norm 1, whole."""
    side = 1 + torch.arange(MANY) % min(shape[1:])
    corner, off = squares.corners(side, shape, rows(MANY).uniform(2, 4)), squares.offsets(side, shape)
    places = squares.window(corner, off, shape)
    found = torch.zeros(MANY, shape[0] * shape[1] * shape[2], dtype=torch.bool).scatter(1, places, True)
    assert torch.equal(found.view(MANY, *shape), covered(corner, side, shape).expand(-1, shape[0], -1, -1))
    for order in (1, 2):
        lie = squares.bump(off, side, shape, order, rows(MANY).uniform(1, 6)).expand(-1, shape[0], -1, -1).flatten(1)
        image = torch.zeros(found.shape).scatter(1, places, lie).view(MANY, *shape)
        torch.testing.assert_close((image.abs() ** order).sum((2, 3)), torch.ones(MANY, shape[0]))
        assert (image.sum((2, 3)).abs() < 1e-5)[side % 2 == 0].all(), "the halves are of opposite sign"
        assert (image != image.transpose(2, 3)).any() if shape[1] == shape[2] else True, "no bump is turned"


@pytest.mark.parametrize("space", BALLS, ids=str)
def test_the_sizes_of_the_neighbours_windows_do_not_matter(space: PerturbationSet) -> None:
    """Bit for bit: windows of 1 to 28 pixels side by side, and each kind alone."""
    given = given_images(space, images((1, 28, 28), 48, 0))
    theta, share = space.opening(given.ctx, given.row), torch.tensor([0.0001, 0.01, 0.2, 1.0]).repeat(12)  # type: ignore[attr-defined]
    whole = space.move(given.ctx, theta, share, given.row)  # type: ignore[attr-defined]
    for some in (torch.arange(first, 48, 4) for first in range(4)):
        part = given.take(some)
        alone = space.move(part.ctx, theta[some], share[some], part.row)  # type: ignore[attr-defined]
        assert torch.equal(alone, whole[some])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_a_move_under_linf_is_one_square_with_a_sign_per_channel(share: float, shape: tuple[int, int, int]) -> None:
    space = BALLS[0]
    change = moved(space, grey(space, shape, 200), share)
    side = min(max(round((share * shape[1] * shape[2]) ** 0.5), 1), *shape[1:])
    for row in change:
        where = (row != 0).any(0).nonzero()
        (top, left), (bottom, right) = where.amin(0).tolist(), where.amax(0).tolist()
        assert (bottom - top + 1, right - left + 1) == (side, side)
        window = row[:, top : bottom + 1, left : right + 1].flatten(1)
        assert (window == window[:, :1]).all()
        assert torch.equal(window[:, 0].abs(), torch.full((shape[0],), 0.15))
    assert len({tuple(row.flatten().tolist()) for row in change}) > 1, "all rows made the same move"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("space", BALLS, ids=str)
def test_every_place_is_reached(space: PerturbationSet, shape: tuple[int, int, int]) -> None:
    """Corners are uniform over all places where a window fits. AutoAttack never draws the last row and column of them."""
    row = rows(MANY)
    for side in (1, 3):
        down, across = squares.corners(torch.full((MANY,), side), shape, row.uniform(2, 4))
        for found, length in ((down, shape[1]), (across, shape[2])):
            counts = torch.bincount(found, minlength=length - side + 1)
            assert len(counts) == length - side + 1
            expected = MANY / len(counts)
            assert ((counts - expected).abs() < 6 * expected**0.5).all()
    given = grey(space, shape, MANY)
    later = [Given(space, given.x, given.row._replace(step=given.row.step + step), given.ctx) for step in range(6)]
    changed = torch.cat([moved(space, one, 0.001) for one in later]) != 0
    assert changed.any(0).all()


@pytest.mark.parametrize("order", [1, 2])
def test_bumps_are_autoattacks(order: int) -> None:
    attack = library("pyautoattack.square").SquareAttack(None, norm=f"L{order}", eps=1.0, device="cpu")
    table = squares._bumps(20, order, torch.device("cpu"))
    for side in range(1, 21):
        with torch.random.fork_rng(devices=[]):
            known = attack.eta(side)
        ours = table[side, :side, :side]
        assert min((ours - known).abs().max(), (ours.T - known).abs().max()) < 1e-6
        assert torch.count_nonzero(table[side]) == torch.count_nonzero(ours), "something lies beyond the side"


@pytest.mark.parametrize("shape", [*SHAPES, (1, 14, 14), (1, 3, 4)], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_the_pavement_is_whole(order: int, shape: tuple[int, int, int]) -> None:
    """As many whole tiles as fit, each of norm 1 per channel, on images on which AutoAttack's start fails too."""
    paved = squares.tiled(shape, order, rows(50), 0)
    side = max(min(shape[1:]) // 5, 1)
    tiles = (shape[1] // side) * (shape[2] // side)
    expected = torch.full((50, shape[0]), float(tiles))
    torch.testing.assert_close((paved.flatten(2).abs() ** order).sum(2), expected, rtol=1e-5, atol=1e-5)
    down, across = (shape[axis] - side * (shape[axis] // side) for axis in (1, 2))  # left over, half of it before
    edge = paved.abs().sum((0, 1))
    assert (edge[: down // 2] == 0).all()
    assert (edge[:, : across // 2] == 0).all()
    assert edge[down // 2, across // 2 :].any()


def test_the_schedule_is_autoattacks() -> None:
    """At every query up to its 5,000, and on to 10,000."""
    attack = library("pyautoattack.square").SquareAttack(None, eps=1.0, p_init=0.8, n_queries=5000, resc_schedule=False, device="cpu")
    step = torch.arange(10_001)
    known = torch.tensor([attack.p_selection(int(query)) for query in step])
    torch.testing.assert_close(Square()._share(rows(len(step))._replace(step=step)), known)


def test_the_schedule_of_sparse_rs() -> None:
    """Proposal k, from 1 on, is made at step k − 1; the shares of its code."""
    known = {1: 2, 50: 2, 51: 4, 200: 4, 201: 5, 501: 6, 1001: 8, 2001: 10, 4001: 12, 6001: 15, 8000: 15, 8001: 20, 9999: 20}
    step = torch.tensor(list(known)) - 1
    torch.testing.assert_close(SparseRS()._share(rows(len(step))._replace(step=step)), 0.3 / torch.tensor(list(known.values())))


@pytest.mark.parametrize("space", [*BALLS, L0(4)], ids=str)
def test_only_what_is_better_stays(space: PerturbationSet) -> None:
    """Row by row: a larger loss is taken, an equal or smaller one and NaN are not, and the next candidate starts from the best."""
    attack = SparseRS() if space.family == "l0" else Square()
    given = begun(attack, space, (1, 8, 8), 0)
    state, count = attack.begin(space, given.ctx, given.row), len(given.x)
    told = torch.arange(count, dtype=torch.float32)
    zero, none = torch.zeros(count, 6), torch.zeros(count, dtype=torch.bool)
    first = attack.step(space, given.ctx, given.row, state, Seen(zero, told, told, None, None, ~none), 0)
    assert torch.equal(first.best, state.theta)
    answer = torch.where(told % 4 == 0, told + 1, torch.where(told % 4 == 1, told, torch.where(told % 4 == 2, told - 1, torch.nan)))
    second = attack.step(space, given.ctx, given.row, first, Seen(zero, told, answer, None, None, ~none), 0)
    taken = told % 4 == 0
    assert torch.equal(second.best[taken], first.theta[taken])
    assert torch.equal(second.best[~taken], first.best[~taken])
    assert torch.equal(second.best_loss, torch.where(taken, told + 1, told))
    share = attack._share(given.row)
    assert torch.equal(second.theta, space.move(given.ctx, second.best, share, given.row))  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("space", [Linf("0.4"), L2("0.4"), L1("0.4")], ids=str)
def test_moves_spend_the_whole_radius(space: PerturbationSet, shape: tuple[int, int, int]) -> None:
    """Far from the box: at the start and after every move, move upon move."""
    attack = Square()
    given = grey(space, shape, 40)
    theta = attack.begin(space, given.ctx, given.row).theta
    for step in range(5):
        gauge = space.gauge(given.ctx, theta)
        assert (gauge > 1 - 1e-5).all()
        assert (gauge <= 1 + 1e-6).all()
        row = given.row._replace(step=given.row.step + step)
        theta = space.move(given.ctx, theta, torch.full((40,), 0.1), row)  # type: ignore[attr-defined]


@pytest.mark.parametrize("space", BALLS[1:], ids=str)
def test_a_move_takes_from_one_window_and_gives_to_another(space: PerturbationSet) -> None:
    """Outside both windows nothing changes but by the common scale (l2) or the common threshold (l1)."""
    given = grey(space, (1, 12, 12), 60)
    start = space.opening(given.ctx, given.row)  # type: ignore[attr-defined]
    after = moved(space, given, 0.1, start)
    side = squares.sides(torch.full((60,), 0.1), (1, 12, 12), odd=True)
    to, origin = (covered(squares.corners(side, (1, 12, 12), given.row.uniform(2, stream)), side, (1, 12, 12)) for stream in (4, 5))
    elsewhere, emptied = ~(to | origin), origin & ~to
    assert (after[emptied] == 0).all()
    assert (after[to] != 0).float().mean() > 0.5
    before = start.view_as(after)
    assert ((after * before)[elsewhere] >= 0).all()
    if space.family == "l2":
        ratio = torch.where(elsewhere & (before != 0), after / before, torch.nan).flatten(1)
        middle = ratio.nanmedian(1, keepdim=True).values
        assert (ratio.isnan() | ((ratio - middle).abs() < 1e-4 * middle)).all()


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 10, 14)], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_the_move_is_autoattacks(order: int, shape: tuple[int, int, int]) -> None:
    """Row by row as pyautoattack's square.py computes it, from the same windows, bump and signs; c is the number of channels."""
    eps, c, row = 2.0, shape[0], rows(40)
    theta = 0.05 * torch.randn(40, shape[0] * shape[1] * shape[2], generator=torch.Generator().manual_seed(0))
    share = torch.tensor([0.1, 0.3]).repeat(20)
    found = squares.shifted(theta, shape, share, eps, order, row, 4).view(-1, *shape)
    side = squares.sides(share, shape, odd=True)
    first, second = (squares.corners(side, shape, row.uniform(2, stream)) for stream in (4, 5))
    eta = (
        squares.bump(squares.offsets(side, shape), side, shape, order, row.uniform(1, 6))
        * squares.signs(row.uniform(c, 7))[:, :, None, None]
    )
    for i, delta in enumerate(theta.view(-1, *shape).clone()):
        s = int(side[i])
        (top, left), (top2, left2) = ([int(corner[i]) for corner in corners] for corners in (first, second))
        here, there = (
            (slice(None), slice(top, top + s), slice(left, left + s)),
            (slice(None), slice(top2, top2 + s), slice(left2, left2 + s)),
        )
        union = torch.zeros(shape)
        union[here] = union[there] = 1
        old = delta[here] / delta[here].flatten(1).norm(order, dim=1)[:, None, None]
        new = eta[i][:, :s, :s] + old
        new = new / new.flatten(1).norm(order, dim=1)[:, None, None]
        held = (delta * union).flatten(1).norm(order, dim=1)[:, None, None]
        spare = (eps**order - delta.norm(order) ** order).clamp_min(0) / c
        delta[there] = 0
        delta[here] = new * ((spare + held) * c if order == 1 else (spare + held**2).sqrt())
        torch.testing.assert_close(found[i], delta, rtol=1e-4, atol=1e-6)


def test_windows_of_one_pixel() -> None:
    """Under l2 the second gives a part of what it holds, any part; under l1 all of it. All else stays, up to the common scale."""
    for space, partly in ((L2("0.4"), True), (L1("0.4"), False)):
        given = grey(space, (1, 6, 6), MANY)
        theta = space.project(given.ctx, torch.rand(MANY, 36, generator=torch.Generator().manual_seed(0)))
        before, after = theta.view(-1, 1, 6, 6), moved(space, given, 0.01, theta)
        one = torch.ones(MANY, dtype=torch.long)
        to, origin = (covered(squares.corners(one, (1, 6, 6), given.row.uniform(2, stream)), one, (1, 6, 6)) for stream in (4, 5))
        apart = ~(to & origin).flatten(1).any(1) & (before > 0.01).flatten(1)[origin.flatten(1)]
        left = (after[origin] / before[origin])[apart]
        assert (left > 0.05).any() == partly
        assert (left < 0.7).any()
        assert (after[to][apart] != before[to][apart]).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sparse_rs_swaps_its_share_of_pixels(shape: tuple[int, int, int]) -> None:
    """Always the whole budget, to the ends of the range, also on black and white images; so many go, as many come."""
    space = L0(12)
    given = given_images(space, images(shape, 24, 0))
    theta = space.opening(given.ctx, given.row)
    for share, count in ((0.5, 6), (0.25, 3), (0.01, 1)):
        after = space.move(given.ctx, theta, torch.full((24,), share), given.row)
        old, new = ((part != 0).unflatten(1, (shape[0], -1)).any(1) for part in (theta, after))
        assert (old.sum(1) == 12).all()
        assert (new.sum(1) == 12).all()
        assert ((old & ~new).sum(1) == count).all()
        shown = space.render(given.ctx, after)
        assert ((shown.flatten(1) == given.x.flatten(1)) | (shown.flatten(1) == 0) | (shown.flatten(1) == 1)).all()


def test_sparse_rs_with_all_pixels_of_an_image() -> None:
    """No pixel is left to swap with: those that go come back, with another colour."""
    space = L0(6)
    given = given_images(space, images((3, 2, 3), 24, 0))
    after = space.move(given.ctx, space.opening(given.ctx, given.row), torch.full((24,), 0.5), given.row)
    assert ((after != 0).unflatten(1, (3, -1)).any(1).sum(1) == 6).all()


def test_rows_have_their_own_schedules() -> None:
    """A row at its 1,500th query beside one at its first: each moves a square of its own size."""
    space = BALLS[0]
    given = grey(space, (1, 28, 28), 24)
    row = given.row._replace(step=torch.arange(24) * 100)
    change = space.move(given.ctx, torch.zeros(24, 784), Square()._share(row), row)
    sides = (change != 0).sum(1).sqrt().long()
    known = [max(round((0.8 / 2 ** sum(step > q for q in (10, 50, 200, 500, 1000, 2000)) * 784) ** 0.5), 1) for step in range(0, 2400, 100)]
    assert sides.tolist() == known


def test_the_loss_falls_where_there_is_something_to_find() -> None:
    """Over twelve looks the best loss of most rows rises, and never falls."""
    for space in BALLS:
        given = begun(Square(), space, (1, 8, 8), 0)
        losses = torch.stack([state.best_loss for _, state in trajectory(Square(), given)])
        assert (losses.diff(dim=0) >= 0).all()
        assert (losses[-1] > losses[0]).float().mean() > 0.8


def test_no_backward_pass_is_counted() -> None:
    given, passes = begun(Square(), BALLS[0], (1, 8, 8), 0), Passes()
    state = Square().begin(BALLS[0], given.ctx, given.row)

    def cut(x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :10]

    seen = look(cut, BALLS[0], Square(), given.ctx, given.row, Square().ask(state), "logits", passes)
    assert (passes.forward, passes.backward, seen.grad) == (len(given.x), 0, None)


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"restarts": 0}, {"share": 0.0}, {"share": 1.5}, {"loss_name": "hinge"}], ids=str)
def test_settings_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    for attack in (Square(), SparseRS()):
        with pytest.raises(SpecError):
            replace(attack, **wrong)  # type: ignore[arg-type]


def test_the_noise_is_the_row_s_own() -> None:
    """Another step, another move; the same row, the same."""
    space = BALLS[1]
    given = grey(space, (1, 8, 8), 24)

    def at(step: int) -> Tensor:
        row: Row = given.row._replace(step=given.row.step + step)
        return moved(space, Given(space, given.x, row, given.ctx), 0.1)

    assert torch.equal(at(3), at(3))
    assert (at(3) != at(4)).flatten(1).any(1).float().mean() > 0.9
