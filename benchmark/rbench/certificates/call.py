"""One operator of an exported program: its arguments, and what of them depends on the image, on weights or on the batch size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rbench.certificates.graph import Fetch
from rbench.certificates.rules import Rule, Shape


class Refusal(Exception):
    """Why an operator has no bounds here, to be said after its name."""


class Constant(NamedTuple):
    """A tensor that does not depend on the image; `name`: of the parameter or buffer, where it is one."""

    fetch: Fetch
    name: str = ""


class Place(NamedTuple):
    """A node of the graph that is being made, and the shape of one row."""

    at: int
    shape: Shape


class Symbol(NamedTuple):
    """A number made of the batch size."""

    name: str


class Made(NamedTuple):
    """A rule, its perturbed inputs, its own tensors. No rule: the first input goes on as it is."""

    rule: Rule | None
    inputs: Sequence[Place]
    tensors: Sequence[Constant | None] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One operator with the arguments of its schema; `out`: the shape of one row of what it returns."""

    arguments: dict[str, Any]
    out: Shape

    def __getitem__(self, key: str) -> Any:
        """A plain argument. Raises Refusal where it depends on image or batch."""
        value = self.arguments[key]
        if isinstance(value, (Place, Constant, Symbol)):
            raise Refusal(f"takes its {key} from the data")
        return value

    def place(self, key: str = "self") -> Place:
        value = self.arguments[key]
        if not isinstance(value, Place):
            raise Refusal(f"has a constant as {key}")
        return value

    def constant(self, key: str) -> Constant | None:
        value = self.arguments.get(key)
        if value is not None and not isinstance(value, Constant):
            raise Refusal(f"has a {key} that depends on the image")
        return value

    def pair(self, key: str, default: Shape = ()) -> Shape:
        """Two numbers, where torch also takes one."""
        values = tuple(int(each) for each in self[key]) or default
        return values * 2 if len(values) == 1 else values

    def axis(self, key: str = "dim") -> int:
        return self.counted(int(self[key]))

    def counted(self, dim: int) -> int:
        """An axis from the front. Raises Refusal for axis 0, the rows."""
        rank = len(self.place().shape) + 1
        if dim % rank == 0:
            raise Refusal("works along the batch")
        return dim % rank
