"""What a question's pilot found, the closest adversarial points of a run, and of a stage its pilot's part and where its seconds went."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


TEXTS = ("run", "attack")
COUNTS = ("question_id", "position", "entered", "broken", "refused", "errors", "forward", "backward", "useful")


def upgrade() -> None:
    _stages()
    _pilots()
    _curves()


def _stages() -> None:
    """The pilot's part of a stage is a row of its own, hence part of the key: SQLite takes that only in a new table."""
    op.rename_table("stage", "stage_before")
    op.drop_index("ix_stage_question_id", "stage_before")
    op.create_table(
        "stage",
        *(sa.Column(name, sa.String(), nullable=False) for name in TEXTS),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in COUNTS),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("pilot", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("model_seconds", sa.Double(), nullable=False, server_default="0"),
        sa.Column("step_seconds", sa.Double(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("run", "question_id", "position", "pilot", name="pk_stage"),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name="fk_stage_run"),
        sa.ForeignKeyConstraint(["question_id"], ["question.id"], name="fk_stage_question_id"),
    )
    op.create_index("ix_stage_question_id", "stage", ["question_id"])
    names = ", ".join((*TEXTS, *COUNTS, "seconds"))
    op.execute(f"INSERT INTO stage ({names}) SELECT {names} FROM stage_before")
    op.drop_table("stage_before")


def _pilots() -> None:
    op.create_table(
        "pilot",
        sa.Column("question_id", sa.Integer(), nullable=False),
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("question_id", name="pk_pilot"),
        sa.ForeignKeyConstraint(["question_id"], ["question.id"], name="fk_pilot_question_id"),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name="fk_pilot_run"),
    )


def _curves() -> None:
    op.create_table(
        "curve",
        sa.Column("run", sa.String(), nullable=False),
        sa.Column("question_id", sa.Integer(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("spec", sa.String(), nullable=False),
        sa.Column("gauge", sa.Double(), nullable=True),
        sa.Column("attack", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("run", "question_id", "index", name="pk_curve"),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name="fk_curve_run"),
        sa.ForeignKeyConstraint(["question_id"], ["question.id"], name="fk_curve_question_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_curve_question_id", "curve", ["question_id"])
