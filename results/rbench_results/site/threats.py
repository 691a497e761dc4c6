"""What an adversary may do, in words that need no mathematics, with the question's numbers; an unknown set says its own sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import sqrt

from rbench_results.records import QuestionRecord
from rbench_results.site.words import exactly, number, plural

Shape = tuple[int, ...]  # channels, height, width of one image
Extent = Mapping[str, Fraction]


def explain(members: Sequence[tuple[QuestionRecord, str]], shape: Shape, sentence: str) -> str:
    """A threat for a stranger: (question, label) of every member; `sentence` is the threat's own, for where this page knows no better."""
    if len(members) == 1:
        return _one(members[0][0], shape) or sentence
    names = [label for _, label in members]
    listed = f"{', '.join(names[:-1])} or {names[-1]}"
    return f"For each image the adversary chooses whichever fools the model: {listed}. A model holds an image only if none of them works."


def _one(question: QuestionRecord, shape: Shape) -> str | None:
    extent = {name: value for name, text in question.extent.items() if (value := exactly(str(text))) is not None and value > 0}
    describe = WORDS.get(question.family)
    try:
        return describe(extent, shape) if describe and len(shape) == 3 and 0 not in shape else None
    except (KeyError, OverflowError):  # a set of this name with other numbers
        return None


def _linf(extent: Extent, shape: Shape) -> str:
    eps = extent["eps"]
    levels = round(float(eps) * 255)
    return (
        f"Every pixel may become a little darker or brighter, each by at most {_share(eps)} of the way from black to white "
        f"({plural(levels, 'grey level')} of 255). The change is faint and everywhere, like grain."
    )


def _l2(extent: Extent, shape: Shape) -> str:
    eps, values = extent["eps"], _values(shape)
    alone = "turn a single one from black to white" if eps >= 1 else f"move a single one by {_share(eps)}"
    return (
        f"The changes of all {values:,} pixel values, squared, add up to at most {number(str(eps))}². That is enough to {alone}, "
        f"or to move all of them by {_share(Fraction(float(eps) / sqrt(values)))}. It goes where it matters most."
    )


def _l1(extent: Extent, shape: Shape) -> str:
    eps, values = extent["eps"], _values(shape)
    strokes = f"to turn {plural(int(eps), 'value')} from black to white" if eps >= 1 else f"to move one by {_share(eps)}"
    return (
        f"The changes of all {values:,} pixel values add up to at most {number(str(eps))}: enough {strokes}, or to move all of them by "
        f"{_share(eps / values)}. It is usually spent on a few pixels."
    )


def _l0(extent: Extent, shape: Shape) -> str:
    pixels = int(extent["pixels"])
    return f"At most {pixels:,} of the {shape[1] * shape[2]:,} pixels may change, each to any value; all others stay exactly as they are."


def _spatial(extent: Extent, shape: Shape) -> str:
    degrees, shift = number(str(extent["degrees"])), number(str(extent["shift"]))
    return (
        f"No pixel is painted: the whole image is turned by up to {degrees}° either way and shifted by up to {shift} px in each direction, "
        f"of {shape[1]} × {shape[2]}. What leaves the frame is lost, and black comes in."
    )


def _values(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _share(value: Fraction) -> str:
    """A fraction of the way from black to white, in two significant digits of a percent."""
    return f"{float(100 * value):.2g} %" if value < 1 else "100 %"


WORDS: dict[str, Callable[[Extent, Shape], str]] = {
    "linf": _linf,
    "l2": _l2,
    "l1": _l1,
    "l0": _l0,
    "rotation-translation": _spatial,
}
