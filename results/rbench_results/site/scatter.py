"""Geometry of the trade-off panels: dots, whiskers, the stepped front and labels that do not cover each other. Plain numbers for SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from rbench_results.site.tradeoff import Panel, Point
from rbench_results.site.words import cut

LEFT, RIGHT, TOP, BOTTOM = 44.0, 540.0, 30.0, 352.0
STEP = 20  # percent between lines of the grid
HIGH, WIDE = 11.0, 5.8  # of a letter
OFFSETS = ((8.0, 4.0, ""), (-8.0, 4.0, "end"), (6.0, -8.0, ""), (6.0, 16.0, ""), (-6.0, -8.0, "end"), (-6.0, 16.0, "end"))


@dataclass(frozen=True)
class Dot:
    """A model's place; spans are the whiskers and, where something is proved, the way from the lower to the upper bound."""

    point: Point
    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]
    proved: float | None

    @property
    def kind(self) -> str:
        return "dot" + (" front" if self.point.front else "") + (" over" if self.point.over else "")


@dataclass(frozen=True)
class Label:
    """A name beside its dot."""

    text: str
    x: float
    y: float
    kind: str


@dataclass(frozen=True)
class Scatter:
    """A panel as numbers; `top` percent is the upper end of the y axis."""

    dots: list[Dot]
    labels: list[Label]
    ticks_x: list[tuple[int, float]]
    ticks_y: list[tuple[int, float]]
    ceiling: float
    ceiling_span: tuple[float, float]
    front: str
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM


def scatter(panel: Panel) -> Scatter | None:
    """The drawing of a panel; None where no point has both coordinates."""
    if not panel.placed:
        return None
    highest = max(100 * point.follows["high"] for point in panel.placed)
    top = min(100, STEP * ceil(highest / STEP))
    dots = sorted((_dot(point, top) for point in panel.placed), key=lambda dot: (dot.point.front, -dot.y, dot.x))
    low, high = (_x(panel.ceiling[end]) for end in ("low", "high"))
    return Scatter(
        dots=dots,
        labels=_labels(dots),
        ticks_x=[(at, _x(at / 100)) for at in range(0, 101, STEP)],
        ticks_y=[(at, _y(at / 100, top)) for at in range(0, top + 1, STEP)],
        ceiling=_x(panel.ceiling["accuracy"]),
        ceiling_span=(low, high),
        front=_front([dot for dot in dots if dot.point.front]),
    )


def _dot(point: Point, top: int) -> Dot:
    robust, follows = point.robust, point.follows
    assert robust is not None  # a placed point
    return Dot(
        point,
        _x(robust.accuracy),
        _y(follows["accuracy"], top),
        (_x(robust.low), _x(robust.high)),
        (_y(follows["low"], top), _y(follows["high"], top)),
        _x(point.certified.accuracy) if point.certified else None,
    )


def _x(share: float | int) -> float:
    return round(LEFT + (RIGHT - LEFT) * share, 1)


def _y(share: float | int, top: int) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * 100 * share / top, 1)


def _front(dots: Sequence[Dot]) -> str:
    """The steps under which every point is beaten, from the left edge down to the axis."""
    places = sorted({(dot.x, dot.y) for dot in dots})
    path = f"M{LEFT:g} {places[0][1]:g}"
    for (x, _), following in zip(places, [*places[1:], (0.0, BOTTOM)], strict=True):
        path += f" H{x:g} V{following[1]:g}"
    return path


def _labels(dots: Sequence[Dot]) -> list[Label]:
    """Names of the front first; one that finds no room is left to the dot's own title."""
    taken = [(dot.x - 5, dot.y - 5, dot.x + 5, dot.y + 5) for dot in dots]
    found = []
    for dot in reversed(dots):
        text = cut(_short(dot.point.model.name, [other.point.model.name for other in dots]), 28)
        for across, down, anchor in OFFSETS:
            x, y, wide = dot.x + across, dot.y + down, WIDE * len(text)
            box = (x - wide, y - HIGH, x, y + 2) if anchor else (x, y - HIGH, x + wide, y + 2)
            inside = box[0] >= LEFT - 4 and box[2] <= RIGHT + 24 and box[3] <= BOTTOM + 2
            if inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                found.append(Label(text, x, y, f"{'t-head' if dot.point.front else 't-soft'} {anchor}".strip()))
                break
    return found


def _short(name: str, names: Sequence[str]) -> str:
    """Without the beginning that all names share: mnist-linf-at -> linf-at."""
    first = name.partition("-")[0] + "-"
    return name.removeprefix(first) if len(names) > 1 and all(other.startswith(first) for other in names) else name


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
