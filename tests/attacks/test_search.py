"""The engine: whatever the width, the order and the neighbours, a row's search is the same; dead rows stop; every pass is counted."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laws.attack_laws import curved_net, trajectory
from laws.entries import Entry, encounters
from laws.given import Given, images
from laws.nets import Around, Counting
from rbench.attacks.build import spec_of
from rbench.attacks.grid import Grid
from rbench.attacks.losses import margin
from rbench.attacks.noise import Row, row_keys
from rbench.attacks.pgd import PGD, Position
from rbench.attacks.protocol import Attack
from rbench.attacks.search import Best, Examples, Search
from rbench.attacks.square import Square
from rbench.attacks.widths import WIDER, WIDTHS, at_most, first_width, width_for
from rbench_threats.lp import Linf
from rbench_threats.protocol import PerturbationSet

N = 32
SMALL = (1, 8, 8)
LINF = Linf("0.05")
BUDGET = {"steps": 9, "restarts": 2, "top": 3, "queries": 40}


def shorter(attack: Attack) -> Attack:
    """The same attack on a small budget: 9 steps, 40 queries, 2 restarts, 3 targets."""
    known = {field.name for field in fields(attack)}  # type: ignore[arg-type]  # attacks are dataclasses
    return replace(attack, **{name: limit for name, limit in BUDGET.items() if name in known})  # type: ignore[type-var]


CASES = [(shorter(attack), entry) for attack, entry in encounters()]


def examples_of(net: nn.Module, shape: tuple[int, int, int] = SMALL, count: int = N, seed: int = 0) -> Examples:
    """Images labelled as the net sees them, at data set indices that are not their places."""
    x = images(shape, count, seed)
    clean = net(x)
    return Examples(x, clean.argmax(1), 3 * torch.arange(count) + 5, clean)


def some(examples: Examples, rows: Tensor) -> Examples:
    return Examples(examples.x[rows], examples.label[rows], examples.index[rows], examples.clean[rows])


def searched(net: Any, space: PerturbationSet, attack: Attack, examples: Examples, width: int = 16, **rest: Any) -> tuple[Best, Search]:
    search = Search(net, space, attack, examples, spec=spec_of(attack), seed=0, width=width, **rest)
    return search.run(), search


def by_hand(net: nn.Module, space: PerturbationSet, attack: Attack, examples: Examples) -> Tensor:
    """The smallest margin of every example inside the set, by running each of its rows to the end without an engine."""
    targets = attack.targets(examples.rivals)
    best = torch.full((len(examples),), torch.inf)
    for restart in range(attack.restarts):
        for rank in range(targets.shape[1]):
            keys = row_keys(0, spec_of(attack), examples.index.numpy(), targets[:, rank].numpy(), examples.index.numpy() * 0 + restart)
            zero = torch.zeros_like(examples.label)
            row = Row(examples.index, examples.label, targets[:, rank], zero + restart, torch.from_numpy(keys), zero)
            given = Given(space, examples.x, row, space.context(examples.x, row))
            state, cycles = attack.begin(space, given.ctx, row), 0
            while attack.goes_on(state, row._replace(step=row.step + cycles)).any() and cycles < 1000:
                cycles += 1
            for theta, _ in trajectory(attack, given, cycles):
                found = margin(net(space.render(given.ctx, theta)), examples.label)
                best = best.minimum(torch.where(space.excess(given.ctx, theta) <= 0, found, torch.inf))
    return best


def _id(value: object) -> str:
    return str(value) if isinstance(value, Entry) else str(getattr(value, "name", value))


@pytest.mark.parametrize(("attack", "entry"), CASES, ids=_id)
def test_the_engine_finds_what_the_bare_loop_finds(attack: Attack, entry: Entry) -> None:
    """Survivors at the same smallest margin, bit for bit; the fallen are the same."""
    net = curved_net(entry.shape)
    examples = examples_of(net, entry.shape, 24)
    best, _ = searched(net, entry.space, attack, examples)
    known = by_hand(net, entry.space, attack, examples)
    assert torch.equal(best.fell, known < 0)
    torch.testing.assert_close(best.margin[~best.fell], known[~best.fell], rtol=0, atol=1e-6)
    assert (best.margin[best.fell] < 0).all()
    assert not best.bad.any()


@pytest.mark.parametrize(("attack", "entry"), CASES, ids=_id)
def test_width_order_and_neighbours_do_not_matter(attack: Attack, entry: Entry) -> None:
    """Falls are the same, survivors' best margins too, bit for bit, at any width of the list, in any order, in any company."""
    net = curved_net(entry.shape)
    examples = examples_of(net, entry.shape)
    first, _ = searched(net, entry.space, attack, examples)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    for width in (32, 256):
        _same(first, searched(net, entry.space, attack, examples, width)[0], torch.arange(N))
    for rows in (order, order[:7], torch.arange(12, 32)):
        _same(first, searched(net, entry.space, attack, some(examples, rows))[0], rows)


