"""A seal on every verdict, what was asked and where it came from on every run, and the table of verifications."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdict", sa.Column("seal", sa.String(), nullable=False, server_default=""))
    op.add_column("run", sa.Column("request", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("run", sa.Column("submitted", sa.JSON(), nullable=True))
    op.create_table(
        "verification",
        *(sa.Column(name, sa.String(), nullable=False) for name in ("id", "run", "started", "answers")),
        sa.Column("bundle", sa.String(), nullable=True),
        sa.Column("ok", sa.Boolean(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("n", "confirmed")),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("checks", "problems", "environment")),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_verification"),
    )
    op.create_index("ix_verification_run", "verification", ["run"])
