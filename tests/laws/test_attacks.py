"""Every attack of the catalogue, with every family of sets that meets its needs, obeys the laws; wrong ones are caught; plans are whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given

from laws import attack_laws as laws
from laws import wrong_attacks as wrong
from laws.entries import Entry, attacks, drawn, encounters, entries, plans
from laws.given import seeds
from rbench.attacks.build import record, spec_of
from rbench.attacks.catalogue import DEFAULT_PLAN, Plan
from rbench.attacks.losses import LOSSES
from rbench.attacks.msd import MSD
from rbench.attacks.pgd import PGD
from rbench.attacks.protocol import Attack
from rbench_core.errors import UsageError
from rbench_core.files import canonical_json
from rbench_threats.catalogue import resolve
from rbench_threats.lp import Linf
from rbench_threats.protocol import PerturbationSet

DIGITS = (1, 8, 8)
UNION = resolve("union-lp", "digits").members
MULTI = (MSD(UNION, tuple(0.1 for _ in UNION)), Entry(UNION[0], DIGITS))  # the training's: no spec names it
CASES = encounters()
LINF = Linf("0.15")


def _id(value: object) -> str:
    return str(value) if isinstance(value, Entry) else getattr(value, "__name__", "") or str(getattr(value, "name", value))


def test_every_attack_meets_a_set_and_every_set_an_attack() -> None:
    assert {spec_of(attack) for attack, _ in CASES} == {spec_of(attack) for attack in attacks()}
    kinds = [{entry.space.family.partition(":")[0] for entry in some} for some in ([entry for _, entry in CASES], entries())]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(("attack", "entry"), [*CASES, MULTI], ids=_id)
@pytest.mark.parametrize("law", laws.LAWS, ids=_id)
def test_attacks(law: Callable[..., None], attack: Attack, entry: Entry) -> None:
    if law is laws.law_stays_where_it_says and isinstance(attack, MSD):
        for theta, _ in laws.trajectory(attack, laws.begun(attack, entry.space, entry.shape, 0)):
            given = laws.begun(PGD(), entry.space, entry.shape, 0)
            assert ((theta == 0).all(1) | _in_some(UNION, given, theta)).all()  # inside the union: inside one of its members
        return
    law(attack, laws.begun(attack, entry.space, entry.shape, 0))


@pytest.mark.parametrize(("attack", "entry"), [*CASES, MULTI], ids=_id)
@drawn
@given(seed=seeds)
def test_rows_are_islands(attack: Attack, entry: Entry, seed: int) -> None:
    laws.law_attack_rows_are_islands(attack, laws.begun(attack, entry.space, entry.shape, seed), seed)


def with_every_loss() -> list[Attack]:
    """Every attack of the catalogue, and those that take a loss with each of them."""
    lossy = [attack for attack in attacks() if "loss_name" in {field.name for field in fields(attack)}]  # type: ignore[arg-type]
    return attacks() + [replace(attack, loss_name=name) for attack in lossy for name in LOSSES]  # type: ignore[type-var]


@pytest.mark.parametrize("attack", with_every_loss(), ids=spec_of)
@drawn
@given(seed=seeds)
def test_targets(attack: Attack, seed: int) -> None:
    laws.law_targets(attack, seed)


@pytest.mark.parametrize("attack", attacks(), ids=_id)
def test_specs(attack: Attack) -> None:
    laws.law_attack_specs_round_trip(attack)


@pytest.mark.parametrize(
    ("law", "attack"),
    [
        (laws.law_state_is_a_value, wrong.SharesStorage()),
        (laws.law_state_is_a_value, wrong.SharesSchedule()),
        (laws.law_stays_where_it_says, wrong.LeavesTheSet()),
        (laws.law_goes_on_is_its_own, wrong.EndsTogether()),
        (laws.law_goes_on_is_its_own, wrong.NeverEnds()),
        (laws.law_restarts_differ, wrong.BeginsAtOnePlace(restarts=2)),
    ],
    ids=_id,
)
def test_a_wrong_attack_is_caught(law: Callable[..., None], attack: Attack) -> None:
    law(PGD(restarts=2), laws.begun(PGD(), LINF, DIGITS, 0))
    with pytest.raises(AssertionError):
        law(attack, laws.begun(attack, LINF, DIGITS, 0))


@pytest.mark.parametrize("attack", [wrong.StepOfTheBatch(), wrong.SpreadsNaN()], ids=lambda attack: type(attack).__name__)
def test_neighbours_that_matter_are_caught(attack: Attack) -> None:
    laws.law_attack_rows_are_islands(PGD(), laws.begun(PGD(), LINF, DIGITS, 0), 0)
    with pytest.raises(AssertionError):
        laws.law_attack_rows_are_islands(attack, laws.begun(attack, LINF, DIGITS, 0), 0)


@pytest.mark.parametrize("attack", [wrong.TargetsTheLabel(), wrong.TargetsByIndex()], ids=lambda attack: type(attack).__name__)
def test_wrong_targets_are_caught(attack: Attack) -> None:
    with pytest.raises(AssertionError):
        laws.law_targets(attack, 0)


@pytest.mark.parametrize("plan", plans(), ids=_id)
def test_plans_say_what_they_do_with_every_set(plan: Plan) -> None:
    """Each stage's needs are met, an order is kept, and a plan without an attack for a set says so."""
    assert canonical_json(plan.record())
    for entry in entries():
        if all(lacks(stage, entry.space) for stage in plan.stages):
            with pytest.raises(UsageError, match=re.escape(str(entry.space))):
                plan.stages_for(entry.space)
            continue
        every = plan.stages_for(entry.space)
        parts = dict(enumerate(getattr(entry.space, "parts", ())))
        assert any(stage.part is None for stage in every)
        for part, space in [*parts.items(), (None, entry.space)]:  # of a combination every part is tried as if it were asked alone
            stages = [stage for stage in every if stage.part == part]
            places = [
                plan.stages.index(replace(stage, part=None, label=written))
                for stage, written in zip(stages, labels(stages, space), strict=True)
            ]
            assert part is None or [stage.spec for stage in stages] == alone(plan, space)
            assert places == sorted(places)
            for place, stage in enumerate(stages):
                assert stage.attack.needs <= space.capabilities
                assert not {*stage.unless} & space.capabilities
                assert stage.after is None or stage.after in {earlier.attack.name for earlier in stages[:place]}  # type: ignore[union-attr]
                assert not record_differs(stage)