def _same(whole: Best, part: Best, rows: Tensor) -> None:
    assert torch.equal(part.fell, whole.fell[rows])
    stand = ~part.fell
    assert torch.equal(part.margin[stand], whole.margin[rows][stand])
    assert torch.equal(part.theta[stand], whole.theta[rows][stand])


class Hasty(PGD):
    """A step as long as the neighbours' gradients allow: what the laws above must not let pass."""

    def step(self, space: Any, ctx: Any, row: Row, state: Position, seen: Any, phase: int) -> Position:
        return Position(space.project(ctx, state.theta + 0.1 * seen.grad / seen.grad.abs().max()))


def test_an_attack_that_watches_its_neighbours_is_caught() -> None:
    net, attack = curved_net(SMALL), Hasty(steps=8)
    examples = examples_of(net)
    first, _ = searched(net, LINF, attack, examples)
    with pytest.raises(AssertionError):
        _same(first, searched(net, LINF, attack, examples, 64)[0], torch.arange(N))


@pytest.mark.parametrize("width", [16, 256])
@pytest.mark.parametrize(("attack", "entry"), CASES, ids=_id)
def test_passes_are_what_the_model_saw(attack: Attack, entry: Entry, width: int) -> None:
    """Padding included; and never a batch outside the list of widths."""
    net = Counting(curved_net(entry.shape))
    examples = examples_of(curved_net(entry.shape), entry.shape)
    _, search = searched(net, entry.space, attack, examples, width)
    assert (search.passes.forward, search.passes.backward) == (net.forwards, net.backwards)
    assert search.passes.useful <= search.passes.forward
    assert net.widths <= set(WIDTHS)


def test_useful_passes_are_those_of_living_rows() -> None:
    """Without a fall every row runs to its end: rows × looks, whatever the padding."""
    net = curved_net(SMALL)
    attack = PGD(steps=8, restarts=2)
    tiny = Linf("0.0001")
    for width in (16, 64):
        best, search = searched(net, tiny, attack, examples_of(net), width)
        assert not best.fell.any()
        assert search.passes.useful == N * 2 * 9


def test_a_fall_ends_the_examples_other_rows() -> None:
    """Everything falls at the first look: the later restarts never run, and nobody pays for them."""
    net = curved_net(SMALL)
    examples = examples_of(net)
    wrong = Examples(examples.x, (examples.label + 1) % 6, examples.index, examples.clean)  # the label does not lead: fallen at once
    best, search = searched(net, Linf("0.0001"), PGD(steps=50, restarts=20), wrong)
    assert best.fell.all()
    assert search.passes.useful <= 3 * N
    assert search.passes.forward <= 6 * N


@dataclass(frozen=True)
class Staggered(PGD):
    """Rows of different lengths, 1 to 97 looks by example; and with `doomed` restart 0 asks for a fall at its fourth look."""

    doomed: bool = False

    def step(self, space: Any, ctx: Any, row: Row, state: Position, seen: Any, phase: int) -> Position:
        falls = (row.restart == 0) & (row.step == 2) & self.doomed
        return Position(torch.where(falls[:, None], 0.01, 0.0).expand_as(state.theta).clone())

    def begin(self, space: Any, ctx: Any, row: Row) -> Position:
        return Position(torch.zeros_like(ctx.lower))

    def goes_on(self, state: Position, row: Row) -> Tensor:
        return row.step < (50 if self.doomed else 1 + row.example % 97)


