"""The ledger's past: one alembic script per change of the tables, never edited once released.

A new script goes to `versions/`, its revision to the end of `ledger.schema.REVISIONS`; a test holds
that running them all equals `ledger.schema.ddl`. A table whose CREATE text changes is rebuilt with
`op.batch_alter_table(..., recreate="always")`. Views are laid by `ledger.migrate`, not here.
"""
