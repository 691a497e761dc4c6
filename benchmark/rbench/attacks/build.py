"""From a spec such as `apgd(loss=ce, steps=100)` to the attack's value, and back to the text and table that name it."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rbench_core.catalogue import installed
from rbench_core.errors import SpecError, UnknownName
from rbench_threats.spec import Call, Exact, Value, whole, written

if TYPE_CHECKING:
    from rbench.attacks.protocol import Attack

ATTACKS = {  # the catalogue's one line per attack; attacks of installed packages join by entry points of the group `rbench.attacks`
    "pgd": "rbench.attacks.pgd:PGD",
    "slide": "rbench.attacks.pgd:Slide",
    "topk": "rbench.attacks.pgd:TopK",
    "apgd": "rbench.attacks.apgd:APGD",
    "apgd-sparse": "rbench.attacks.apgd:APGDSparse",
    "apgd-shrinking": "rbench.attacks.shrinking:APGDShrinking",
    "fab": "rbench.attacks.fab:FAB",
    "sigma-zero": "rbench.attacks.sigma_zero:SigmaZero",
    "random": "rbench.attacks.draws:Random",
    "mixture": "rbench.attacks.mixture:Mixture",
    "grid": "rbench.attacks.grid:Grid",
    "square": "rbench.attacks.square:Square",
    "sparse-rs": "rbench.attacks.square:SparseRS",
}


def attack_names() -> list[str]:
    """Every attack of ours and of installed packages. No torch."""
    return sorted({**ATTACKS, **installed("rbench.attacks")})


def build_attack(call: Call) -> Attack:
    """The attack of a parsed spec. Raises UnknownName, SpecError."""
    found: Any = {**ATTACKS, **installed("rbench.attacks")}.get(call.name.lower())
    if found is None:
        raise UnknownName("attack", call.name, attack_names(), fix="`rbench plans` lists plans and attacks.")
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        kind = getattr(importlib.import_module(module), attribute)
    else:
        kind = found.load()
    known = {public(field.name): field for field in fields(kind)}
    if call.args:
        raise SpecError(f"{call.name}: an argument without a name", expected=f"some of: {', '.join(known) or 'none'}")
    given = {}
    for key, value in call.named:
        if key not in known:
            raise SpecError(f"{call.name}: {key}=...", expected=f"some of: {', '.join(known) or 'no arguments'}")
        given[known[key].name] = _typed(value, str(known[key].type), f"{call.name}: {key}")
    return kind(**given)  # type: ignore[no-any-return]


def public(field: str) -> str:
    """A field's name in specs: `loss` for loss_name, which the method loss does not allow."""
    return field.removesuffix("_name")


def record(attack: Any) -> dict[str, Any]:
    """The attack by content: its name and every argument, defaults included; what goes into a question's key and a row's noise."""
    return {"attack": attack.name, **{public(field.name): getattr(attack, field.name) for field in fields(attack)}}


def spec_of(attack: Any) -> str:
    """The spec with every argument, `apgd(loss=ce, steps=100, top=9, restarts=1)`."""
    return written(attack.name, {public(field.name): getattr(attack, field.name) for field in fields(attack)})


def _typed(value: Value, kind: str, where: str) -> int | float | str:
    if kind == "str":
        if isinstance(value, Call) and not value.args and not value.named:
            return value.name
        raise SpecError(f"{where}={value}", expected="a name")
    if isinstance(value, Call):
        raise SpecError(f"{where}={value.name}", expected="a number")
    return whole(value, where) if kind == "int" else float(Exact(value))
