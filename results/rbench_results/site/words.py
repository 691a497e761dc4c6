"""How figures, names and dates are written: what the templates use as filters. Names come from users and are never trusted."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction

ADDRESS = re.compile(  # an arXiv number, or printable ASCII without <>"'`; no user@ passes for a host: the possessive ++ gives nothing back
    r"\barxiv:\s?(?P<arxiv>\d{4}\.\d{4,5}(?:v\d+)?)(?!\d)"
    r"|\bhttps://[a-z0-9.-]++(?::\d++)?(?![^\s/?#.,;)\]}'\"])(?:[/?#][!#-&(-;=?-_a-z{-~]*)?",
    re.IGNORECASE | re.ASCII,
)
EXACT = re.compile(r"-?\d{1,30}(\.\d{1,30}|/\d{1,30})?", re.ASCII)  # no exponent: Fraction("1e999999999") would never end
JOINERS = "\u200c\u200d"  # zero width, but letters of real scripts need them
DASH = "–"


def slug(name: str, limit: int = 60) -> str:
    """A file name of [a-z0-9._-]; a digest is added as soon as a character changed, so that two names never share one."""
    safe = re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.")[:limit]
    return safe if safe == name else f"{safe or 'x'}-{digest_of(name)[:8]}"


def digest_of(text: str) -> str:
    """SHA-256 of a text, lone surrogates included."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def percent(share: float | int) -> str:
    """One decimal, without the sign: 0.4481 -> 44.8. `fmt` in site.js rounds alike."""
    return f"{100 * share:.1f}"


def count(number: float | int) -> str:
    """Thousands apart: 1234 -> 1,234."""
    return f"{number:,.0f}"


def passes(number: float | int) -> str:
    """A cost: whole from 100 on, one decimal below."""
    return count(number) if number >= 100 else f"{number:.1f}"


def size(number: int) -> str:
    """A parameter count in three digits: 166406 -> 166 k."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}" if number < 1000 * unit else f"{number / unit:,.0f} {name}"
    return str(number)


def duration(seconds: float | int) -> str:
    """12.34 -> 12.3 s; minutes and hours above."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def when(iso: str | None) -> str:
    """An ISO time as 2026-03-02 08:12 UTC; a text that is none stays as it is, nothing becomes a dash."""
    if not iso:
        return DASH
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def day(iso: str | None) -> str:
    """The date of an ISO time."""
    return when(iso)[:10]


def number(exact: str) -> str:
    """An exact number as people write it: 3/10 -> 0.3, 8/255 stays, a text that is no number stays."""
    value = exactly(exact)
    if value is None:
        return exact
    for digits in range(5):
        if (value * 10**digits).denominator == 1:
            return f"{float(value):.{digits}f}"
    return f"{value.numerator}/{value.denominator}"


def exactly(text: str) -> Fraction | None:
    """The number that a text of the store stands for (3/10, 0.3, 8), None where it stands for none."""
    try:
        return Fraction(text) if EXACT.fullmatch(text) else None
    except ZeroDivisionError:
        return None


def set_label(family: str, extent: Mapping[str, str], spec: str) -> str:
    """What a set is called in a narrow column: linf 0.3; rotation-translation degrees 30, shift 3; the spec where numbers do not say it."""
    if not extent or not family.replace("-", "").isalnum():  # a family that holds digests or other sets
        return spec
    if len(extent) == 1:
        return f"{family} {number(next(iter(extent.values())))}"
    return f"{family} " + ", ".join(f"{name} {number(value)}" for name, value in extent.items())


def cut(text: str, limit: int = 60) -> str:
    """A text that must stay on one line."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def visible(value: object) -> object:
    """What a page may show: characters that steer a screen (bidi overrides, NUL, zero width) become their escapes, such as \\u202e.

    A line feed, a tab and what real scripts need stay. Anything but a plain text comes back as it is: macros have done this already.
    """
    if not isinstance(value, str) or value.isprintable() or hasattr(value, "__html__"):
        return value
    return "".join(char if _is_harmless(char) else char.encode("unicode_escape").decode() for char in value)


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or char in JOINERS or unicodedata.category(char) == "Zs"


def links(value: object) -> list[tuple[str, str | None]]:
    """A text of a card as (piece, address): https and arXiv numbers lead somewhere, all else (javascript:, data:, http:) nowhere."""
    text, found, end = str(value), [], 0
    for match in ADDRESS.finditer(text):
        number = match["arxiv"]
        piece = match[0] if number else match[0].rstrip(".,;:!?)]}'")  # the sentence's own full stop is no part of the address
        found += [(text[end : match.start()], None), (piece, f"https://arxiv.org/abs/{number}" if number else piece)]
        end = match.start() + len(piece)
    return [pair for pair in (*found, (text[end:], None)) if pair[0]]


def groups(digest: str) -> str:
    """A digest in blocks of four, so that two can be compared by eye and a line can break."""
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


def span(first: int, n: int) -> str:
    """The slice [first, first + n) as people count: 0–499."""
    return DASH if n <= 0 else f"{first}" if n == 1 else f"{first}–{first + n - 1}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """1 image, 2 images."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"
