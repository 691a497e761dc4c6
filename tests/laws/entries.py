"""What the laws range over: every set, plan and attack of the catalogues. A new entry is tested without anybody editing a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import HealthCheck, settings

from rbench.attacks.build import attack_names, build_attack
from rbench.attacks.catalogue import Plan, plan_files, resolve_plan
from rbench.attacks.protocol import Attack
from rbench.data import sources
from rbench_threats.catalogue import Threat, presets, resolve
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spec import parse

# The same few draws at each run, so that a red law is a change of ours; RBENCH_LAWS=wide looks further.
_HABITS = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.differing_executors]}
settings.register_profile("laws", max_examples=2, derandomize=True, **_HABITS)
settings.register_profile("laws-wide", max_examples=25, **_HABITS)
drawn = settings(settings.get_profile("laws-wide" if os.environ.get("RBENCH_LAWS") == "wide" else "laws"))


QUICK = {"square": "square(queries=1000)", "sparse-rs": "sparse-rs(queries=300)"}


@dataclass(frozen=True)
class Entry:
    """A set of the catalogue and the shape of the images that it stands beside."""

    space: PerturbationSet
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.space} on {'x'.join(map(str, self.shape))}"


def threats() -> list[tuple[str, Threat]]:
    """Every preset on every data set that it has a convention for: (data set, threat)."""
    return [(dataset, resolve(entry.name, dataset)) for entry in presets().values() for dataset in entry.table["specs"]]


def entries() -> list[Entry]:
    """Every set of every preset, members of unions one by one, once per image shape.

    Sets that bring examples of their own are no balls and need their data: tests/invariance has their laws.
    """
    found = {str(entry): entry for dataset, threat in threats() for entry in _members(dataset, threat)}
    return [entry for entry in found.values() if "examples" not in entry.space.capabilities]


def smallest() -> list[Entry]:
    """One entry per family, whatever file it was learned into, the one on the smallest images: for laws that run a network."""
    by_size = sorted(entries(), key=lambda entry: entry.shape[0] * entry.shape[1] * entry.shape[2])
    return list({entry.space.family.partition(":")[0]: entry for entry in reversed(by_size)}.values())


def plans() -> list[Plan]:
    """Every plan of the catalogue."""
    return [resolve_plan(name) for name in plan_files()]


def attacks() -> list[Attack]:
    """Every attack of the catalogue with its defaults, random searches with fewer queries than theirs."""
    return [build_attack(parse(QUICK.get(name, name))) for name in attack_names()]


def encounters() -> list[tuple[Attack, Entry]]:
    """Every attack with one set of every family that meets its needs."""
    return [(attack, entry) for attack in attacks() for entry in smallest() if attack.needs <= entry.space.capabilities]


def _members(dataset: str, threat: Threat) -> Iterator[Entry]:
    for space in threat.members:
        yield Entry(space, sources.find(dataset).shape)
