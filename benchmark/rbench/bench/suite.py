"""Many pairs in one go: a TOML file of pairs, one JSON line per finished pair, so that a killed suite goes on where it stopped.

Plain Python until a pair is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbench_core.catalogue import Entry, entries, only, read_toml
from rbench_core.errors import CardError, FileError, UnknownName
from rbench_core.files import atomic_write, reason

if TYPE_CHECKING:
    from rbench.bench.run import Pair, Report

SUITE_KEYS = ("name", "title", "n", "pair")
PAIR_KEYS = ("model", "threat", "n", "kind", "dataset")
KINDS = ("honest", "masked")


def suites() -> dict[str, Entry]:
    """The suites that come with the package, by name."""
    return entries([("built in", Path(str(resources.files("rbench.bench") / "suites")))])


def pairs_of(text: str) -> list[dict[str, Any]]:
    """The pairs of a suite by name, or of a file `FILE.toml`. Raises UnknownName, CardError."""
    if text.endswith(".toml"):
        path = Path(text).expanduser()
        table = read_toml(path)
    else:
        known = suites()
        if text not in known:
            raise UnknownName("suite", text, known, fix="A file FILE.toml works too.")
        path, table = known[text].path, known[text].table
    only(table, SUITE_KEYS, path)
    rows = table.get("pair")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise CardError(f"{path}: no pairs", expected='[[pair]] with model = "..." and threat = "..."')
    return [_checked(row, table.get("n"), path) for row in rows]


def _checked(row: dict[str, Any], usual: Any, path: Path) -> dict[str, Any]:
    only(row, PAIR_KEYS, path)
    n = row.get("n", usual)
    for key in ("model", "threat"):
        if not isinstance(row.get(key), str):
            raise CardError(f"{path}: a pair without {key}", expected="model and threat as text")
    if n is not None and n != "all" and not (isinstance(n, int) and not isinstance(n, bool) and n > 0):
        raise CardError(f"{path}: n = {n!r}", expected='a whole number from 1 on, or "all"')
    if row.get("kind", KINDS[0]) not in KINDS:
        raise CardError(f"{path}: kind = {row['kind']!r}", expected=f"one of: {', '.join(KINDS)}")
    return {"dataset": None, "kind": None, **row, "n": n}


def run_suite(pairs: list[dict[str, Any]], base: Pair, out: Path, report: Report | None = None) -> Iterator[dict[str, Any]]:
    """The results pair by pair, in the file's order; those that `out` has are not computed again. base: what all pairs share.

    Raises RbenchError at the first pair that cannot run; what was finished is kept.
    """
    from rbench.bench.run import asked_of, bench

    known = read_lines(out) if out.exists() else []
    for row in pairs:
        pair = replace(base, model=row["model"], threat=row["threat"], n=row["n"], dataset=row["dataset"])
        found = next((result for result in known if result["asked"] == asked_of(pair)), None)
        if found is None:
            found = {**bench(pair, report), "kind": row["kind"]}
            known.append(found)
            write_lines(out, known)
        yield found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The results that a suite wrote. Raises FileError for a file that is none."""
    try:
        results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise FileError(f"{path}: {reason(error)}") from error
    except ValueError as error:
        raise FileError(f"{path} is no file of results: {error}", expected="one JSON object per line, as --suite writes them") from error
    if not all(isinstance(result, dict) and {"asked", "plans", "reference"} <= result.keys() for result in results):
        raise FileError(f"{path} is no file of results", expected="one JSON object per line, as --suite writes them")
    return results


def write_lines(path: Path, results: list[dict[str, Any]]) -> None:
    """The file as a whole, so that a kill leaves either state. Raises FileError."""
    atomic_write(path, "".join(json.dumps(result, allow_nan=False) + "\n" for result in results))
