"""Attacks of other libraries: what they return is what the library itself returns, and nothing else in the process changes."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rbench.attacks.evaluate import Passes
from rbench.attacks.external import AutoAttack, Foolbox, Foreign, from_spec, square_fits
from rbench.attacks.foolbox_classes import UNUSABLE, kind_of, offered, parameters
from rbench.attacks.noise import Row
from rbench.attacks.referee import Judged, judge
from rbench.attacks.sealed import library
from rbench_core.errors import Failure, ModelError, SpecError, UnknownName, UsageError
from rbench_core.files import canonical_json
from rbench_threats.lp import L0, L1, L2, Linf
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spatial import RotationTranslation
from rbench_threats.spec import parse


def fool(name: str, batch: int = 200, **arguments: Any) -> Foolbox:
    return Foolbox(name, tuple(arguments.items()), batch)


BALLS: dict[float | None, PerturbationSet] = {2.0: L2(0.5), 1.0: L1(3), float("inf"): Linf("0.1"), 0.0: L0(6)}


class Counting(nn.Module):
    """A small net that remembers how many rows each pass had."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, classes))
        self.passes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        logits: Tensor = self.layers(x)
        return logits


class Wrapped(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def images(rows: int = 8, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(rows, 1, height, width, generator=torch.Generator().manual_seed(1))


def scene(classes: int = 10, rows: int = 8) -> tuple[Counting, Tensor, Tensor]:
    """A net, images and the labels that it gives them."""
    net, x = Counting(classes).eval(), images(rows)
    with torch.no_grad():
        label = net(x).argmax(1)
    net.passes.clear()
    return net, x, label


def predicted(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1)  # type: ignore[no-any-return]


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def generators() -> list[bytes]:
    return [torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()).encode(), repr(random.getstate()).encode()]


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Nothing global and nothing of the net changes in the block."""

    def tracer(frame: Any, event: str, argument: Any) -> None:
        return None

    def state() -> list[Any]:
        root, named = logging.getLogger(), logging.getLogger("auto-attack")
        logs = [list(root.handlers), list(root.filters), root.level, list(named.handlers), list(named.filters), named.level]
        weights = [(weight.requires_grad, weight.grad, weight.detach().clone().tolist()) for weight in net.parameters()]
        modes = [part.training for part in net.modules()]
        return [generators(), logs, weights, modes, list(warnings.filters), dict(os.environ), torch.is_grad_enabled()]

    outer = sys.gettrace()
    before = state()
    sys.settrace(tracer)
    try:
        yield
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(outer)
    assert state() == before


def run(attack: Foreign, net: nn.Module, space: PerturbationSet, x: Tensor, label: Tensor, *, classes: int = 10, seed: int = 0) -> Tensor:
    """The attack on one block, with its promises about everything else checked."""
    kept = x.clone()
    with untouched(net):
        found = attack.attack(net, space, x, label, seed=seed, classes=classes)
    assert torch.equal(x, kept)
    assert found.shape == x.shape
    assert (found.dtype, found.device, found.requires_grad) == (x.dtype, x.device, False)
    return found


def judged(net: nn.Module, space: Any, x: Tensor, found: Tensor, label: Tensor) -> Judged:
    """What the referee says of returned images."""
    index = torch.arange(len(x))
    ctx = space.context(x, Row(index, label, index * 0 - 1, index * 0, index, index * 0))
    return judge(net, space, ctx, space.from_images(ctx, found), label, Passes())


def direct_autoattack(net: nn.Module, norm: str, eps: float, x: Tensor, label: Tensor, version: str, seed: int = 0) -> Tensor:
    """pyautoattack as its own documentation calls it."""
    import pyautoattack

    trace, weights = sys.gettrace(), [weight for weight in net.parameters() if weight.requires_grad]
    with torch.random.fork_rng(devices=[]):
        adversary = pyautoattack.AutoAttack(net, norm=norm, eps=eps, seed=seed, version=version)
        found: Tensor = adversary.run_standard_evaluation(x, label, batch_size=len(x))[0]
    sys.settrace(trace)
    for weight in weights:
        weight.grad = None
    return found


def direct_foolbox(attack: Foolbox, net: nn.Module, space: Any, x: Tensor, label: Tensor, seed: int = 0) -> Tensor:
    """foolbox as its own documentation calls it; l0 without clipping, which foolbox does not know."""
    foolbox = library("foolbox")
    made = kind_of(attack.attack_name)(**dict(attack.arguments))
    if isinstance(made, foolbox.attacks.base.FlexibleDistanceMinimizationAttack):
        made._distance = foolbox.distances.LpDistance(space.norm)
    python, numpy_, handlers = random.getstate(), np.random.get_state(), list(logging.getLogger().handlers)
    with torch.random.fork_rng(devices=[]):
        seeded(seed)
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        found: Tensor = made(model, x, foolbox.Misclassification(label), epsilons=None if space.norm == 0 else space.radius)[1]
    random.setstate(python)
    np.random.set_state(numpy_)
    logging.getLogger().handlers[:] = handlers
    return found


# --- AutoAttack ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "space", "classes", "left"),
    [
        ("standard", Linf("0.08"), 10, 2),  # two rows outlive every attack, Square's 5,000 queries too
        ("standard", L2("0.7"), 10, 0),  # targeted APGD breaks what APGD left
        ("standard", L1(3), 10, 0),
        ("plus", Linf("0.12"), 10, 0),
        ("rand", Linf("0.2"), 3, 0),
    ],
    ids=str,
)
def test_autoattack_is_the_library_s_own_call_bit_for_bit(version: str, space: Any, classes: int, left: int) -> None:
    net, x, label = scene(classes)
    seeded(5)  # whatever the process drew before plays no part
    ours = run(AutoAttack(version), net, space, x, label, classes=classes, seed=3)
    our_passes = net.passes.copy()
    net.passes.clear()
    theirs = direct_autoattack(net, space.family.capitalize(), space.radius, x, label, version, seed=3)
    assert torch.equal(ours, theirs)
    assert our_passes == net.passes  # the same attacks ran, in the same order on the same rows
    assert int((predicted(net, ours) == label).sum()) == left
    verdicts = judged(net, space, x, ours, label)
    assert torch.equal(verdicts.accepted, predicted(net, ours) != label)  # the referee refuses none


def test_seeds_and_versions_matter() -> None:
    net, x, label = scene()
    found = [AutoAttack().attack(net, L2("0.9"), x, label, seed=seed, classes=10) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(("space", "most"), [(Linf("0.1"), 9), (L2(1), 9), (L1(5), 5)], ids=str)
@pytest.mark.parametrize("classes", [4, 5, 10, 100])
def test_targets_are_as_many_as_there_are(monkeypatch: pytest.MonkeyPatch, space: Any, most: int, classes: int) -> None:
    seen: list[tuple[int, int]] = []

    def watch(self: Any, x: Tensor, label: Tensor, /, *, batch_size: int) -> tuple[Tensor, Tensor]:
        seen.append((self.apgd_targeted.n_target_classes, self.fab.n_target_classes))
        return x, label

    monkeypatch.setattr(library("pyautoattack").AutoAttack, "run_standard_evaluation", watch)
    net, x, label = scene(classes)
    AutoAttack().attack(net, space, x, label, seed=0, classes=classes)
    assert seen == [(min(most, classes - 1), min(9, classes - 1))]


def test_few_classes_run_where_the_library_s_own_call_fails() -> None:
    net, x, label = scene(classes=4)
    with pytest.raises(IndexError):
        direct_autoattack(net, "Linf", 0.1, x, label, "standard")
    net, x, label = scene(classes=5)
    found = run(AutoAttack(), net, Linf("0.12"), x, label, classes=5)
    assert (predicted(net, found) != label).all()


@pytest.mark.parametrize(("version", "classes"), [("standard", 3), ("standard", 2), ("plus", 3), ("rand", 2)])
def test_too_few_classes_are_one_line(version: str, classes: int) -> None:
    net, x, label = scene(classes)
    with pytest.raises(UsageError, match=rf"autoattack\(version={version}\) on a model with {classes} classes; expected at least"):
        run(AutoAttack(version), net, Linf("0.1"), x, label, classes=classes)
    assert net.passes == []


@pytest.mark.parametrize("space", [Linf(1), L2(8), L1(64)], ids=str)
@pytest.mark.parametrize("rows", [1, 8])
def test_a_block_in_which_everything_falls(space: Any, rows: int) -> None:
    net, x, label = scene(rows=rows)
    assert (predicted(net, run(AutoAttack(), net, space, x, label)) != label).all()


@pytest.mark.parametrize("attack", [AutoAttack(), fool("DDNAttack"), fool("BoundaryAttack", steps=20)], ids=str)
def test_blocks_without_anything_to_break(attack: Foreign) -> None:
    net, x, label = scene()
    assert run(attack, net, L2("0.5"), x[:0], label[:0]).shape == (0, 1, 8, 8)
    wrong = (label + 1) % 10
    if isinstance(attack, AutoAttack):
        assert torch.equal(run(attack, net, L2("0.5"), x, wrong), x)
    else:
        run(attack, net, L2("0.5"), x, wrong)


SIDES = [(side, side) for side in (3, 4, 5, 8, 9, 12, 13, 14, 18, 19, 24, 28, 32)]
SIDES += [(28, 20), (28, 24), (32, 30), (32, 64), (8, 30), (30, 8)]


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_square_fits_as_the_library_does(norm: str, height: int, width: int) -> None:
    """The library's own Square on a model that never falls, 12 queries."""
    from pyautoattack.square import SquareAttack

    net = Wrapped(lambda x: torch.eye(4)[0].expand(len(x), 4).clone()).eval()
    square = SquareAttack(net, norm=norm, n_queries=12, eps=0.1, seed=0, device="cpu", resc_schedule=False)
    worked = True
    with torch.random.fork_rng(devices=[]):
        try:
            square.perturb(images(2, height, width), torch.zeros(2, dtype=torch.long))
        except (RuntimeError, ZeroDivisionError):
            worked = False
    assert worked == square_fits(height, width)


def test_images_that_square_cannot_tile_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library("pyautoattack").autoattack.FABAttack_PT, "perturb", lambda self, x, y: x)  # 2 s less
    net = Wrapped(lambda x: torch.eye(4)[0] * 9 + x.flatten(1)[:, :4] * 0.01).eval()
    x, label = images(2, 14, 14), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UsageError, match="Square attack cannot tile images of 14 × 14 pixels under l2"):
        run(AutoAttack(), net, L2("0.5"), x, label, classes=4)


