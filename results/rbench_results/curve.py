"""Accuracy over eps: the robust accuracy at many radii, from the closest adversarial point that is known of every example.

Each such point is verified, so the curve is an upper bound at every radius, as a robust accuracy is at one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rbench_results.figures import FALLEN, Figure
from rbench_results.records import CurveRow

STEPS = 20
RADII = tuple(Fraction(2 * step, STEPS) for step in range(STEPS + 1))  # in radii of the set: 0, then 20 up to twice the asked one
STAGE = 1000  # the position of a curve's cost among the stages of its question: behind every attack of a plan
SLACK = 1e-6  # relative: a point on the surface of a ball may measure so much more than its radius


@dataclass(frozen=True, slots=True)
class Curve:
    """One member's curve over the images of a run. unit: the asked radius in pixel units; None: the set has no single one."""

    spec: str
    unit: Fraction | None
    points: list[tuple[Fraction, Figure]]  # by radius in units of the asked one; none while an image of the run has no row
    asked: int  # images with a row
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As it stands in reports; eps in pixel units, or in radii of the set where it has no single radius."""
        unit = float(self.unit or 1)
        points = [
            {"eps": float(radius) * unit, "robust": figure.accuracy, "low": figure.low, "high": figure.high, "n": figure.n}
            for radius, figure in self.points
        ]
        return {"spec": self.spec, "eps": None if self.unit is None else unit, "asked": self.asked, "n": self.n, "points": points}


def curve(
    spec: str, rows: Sequence[CurveRow], statuses: Mapping[int, str | None], indices: Sequence[int], extent: Mapping[str, str]
) -> Curve:
    """The curve of one member over the images `indices`. statuses: the settled ones, so that at the asked radius it is the figure."""
    reach = {row.index: _reach(row.gauge, statuses.get(row.index)) for row in rows}
    there = [reach[index] for index in indices if index in reach]
    unit = Fraction(next(iter(extent.values()))) if len(extent) == 1 else None
    holds = {radius: sum(gauge is None or gauge > float(radius) * (1 + SLACK) for gauge in there) for radius in RADII}
    points = [(radius, Figure.of(count, len(there))) for radius, count in holds.items() if there]
    return Curve(spec, unit, points if len(there) == len(indices) else [], len(there), len(indices))


def _reach(gauge: float | None, status: str | None) -> float | None:
    """The smallest radius at which the example is known to fall. The referee's tolerance may put a witness on the surface just beyond 1."""
    if status == "misclassified":
        return 0.0
    return min(gauge or 1.0, 1.0) if status in FALLEN else gauge
