"""Threats made of several sets. A union has no θ of its own: per example the worst member counts."""

from __future__ import annotations

from dataclasses import dataclass

from rbench_core.errors import SpecError
from rbench_threats.protocol import PerturbationSet
from rbench_threats.spec import Call, Value, written


@dataclass(frozen=True, slots=True)
class Union:
    """The adversary may use any one of the members, and picks the worst for each image (Tramèr & Boneh 2019, sec. 2).

    Nested unions are flattened and a member given twice counts once, so the union of a set with itself has that set as its only member.
    """

    members: tuple[PerturbationSet, ...]

    def __post_init__(self) -> None:
        flat: dict[str, PerturbationSet] = {}
        for member in self.members:
            for part in member.members if isinstance(member, Union) else (member,):
                flat.setdefault(str(part), part)
        if not flat:
            raise SpecError("union()", expected="at least one set, such as union(linf(eps=0.3), l2(eps=2))")
        object.__setattr__(self, "members", tuple(flat.values()))

    @classmethod
    def from_spec(cls, args: tuple[Value, ...], named: dict[str, Value]) -> Union:
        """Of sets without names. Raises SpecError."""
        from rbench_threats.catalogue import build

        example = "sets without names, such as union(linf(eps=0.3), l2(eps=2))"
        if named:
            raise SpecError(f"union: {next(iter(named))}=...", expected=example)
        if wrong := [value for value in args if not isinstance(value, Call)]:
            raise SpecError(f"union: {wrong[0]}", expected=example)
        return cls(tuple(build(value) for value in args if isinstance(value, Call)))

    def __str__(self) -> str:
        return written("union", {"members": self.members})

    @property
    def sentence(self) -> str:
        count = {2: "two", 3: "three", 4: "four", 5: "five"}.get(len(self.members), str(len(self.members)))
        return f"The adversary may use any one of {count} budgets, and picks the worst for each image."