def test_autoattack_refuses_what_it_does_not_know() -> None:
    assert [AutoAttack().refuses(space) for space in (Linf("0.1"), L2(1), L1(5))] == [None] * 3
    assert "linf, l2 and l1" in str(AutoAttack().refuses(L0(4)))
    assert "linf, l2 and l1" in str(AutoAttack().refuses(RotationTranslation(degrees=30, shift=2)))
    assert AutoAttack.needs <= Linf("0.1").capabilities
    assert not AutoAttack.needs <= L0(4).capabilities
    net, x, label = scene()
    with pytest.raises(UsageError, match=r"autoattack knows linf, l2 and l1 balls only: l0\(pixels=4\)"):
        AutoAttack().attack(net, L0(4), x, label, seed=0, classes=10)


# --- foolbox ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "space"),
    [
        (fool("L2DeepFoolAttack", steps=50), L2("0.5")),
        (fool("DDNAttack"), L2("0.5")),
        (fool("LinfPGD", steps=20), Linf("0.1")),
        (fool("SparseL1DescentAttack", steps=30), L1(5)),
        (fool("L1FMNAttack"), L1(5)),
        (fool("L0FMNAttack"), L0(12)),
        (fool("PointwiseAttack", l2_binary_search=False), L0(12)),
        (fool("LinearSearchBlendedUniformNoiseAttack", steps=100), Linf("0.6")),
        (fool("SaltAndPepperNoiseAttack", steps=100), L2(3)),
        (fool("BoundaryAttack", steps=50), L2(3)),
        (fool("HopSkipJumpAttack", steps=2, constraint="linf"), Linf("0.3")),
    ],
    ids=str,
)
def test_foolbox_is_the_library_s_own_call_bit_for_bit(attack: Foolbox, space: Any) -> None:
    net, x, label = scene()
    seeded(5)
    found = run(attack, net, space, x, label, seed=3)
    assert torch.equal(found, direct_foolbox(attack, net, space, x, label, seed=3))
    assert judged(net, space, x, found, label).accepted.any()  # the attack works: some row falls inside the set


