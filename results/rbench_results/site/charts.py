"""Geometry of the drawings; the templates turn it into SVG. Percentages and plain numbers only: the page's CSP refuses style attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from rbench_results.figures import wilson

PARTS = ("certified", "survived", "broken", "misclassified", "error")  # of a bar, from the left
LEFT, RIGHT, TOP, TALL, LOW = 44.0, 850.0, 26.0, 294.0, 174.0  # the flow chart's plane in a view box 1120 wide; two bottoms
APART = 14.0  # least distance of two labels
NAMED = 5  # attacks named at the right edge; the rest is summed


@dataclass(frozen=True)
class Bar:
    """A verdict bar in percent of its width; `low` and `high` are the whisker of certified + survived."""

    n: int
    counts: dict[str, int]
    parts: list[tuple[str, float, float]]  # (status, x, width)
    low: float
    high: float
    certified: tuple[float, float] | None  # the whisker of the lower bound

    def __str__(self) -> str:
        """What the bar says, for those who do not see it."""
        if not self.n:
            return "no figure"
        return ", ".join(f"{part} {100 * self.counts[part] / self.n:.1f}" for part in PARTS) + f" % of {self.n}"


def bar(counts: Mapping[str, int]) -> Bar | None:
    """The bar of a complete slice; None for no images."""
    n = sum(counts.get(part, 0) for part in PARTS)
    if not n:
        return None
    parts, x = [], 0.0
    for part in PARTS:
        width = 100 * counts.get(part, 0) / n
        parts.append((part, x, width))
        x += width
    certified = counts.get("certified", 0)
    low, high = wilson(certified + counts.get("survived", 0), n)
    lower = wilson(certified, n)
    return Bar(
        n=n,
        counts={part: counts.get(part, 0) for part in PARTS},
        parts=parts,
        low=100 * low,
        high=100 * high,
        certified=(100 * lower[0], 100 * lower[1]) if certified else None,
    )


NO_BAR = Bar(n=0, counts={}, parts=[(part, 0.0, 0.0) for part in PARTS], low=0.0, high=0.0, certified=None)


@dataclass(frozen=True)
class Step:
    """One attack of the chain: who entered, who fell, and what it cost in passes (forward + backward)."""

    name: str
    entered: int
    broken: int
    passes: int


@dataclass(frozen=True)
class Label:
    """A text at the right edge, with the height it speaks of and the height it found room at."""

    text: str
    at: float
    y: float
    kind: str


@dataclass(frozen=True)
class Flow:
    """Images still standing against passes per image, square-root scale: what broke what, at which cost."""

    n: int
    wrong: int
    stood: int
    total: float  # passes per image
    blocks: list[dict[str, float]]
    ticks_x: list[tuple[float, float]]
    ticks_y: list[tuple[int, float]]
    labels: list[Label]
    bottom: float
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP

    def __str__(self) -> str:
        """The chart in one sentence."""
        fell = self.n - self.wrong - self.stood
        return f"{self.wrong} were misclassified, {fell} fell, {self.stood} survived after {self.total:.1f} passes per image."


def flow(steps: Sequence[Step], wrong: int, *, before: int = 0, bottom: float = TALL) -> Flow | None:
    """The chart of a chain of attacks after a clean pass, which cost `before` and found `wrong`; None where nothing was attacked."""
    if not steps or steps[0].entered <= 0 or not any(step.passes for step in steps):
        return None
    n = wrong + steps[0].entered
    total = (before + sum(step.passes for step in steps)) / n

    def y(images: float | int) -> float:
        return bottom - (bottom - TOP) * images / n

    left = [steps[0].entered]  # before each step: a gated attack meets some of those that stand
    for step in steps:
        left.append(left[-1] - step.broken)
    stood = left[-1]
    labels = [Label(f"{wrong:,} misclassified", y(n - wrong / 2), 0.0, "t-soft")] if wrong else []
    labels += [*_fallen(steps, left, y), Label(f"{stood:,} survived", y(stood / 2), 0.0, "t-head")]
    blocks, spent = [], before / n
    for step, high in zip(steps, left, strict=False):
        start, end = _x(spent, total), _x(spent + step.passes / n, total)
        blocks.append({"x": start, "w": end - start, "high": y(high), "low": y(high - step.broken)})
        spent += step.passes / n
    return Flow(
        n=n,
        wrong=wrong,
        stood=stood,
        total=total,
        blocks=blocks,
        ticks_x=_ticks_x(total),
        ticks_y=[(images, y(images)) for images in _round_steps(n)],
        labels=_spread(labels, bottom),
        bottom=bottom,
    )


def _fallen(steps: Sequence[Step], left: Sequence[int], y: Callable[[float | int], float]) -> list[Label]:
    """The attacks that broke most are named, in the order of the chain; the others are one line. left: images before each step."""
    fell = [(step, y(before - step.broken / 2)) for step, before in zip(steps, left, strict=False) if step.broken]
    named = sorted(sorted(fell, key=lambda pair: -pair[0].broken)[:NAMED], key=fell.index)
    labels = [Label(f"{step.broken:,} {step.name}", at, 0.0, "") for step, at in named]
    rest = [pair for pair in fell if pair not in named]
    if rest:
        height = sum(at for _, at in rest) / len(rest)
        labels.append(Label(f"{sum(step.broken for step, _ in rest):,} by {len(rest)} more", height, 0.0, ""))
    return labels


def _spread(labels: Sequence[Label], bottom: float) -> list[Label]:
    """Pushes texts apart: downwards first, then up from the bottom edge."""
    ordered = sorted(labels, key=lambda label: label.at)
    heights: list[float] = []
    for label in ordered:
        heights.append(max(label.at, heights[-1] + APART if heights else TOP - 2))
    limit = bottom
    for at in reversed(range(len(heights))):
        heights[at] = min(heights[at], limit)
        limit = heights[at] - APART
    return [Label(label.text, label.at, height, label.kind) for label, height in zip(ordered, heights, strict=True)]


def _x(passes: float | int, total: float) -> float:
    return LEFT + (RIGHT - LEFT) * sqrt(passes / total)


def _round_steps(n: int) -> list[int]:
    """0, quarters, n; halves where quarters are no whole numbers."""
    parts = 4 if n % 4 == 0 else 2 if n % 2 == 0 else 1
    return [n * part // parts for part in range(parts + 1)]


def _ticks_x(total: float) -> list[tuple[float, float]]:
    """1, 2, 5, 10, … passes where there is room, zero always."""
    ticks = [(0.0, _x(0, total))]
    candidates = [factor * 10.0**power for power in range(-2, 9) for factor in (1, 2, 5)]
    for value in candidates:
        if value <= total and _x(value, total) - ticks[-1][1] >= 55:
            ticks.append((value, _x(value, total)))
    return ticks
