"""One SQLite file: opened with a write-ahead log, migrated only when it is not up to date; its errors in one line that says what to do.

SQLAlchemy is imported here, so commands that only list must not import this module at their top.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, StatementError

from rbench_core.errors import StoreError
from rbench_core.files import reason
from rbench_results.schema import HEAD

FILE = "rbench.sqlite"
WAIT = 10.0  # seconds that a writer waits for another one

_SAYS = {  # SQLite's primary result code -> (what is wrong, what to do)
    sqlite3.SQLITE_BUSY: ("another program keeps the database locked", "Try again when it has finished."),
    sqlite3.SQLITE_LOCKED: ("another program keeps the database locked", "Try again when it has finished."),
    sqlite3.SQLITE_PERM: ("no permission to use the database", "Change its permissions or choose another folder with --results."),
    sqlite3.SQLITE_READONLY: ("the database cannot be written", "Change its permissions or choose another folder with --results."),
    sqlite3.SQLITE_CANTOPEN: ("the database cannot be opened", "Check that its folder can be written, or choose another with --results."),
    sqlite3.SQLITE_FULL: ("the disk is full", "What was stored before is safe. Free space and give the same command again."),
    sqlite3.SQLITE_IOERR: ("the disk failed or is full", "What was stored before is safe. Free space and give the same command again."),
    sqlite3.SQLITE_CORRUPT: ("the database is damaged", "Restore a copy, or move the file away to start a new one."),
    sqlite3.SQLITE_NOTADB: ("this file is not a database", "Move it away or choose another folder with --results."),
}


def open_database(folder: Path, *, create: bool) -> Engine:
    """The database of a results folder, at the newest schema; with `create` made if absent, and writable. Raises StoreError."""
    path = folder / FILE
    with speaking(path):
        if not create and not path.is_file():
            raise StoreError(f"no results in {folder}", fix="Run `rbench run` first, or name the folder with --results.")
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        engine = _engine(path, foreign_keys=True)
        try:
            _make_ready(engine, path, writable=create)
        except BaseException:
            engine.dispose()
            raise
        return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that sees one state of the database."""
    with speaking(database_path(engine)), engine.begin() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that is stored whole or not at all; it takes the writer's lock at once, so what it reads stays true until it ends."""
    with speaking(database_path(engine)), engine.execution_options(write=True).begin() as connection:
        yield connection


@contextmanager
def speaking(path: Path) -> Iterator[None]:
    """Turn what SQLite, SQLAlchemy and the file system raise into StoreError."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        raise _spoken(path, error.orig if isinstance(error, DBAPIError) else error) from error
    except (StatementError, OverflowError) as error:
        raise StoreError(f"{path}: a value that the database cannot hold ({error})") from error
    except OSError as error:
        raise StoreError(f"{path}: {reason(error)}", fix="Choose another folder with --results.") from error


def _spoken(path: Path, error: BaseException | None) -> StoreError:
    code = getattr(error, "sqlite_errorcode", None)
    known = _SAYS.get(code & 0xFF) if isinstance(code, int) else None  # the low byte of an extended code is the primary one
    what, fix = known or (f"the database refuses ({error})", None)
    return StoreError(f"{path}: {what}", fix=fix)


def database_path(engine: Engine) -> Path:
    """The file behind an engine."""
    return Path(engine.url.database or FILE)


def _engine(path: Path, *, foreign_keys: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": WAIT, "isolation_level": None},  # None: sqlite3 opens no transactions of its own, `_begin` does
        json_serializer=partial(json.dumps, default=str),  # a card's dates and fractions are stored as they print
    )

    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        connection.execute("PRAGMA synchronous=NORMAL")  # a kill loses nothing; a power cut may lose the last chunks, never the file

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once, without waiting, when another writer came between.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("write") else "BEGIN")


def _make_ready(engine: Engine, path: Path, *, writable: bool) -> None:
    with engine.begin() as connection:
        stored = _revision(connection, path)
    if stored != HEAD:
        engine.dispose()  # a connection from before the change of journal would not learn of it
        _migrate(path)
    elif writable:
        with engine.execution_options(
            write=True
        ).connect() as connection:  # rolled back: better refused now than after an hour of computing
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")


def _revision(connection: Connection, path: Path) -> str | None:
    """The schema's revision; None for an empty database."""
    tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())
    if not tables:
        return None
    if "alembic_version" not in tables:
        raise StoreError(f"{path}: a database of another program", fix="Move it away or choose another folder with --results.")
    revision: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return revision


def _migrate(path: Path) -> None:
    """Bring the database to HEAD in one transaction. Of several processes one does it; the others wait and find it done."""
    from alembic import command  # 0.3 s of import that an up-to-date database need not pay
    from alembic.script import ScriptDirectory

    _switch_to_write_ahead_log(path)
    engine = _engine(path, foreign_keys=False)  # SQLite alters a table by rebuilding it, which would orphan the rows that refer to it
    try:
        with writing(engine) as connection:
            stored = _revision(connection, path)
            config = migrations(connection)
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if stored is not None and stored not in known:
                what = f"{path}: written by a newer rbench (schema {stored}, this one knows {HEAD})"
                raise StoreError(what, fix="Update rbench, or choose another folder with --results.")
            command.upgrade(config, "head")  # does nothing if another process was faster
    finally:
        engine.dispose()


def migrations(connection: Connection) -> Any:
    """Alembic's settings, without an ini file: the scripts beside this module and the connection to work on."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("rbench_results") / "migrations").replace("%", "%%"))  # ConfigParser's escape
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _switch_to_write_ahead_log(path: Path) -> None:
    """The mode stays with the file. SQLite does not always wait for its lock here, so this does."""
    deadline = time.monotonic() + WAIT
    while True:
        connection = sqlite3.connect(path, timeout=WAIT)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        finally:
            connection.close()