def runnable(name: str) -> dict[str, Any]:
    """Budgets small enough for a test, where the class's own are large."""
    short = {"steps": 20, "repeats": 5, "directions": 20, "binary_search_steps": 3}
    return {key: short[key] for key in parameters(kind_of(name)) if key in short}


@pytest.mark.parametrize("name", sorted(kind.__name__ for key, kind in offered().items() if key == kind.__name__))
def test_every_class_of_foolbox_runs_or_says_why_not(name: str) -> None:
    if name in UNUSABLE:
        with pytest.raises(UsageError, match=rf"foolbox:{name} .+\. Choose another attack"):
            Foolbox(name)
        return
    if "BrendelBethge" in name and importlib.util.find_spec("numba") is None:
        with pytest.raises(Failure, match=rf"^foolbox:{name} needs the package numba, which is not installed\. pip install numba$"):
            Foolbox(name)
        return
    attack = fool(name, **runnable(name))
    net, x, label = scene(rows=2)
    spaces = [space for space in BALLS.values() if attack.refuses(space) is None]
    assert len(spaces) == (4 if attack._own_norm() is None else 1)
    for space in spaces:
        run(attack, net, space, x, label)  # warnings are errors here, so the list of known ones is complete for these runs


def test_balls_of_another_norm_are_refused() -> None:
    attack = fool("L2DeepFoolAttack")
    assert attack.refuses(L2(1)) is None
    assert attack.refuses(Linf("0.1")) == "measures l2, and the set is an linf ball"
    assert attack.refuses(RotationTranslation(degrees=30, shift=2)) == "knows lp balls only"
    net, x, label = scene()
    with pytest.raises(UsageError, match="foolbox:L2DeepFoolAttack measures l2"):
        run(attack, net, Linf("0.1"), x, label)
    assert net.passes == []


