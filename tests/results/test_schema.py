"""The tables that migrations make are the tables that the code speaks of."""

from __future__ import annotations

import dataclasses
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import stored
from rbench_results import database, records, schema
from rbench_results.database import migrations, open_database
from rbench_results.seal import is_intact
from rbench_results.store import Store

KINDS = {
    schema.Model: records.ModelRecord,
    schema.Dataset: records.DatasetRecord,
    schema.Question: records.QuestionRecord,
    schema.Run: records.RunRecord,
    schema.Stage: records.StageRecord,
    schema.Pilot: records.PilotRecord,
    schema.Curve: records.CurveRow,
    schema.Verdict: records.VerdictRecord,
    schema.Verification: records.VerificationRecord,
}
OURS_ALONE = {"id", "number", "question_id", "run"}  # keys of the tables, which no record carries (a run's id apart)


def test_migrations_make_the_tables_of_the_schema(tmp_path: Path) -> None:
    engine = open_database(tmp_path, create=True)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.Base.metadata) == []
        made = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'verdict'").scalar_one()
        assert "WITHOUT ROWID" in made  # the comparison above does not look at it
    engine.dispose()


def test_the_newest_script_is_the_head_that_lets_a_database_open_without_alembic(tmp_path: Path) -> None:
    engine = open_database(tmp_path, create=True)
    with engine.begin() as connection:
        assert ScriptDirectory.from_config(migrations(connection)).get_heads() == [schema.HEAD]
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [schema.HEAD]
    engine.dispose()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_columns_are_the_fields_of_the_record(kind: type[schema.Base]) -> None:
    fields = {field.name for field in dataclasses.fields(KINDS[kind])}
    columns = set(kind.__table__.columns.keys())
    assert fields - columns <= {"question", "questions"}  # kept as question_id and in run_question
    assert columns - fields <= OURS_ALONE


def test_scripts_lie_in_the_installed_package() -> None:
    folder = files("rbench_results") / "migrations"
    for name in ("env.py", "script.py.mako", "versions/0001_first_tables.py"):
        assert folder.joinpath(name).is_file(), name


def test_an_installation_folder_with_a_percent_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(str(files("rbench_results") / "migrations"), tmp_path / "50%(off)s" / "migrations")
    monkeypatch.setattr(database, "files", lambda package: tmp_path / "50%(off)s")
    database.open_database(tmp_path / "data", create=True).dispose()


def test_a_database_of_the_first_schema_is_brought_up_to_date_with_all_that_it_holds(tmp_path: Path) -> None:
    """Its verdicts get no seal: nobody can say what they said when they were stored."""
    from alembic import command
    from sqlalchemy import create_engine

    with stored.filled(tmp_path / "new", stored.question()) as new:  # what the first schema could hold, to be copied
        spent = stored.stage(stored.question(), 1, entered=3, broken=1, refused=4, errors=5, forward=9, backward=2, useful=6, seconds=0.5)
        new.add_chunk(stored.question().key, [stored.verdict(0, "broken")], [spent])
    folder = tmp_path / "old"
    folder.mkdir()
    engine = create_engine(f"sqlite:///{folder / database.FILE}")
    with engine.begin() as connection:
        command.upgrade(migrations(connection), "0001")
        connection.exec_driver_sql(f"ATTACH '{tmp_path / 'new' / database.FILE}' AS new")
        names = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name != 'alembic_version'"
        tables = connection.exec_driver_sql(names).scalars()
        for table in tables.all():
            columns = ", ".join(f'"{row[1]}"' for row in connection.exec_driver_sql(f"PRAGMA main.table_info('{table}')"))
            connection.exec_driver_sql(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
    engine.dispose()
    with Store.open(folder) as store:
        (row,) = store.verdicts(stored.question().key)
        assert (row.status, row.seal) == ("broken", "")
        assert is_intact(stored.question().key, row)
        assert (store.run("r1").request, store.run("r1").submitted) == ({}, None)
        assert store.verifications() == []
        assert (store.stages(), store.pilots(), store.curve("r1")) == ([spent], [], [])
        store.add_chunk(stored.question().key, [stored.verdict(1)], [])
        assert store.verdicts(stored.question().key)[1].seal
