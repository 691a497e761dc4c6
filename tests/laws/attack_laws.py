"""The laws of an attack, as plain functions: its state, its place, its rows, its budget, its name. wrong_attacks.py must not obey them."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from laws.given import Given, given_batch
from laws.nets import linear_net
from rbench.attacks import tree
from rbench.attacks.build import build_attack, record, spec_of
from rbench.attacks.evaluate import Passes, look
from rbench.attacks.losses import by_logit
from rbench.attacks.noise import Row, row_keys
from rbench.attacks.protocol import Attack
from rbench_core.files import canonical_json
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spec import parse

CYCLES = 12  # enough for checkpoints, halvings and new starts with attacks of 30 steps
CLASSES = 6


@cache
def curved_net(shape: tuple[int, int, int]) -> nn.Module:
    """Two layers, not trained: its gradient turns as the image moves."""
    inner = linear_net(shape, 16, seed=1, size=0.3)
    return nn.Sequential(inner, nn.Tanh(), linear_net((16, 1, 1), CLASSES, seed=2)).requires_grad_(False)


def begun(attack: Attack, space: PerturbationSet, shape: tuple[int, int, int], seed: int) -> Given:
    """Rows as the engine makes them: labels that lead on the clean image, and a target each where the attack has targets."""
    given = given_batch(space, shape, seed)
    clean = curved_net(shape)(given.x)
    label = clean.argmax(1)
    targets = attack.targets(by_logit(clean, label))
    target = targets[torch.arange(len(label)), torch.arange(len(label)) % targets.shape[1]]
    restart = torch.arange(len(label)) % 3
    key = torch.from_numpy(row_keys(seed, spec_of(attack), given.row.example.numpy(), target.numpy(), restart.numpy()))
    row = Row(given.row.example, label, target, restart, key, given.row.step)
    return Given(space, given.x, row, space.context(given.x, row))


def trajectory(attack: Attack, given: Given, cycles: int = CYCLES) -> list[tuple[Tensor, Any]]:
    """(asked θ, state after the step) at every look, with no engine around it."""
    net, row, seen_all = curved_net(tuple(given.x.shape[1:])), given.row, []
    state = attack.begin(given.space, given.ctx, row)
    for _ in range(cycles):
        for phase, kind in enumerate(attack.cycle):
            theta = attack.ask(state)
            seen = look(net, given.space, attack, given.ctx, row, theta, kind, Passes())
            state = attack.step(given.space, given.ctx, row, state, seen, phase)
            seen_all.append((theta.clone(), state))
        row = row._replace(step=row.step + 1)
    return seen_all


def law_state_is_a_value(attack: Attack, given: Given) -> None:
    """Every field one row per row, shape and type fixed at `begin`; no two fields share their storage, nor one with the context."""
    first = attack.begin(given.space, given.ctx, given.row)
    shapes = [(part.shape, part.dtype) for part in _parts(first)]
    for state in [first, *(after for _, after in trajectory(attack, given))]:
        parts = _parts(state)
        assert [(part.shape, part.dtype) for part in parts] == shapes, "a field changed its shape or its type"
        assert all(len(part) == len(given.x) for part in parts), "a field whose first axis is not rows"
        homes = [part.untyped_storage().data_ptr() for part in [*parts, *_parts(given.ctx)] if part.numel()]
        assert len(set(homes)) == len(homes), "two fields share their storage: the engine swaps rows in place"


def law_stays_where_it_says(attack: Attack, given: Given) -> None:
    """An attack that `stays_inside` never asks outside; any attack asks for numbers."""
    for theta, _ in trajectory(attack, given):
        assert theta.isfinite().all()
        assert not attack.stays_inside or (given.space.excess(given.ctx, theta) <= 0).all(), "it asked outside and did not say so"


def law_attack_rows_are_islands(attack: Attack, given: Given, seed: int) -> None:
    """Bit for bit: permuted, or beside others, a row asks for the same θ at each look. A row of NaN spoils itself alone."""
    together = trajectory(attack, given)
    order = torch.randperm(len(given.x), generator=torch.Generator().manual_seed(seed))
    for rows in (order, order[:16]):
        apart = trajectory(attack, given.take(rows))
        for (theta, _), (here, _) in zip(together, apart, strict=True):
            assert torch.equal(theta[rows], here), "a row depends on its neighbours"
    poisoned = Given(given.space, given.x.clone(), given.row, given.ctx)
    poisoned.x[seed % len(given.x)] = torch.nan
    poisoned = Given(given.space, poisoned.x, given.row, given.space.context(poisoned.x, given.row))
    healthy = torch.arange(len(given.x)) != seed % len(given.x)
    for (theta, _), (here, _) in zip(together, trajectory(attack, poisoned), strict=True):
        assert torch.equal(theta[healthy], here[healthy]), "a row of NaN spoils its neighbours"


def law_goes_on_is_its_own(attack: Attack, given: Given) -> None:
    """A row ends by its own step; after its end a step is harmless; it ends at last."""
    state = attack.begin(given.space, given.ctx, given.row)
    assert attack.goes_on(state, given.row).all(), "it gave up before the first look"
    steps = torch.arange(len(given.x)) * 40
    mixed = attack.goes_on(state, given.row._replace(step=steps))
    alike = [attack.goes_on(state, given.row._replace(step=torch.full_like(steps, step)))[i] for i, step in enumerate(steps.tolist())]
    assert torch.equal(mixed, torch.stack(alike)), "a row's end depends on its neighbours"
    late = given.row._replace(step=given.row.step + 1_000_000)
    assert not attack.goes_on(state, late).any(), "it never ends"
    net = curved_net(tuple(given.x.shape[1:]))
    for phase, kind in enumerate(attack.cycle):
        seen = look(net, given.space, attack, given.ctx, late, attack.ask(state), kind, Passes())
        state = attack.step(given.space, given.ctx, late, state, seen, phase)
    assert attack.ask(state).isfinite().all()


def law_restarts_differ(attack: Attack, given: Given) -> None:
    """Two restarts of a row are two searches, unless the attack has one; the same row twice is the same search."""
    other = Given(given.space, given.x, given.row._replace(key=given.row.key + 1), given.ctx)
    first, again, second = (attack.ask(attack.begin(given.space, given.ctx, one.row)) for one in (given, given, other))
    assert torch.equal(first, again)
    assert attack.restarts == 1 or (first != second).any(1).all(), "restarts begin at one place"


def law_targets(attack: Attack, seed: int) -> None:
    """One column of −1, or at most classes − 1 different other classes, the nearest ones, nearest first, row by row."""
    random = torch.Generator().manual_seed(seed)
    for classes in (2, 3, 10, 17):
        clean = torch.randn(24, classes, generator=random)
        label = torch.randint(0, classes, (24,), generator=random)
        order = by_logit(clean, label)
        targets = attack.targets(order)
        assert torch.equal(targets[5:6], attack.targets(order[5:6])), "targets depend on neighbours"
        if (targets == -1).all():
            assert targets.shape == (24, 1)
            continue
        assert 1 <= targets.shape[1] <= classes - 1
        assert (targets != label[:, None]).all(), "the label is a target"
        assert all(len(set(row)) == len(row) for row in targets.tolist()), "a target twice"
        assert targets.shape[1] == min(getattr(attack, "top", 1), classes - 1)
        assert torch.equal(targets, order[:, : targets.shape[1]]), "not the nearest, or not nearest first"


def law_attack_specs_round_trip(attack: Attack) -> None:
    """The spec names every argument and makes the attack again; the record is what a question's key holds, so it must be plain JSON."""
    again = build_attack(parse(spec_of(attack)))
    assert again == attack
    assert spec_of(again) == spec_of(attack)
    assert set(record(attack)) == {"attack", *(field.name.removesuffix("_name") for field in fields(attack))}  # type: ignore[arg-type]
    assert canonical_json(record(attack)) == canonical_json(record(again))


def _parts(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree.mapped(lambda part: found.append(part) or part, value)  # type: ignore[func-returns-value]
    return found


LAWS = (law_state_is_a_value, law_stays_where_it_says, law_goes_on_is_its_own, law_restarts_differ)
