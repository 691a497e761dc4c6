"""A catalogue is a folder of TOML files, read on demand; a name given twice is an error that names both files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rbench_core.errors import CardError
from rbench_core.files import reason


@dataclass(frozen=True, slots=True)
class Entry:
    """One TOML file: its name (the key `name`, or the file's stem), its table and where it lies."""

    name: str
    table: dict[str, Any]
    path: Path
    origin: str


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table. Raises CardError with file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"{path}: {reason(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: {error}", expected="a TOML file") from error


def entries(folders: Iterable[tuple[str, Path]]) -> dict[str, Entry]:
    """Every `*.toml` of (origin, folder) pairs by name, sorted. Raises CardError for a broken file or a name given twice."""
    found: dict[str, Entry] = {}
    for origin, folder in folders:
        for path in sorted(folder.glob("*.toml")):
            table = read_toml(path)
            name = str(table.get("name", path.stem))
            if name in found:
                raise CardError(
                    f"the name {name!r} stands in {found[name].path} and in {path}", expected="one file per name", fix="Rename one of them."
                )
            found[name] = Entry(name, table, path, origin)
    return dict(sorted(found.items()))


def installed(group: str) -> dict[str, metadata.EntryPoint]:
    """Entry points of installed packages under `group`, by name, without importing any. Raises CardError for a name given twice."""
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=group):
        if point.name in found:
            raise CardError(
                f"the name {point.name!r} stands in {found[point.name].value} and in {point.value} (entry points {group})",
                fix="Remove one of the packages.",
            )
        found[point.name] = point
    return found


def only(table: dict[str, Any], known: Iterable[str], where: object) -> None:
    """Refuse keys that nobody reads. Raises CardError."""
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise CardError(f"{where}: unknown key {unknown[0]!r}", expected=f"one of: {', '.join(sorted(known))}")