def brightened(x: Tensor) -> Tensor:
    """Class 1 for images that are brighter than black."""
    return torch.stack([0.5 - 100 * x.mean((1, 2, 3)), torch.zeros(len(x))], 1)


def black(count: int) -> Examples:
    x = torch.zeros(count, *SMALL)
    return Examples(x, torch.zeros(count, dtype=torch.long), torch.arange(count), brightened(x))


@pytest.mark.parametrize("width", [16, 256])
def test_useful_passes_are_those_of_living_rows_whatever_their_length(width: int) -> None:
    """A dead row that waits for its successor is looked at, and is of no use."""
    best, search = searched(brightened, LINF, Staggered(), black(400), width)
    assert not best.fell.any()
    assert search.passes.useful == sum(1 + index % 97 for index in range(400))
    assert search.passes.useful < search.passes.forward


def test_a_fall_ends_the_rows_beside_it() -> None:
    """Eight restarts of four images side by side; the first of them falls at its fourth look, and the others are dead at once."""
    best, search = searched(brightened, LINF, Staggered(restarts=8, doomed=True), black(4), 32)
    assert best.fell.all()
    assert best.restart.tolist() == [0] * 4
    assert search.passes.useful == 4 * 8 * 4
    assert search.passes.forward == 32 * 4


class FreeAtLast(Linf):
    """A set whose contexts differ by restart: in the first nothing may move."""

    def context(self, x: Tensor, row: Row) -> Any:
        ctx = super().context(x, row)
        return replace(ctx, lower=ctx.lower * (row.restart > 0)[:, None], upper=ctx.upper * (row.restart > 0)[:, None])


def test_every_restart_has_its_own_context() -> None:
    """Made once per (image, restart), and handed to the rows of that restart."""
    net = curved_net(SMALL)
    examples = examples_of(net)
    still, _ = searched(net, FreeAtLast("0.1"), PGD(steps=8), examples)
    assert not still.fell.any()
    assert not still.theta.any()
    best, _ = searched(net, FreeAtLast("0.1"), PGD(steps=8, restarts=2), examples)
    plain, _ = searched(net, Linf("0.1"), PGD(steps=8, restarts=2), examples)
    assert best.fell.any()
    assert (best.restart[best.fell] == 1).all()
    assert not (best.fell & ~plain.fell).any()


def test_a_tie_is_no_fall() -> None:
    """Constant logits: margin 0 everywhere, for every label."""
    net = Around(curved_net(SMALL), after=lambda z: 0 * z + 1)
    examples = examples_of(curved_net(SMALL))
    best, search = searched(net, LINF, PGD(steps=5), examples)
    assert not best.fell.any()
    assert (best.margin == 0).all()
    assert search.passes.useful == N * 6, "a tie ended the search"


def nan_where(condition: Any, value: float = torch.nan) -> Any:
    """Logits with NaN in one class for the rows that meet the condition."""

    def after(x: Tensor, logits: Tensor) -> Tensor:
        return torch.where((condition(x)[:, None]) & (torch.arange(logits.shape[1]) == 1), value, logits)

    return after


