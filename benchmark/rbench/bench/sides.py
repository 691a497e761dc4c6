"""What one side did in one round: plain values, without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

AUTOATTACK = "autoattack"
CLEAN = "clean pass"
REST = "everything else"  # checks, probes, the clean pass of AutoAttack, the store


@dataclass(frozen=True, slots=True)
class Row:
    """One attack on one member: who entered and fell, rows through the model, CPU and wall seconds.

    Of the wall seconds, on a CPU, model_seconds went into passes and step_seconds into the attack's own steps (ours alone say so).
    """

    member: str
    attack: str
    entered: int = 0
    broken: int = 0
    forward: int = 0
    backward: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    pilot: bool = False
    model_seconds: float = 0.0
    step_seconds: float = 0.0


@dataclass(slots=True)
class Side:
    """AutoAttack or a plan, with one seed. fell: by data set index, who broke it; `wrong` were misclassified when clean."""

    name: str
    round: int
    seed: int
    n: int
    rows: list[Row] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    fell: dict[int, str] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)  # examples without an answer: not broken
    refused: dict[int, str] = field(default_factory=dict)  # falls that our referee would not have counted, with the reason
    pilots: dict[str, dict[str, Any]] = field(default_factory=dict)  # by member, what the plan's pilot found
    warnings: list[dict[str, str]] = field(default_factory=list)  # of the run, {"code", "text"}

    @property
    def stands(self) -> set[int]:
        """The examples that nothing broke."""
        return set(range(self.n)) - set(self.wrong) - set(self.fell)

    def total(self, what: str) -> int | float:
        """The sum of a column."""
        summed: int | float = sum(getattr(row, what) for row in self.rows)
        return summed

    @property
    def passes(self) -> int | float:
        """Forward-equivalents: a backward pass to the input counts as one forward."""
        return self.total("forward") + self.total("backward")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with sums."""
        return {
            "side": self.name,
            "round": self.round,
            "seed": self.seed,
            "clean": self.n - len(self.wrong),
            "robust": len(self.stands),
            "total": {name: self.total(name) for name in ("forward", "backward", "cpu", "wall")},
            "attacks": [asdict(row) for row in added(self.rows)],
            "fell": {str(index): self.fell[index] for index in sorted(self.fell)},
            "errors": {str(index): reason for index, reason in self.errors.items()},
            "refused": {str(index): reason for index, reason in self.refused.items()},
            "pilots": self.pilots,
            "warnings": self.warnings,
        }


def added(rows: list[Row]) -> list[Row]:
    """Rows of one attack, member and part (pilot or not) summed up, in the order of their first appearance."""
    found: dict[tuple[str, str, bool], Row] = {}
    for row in rows:
        key = (row.member, row.attack, row.pilot)
        before = found.get(key)
        found[key] = row if before is None else _sum(before, row)
    return list(found.values())


def _sum(a: Row, b: Row) -> Row:
    numbers = ("entered", "broken", "forward", "backward", "cpu", "wall", "model_seconds", "step_seconds")
    return Row(a.member, a.attack, pilot=a.pilot, **{name: getattr(a, name) + getattr(b, name) for name in numbers})