def test_the_distance_of_hopskipjump_follows_its_argument() -> None:
    linf = fool("HopSkipJumpAttack", constraint="linf")
    assert [linf.refuses(Linf("0.1")), fool("HopSkipJumpAttack").refuses(L2(1))] == [None, None]  # its class says l1
    assert linf.refuses(L1(1)) is not None


def stubborn(x: Tensor) -> Tensor:
    """Class 1 where the mean is below 0.3, class 0 above: noise, whose mean is 0.5, is no start for rows of class 0."""
    mean = x.flatten(1).mean(1, keepdim=True)
    return torch.cat([mean - 0.3, 0.3 - mean, mean * 0 - 9, mean * 0 - 9], 1)


@pytest.mark.parametrize("name", ["BoundaryAttack", "HopSkipJumpAttack"])
def test_a_row_without_a_start_does_not_lose_the_others(name: str) -> None:
    passes: list[int] = []

    def counted(z: Tensor) -> Tensor:
        passes.append(len(z))
        return stubborn(z)

    net = Wrapped(counted).eval()
    x = images() * torch.tensor([0.4, 1, 0.4, 0.4, 1, 0.4, 0.4, 0.4])[:, None, None, None]
    label = predicted(net, x)
    assert label.tolist() == [1, 0, 1, 1, 0, 1, 1, 1]
    attack = fool(name, steps=5)
    with pytest.raises(ValueError, match="init_attack failed for 2"), pytest.warns(UserWarning, match="failed to draw"):
        direct_foolbox(attack, net, L2(3), x, label)
    passes.clear()
    found = run(attack, net, L2(3), x, label, classes=4)
    assert set(passes) == {8, 6}  # all look for a start; those that found one stay together
    assert torch.equal(found[label == 0], x[label == 0])
    assert (predicted(net, found)[label == 1] == 0).all()


def test_no_row_with_a_start_is_no_failure() -> None:
    net = Wrapped(stubborn).eval()
    x = images()
    label = predicted(net, x)
    assert torch.equal(run(fool("BoundaryAttack", steps=5), net, L2(3), x, label, classes=4), x)


def test_a_row_that_makes_the_library_fail_does_not_lose_the_others() -> None:
    """L0FMN's budget of a row that does not fall grows to the whole image and then indexes beyond it."""
    x = images(4)
    x[1] *= 0.2
    x[1, 0, 0, 0] = 0

    def logits(z: Tensor) -> Tensor:  # class 0 leads by 1 − 5 · (first value) where an image is dark, elsewhere by 30
        flat = z.flatten(1)
        lead = torch.where(flat.mean(1) < 0.3, 1 - 5 * flat[:, 0], 30 - 1e-3 * flat.sum(1))
        return torch.stack([lead, lead * 0, lead * 0 - 9], 1)

    net, label = Wrapped(logits).eval(), torch.zeros(4, dtype=torch.long)
    attack = fool("L0FMNAttack")
    with pytest.raises(IndexError):
        direct_foolbox(attack, net, L0(8), x, label)
    found = run(attack, net, L0(8), x, label, classes=3)
    assert (predicted(net, found) != label).tolist() == [False, True, False, False]
    assert torch.equal(found[[0, 2, 3]], x[[0, 2, 3]])


