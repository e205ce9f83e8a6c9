"""Tables, the constraints that make a double booking impossible, and the public read-only views.

`ddl()` is the whole of a new file's schema; an old file is brought there by `migrate`. Tables are
grouped by what they speak of: `cloud`, `pods`, `record`. Reading or changing rows does not belong here.
"""

from __future__ import annotations

from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from ledger.schema.cloud import (
    addresses,
    boots,
    enis,
    excluded_subnets,
    metadata,
    node,
    prefixes,
    scheduling,
)
from ledger.schema.columns import word
from ledger.schema.pods import cni_requests, installed, late_deletes, leases
from ledger.schema.record import api_calls, findings, intents, journal, settings, takeovers
from ledger.schema.referee import TRIGGERS
from ledger.schema.views import VIEWS

__all__ = [
    "APPLICATION_ID",
    "REVISIONS",
    "TRIGGERS",
    "VIEWS",
    "addresses",
    "api_calls",
    "boots",
    "cni_requests",
    "ddl",
    "enis",
    "excluded_subnets",
    "findings",
    "installed",
    "intents",
    "journal",
    "late_deletes",
    "leases",
    "metadata",
    "node",
    "prefixes",
    "scheduling",
    "settings",
    "takeovers",
    "word",
]

APPLICATION_ID = 0x76706C67
"""'vplg': the mark in the file's header by which a ledger is told from any other SQLite file."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision there ever was, oldest first; the last is the head, which `ddl` makes."""

_STAMP = (
    "CREATE TABLE alembic_version (\n"
    "\tversion_num VARCHAR(32) NOT NULL, \n"
    "\tCONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)\n)"
)


def ddl() -> tuple[str, ...]:
    """Every statement that makes a new file's tables, indexes and triggers, stamped; without views."""
    dialect = sqlite.dialect()
    tables = [metadata.tables[name] for name in sorted(metadata.tables)]
    made = [str(CreateTable(table).compile(dialect=dialect)).strip() for table in tables]
    indexes = sorted(
        (index for table in tables for index in table.indexes), key=lambda index: str(index.name)
    )
    made += [str(CreateIndex(index).compile(dialect=dialect)).strip() for index in indexes]
    made += [trigger.ddl for trigger in TRIGGERS]
    return (*made, _STAMP, f"INSERT INTO alembic_version VALUES ('{REVISIONS[-1]}')")
