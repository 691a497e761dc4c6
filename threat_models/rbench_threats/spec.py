"""The spec language: `union(linf(eps=8/255), l2(eps=0.5))`. A small recursive parser; bounded, exact numbers, no `eval`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

from rbench_core.errors import SpecError

MAX_LENGTH = 4096
MAX_DEPTH = 16
_NUMBER = r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,2})?"
_NAME = r"[A-Za-z_][\w.:-]*(?:/[\w.:-]+)*"
_TOKEN = re.compile(rf"\s*(?:(?P<number>{_NUMBER})(?![\w.])|(?P<name>{_NAME})|(?P<text>\"[^\"]{{1,1000}}\")|(?P<mark>[(),=/]))", re.ASCII)


class Exact(Fraction):
    """A number kept exact and printed as it was written: 0.3 is 3/10, and `Exact("0.3") == Exact("3/10")`."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, value: Any, _denominator: Any = None) -> Exact:  # not Self: beartype's hook refuses it here
        if isinstance(value, cls) and _denominator is None:
            return value
        text = _written(value)
        if not re.fullmatch(rf"{_NUMBER}(?:/{_NUMBER})?", text, re.ASCII):
            raise SpecError(f"{text[:60]!r} is no number", expected="a decimal such as 0.3 or a fraction such as 8/255")
        above, _, below = text.partition("/")
        if below and Fraction(below) == 0:
            raise SpecError(f"{text[:60]!r} divides by zero", expected="a decimal such as 0.3 or a fraction such as 8/255")
        self = super().__new__(cls, Fraction(above) / Fraction(below or 1))
        self.text = text
        return self

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __reduce__(self) -> tuple[type[Exact], tuple[str]]:  # Fraction's own would lose the text
        return type(self), (self.text,)


def _written(value: object) -> str:
    if isinstance(value, bool):
        raise SpecError(f"{value} is no number", expected="a decimal such as 0.3 or a fraction such as 8/255")
    if isinstance(value, float):
        return repr(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e15 else repr(value)
    return str(value).strip()


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed `name(positional, key=value)`; a bare name, or a text in double quotes such as a path, is a call without arguments."""

    name: str
    args: tuple[Value, ...] = ()
    named: tuple[tuple[str, Value], ...] = ()


Value: TypeAlias = Exact | Call


def parse(text: str) -> Call:
    """The call that a spec string names. Raises SpecError with the place of the first mistake."""
    if len(text) > MAX_LENGTH:
        raise SpecError(f"spec of {len(text)} characters", expected=f"at most {MAX_LENGTH}")
    value, rest = _value(_tokens(text), text, 0)
    if rest:
        raise _at(text, rest[0][2], "the end")
    if isinstance(value, Exact):
        raise SpecError(f"spec {text[:60]!r} is a number", expected="a name such as linf(eps=0.3)")
    return value


Token: TypeAlias = tuple[str, str, int]


def _tokens(text: str) -> list[Token]:
    found, place = [], 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise _at(text, place + len(text[place:]) - len(text[place:].lstrip()), 'a name, a number, a "text" or one of ( ) , = /')
        found.append((match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
        place = match.end()
    return found


def _value(tokens: list[Token], text: str, depth: int) -> tuple[Value, list[Token]]:
    if depth > MAX_DEPTH:
        raise SpecError(f"spec nested deeper than {MAX_DEPTH}", expected="a flatter one")
    if not tokens:
        raise _at(text, len(text), "a name or a number")
    (kind, word, place), rest = tokens[0], tokens[1:]
    if kind == "number":
        if len(rest) > 1 and rest[0][1] == "/" and rest[1][0] == "number":
            return Exact(f"{word}/{rest[1][1]}"), rest[2:]
        return Exact(word), rest
    if kind == "mark":
        raise _at(text, place, "a name or a number")
    word = word[1:-1] if kind == "text" else word
    if rest and rest[0][1] == "(":
        return _arguments(word, rest[1:], text, depth)
    return Call(word), rest


def _arguments(name: str, tokens: list[Token], text: str, depth: int) -> tuple[Call, list[Token]]:
    args: list[Value] = []
    named: dict[str, Value] = {}
    while tokens and tokens[0][1] != ")":
        key = None
        if len(tokens) > 1 and tokens[0][0] == "name" and tokens[1][1] == "=":
            key, place, tokens = tokens[0][1], tokens[0][2], tokens[2:]
            if key in named:
                raise _at(text, place, f"{key} once")
        elif named:
            raise _at(text, tokens[0][2], "key=value after the first key=value")
        value, tokens = _value(tokens, text, depth + 1)
        if key is None:
            args.append(value)
        else:
            named[key] = value
        if tokens and tokens[0][1] == ",":
            tokens = tokens[1:]
        elif tokens and tokens[0][1] != ")":
            raise _at(text, tokens[0][2], "a comma or )")
    if not tokens:
        raise _at(text, len(text), ")")
    return Call(name, tuple(args), tuple(named.items())), tokens[1:]


def _at(text: str, place: int, expected: str) -> SpecError:
    shown = text if len(text) <= 80 else text[max(0, place - 40) : place + 40]
    return SpecError(f"spec {shown!r}, character {place + 1}", expected=expected)


def written(name: str, arguments: dict[str, object]) -> str:
    """The spec text of a call: `name(key=value, ...)`; a tuple of sets stands as positional arguments."""
    parts: list[str] = []
    for key, value in arguments.items():
        parts += [str(item) for item in value] if isinstance(value, tuple) else [f"{key}={value}"]
    return f"{name}({', '.join(parts)})" if parts else name


def written_name(name: str) -> str:
    """A name or path as a spec gives it: in double quotes where the language would not read it otherwise. Raises SpecError."""
    if re.fullmatch(_NAME, name, re.ASCII):
        return name
    if '"' in name or not name.strip() or not name.isprintable():
        raise SpecError(f"the name {name[:60]!r}", expected="printable letters without a double quote")
    return f'"{name}"'


def whole(value: object, where: str, *, low: int = 1) -> int:
    """A whole number ≥ low from a spec value. Raises SpecError."""
    number = Exact(value)
    if number.denominator != 1 or number < low:
        raise SpecError(f"{where}={number}", expected=f"a whole number, at least {low}")
    return int(number)
