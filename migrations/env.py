"""Alembic's door: runs the scripts on the connection, and inside the transaction, `ledger.migrate` gives.

What any script does does not belong here.
"""

from __future__ import annotations

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run through ledger.migrate.bring_to_head, which copies first")
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
