"""The folder that the site lies in: whole files only, nothing rewritten that did not change, pages that lost their subject removed."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rbench_core.errors import FileError
from rbench_core.files import atomic_write, reason
from rbench_results.site.words import visible

MANIFEST = ".rbench-site.json"
OURS = re.compile(r"((data|img)/)?[A-Za-z0-9_-][A-Za-z0-9._-]*")  # a manifest that names anything else is not ours to obey
UNFINISHED = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # how atomic_write calls a file NAME until it is whole
# A spreadsheet runs a cell that begins so, in some languages also with the wide forms; where it splits at other signs, more cells begin.
FORMULA = re.compile(r"(^|[;|\t\n])(?=[\s\"']*[=+\-@＝＋－＠]|[\t\n])")


class Folder:
    """Writes files, remembers them, and at the end removes what an earlier build wrote and this one did not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.before: frozenset[str] = frozenset()
        self.now: set[str] = set()

    def begin(self) -> None:
        """Makes the folder. Raises FileError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make {self.root}: {reason(error)}", fix="Choose another folder with --results.") from error

    def remember(self) -> None:
        """Reads what the last build wrote; call it when no other build can be at work."""
        self.before = frozenset(_manifest(self.root))

    def write(self, name: str, data: str | bytes) -> None:
        """One file, atomically; left alone when it already says the same, so that a rebuild does not wait for the disk."""
        data = data.encode("utf-8", "replace") if isinstance(data, str) else data
        path = self.root / name
        self.now.add(name)
        try:
            if path.read_bytes() == data:
                return
        except OSError:
            pass  # absent or unreadable: write it, and let that say what is wrong
        atomic_write(path, data)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], *, data: object = None) -> None:
        """The same rows as data/NAME.csv and data/NAME.json (there as {"rows": …}, or `data` where more is known)."""
        self.write(f"data/{name}.csv", csv_text(rows))
        self.write(f"data/{name}.json", json_text({"rows": list(rows)} if data is None else data))

    def finish(self) -> None:
        """The end of stale files, then the manifest of what stands: in this order a build that is killed leaves them to the next one."""
        for name in [*sorted(self.before - self.now), *self._unfinished()]:
            (self.root / name).unlink(missing_ok=True)
        self.write(MANIFEST, json.dumps({"files": sorted(self.now)}, indent=0) + "\n")

    def _unfinished(self) -> list[str]:
        """Temporary files of builds that were killed. One builder works here at a time, so nobody is filling them."""
        ours = {*self.before, *self.now, MANIFEST}
        found = [path.relative_to(self.root) for path in (*self.root.glob(".*"), *self.root.glob("*/.*"))]
        parts = [(path, UNFINISHED.fullmatch(path.name)) for path in found]
        return [path.as_posix() for path, part in parts if part and (path.parent / part[1]).as_posix() in ours]


def _manifest(root: Path) -> list[str]:
    try:
        names = json.loads((root / MANIFEST).read_text())["files"]
        return [name for name in names if isinstance(name, str) and OURS.fullmatch(name)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """One builder at a time, so that two runs that end together leave the newer picture. No lock where the system has none."""
    try:
        import fcntl
    except ImportError:  # Windows: every file is still whole; only the order of two builders is open
        yield
        return
    try:
        stream = (root / ".lock").open("w")
    except OSError as error:
        raise FileError(f"cannot write to {root}: {reason(error)}", fix="Choose another folder with --results.") from error
    with stream:
        with suppress(OSError):  # a file system without locks: as above
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; the header is the first row's keys, an absent value an empty cell."""
    stream = io.StringIO()
    if rows:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([_cell(key) for key in rows[0]])
        writer.writerows([[_cell(row.get(key)) for key in rows[0]] for row in rows])
    return stream.getvalue()


def _cell(value: object) -> object:
    """Numbers stay numbers; a formula gets a quote before it, and what steers a screen is escaped as on the pages.

    The JSON beside it has the exact text.
    """
    if value is None or isinstance(value, int | float):
        return "" if value is None else value
    return FORMULA.sub(r"\1'", str(visible(str(value))))


def json_text(value: object) -> str:
    """JSON for downloads: one line, exact floats; values that JSON lacks (NaN) become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n"
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":")) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