def test_rows_that_come_back_as_nan_stay_so_and_the_referee_refuses_them() -> None:
    weight = torch.rand(64, 4, generator=torch.Generator().manual_seed(2))
    net = Wrapped(lambda x: (x.flatten(1) * 4).round() @ weight).eval()  # a gradient of exactly 0
    x = images()
    label = predicted(net, x)
    found = run(fool("NewtonFoolAttack", steps=3), net, L2(1), x, label, classes=4)
    assert found.isnan().all()
    verdicts = judged(net, L2(1), x, found, label)
    assert not verdicts.accepted.any()
    assert set(verdicts.reason) == {"outside the set"}


# --- errors -------------------------------------------------------------------------------------------------------------------------


def raising(error: Exception) -> nn.Module:
    def logits(x: Tensor) -> Tensor:
        raise error

    return Wrapped(logits).eval()


ATTACKS: list[Foreign] = [AutoAttack(), fool("DDNAttack"), fool("BoundaryAttack"), fool("PointwiseAttack")]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("error", [RuntimeError("no\nsuch thing"), AssertionError(), ValueError("wrong"), IndexError("far")], ids=repr)
def test_a_model_that_raises_is_one_line_that_names_library_and_attack(attack: Foreign, error: Exception) -> None:
    x = images()
    with pytest.raises(ModelError) as caught:
        run(attack, raising(error), L2(1), x, torch.zeros(8, dtype=torch.long))
    line = str(caught.value)
    owner = "pyautoattack 0.2.0" if isinstance(attack, AutoAttack) else "foolbox 3.3"
    assert line.startswith(f"{attack} of {owner}")
    assert type(error).__name__ in line
    assert "\n" not in line
    assert "thing" not in line  # the first line of a message is enough


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_a_model_with_logits_of_another_shape_is_not_taken_for_a_robust_one(attack: Foreign) -> None:
    net = Wrapped(lambda x: torch.zeros(1, 4) + x.mean()).eval()
    with pytest.raises(ModelError, match=r"failed"):
        run(attack, net, L2(1), images(), torch.zeros(8, dtype=torch.long))


def test_errors_of_ours_pass_through() -> None:
    with pytest.raises(ModelError, match=r"^mine$"):
        run(AutoAttack(), raising(ModelError("mine")), L2(1), images(), torch.zeros(8, dtype=torch.long))


def test_a_full_memory_asks_for_a_smaller_batch() -> None:
    net = raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(ModelError, match=r"Memory ran out: try a smaller batch than 64, such as batch=32\.$"):
        run(AutoAttack(batch=64), net, L2(1), images(), torch.zeros(8, dtype=torch.long))


def test_images_of_another_shape_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, label = scene()
    monkeypatch.setattr(library("pyautoattack").AutoAttack, "run_standard_evaluation", lambda *_, **__: (x[:3], label))
    with pytest.raises(ModelError, match=r"autoattack returned \(3, 1, 8, 8\); expected images of the shape \(8, 1, 8, 8\)"):
        AutoAttack().attack(net, Linf("0.1"), x, label, seed=0, classes=10)


def test_a_model_in_training_mode_is_attacked_in_evaluation_mode_and_given_back() -> None:
    net, x, label = scene()
    dropping = nn.Sequential(nn.Dropout(0.5), net).train()
    found = run(fool("DDNAttack"), dropping, L2("0.5"), x, label)
    assert torch.equal(found, run(fool("DDNAttack"), net, L2("0.5"), x, label))


# --- silence ------------------------------------------------------------------------------------------------------------------------

