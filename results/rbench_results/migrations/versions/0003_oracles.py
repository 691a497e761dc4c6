"""The label that people gave to an example's candidate, and the data set beside which another one is shown."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdict", sa.Column("oracle", sa.Integer(), nullable=True))
    op.add_column("dataset", sa.Column("of", sa.String(), nullable=True))
