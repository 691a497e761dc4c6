"""Geometry of an accuracy-over-eps chart: a falling staircase with its band, the asked radius marked, one place to point at per radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rbench_results.site.words import percent

LEFT, RIGHT, TOP, BOTTOM = 34.0, 424.0, 26.0, 206.0  # in a view box 440 wide: a phone's text stays legible


@dataclass(frozen=True)
class Place:
    """The stretch of the x axis on which one radius speaks, and what it says."""

    x: float
    width: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One member's curve as numbers; `asked` is the x of the run's own radius."""

    name: str
    axis: str
    line: str
    band: str
    asked: float
    asked_text: str
    places: list[Place]
    ticks_x: list[tuple[str, float]]
    ticks_y: list[tuple[int, float]]
    rows: list[tuple[str, Mapping[str, Any]]]  # the same as a table: (eps, point)
    n: int
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM

    def __str__(self) -> str:
        """The chart in one sentence."""
        some = [self.rows[at] for at in range(0, len(self.rows), max(1, (len(self.rows) - 1) // 4))]
        told = ", ".join(f"{percent(point['robust'])} % at {eps}" for eps, point in some)
        return f"Upper bound of robust accuracy by radius, {self.n} images: {told}."


def chart(name: str, curve: Mapping[str, Any]) -> Chart | None:
    """The chart of one curve of a report; None where it has no figure."""
    points: Sequence[Mapping[str, Any]] = curve["points"]
    if len(points) < 2:
        return None
    unit, end = curve["eps"] or 1.0, points[-1]["eps"]
    xs = [LEFT + (RIGHT - LEFT) * point["eps"] / end for point in points]
    asked = LEFT + (RIGHT - LEFT) * unit / end
    edges = [*xs, RIGHT]
    texts = [f"{point['eps']:.3g}" for point in points]
    places = [
        Place(x, max(after - x, 0.0), _says(text, point)) for (x, after), text, point in zip(pairwise(edges), texts, points, strict=True)
    ]
    quarters = range(0, len(points), max(1, (len(points) - 1) // 4))
    upper, lower = (_stairs(xs, [point[end] for point in points]) for end in ("high", "low"))
    return Chart(
        name=name,
        axis="eps" if curve["eps"] else "eps in radii of the set",
        line="M" + "L".join(_stairs(xs, [point["robust"] for point in points])),
        band="M" + "L".join(upper + lower[::-1]) + "Z",
        asked=asked,
        asked_text=f"asked: {unit:.3g}",
        places=places[:-1],
        ticks_x=[(texts[at], xs[at]) for at in quarters],
        ticks_y=[(at, _y(at / 100)) for at in range(0, 101, 25)],
        rows=list(zip(texts, points, strict=True)),
        n=points[0]["n"],
    )


def _stairs(xs: Sequence[float], heights: Sequence[float]) -> list[str]:
    """Corners of a staircase that keeps each height until the next x: what holds at a radius is not known to hold beyond it."""
    corners = [(xs[0], heights[0])]
    for (_, high), (x, low) in pairwise(zip(xs, heights, strict=True)):
        corners += [(x, high), (x, low)]
    return [f"{x:.1f} {_y(height):.1f}" for x, height in corners]


def _y(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share


def _says(eps: str, point: Mapping[str, Any]) -> str:
    low, high = percent(point["low"]), percent(point["high"])
    return f"at {eps}: at most {percent(point['robust'])} % ({low}–{high}) of {point['n']:,} images"