QUIET = """
import logging, sys, torch
from torch import nn
from rbench.attacks.external import AutoAttack, Foolbox
from rbench_threats.lp import L2, Linf
x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Softmax(1)).eval()
label = net(x).argmax(1)
AutoAttack().attack(net, Linf(1), x, label, seed=0, classes=4)  # "the output is a probability distribution"
Foolbox("L2DeepFoolAttack").attack(net, L2(1), x, label, seed=0, classes=4)  # logs to the root logger
constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
constant[1].weight.data.zero_()
label = constant(x).argmax(1)
Foolbox("BoundaryAttack", (("steps", 5),)).attack(constant, L2(1), x, label, seed=0, classes=4)  # warns of missing starts
assert logging.getLogger().handlers == []
logging.getLogger().warning("heard")
"""


def test_nothing_of_the_libraries_reaches_the_screen_and_no_git_is_needed(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": str(tmp_path)}
    env.pop("GIT_PYTHON_REFRESH", None)
    command = [sys.executable, "-P", "-W", "always", "-c", QUIET]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == "heard\n"


def test_a_model_s_own_words_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    net, x, label = scene()

    def speaking(z: Tensor) -> Tensor:
        logging.warning("forward")  # on the root logger, as foolbox's own
        logits: Tensor = net.layers(z)
        return logits

    fool("DDNAttack", steps=2).attack(Wrapped(speaking).eval(), L2(1), x, label, seed=0, classes=10)
    assert {record.message for record in caplog.records} == {"forward"}
    with pytest.warns(UserWarning, match="mine"):
        fool("DDNAttack", steps=2).attack(
            Wrapped(lambda z: (warnings.warn("mine", stacklevel=1), net.layers(z))[1]).eval(), L2(1), x, label, seed=0, classes=10
        )


# --- specs --------------------------------------------------------------------------------------------------------------------------


def made(text: str) -> Foreign:
    found = from_spec(parse(text))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [
        ("autoattack", AutoAttack(), "autoattack"),
        ("AutoAttack()", AutoAttack(), "autoattack"),
        ("autoattack(version=standard, batch=200)", AutoAttack(), "autoattack"),
        ("autoattack(batch=50, version=plus)", AutoAttack("plus", 50), "autoattack(version=plus, batch=50)"),
        ("foolbox:DDNAttack", fool("DDNAttack"), "foolbox:DDNAttack"),
        ("foolbox:ddnattack(steps=100)", fool("DDNAttack"), "foolbox:DDNAttack"),
        ("foolbox:DDNAttack(steps=50)", fool("DDNAttack", steps=50), "foolbox:DDNAttack(steps=50)"),
        ("foolbox:PGD(batch=20)", fool("LinfProjectedGradientDescentAttack", 20), "foolbox:LinfProjectedGradientDescentAttack(batch=20)"),
        ("foolbox:FGM(random_start=true)", fool("FGM", random_start=True), "foolbox:L2FastGradientAttack(random_start=true)"),
        ("foolbox:L2DeepFoolAttack(loss=crossentropy, candidates=none)", fool("L2DeepFoolAttack", candidates=None, loss="crossentropy"),
         "foolbox:L2DeepFoolAttack(candidates=none, loss=crossentropy)"),
        ("foolbox:EADAttack(decision_rule=l1, steps=20)", fool("EADAttack", steps=20, decision_rule="L1"),
         "foolbox:EADAttack(steps=20, decision_rule=L1)"),
        ("foolbox:L2PGD(rel_stepsize=1/4, steps=9)", fool("L2PGD", rel_stepsize=0.25, steps=9),
         "foolbox:L2ProjectedGradientDescentAttack(rel_stepsize=0.25, steps=9)"),
        ("foolbox:VirtualAdversarialAttack(steps=5)", fool("VirtualAdversarialAttack", steps=5),
         "foolbox:VirtualAdversarialAttack(steps=5)"),
    ],
)  # fmt: skip
def test_specs_make_attacks_and_attacks_print_them(text: str, value: Foreign, written: str) -> None:
    attack = made(text)
    assert attack == value
    assert str(attack) == written
    assert made(str(attack)) == attack
    assert made(str(attack)).record() == attack.record()
    assert isinstance(attack, Foreign)


