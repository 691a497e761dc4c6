"""One attack of a plan: memory that runs short, images that make the model raise, refused claims, starts taken over; all counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laws.attack_laws import curved_net
from laws.entries import Entry, encounters, smallest
from laws.formulas import excess
from laws.given import images
from laws.nets import Counting, digit_net, digits, right_examples
from rbench.attacks.build import spec_of
from rbench.attacks.catalogue import Stage, resolve_plan
from rbench.attacks.evaluate import Passes, clean_logits
from rbench.attacks.grid import Grid
from rbench.attacks.pgd import PGD, Position
from rbench.attacks.protocol import Attack
from rbench.attacks.search import Examples
from rbench.attacks.stage import Outcome, part_of, run_stage
from rbench.attacks.widths import WIDTHS
from rbench_core.errors import ModelError
from rbench_threats.lp import Linf
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spatial import RotationTranslation

SHAPE = (1, 8, 8)
LINF = Linf("0.05")
N = 40


def stage_of(attack: Attack, **rest: Any) -> Stage:
    return Stage(attack, spec_of(attack), spec_of(attack), **rest)


def examples_of(count: int = N) -> Examples:
    net, x = curved_net(SHAPE), images(SHAPE, count, 0)
    clean = net(x)
    return Examples(x, clean.argmax(1), torch.arange(count), clean)


def ran(model: nn.Module, attack: Attack, examples: Examples, space: PerturbationSet = LINF, width: int = 64, **rest: Any) -> Outcome:
    return run_stage(model, space, stage_of(attack), examples, seed=0, width=width, closest={}, **rest)


@pytest.mark.parametrize(("attack", "entry"), encounters(), ids=lambda part: str(getattr(part, "name", part)))
def test_witnesses_are_inside_and_fool_the_model(attack: Attack, entry: Entry) -> None:
    """End to end with every attack's defaults: in the set by the independent formula, in [0, 1], and the plain model errs on the image."""
    net = digit_net()
    examples = right_examples(net, digits(60))
    found = run_stage(net, entry.space, stage_of(attack), examples, seed=0, width=64, closest={})
    assert found.witnesses or attack.name == "random", "nothing fell: the test would test nothing"  # ten draws may well find nothing
    assert not found.refused
    assert not found.errors
    for place, witness in found.witnesses.items():
        x = examples.x[place : place + 1]
        outside = excess(entry.space, x.double().numpy(), witness.theta[None].double().numpy())
        assert outside is None or outside[0] <= 0
        assert witness.image.min() >= -1e-6
        assert witness.image.max() <= 1 + 1e-6
        if "additive" in entry.space.capabilities:
            torch.testing.assert_close(witness.image, x[0] + witness.theta.view_as(x[0]), rtol=0, atol=1e-7)
        said = net(witness.image.repeat(16, 1, 1, 1))[0]
        assert int(said.argmax()) == witness.predicted != int(examples.label[place])
        assert witness.margin < 0
        assert 0 <= witness.gauge <= 1 + 1e-5


