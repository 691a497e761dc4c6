"""A TOML table read key by key: values in their type, and an error that names file and key for whatever else stands there. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rbench_core.errors import CardError

WORDS: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class Table:
    """A TOML table that is taken apart key by key; what nobody took is unknown."""

    def __init__(self, table: dict[str, Any], where: str, prefix: str = "") -> None:
        self.table, self.where, self.prefix, self.known = table, where, prefix, set[str]()

    def take(self, key: str, kind: type, *, required: bool = False, check: Callable[[Any], str | None] | None = None) -> Any:
        """The value of a key in its type, or None where it may be absent. `check` says what else is expected, or None."""
        self.known.add(key)
        if key not in self.table:
            if required:
                raise CardError(f"{self.where}: {self.prefix}{key} is missing", expected=WORDS[kind])
            return None
        value = self.table[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:  # exactly: a bool is no number, a string of digits neither
            raise self.wrong(key, value, WORDS[kind])
        expected = check(value) if check else None
        if expected is not None:
            raise self.wrong(key, value, expected)
        return value

    def wrong(self, key: str, value: object, expected: str) -> CardError:
        return CardError(f"{self.where}: {self.prefix}{key} = {value!r:.80}", expected=expected)

    def table_at(self, key: str, *, required: bool = False) -> Table:
        return Table(self.take(key, dict, required=required) or {}, self.where, f"{self.prefix}{key}.")

    def rest(self) -> dict[str, Any]:
        """The keys that nobody took."""
        return {key: value for key, value in self.table.items() if key not in self.known}

    def finish(self) -> None:
        """Refuse the keys that nobody took."""
        if unknown := sorted(self.rest()):
            raise CardError(f"{self.where}: unknown key {self.prefix}{unknown[0]}", expected=f"one of: {', '.join(sorted(self.known))}")
