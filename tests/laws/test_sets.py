"""Every set of the catalogue obeys the laws: membership, projection, steepest directions, gauges, rendering, specs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given

from laws import set_laws
from laws.entries import Entry, drawn, entries, threats
from laws.given import SCALES, given_batch, seeds
from rbench_threats.catalogue import SETS, build
from rbench_threats.composite import Union
from rbench_threats.spec import parse

ENTRIES = entries()


def test_every_set_of_the_catalogue_is_tested() -> None:
    untested = set(SETS) - {"union"} - {parse(str(space)).name for _, threat in threats() for space in threat.members}
    assert not untested, "a set without a preset is tested by nobody"


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize("law", set_laws.LAWS, ids=lambda law: law.__name__)
@drawn
@given(seed=seeds)
def test_sets(law: Callable[..., None], entry: Entry, seed: int) -> None:
    law(given_batch(entry.space, entry.shape, seed), seed)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize("law", set_laws.SCALED_LAWS, ids=lambda law: law.__name__)
@drawn
@given(seed=seeds)
def test_projections(law: Callable[..., None], entry: Entry, seed: int) -> None:
    for scale in SCALES:
        law(given_batch(entry.space, entry.shape, seed), seed, scale)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.space.family == "l0"], ids=str)
@drawn
@given(seed=seeds)
def test_l0_by_enumeration(entry: Entry, seed: int) -> None:
    for scale in SCALES:
        set_laws.law_l0_is_nearest_of_all_choices(entry.space, seed, scale)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@drawn
@given(seed=seeds)
def test_gradients(entry: Entry, seed: int) -> None:
    set_laws.law_gradient_flows(entry.space, entry.shape, seed)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_specs(entry: Entry) -> None:
    set_laws.law_specs_round_trip(entry.space)


@pytest.mark.parametrize(("dataset", "threat"), threats(), ids=str)
def test_specs_of_threats(dataset: str, threat: object) -> None:
    again = build(parse(str(threat)))
    assert str(again) == str(threat)
    assert (again.members if isinstance(again, Union) else (again,)) == threat.members  # type: ignore[attr-defined]
