"""Alembic's entry: it works on the connection it is given, inside that connection's transaction. No alembic.ini, no logging set up."""

from __future__ import annotations

from alembic import context

from rbench_results.schema import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
