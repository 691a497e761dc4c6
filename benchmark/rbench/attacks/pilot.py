"""The pilot of a plan: a fixed list of examples that get everything the plan has, and what they tell about all the others.

Its facts decide which stages an ordinary example meets, and its rows are at the same time the audit: whatever of their falls the ordinary
way would have missed is counted (DESIGN section 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rbench.attacks.catalogue import Stage
from rbench.attacks.noise import row_keys

ENOUGH = 4  # pilot images that a stage must have met before that it broke none of them says anything
FEW = 8  # below this many survivors a quantile says nothing: every example counts as close
CLIMBS = "apgd"  # the family that a masked gradient leads astray
SOME, MANY = 2, 3  # falls to other families after it, in the pilot, from which a model may count and counts as masked
SHARE, PART = 0.2, 0.1  # SOME must be this share of what APGD left, MANY this part of the pilot


def pilot_rows(size: int, rows: int, seed: int) -> list[int]:
    """`rows` indices of a data set of that size (all, if it is smaller), drawn by the seed; neither slice nor set nor model enters."""
    index = np.arange(size)
    drawn = np.argsort(row_keys(seed, "pilot", index, 0 * index, 0 * index).view(np.uint64), kind="stable")[:rows]
    return sorted(drawn.tolist())


@dataclass(frozen=True, slots=True)
class Facts:
    """What a pilot found out. close: by quantile, the margin up to which an example counts as close (infinity: all)."""

    indices: tuple[int, ...]
    close: Mapping[float, float]
    families: tuple[dict[str, Any], ...]
    masked: bool
    why: str
    idle: tuple[str, ...]  # stages that met enough of the pilot and broke nothing: a masked model does not open them
    late: int  # falls of the pilot that the ordinary way would have missed
    opened: bool  # because of them: every example meets every stage
    standing: int  # audited: pilot rows that the ordinary way leaves, proved ones apart
    missed: int  # and those of them that fell nevertheless; none where the gate was opened
    cost: Mapping[str, int | float] = field(default_factory=dict)

    def lets(self, stage: Stage, margin: float) -> bool:
        """Whether an ordinary example with that smallest margin so far meets the stage."""
        if self.opened or stage.rows == "all":
            return True
        near = stage.rows == "close" and margin <= self.close.get(stage.close, math.inf)
        return near or (self.masked and stage.rows != "audit" and stage.family != CLIMBS and named(stage) not in self.idle)

    @property
    def yields(self) -> float:
        """Falls per pass: the members of a union are attacked in this order, the largest first."""
        spent = self.cost.get("forward", 0) + self.cost.get("backward", 0)
        return float(sum(row["broken"] for row in self.families) / max(spent, 1))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; an infinite margin is null."""
        close = {repr(q): margin if math.isfinite(margin) else None for q, margin in self.close.items()}
        return {
            "indices": list(self.indices),
            "close": close,
            "families": list(self.families),
            "masked": self.masked,
            "why": self.why,
            "idle": list(self.idle),
            "opened": self.opened,
            "late": self.late,
            "audit": {"standing": self.standing, "missed": self.missed},
            "cost": dict(self.cost),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Facts:
        """From what the store kept."""
        close = {float(q): math.inf if margin is None else float(margin) for q, margin in told["close"].items()}
        audit = told["audit"]
        numbers = told["late"], told["opened"], audit["standing"], audit["missed"]
        said = told["masked"], told["why"], tuple(told["idle"])
        return cls(tuple(told["indices"]), close, tuple(told["families"]), *said, *numbers, told["cost"])


def named(stage: Stage) -> str:
    """The stage as facts name it."""
    return f"{stage.spec}, {stage.rows}, skip={stage.skip}"


class Pilot:
    """What is noted while the pilot's rows go through a plan, stage by stage."""

    def __init__(self, indices: Sequence[int]) -> None:
        """indices: the pilot's clean-correct rows."""
        self.indices = tuple(indices)
        self.margin: dict[int, float] = {}  # smallest, over the stages that an ordinary example would have met
        self.close: dict[float, float] = {}
        self.fell: dict[int, list[tuple[Stage, bool]]] = {}  # by which stages, and whether the ordinary way has them on an honest model
        self.idle: list[str] = []
        self.families: dict[str, dict[str, Any]] = {}

    def before(self, stage: Stage) -> None:
        """Fix the stage's threshold, before the stage is looked at: a quantile of the margins of all that the ordinary way leaves."""
        if stage.rows != "close" or stage.close in self.close:
            return
        margins = sorted(self.margin.get(index, math.inf) for index in self.indices if not self._caught(index))
        place = math.ceil(stage.close * len(margins))
        self.close[stage.close] = margins[place - 1] if len(margins) >= FEW else math.inf

    def shadows(self, stage: Stage) -> list[int]:
        """Rows that fell where no ordinary example would have been; they go on as one, to see whether the ordinary way breaks them too."""
        return [index for index in self.fell if not self._caught(index) and (stage.rows == "masked" or self._meets(stage, index))]

    def after(self, stage: Stage, entered: Sequence[int], broken: Sequence[int], seen: Mapping[int, float]) -> None:
        """Note who met the stage, who fell to it, and the smallest margin that it saw of each."""
        row = self.families.setdefault(stage.family, {"family": stage.family, "entered": len(entered), "broken": 0})
        row["broken"] += len([index for index in broken if index not in self.fell])
        self.idle += [named(stage)] if len(entered) >= ENOUGH and not broken else []
        for index in broken:
            self.fell.setdefault(index, []).append((stage, self._meets(stage, index)))
        for index, margin in seen.items():
            if self._meets(stage, index):
                self.margin[index] = min(margin, self.margin.get(index, math.inf))

    def facts(self, proved: set[int], cost: Mapping[str, int | float], *, detect: bool = True, open_: bool = True) -> Facts:
        """The verdict. proved: rows with a certificate, which need no audit. detect, open_: whether masking, late falls change anything."""
        masked, why = self._masked()
        said = masked and detect, why, tuple(self.idle)
        known = self.indices, self.close, tuple(self.families.values()), *said
        before = Facts(*known, late=0, opened=False, standing=0, missed=0)
        late = sum(not any(met or before.lets(stage, math.inf) for stage, met in falls) for falls in self.fell.values())
        standing = sum(index not in self.fell and index not in proved for index in self.indices)
        opened = open_ and late > 0
        return Facts(*known, late, opened, standing + late, 0 if opened else late, cost)

    def _caught(self, index: int) -> bool:
        return any(met for _, met in self.fell.get(index, []))

    def _meets(self, stage: Stage, index: int) -> bool:
        """Whether an ordinary example with this margin would have met the stage on an honest model, the gate closed."""
        if stage.rows == "close":
            return self.margin.get(index, math.inf) <= self.close[stage.close]
        return stage.rows == "all"

    def _masked(self) -> tuple[bool, str]:
        """Whether attacks of other kinds found what APGD did not, by enough to be no accident."""
        climbs = sum(row["broken"] for name, row in self.families.items() if name == CLIMBS)
        others = {name: row["broken"] for name, row in self.families.items() if name != CLIMBS}
        left, broke, n = len(self.indices) - climbs, sum(others.values()), len(self.indices)
        which = ", ".join(f"{name} {count}" for name, count in others.items() if count) or "nothing"
        why = f"of {n} pilot images APGD left {left}, and of these other attacks broke {broke} ({which})"
        masked = (broke >= SOME and broke >= SHARE * left) or (broke >= MANY and broke >= PART * n)
        return masked, why