def test_the_default_plan_has_an_attack_for_every_set() -> None:
    plan = next(plan for plan in plans() if plan.name == DEFAULT_PLAN)
    assert all(plan.stages_for(entry.space) for entry in entries())


def lacks(stage: Any, space: PerturbationSet) -> bool:
    """Whether a stage has no use for a set."""
    unmet = bool(stage.attack.needs - space.capabilities) or bool({*stage.unless} & space.capabilities)
    unmet |= stage.only is not None and stage.only not in space.capabilities
    return unmet or stage.after is not None or (stage.foreign and stage.attack.refuses(space) is not None)


def labels(stages: list[Any], space: PerturbationSet) -> list[str]:
    """As the plan writes them, without the part that a combination's stage is for."""
    return [stage.label.removesuffix(f" in {space}") for stage in stages]


def alone(plan: Plan, space: PerturbationSet) -> list[str]:
    """The stages that a set gets when it is asked alone; none where the plan has no attack for it."""
    try:
        return [stage.spec for stage in plan.stages_for(space)]
    except UsageError:
        return []


def record_differs(stage: Any) -> bool:
    """Whether a stage's spec, which its noise depends on, leaves out an argument that its record has."""
    return not stage.foreign and spec_of(stage.attack) != stage.spec and bool(record(stage.attack))


def _in_some(spaces: tuple[PerturbationSet, ...], given: Any, theta: Any) -> Any:
    inside = theta[:, 0] != theta[:, 0]
    for space in spaces:
        inside |= space.excess(given.ctx, theta) <= 0
    return inside