@pytest.mark.parametrize("text", ["apgd", "pgd(steps=3)", "auto", "foolboxes", "foolish:DDNAttack", "autoattack:plus"])
def test_other_names_are_not_ours(text: str) -> None:
    assert from_spec(parse(text)) is None


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        ("autoattack(version=fast)", SpecError, "autoattack: version=fast; expected one of: standard, plus, rand"),
        ("autoattack(version=3)", SpecError, "autoattack: version=3; expected one of: standard, plus, rand"),
        ("autoattack(steps=3)", SpecError, "autoattack: steps=...; expected some of: version, batch"),
        ("autoattack(plus)", SpecError, "autoattack: an argument without a name; expected key=value, such as batch=200"),
        ("autoattack(batch=0)", SpecError, "autoattack: batch=0; expected a whole number, at least 1"),
        ("autoattack(batch=2.5)", SpecError, "autoattack: batch=2.5; expected a whole number, at least 1"),
        ("foolbox", SpecError, "'foolbox' names no attack; expected foolbox:NAME, such as foolbox:L2DeepFoolAttack(steps=50)"),
        ("foolbox:L2DeepFool(steps=5)", UnknownName, "no foolbox attack named 'L2DeepFool'; expected one of: L2DeepFoolAttack"),
        ("foolbox:deepfol", UnknownName, "no foolbox attack named 'deepfol'; expected one of: L"),
        ("foolbox:Attack", UnknownName, "no foolbox attack named 'Attack'"),
        ("foolbox:L2DeepFoolAttack(stepz=5)", SpecError,
         "foolbox:L2DeepFoolAttack: stepz=...; expected some of: steps, candidates, overshoot, loss, batch"),
        ("foolbox:L2DeepFoolAttack(steps=2.5)", SpecError, "foolbox:L2DeepFoolAttack: steps=2.5; expected a whole number, at least 1"),
        ("foolbox:L2DeepFoolAttack(steps=many)", SpecError, "foolbox:L2DeepFoolAttack: steps=many; expected a number"),
        ("foolbox:L2DeepFoolAttack(loss=hinge)", SpecError, "foolbox:L2DeepFoolAttack: loss=hinge; expected logits or crossentropy"),
        ("foolbox:L2DeepFoolAttack(loss=3)", SpecError, "foolbox:L2DeepFoolAttack: loss=3; expected logits or crossentropy"),
        ("foolbox:FGSM(random_start=1)", SpecError, "foolbox:LinfFastGradientAttack: random_start=1; expected true or false"),
        ("foolbox:DDNAttack(steps=linf(eps=1))", SpecError, "foolbox:DDNAttack: steps=linf(...); expected a number or a name"),
        ("foolbox:L2AdditiveGaussianNoiseAttack(steps=3)", SpecError,
         "foolbox:L2AdditiveGaussianNoiseAttack: steps=...; expected some of: batch"),
        ("foolbox:BoundaryAttack(tensorboard=runs)", SpecError, "foolbox:BoundaryAttack: tensorboard=...; expected some of: steps"),
        ("foolbox:VirtualAdversarialAttack", SpecError,
         "foolbox:VirtualAdversarialAttack without steps; expected foolbox:VirtualAdversarialAttack(steps=...)"),
    ],
)  # fmt: skip
def test_wrong_specs_are_one_line_each(text: str, kind: type[UsageError], line: str) -> None:
    with pytest.raises(kind) as caught:
        from_spec(parse(text))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_record_names_all_that_decides() -> None:
    assert AutoAttack().record() == {"attack": "autoattack", "version": "standard", "batch": 200, "library": "pyautoattack 0.2.0"}
    record = made("foolbox:DDNAttack(steps=50)").record()
    assert record.pop("library").startswith("foolbox 3.3.")
    assert record == {"attack": "foolbox:DDNAttack", "init_epsilon": 1.0, "steps": 50, "gamma": 0.05, "batch": 200}
    attacks = ["autoattack", "autoattack(version=rand)", "autoattack(batch=50)", "foolbox:DDNAttack", "foolbox:DDNAttack(gamma=0.1)"]
    assert len({canonical_json(made(text).record()) for text in attacks}) == len(attacks)


def test_attacks_are_values() -> None:
    assert {AutoAttack(), AutoAttack("standard", 200), fool("PGD"), fool("LinfPGD")} == {AutoAttack(), fool("PGD")}


# --- other devices ------------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_attacks_run_where_the_images_are() -> None:
    net, x, label = scene()
    net, x, label = net.cuda(), x.cuda(), label.cuda()
    before = torch.cuda.get_rng_state()
    for attack, space in ((AutoAttack(), L2("0.9")), (fool("DDNAttack"), L2("0.5")), (fool("PointwiseAttack"), L2("0.5"))):
        assert run(attack, net, space, x, label).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
