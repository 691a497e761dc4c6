"""One pair of model and threat: the rounds, in turn, and the object that `rbench bench --json` writes."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rbench.api import attack_conditions, environment_of, usual_width
from rbench.attacks.catalogue import Plan, resolve_plan
from rbench.bench.autoattack import check_knows, run_autoattack
from rbench.bench.compare import compared
from rbench.bench.meter import Meter
from rbench.bench.ours import run_plan
from rbench.bench.sides import Side
from rbench.certificates.methods import METHODS
from rbench.data import sources
from rbench.data.dataset import Dataset
from rbench.models import Found, attacked, find
from rbench_core.errors import UsageError
from rbench_threats.catalogue import Threat, resolve

WARM_UP = "pgd(steps=1)"

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Pair:
    """What is compared, as it was asked. rounds: how often each side runs, in turn; round r has the seed `seed` + r − 1."""

    model: str
    threat: str
    plans: tuple[str, ...] = ("standard",)
    dataset: str | None = None
    data: Path | None = None
    n: int | str | None = None
    seed: int = 1
    width: int | None = None
    device: str = "cpu"
    rounds: int = 2
    certify: str = "none"


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything found and checked: nothing of it is part of the measure."""

    found: Found
    data: Dataset
    threat: Threat
    plans: tuple[Plan, ...]
    n: int
    width: int


def bench(pair: Pair, report: Report | None = None) -> dict[str, Any]:
    """Run the rounds (AutoAttack, then every plan, then again) and compare. Raises RbenchError."""
    ready = prepared(pair)
    meter, tell = Meter(ready.found.module), report or _silent
    theirs: list[Side] = []
    plans: dict[str, list[Side]] = {plan.name: [] for plan in ready.plans}
    total, done = pair.rounds * (1 + len(ready.plans)), 0
    with attack_conditions(ready.data, pair.device), meter.watching():
        _ours(pair, replace(ready, n=1), resolve_plan(WARM_UP), 1, meter)  # what the first run of a process loads
        for round in range(1, pair.rounds + 1):
            tell(f"round {round} · autoattack", done, total)
            theirs.append(_theirs(pair, ready, round, meter))
            done += 1
            for plan in ready.plans:
                tell(f"round {round} · {plan.name}", done, total)
                plans[plan.name].append(_ours(pair, ready, plan, round, meter))
                done += 1
        environment = environment_of()
    tell("rounds", total, total)
    sides = [side for group in zip(theirs, *plans.values(), strict=True) for side in group]
    return {
        "model": ready.found.name,
        "dataset": ready.data.name,
        "threat": pair.threat,
        "spec": str(ready.threat),
        "members": [str(member) for member in ready.threat.members],
        "n": ready.n,
        "asked": asked_of(pair),
        "width": ready.width,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": {**environment, "processor": _processor(), "pyautoattack": version("pyautoattack")},
        **compared(theirs, plans),
        "sides": [side.to_json() for side in sides],
    }


def asked_of(pair: Pair) -> dict[str, Any]:
    """The pair by what decides its figures: two requests with equal ones are one."""
    fields = ("model", "threat", "dataset", "n", "seed", "width", "device", "rounds", "certify")
    return {**{name: getattr(pair, name) for name in fields}, "plans": list(pair.plans)}


def prepared(pair: Pair) -> Ready:
    """The pair resolved and checked, before anything is computed. Raises RbenchError."""
    if pair.rounds < 1:
        raise UsageError(f"rounds={pair.rounds}", expected="a whole number from 1 on")
    plans = tuple(resolve_plan(name) for name in pair.plans)
    if len({plan.name for plan in plans}) < len(plans) or not plans:
        raise UsageError(f"plans {', '.join(pair.plans) or 'none'}", expected="at least one, each once")
    found = find(pair.model)
    name = pair.dataset or found.dataset
    if name is None:
        raise UsageError(f"model {found.name} does not say which data it is for", expected="a data set", fix="Add --dataset NAME.")
    threat = resolve(pair.threat, name)
    check_knows(threat.members)
    data = sources.load(name, root=pair.data)
    for member in threat.members:
        member.check(data.shape)
        for plan in plans:
            plan.stages_for(member)
    return Ready(found, data, threat, plans, _count(pair.n, data), usual_width(pair.width, data, pair.device))


def _count(n: int | str | None, data: Dataset) -> int:
    """How many of the first images are attacked. Raises UsageError."""
    count = data.size if n == "all" else sources.default_n(data.name) if n is None else int(n)
    if not 1 <= count <= len(data):
        raise UsageError(f"n={n}", expected=f"at most {len(data)}, the {data.split} images of {data.name}")
    return count


def _theirs(pair: Pair, ready: Ready, round: int, meter: Meter) -> Side:
    found, data = ready.found, ready.data
    with attacked(found.module, name=found.name, dataset=data, device=pair.device, source=found.source, title=found.title) as model:
        x, y = data.x[: ready.n].to(model.device), data.y[: ready.n].to(model.device)
        return run_autoattack(model, ready.threat.members, x, y, round, pair.seed + round - 1, meter)


def _ours(pair: Pair, ready: Ready, plan: Plan, round: int, meter: Meter) -> Side:
    return run_plan(
        ready.found,
        ready.data,
        ready.threat,
        plan,
        n=ready.n,
        round=round,
        seed=pair.seed + round - 1,
        width=ready.width,
        device=pair.device,
        methods=METHODS if pair.certify == "auto" else (),
        meter=meter,
    )


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named: Sequence[str] = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _silent(stage: str, done: int, total: int) -> None:
    return
