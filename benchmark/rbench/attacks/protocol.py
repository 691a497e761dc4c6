"""What an attack is: a value with pure functions over an explicit state. Public: join one of your own by a file or an entry point.

An attack holds no loop, no model call, no norm name, no random generator and no transfer between devices; the engine (search.py)
evaluates what it asks, keeps the smallest margin inside the set with its θ, counts, retires and refills.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rbench.attacks.noise import Row
from rbench_threats.protocol import Context, PerturbationSet

Phase: TypeAlias = Literal["gradient", "logits"]
State: TypeAlias = Any  # a frozen dataclass of tensors, first axis rows, shapes fixed at begin, no two fields the same storage


class Seen(NamedTuple):
    """What the model said at the θ that was asked, (rows,) each."""

    logits: Float[Tensor, "rows classes"]
    margin: Float[Tensor, " rows"]  # logit of the label − best other; negative = fallen
    loss: Float[Tensor, " rows"]
    inside: Bool[Tensor, " rows"] | None  # None where the attack stays inside by itself
    grad: Float[Tensor, "rows p"] | None  # d loss / d θ, always finite; None in a "logits" phase
    sound: Bool[Tensor, " rows"]  # neither NaN anywhere nor an infinity that decides, in logits or gradient


@runtime_checkable
class Attack(Protocol):
    """The protocol of DESIGN section 2, and the number of restarts: rows that differ in their noise alone."""

    @property
    def restarts(self) -> int:
        """Rows per (example, target)."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Capabilities that the set must have; else a plan skips the attack and says so."""
        ...

    @property
    def cycle(self) -> tuple[Phase, ...]:
        """What each evaluation of one step is: with or without a gradient."""
        ...

    @property
    def stays_inside(self) -> bool:
        """False: the engine asks `excess` before it calls a fall."""
        ...

    def targets(self, order: Int[Tensor, "examples others"]) -> Int[Tensor, "examples k"]:
        """The rows of one example, best first; −1 and k = 1: untargeted. order: the classes but the label, nearest first."""
        ...

    def begin(self, space: PerturbationSet, ctx: Context, row: Row) -> State:
        """The state before the first evaluation."""
        ...

    def ask(self, state: State) -> Float[Tensor, "rows p"]:
        """The θ to evaluate next."""
        ...

    def loss(self, logits: Float[Tensor, "rows classes"], row: Row) -> Float[Tensor, " rows"]:
        """What is ascended."""
        ...

    def step(self, space: PerturbationSet, ctx: Context, row: Row, state: State, seen: Seen, phase: int) -> State:
        """The next state; torch.where, never .any(): no waiting for the device."""
        ...

    def goes_on(self, state: State, row: Row) -> Bool[Tensor, " rows"]:
        """Whether a row wants another cycle; may be called after False: step must stay harmless."""
        ...
