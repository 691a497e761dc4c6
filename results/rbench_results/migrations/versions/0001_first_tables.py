"""The first tables: model, dataset, question, run, run_question, stage, verdict."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _content()
    _runs()
    _verdicts()


def _text(name: str, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(), nullable=nullable)


def _whole(name: str, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), nullable=nullable)


def _number(name: str, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=nullable)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(), nullable=False)


def _refers(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [target], name=f"fk_{table}_{column}")


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def _content() -> None:
    op.create_table(
        "model",
        *map(_text, ("digest", "name", "title", "dataset")),
        _json("card"),
        *map(_whole, ("parameters", "classes")),
        _json("probe"),
        _key("model", "digest"),
    )
    op.create_index("ix_model_name", "model", ["name"])
    op.create_table(
        "dataset",
        *map(_text, ("digest", "name", "split")),
        _whole("size"),
        *map(_json, ("shape", "classes")),
        _text("note", nullable=True),
        _key("dataset", "digest"),
    )
    op.create_table(
        "question",
        _whole("id"),
        *map(_text, ("key", "model", "dataset", "spec")),
        _json("set"),
        _text("family"),
        _json("extent"),
        *map(_text, ("objective", "plan")),
        _json("plan_json"),
        _whole("seed"),
        *map(_text, ("engine", "precision", "title", "sentence", "kind")),
        _key("question", "id"),
        sa.UniqueConstraint("key", name="uq_question_key"),
        _refers("question", "model", "model.digest"),
        _refers("question", "dataset", "dataset.digest"),
    )
    op.create_index("ix_question_model_dataset_family_objective", "question", ["model", "dataset", "family", "objective"])


def _runs() -> None:
    op.create_table(
        "run",
        _whole("number"),
        *map(_text, ("id", "started")),
        _text("finished", nullable=True),
        *map(_text, ("state", "model", "model_name", "dataset", "dataset_name", "threat", "spec", "title", "sentence")),
        *map(_whole, ("n", "first")),
        _text("plan"),
        _whole("seed"),
        sa.Column("full", sa.Boolean(), nullable=False),
        _text("command"),
        *map(_json, ("card", "environment", "warnings")),
        _number("seconds"),
        _key("run", "number"),
        sa.UniqueConstraint("id", name="uq_run_id"),
        _refers("run", "model", "model.digest"),
        _refers("run", "dataset", "dataset.digest"),
    )
    op.create_table(
        "run_question",
        _text("run"),
        *map(_whole, ("position", "question_id")),
        _text("spec"),
        _key("run_question", "run", "position"),
        _refers("run_question", "run", "run.id"),
        _refers("run_question", "question_id", "question.id"),
    )
    op.create_index("ix_run_question_question_id", "run_question", ["question_id"])


def _verdicts() -> None:
    op.create_table(
        "stage",
        _text("run"),
        *map(_whole, ("question_id", "position")),
        _text("attack"),
        *map(_whole, ("entered", "broken", "refused", "errors", "forward", "backward", "useful")),
        _number("seconds"),
        _key("stage", "run", "question_id", "position"),
        _refers("stage", "run", "run.id"),
        _refers("stage", "question_id", "question.id"),
    )
    op.create_index("ix_stage_question_id", "stage", ["question_id"])
    op.create_table(
        "verdict",
        *map(_whole, ("question_id", "index", "label")),
        _text("status"),
        *(_whole(name, nullable=True) for name in ("clean", "predicted")),
        _text("attack", nullable=True),
        *(_number(name, nullable=True) for name in ("margin", "gauge")),
        *(_whole(name, nullable=True) for name in ("target", "restart")),
        *(_text(name, nullable=True) for name in ("reason", "witness")),
        _whole("row", nullable=True),
        _whole("width"),
        _text("device"),
        _whole("threads"),
        *map(_text, ("torch", "run")),
        _key("verdict", "question_id", "index"),
        _refers("verdict", "question_id", "question.id"),
        _refers("verdict", "run", "run.id"),
        sqlite_with_rowid=False,
    )