class Poisoned(nn.Module):
    """A net whose answer to some images is not a number."""

    def __init__(self, net: nn.Module, condition: Any, value: float = torch.nan) -> None:
        super().__init__()
        self.net, self.poison = net, nan_where(condition, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.poison(x, self.net(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_rows_that_are_no_numbers_are_bad_and_spoil_nobody(value: float, width: int) -> None:
    """A brightness that only some images reach under attack: they are marked, and every other row is as it was."""
    net, attack = curved_net(SMALL), PGD(steps=8, restarts=2)
    examples = examples_of(net)
    healthy, _ = searched(net, LINF, attack, examples, width)
    best, _ = searched(Poisoned(net, lambda x: x.mean((1, 2, 3)) > 0.5, value), LINF, attack, examples, width)
    bright = examples.x.mean((1, 2, 3)) > 0.55  # always past the line
    dark = examples.x.mean((1, 2, 3)) < 0.45  # never
    assert best.bad[bright].all()
    assert not best.bad[dark].any()
    assert not best.fell[bright].any()
    assert torch.equal(best.fell[dark], healthy.fell[dark])
    stand = dark & ~best.fell
    assert stand.any()
    assert torch.equal(best.margin[stand], healthy.margin[stand])


def test_a_gradient_that_is_no_number_is_bad() -> None:
    """sqrt at 0: finite logits, NaN behind them. The sign of NaN is 0 in torch: the attack would stand still and call the model robust."""
    net = curved_net(SMALL)
    rooted = Around(net, before=lambda x: (x - x.detach()).abs().sqrt() + x)
    examples = examples_of(net)
    best, _ = searched(rooted, LINF, PGD(steps=8), examples)
    assert (best.bad | best.fell).all()


@pytest.mark.parametrize("width", [16, 256])
def test_margins_must_fall_beyond_the_threshold(width: int) -> None:
    """`beyond`: after a refused claim, only a larger fall counts."""
    net, attack = curved_net(SMALL), PGD(steps=8)
    wide = Linf("0.3")
    examples = examples_of(net)
    plain, _ = searched(net, wide, attack, examples, width)
    depth = float(plain.margin[plain.fell].median().abs())
    best, _ = searched(net, wide, attack, examples, width, beyond=torch.full((N,), depth))
    assert best.fell.any()
    assert (best.margin[best.fell] < -depth).all()
    assert not (best.fell & ~plain.fell).any()


class Dawdles(PGD):
    """Takes its time over a step."""

    def step(self, space: Any, ctx: Any, row: Row, state: Position, seen: Any, phase: int) -> Position:
        time.sleep(0.01)
        return super().step(space, ctx, row, state, seen, phase)


class Leaps(PGD):
    """Looks far outside the set every other time, and says that it may."""

    stays_inside = False  # type: ignore[misc]

    def step(self, space: Any, ctx: Any, row: Row, state: Position, seen: Any, phase: int) -> Position:
        out = (row.step % 2 == 0)[:, None]
        return Position(torch.where(out, torch.where(ctx.x.flatten(1) > 0.5, ctx.lower, ctx.upper), 0.5 * space.project(ctx, state.theta)))


def test_falls_outside_the_set_do_not_count() -> None:
    net, attack = curved_net(SMALL), Leaps(steps=8)
    examples = examples_of(net)
    tiny = Linf("0.001")
    best, _ = searched(net, tiny, attack, examples)
    outside = net(1 - examples.x).argmax(1) != examples.label
    assert outside.any(), "the leaps would break something"
    assert not best.fell.any()
    assert (best.theta.abs() <= 0.001 + 1e-6).all()


def test_progress_counts_every_row() -> None:
    net, seen = curved_net(SMALL), list[tuple[int, int]]()
    searched(net, LINF, PGD(steps=3, restarts=3), examples_of(net), progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {N * 3}


def test_widths_fit_the_tasks() -> None:
    assert [width_for(tasks, 64) for tasks in (1, 16, 17, 33, 64, 65, 1000)] == [16, 16, 24, 40, 64, 64, 64]
    assert [first_width(tasks, 64) for tasks in (1, 64, 65, 89, 1000)] == [16, 64, 40, 48, 64]
    assert [at_most(width) for width in (8, 31, 32, 5000)] == [16, 24, 32, 2048]
    assert all(width >= 15 for width in WIDTHS), "below 15 rows logits change in their last bits"
    assert max(wider / width for width, wider in pairwise(WIDTHS) if width >= 64) <= 9 / 8, "more than a ninth of padding"


@pytest.mark.parametrize("count", [65, 89, 131])
def test_rows_of_one_length_leave_hardly_any_padding(count: int) -> None:
    """Nothing falls and all rows take nine looks: what the model sees is the rows, up to the next multiple of eight."""
    for attack, width in ((PGD(steps=8), 64), (Square(queries=8), 24)):
        _, search = searched(brightened, Linf("0.0001"), attack, black(count), width)
        assert search.passes.useful == 9 * count
        assert search.passes.forward == 9 * (-(-count // 8) * 8)


def test_batches_without_a_gradient_are_wider() -> None:
    net = Counting(curved_net(SMALL))
    searched(net, LINF, Square(queries=3), examples_of(curved_net(SMALL), count=192), 64)
    assert max(net.widths) == 64 * WIDER


def test_a_tail_narrows_with_the_rows_that_are_left() -> None:
    """Rows of 1 to 97 looks, all seated at once: the batch is at most a fifth and sixteen rows wider than what lives in it."""
    best, search = searched(brightened, LINF, Staggered(), black(97), 256)
    assert not best.fell.any()
    living = [98 - look for look in range(1, 98)]
    assert search.passes.forward <= sum(max(16, 1.25 * rows) + 8 for rows in living)


class Nears(PGD):
    """A black image, brighter by 0.1, 0.09, … and at the last look darker than black by 0.007, which no image is."""

    def begin(self, space: Any, ctx: Any, row: Row) -> Position:
        return Position(torch.full_like(ctx.lower, 0.1))

    def step(self, space: Any, ctx: Any, row: Row, state: Position, seen: Any, phase: int) -> Position:
        return Position(torch.where((row.step == self.steps - 1)[:, None], -0.007, state.theta - 0.01 * (1 + row.restart)[:, None]))


@pytest.mark.parametrize("radius", ["0.05", "0.005"])
def test_minimum_norm_mode_keeps_the_nearest_fall(radius: str) -> None:
    """More than 0.005 either way is a fall: of 0.1, 0.09, … the nearest is 0.01, whatever the radius; all rows run to their end."""
    best, search = searched(lambda x: brightened(x.abs()), Linf(radius), Nears(steps=10, restarts=2), black(20), nearest=True)
    torch.testing.assert_close(best.gauge, torch.full((20,), 0.01 / float(radius)))
    torch.testing.assert_close(best.theta, torch.full((20, 64), 0.01))
    assert (best.margin < 0).all()
    assert best.fell.all() == (radius == "0.05")
    assert (best.restart == 0).all(), "in steps of 0.02 the nearest is at 0.02"
    assert search.passes.useful == 20 * 2 * 11, "a fall ended a row"
    none, _ = searched(lambda x: brightened(x).abs(), Linf(radius), Nears(steps=10), black(20), nearest=True)
    assert none.gauge.isinf().all()
    assert not none.fell.any()


def test_seconds_are_the_models_the_steps_and_the_engines() -> None:
    """A model that takes its time, and a step that does: each is counted where it was spent, and no more than there was."""
    net = curved_net(SMALL)

    def slow(x: Tensor) -> Any:
        time.sleep(0.02)
        return net(x)

    searched(slow, LINF, Dawdles(steps=1), examples_of(net, count=16))  # what a first call costs is not the point
    began = time.perf_counter()
    _, search = searched(slow, LINF, Dawdles(steps=5), examples_of(net, count=16))
    spent = time.perf_counter() - began
    assert search.passes.model_seconds > 6 * 0.02
    assert search.passes.step_seconds > 6 * 0.01
    assert search.passes.model_seconds + search.passes.step_seconds < spent


def test_a_grid_looks_at_every_point() -> None:
    """The one point at which a model errs is found, wherever it stands in the grid."""
    entry = next(entry for attack, entry in encounters() if isinstance(attack, Grid))
    space, x = entry.space, images(entry.shape, 16, 0)
    row = Row(*(torch.zeros(16, dtype=torch.long) for _ in range(6)))
    ctx = space.context(x, row)
    points = space.points(ctx)  # type: ignore[attr-defined]
    for place in (0, 1, 400, len(points) - 1):
        wanted = space.render(ctx, points[place].repeat(16, 1))

        def net(images: Tensor, wanted: Tensor = wanted) -> Tensor:
            gap = (images[:, None] - wanted[None]).flatten(2).abs().amax(2).amin(1)
            return torch.stack([torch.where(gap < 1e-7, -1.0, 1.0), torch.zeros(len(images))], 1)

        examples = Examples(x, torch.zeros(16, dtype=torch.long), torch.arange(16), torch.tensor([[1.0, 0.0]]).repeat(16, 1))
        best, _ = searched(net, space, Grid(), examples)
        assert best.fell.all(), f"point {place} of the grid was not looked at"
