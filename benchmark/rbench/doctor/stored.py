"""The folder of results: its database, which is only read, its disk and its site."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path

from rbench.doctor import Finding, Place

PATIENCE = 20.0  # seconds for the check of the whole file
STEP = 100_000  # instructions of SQLite between two looks at the clock
TIGHT, FULL = 1 << 30, 100 << 20  # bytes free on the disk
ELSEWHERE = "Change its permissions, or choose another folder with --results."


def database(place: Place) -> Iterator[Finding]:
    """Whether it is there, whole, of a schema that this rbench knows, and can be written. It is opened read-only, and no file is made."""
    from rbench_results.database import FILE, speaking

    path = place.results / FILE
    if not path.exists():
        yield _absent(place.results)
        return
    if not (os.access(path, os.W_OK) and os.access(place.results, os.W_OK | os.X_OK)):
        yield Finding("database writable", "problem", f"{path} or its folder cannot be written", ELSEWHERE)
    with speaking(path), closing(_opened(path)) as connection:
        yield from _schema(connection, path)
        yield _whole(connection, path)
        yield from _witnesses(connection, place.results)


def _absent(folder: Path) -> Finding:
    above = _standing(folder)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "cannot be written" if above.is_dir() else "is no folder"
        return Finding("database", "problem", f"no database in {folder}, and none can be made: {above} {why}", ELSEWHERE)
    return Finding("database", "note", f"none in {folder} yet", "The first `rbench run` makes it.")


def _opened(path: Path) -> sqlite3.Connection:
    """Read-only. Where no other program has the file open, `immutable` keeps SQLite from making its two side files."""
    quiet = not path.with_name(f"{path.name}-wal").exists()
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if quiet else ''}", uri=True, timeout=2)


def _schema(connection: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    from rbench_results.schema import HEAD

    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" not in tables:
        what = "empty" if not tables else "a database of another program"
        fix = None if not tables else "Move it away, or choose another folder with --results."
        yield Finding("database", "problem" if tables else "note", f"{path}: {what}", fix)
        return
    (stored,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or (None,)
    if stored == HEAD:
        runs, verdicts = (connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("run", "verdict"))
        yield Finding("database", "ok", f"{path}: schema {stored}, {runs:,} runs, {verdicts:,} verdicts")
    elif any(script.name.startswith(f"{stored}_") for script in (files("rbench_results") / "migrations" / "versions").iterdir()):
        what = f"{path}: schema {stored}, this rbench writes {HEAD}"
        yield Finding("database", "note", what, "The next command that opens it brings it up to date.")
    else:
        what = f"{path}: written by a newer rbench (schema {stored}, this one knows {HEAD})"
        yield Finding("database", "problem", what, "Update rbench, or choose another folder with --results.")


def _whole(connection: sqlite3.Connection, path: Path) -> Finding:
    """SQLite's own check of pages and rows, as far as it comes in PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), STEP)
    try:
        found = [line for (line,) in connection.execute("PRAGMA quick_check(5)")]
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        what = f"{path} is large: its check was stopped after {PATIENCE:.0f} s"
        return Finding("database whole", "note", what, "`PRAGMA quick_check` in sqlite3 looks at all of it.")
    finally:
        connection.set_progress_handler(None, 0)
    if found == ["ok"]:
        return Finding("database whole", "ok", "SQLite's quick_check finds nothing")
    return Finding("database whole", "problem", f"{path}: {'; '.join(found)}", "Restore a copy, or move the file away to start a new one.")


def _witnesses(connection: sqlite3.Connection, folder: Path) -> Iterator[Finding]:
    """Whether the files of adversarial examples that verdicts name are there; their content is `rbench verify`'s to check."""
    named = [name for (name,) in connection.execute("SELECT DISTINCT witness FROM verdict WHERE witness IS NOT NULL")]
    gone = [name for name in named if not (folder / name).is_file()]
    if gone:
        fix = "Restore them from a copy: without them these verdicts cannot be checked again."
        yield Finding("witnesses", "problem", f"{len(gone)} of {len(named)} files are missing, {gone[0]} first", fix)
    elif named:
        yield Finding("witnesses", "ok", f"{len(named)} files, all there")


def disk(place: Place) -> Iterator[Finding]:
    """Free space where results go."""
    above = _standing(place.results)
    free = shutil.disk_usage(above).free
    told = f"{free / 2**30:.1f} GiB free at {above}"
    state = "problem" if free < FULL else "note" if free < TIGHT else "ok"
    yield Finding("disk", state, told, None if state == "ok" else "Free space, or choose another folder with --results.")


def site(place: Place) -> Iterator[Finding]:
    """Whether pages were drawn."""
    index = place.results / "site" / "index.html"
    if index.is_file():
        yield Finding("site", "ok", str(index))
    else:
        yield Finding("site", "note", "no pages yet", "`rbench run` draws them at its end, `rbench site` at any time.")


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