class Short(nn.Module):
    """Memory for `rows` rows."""

    def __init__(self, rows: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.net, self.rows, self.error, self.refused = curved_net(SHAPE), rows, error, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.rows:
            self.refused += 1
            raise self.error()
        return self.net(x)  # type: ignore[no-any-return]


ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes."),
    lambda: MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("rows", [16, 32])
def test_memory_that_runs_short_halves_the_width(rows: int, error: Callable[[], Exception]) -> None:
    """The statuses are those of a machine with memory, and the outcome says which width was left."""
    examples, attack = examples_of(), PGD(steps=8, restarts=3)
    plenty = ran(curved_net(SHAPE), attack, examples, width=128)
    model = Short(rows, error)
    scarce = ran(model, attack, examples, width=128)
    assert model.refused
    assert set(scarce.witnesses) == set(plenty.witnesses)
    assert not scarce.errors
    assert scarce.width == rows
    logits, reasons = clean_logits(Short(rows, error), examples.x, 128, Passes())
    assert not reasons
    torch.testing.assert_close(torch.stack([row for row in logits if row is not None]), examples.clean)


def test_memory_that_is_never_enough_is_an_error_of_every_image() -> None:
    model = Short(8, ERRORS[0])
    found = ran(model, PGD(steps=3), examples_of(), width=64)
    assert set(found.errors) == set(range(N))
    assert "out of memory at 16 rows" in found.errors[0]
    assert not found.witnesses
    logits, reasons = clean_logits(model, examples_of().x, 64, Passes())
    assert logits == [None] * N
    assert set(reasons) == set(range(N))


class Allergic(nn.Module):
    """Raises when an image's corner is as bright as a poisoned one's."""

    def __init__(self, *corners: float, tolerance: float = 0.06) -> None:
        super().__init__()
        self.net, self.corners, self.tolerance = curved_net(SHAPE), torch.tensor(corners), tolerance

    def forward(self, x: Tensor) -> Tensor:
        if ((x[:, 0, 0, 0, None] - self.corners).abs() < self.tolerance).any():
            raise ValueError("I cannot look\nat this")
        return self.net(x)  # type: ignore[no-any-return]


def cornered() -> Examples:
    """Images whose corner is 0.2, and two whose corner is 0.9: places 7 and 23."""
    examples = examples_of()
    x = examples.x.clone()
    x[:, 0, 0, 0] = 0.2
    x[[7, 23], 0, 0, 0] = 0.9
    clean = curved_net(SHAPE)(x)
    return Examples(x, clean.argmax(1), examples.index, clean)


def test_a_poisoned_image_is_lost_and_no_other() -> None:
    """Bisected: the two that make the model raise have an error with its words, in one line; the others are as they were."""
    examples, attack = cornered(), PGD(steps=8, restarts=2)
    plain = ran(curved_net(SHAPE), attack, examples)
    found = ran(Allergic(0.9), attack, examples)
    assert set(found.errors) == {7, 23}
    assert found.errors[7] == "the model raised ValueError: I cannot look at this"
    assert set(found.witnesses) == set(plain.witnesses) - {7, 23}
    logits, reasons = clean_logits(Allergic(0.9), examples.x, 64, Passes())
    assert set(reasons) == {7, 23}
    assert [place for place, row in enumerate(logits) if row is None] == [7, 23]


def test_an_image_that_is_poison_under_attack_only() -> None:
    """The clean image passes; what the attack makes of it raises."""
    examples = cornered()
    model = Allergic(0.945, tolerance=0.02)
    assert clean_logits(model, examples.x, 64, Passes())[1] == {}
    found = ran(model, PGD(steps=8), examples)
    plain = ran(curved_net(SHAPE), PGD(steps=8), examples)
    assert set(found.errors) <= {7, 23}
    assert found.errors
    assert set(plain.witnesses) - {7, 23} == set(found.witnesses) - {7, 23}


class Wrong(nn.Module):
    """Answers in a wrong shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[0]


def test_an_answer_of_a_wrong_shape_is_an_error() -> None:
    found = ran(Wrong(), PGD(steps=3), examples_of(4))
    assert set(found.errors.values()) == {"the model returned (64,) for 16 images"}


def test_a_model_without_a_gradient_is_named() -> None:
    """Nobody could attack it by gradient: that is an answer to the whole run, not to an image."""

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return curved_net(SHAPE)(x.detach())  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match="no gradient"):
        ran(Cut(), PGD(steps=3), examples_of(4))


class Liar(PGD):
    """Says that it stays inside, and does not."""

    def step(self, space: Any, ctx: Any, row: Any, state: Position, seen: Any, phase: int) -> Position:
        assert seen.grad is not None
        return Position(state.theta + 0.2 * seen.grad.sign())


def test_a_liars_claims_are_refused() -> None:
    examples = examples_of()
    found = ran(curved_net(SHAPE), Liar(steps=8), examples)
    honest = ran(curved_net(SHAPE), PGD(steps=8), examples)
    assert found.refused, "the liar broke nothing: the test would test nothing"
    assert set(found.refused.values()) == {"outside the set"}
    assert not set(found.refused) & set(found.witnesses)
    for place, witness in found.witnesses.items():  # what fell before it left
        outside = excess(LINF, examples.x[place : place + 1].double().numpy(), witness.theta[None].double().numpy())
        assert outside is not None
        assert outside[0] <= 0
    assert len(honest.refused) == 0


class Moody(nn.Module):
    """Answers otherwise every time it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = curved_net(SHAPE)(x)
        return logits + 3 * torch.randn(logits.shape, generator=self.random)


def test_a_claim_is_asked_again() -> None:
    """A random model: what the referee does not see is refused with its reason, and searched again with a larger fall in mind."""
    found = ran(Moody(), PGD(steps=8), examples_of())
    assert not set(found.refused) & set(found.witnesses)
    assert set(found.refused.values()) <= {"the label still leads"}
    assert all(witness.margin < 0 for witness in found.witnesses.values())


class NarrowFall(nn.Module):
    """Errs by a hair where it is alone or in a batch of another width than the referee's: the edge that widths make."""

    def forward(self, x: Tensor) -> Tensor:
        logits = curved_net(SHAPE)(x)
        if len(x) != 64:
            return logits  # type: ignore[no-any-return]
        own = torch.nn.functional.one_hot(self.label, logits.shape[1])[:1]
        return logits + own * 1e6

    label: Tensor


def test_a_fall_that_the_referees_width_does_not_see_is_refused() -> None:
    """It survives, and the outcome says why."""
    examples = examples_of(30)
    model = NarrowFall()
    model.label = examples.label[:1]
    same = examples.label == model.label
    examples = part_of(examples, same.nonzero().squeeze(1).tolist())
    found = ran(model, PGD(steps=8), examples, Linf("0.3"))
    plain = ran(curved_net(SHAPE), PGD(steps=8), examples, Linf("0.3"))
    assert plain.witnesses
    assert not found.witnesses
    assert set(found.refused) == set(plain.witnesses)


@pytest.mark.parametrize("width", [16, 64, 256])
@pytest.mark.parametrize("entry", smallest(), ids=str)
def test_a_stages_passes_are_what_the_model_saw(entry: Entry, width: int) -> None:
    """Search, referee and second searches, padding included."""
    examples = right_examples(digit_net(), digits(40))
    stage = resolve_plan("pgd").stages_for(entry.space)[0] if "support" in entry.space.capabilities else stage_of(PGD(steps=5, restarts=2))
    net = Counting(digit_net())
    found = run_stage(net, entry.space, stage, examples, seed=0, width=width, closest={})
    assert (found.passes.forward, found.passes.backward) == (net.forwards, net.backwards)
    assert 0 < found.passes.useful <= found.passes.forward
    assert net.widths <= set(WIDTHS)


@pytest.mark.parametrize("broken", ["memory", "poison"])
def test_passes_of_searches_that_failed_are_counted_too(broken: str) -> None:
    """What a crashing model has seen, it has seen."""
    model = Short(32, ERRORS[0]) if broken == "memory" else Allergic(0.945, tolerance=0.02)
    net = Counting(model)
    found = ran(net, PGD(steps=8), cornered(), width=64)
    assert (found.passes.forward, found.passes.backward) == (net.forwards, net.backwards)


def test_clean_passes_are_what_the_model_saw() -> None:
    for width, count in ((16, 40), (64, 40), (256, 3)):
        net, passes = Counting(curved_net(SHAPE)), Passes()
        clean_logits(net, images(SHAPE, count, 0), width, passes)
        assert passes.forward == net.forwards == -(-count // width) * width
        assert passes.useful == count


SPATIAL = RotationTranslation(2, "0.2")


def test_a_stage_from_the_best_begins_there() -> None:
    """`start = "best"`: the gradient goes on from the grid's smallest margin, and never ends above it."""
    examples = examples_of(24)
    grid = run_stage(curved_net(SHAPE), SPATIAL, stage_of(Grid()), examples, seed=0, width=64, closest={})
    left = [place for place in range(24) if place not in grid.witnesses]
    rest = part_of(examples, left)
    closest = {place: grid.closest[where] for place, where in enumerate(left)}
    stage = stage_of(PGD(steps=4, rate=0.01), start="best")
    found = run_stage(curved_net(SHAPE), SPATIAL, stage, rest, seed=0, width=64, closest=closest)
    for place, (margin, _) in closest.items():
        assert place in found.witnesses or found.closest[place][0] <= margin + 1e-5
    scratch = run_stage(curved_net(SHAPE), SPATIAL, stage_of(PGD(steps=4, rate=0.01)), rest, seed=0, width=64, closest={})
    assert any(scratch.closest[place][0] > closest[place][0] + 1e-3 for place in scratch.closest), "the start would not matter here"


def test_a_neighbour_without_a_best_does_not_change_where_others_begin() -> None:
    """One image whose earlier attack saw no number: it begins at random, and only it."""
    examples = examples_of(24)
    grid = run_stage(curved_net(SHAPE), SPATIAL, stage_of(Grid()), examples, seed=0, width=64, closest={})
    stage = stage_of(PGD(steps=4, rate=0.01), start="best")
    closest = dict(grid.closest)
    whole = run_stage(curved_net(SHAPE), SPATIAL, stage, examples, seed=0, width=64, closest=closest)
    del closest[3]
    found = run_stage(curved_net(SHAPE), SPATIAL, stage, examples, seed=0, width=64, closest=closest)
    others = [place for place in whole.closest if place != 3]
    assert [found.closest[place][0] for place in others] == [whole.closest[place][0] for place in others]
    assert 3 in found.closest
