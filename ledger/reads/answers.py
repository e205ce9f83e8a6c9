"""What a person asks: a view as it is, all about one thing, or any SELECT, as dictionaries.

Only the public views are asked here. How an answer is printed does not belong here.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from ledger import errors
from ledger.database import Read

Rows = list[dict[str, Any]]

TABLES = {
    "leases": "SELECT * FROM v_leases WHERE ended_at IS NULL ORDER BY id",
    "pods": "SELECT * FROM v_pods ORDER BY pod_namespace, pod_name",
    "addresses": "SELECT * FROM v_addresses WHERE released_at IS NULL ORDER BY device, address",
    "enis": "SELECT * FROM v_enis WHERE gone_at IS NULL ORDER BY card, device",
    "requests": "SELECT * FROM v_requests ORDER BY id DESC LIMIT 100",
    "intents": "SELECT * FROM v_intents ORDER BY id DESC LIMIT 100",
    "calls": "SELECT * FROM v_api_calls ORDER BY id DESC LIMIT 100",
    "findings": "SELECT * FROM v_findings WHERE closed_at IS NULL ORDER BY first_seen_at",
    "settings": "SELECT * FROM v_settings ORDER BY name",
    "objects": "SELECT * FROM v_objects ORDER BY owner_kind, owner, kind",
    "journal": "SELECT * FROM v_journal ORDER BY id DESC LIMIT 100",
}
"""What `vpcledger show` shows."""

_NEWEST = 20
_READS = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_DESCRIPTIONS = frozenset({"table_info"})
_DECLARE = "SELECT name FROM pragma_table_info('v_leases')"


class QueryRefused(errors.LedgerError):
    """The statement is not a SELECT that can be answered; the message says what is wrong with it."""


def show(tx: Read, what: str) -> Rows:
    """The rows of one of TABLES."""
    return tx.dicts(TABLES[what], {})


def query(tx: Read, sql: str, limit: int) -> Rows:
    """At most `limit` rows of any SELECT; QueryRefused for whatever else or a mistake in it."""
    tx.dicts(_DECLARE, {})  # its first use in a connection asks for rights that no query gets
    if not sql.strip():
        raise QueryRefused("nothing was asked; only one SELECT is answered, see the views v_*")
    try:
        with tx.only(_READS, _DESCRIPTIONS):
            return tx.dicts(sql, {}, limit)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise QueryRefused(f"{error}; only one SELECT is answered, see the views v_*") from error


def explain_pod(tx: Read, name: str) -> dict[str, Rows]:
    """All about a pod ('namespace/name' or a name) or a container id."""
    namespace, _, pod = name.rpartition("/")
    of_pod = (
        "(container_id = :name OR (pod_name = :pod AND (:namespace = '' OR"
        " pod_namespace = :namespace)))"
    )
    asked = {"name": name, "pod": pod, "namespace": namespace, "newest": _NEWEST}
    return {
        "now": tx.dicts(f"SELECT * FROM v_pods WHERE {of_pod}", asked),
        "requests": tx.dicts(
            f"SELECT time, command, code, reason, detail, waits_for_operation, duration_us"
            f" FROM v_requests WHERE {of_pod} ORDER BY id DESC LIMIT :newest",
            asked,
        ),
        "history": tx.dicts(
            f"SELECT * FROM v_history WHERE {of_pod} ORDER BY claimed_at DESC LIMIT :newest", asked
        ),
        "journal": tx.dicts(
            "SELECT time, kind, address, text FROM v_journal WHERE lease_id IN"
            f" (SELECT id FROM v_leases WHERE {of_pod}) ORDER BY id DESC LIMIT :newest",
            asked,
        ),
    }


def explain_address(tx: Read, address: str) -> dict[str, Rows]:
    """All about one address: its state, who held it when, what happened to it."""
    asked = {"address": address, "newest": _NEWEST}
    return {
        "now": tx.dicts(
            "SELECT * FROM v_addresses WHERE address = :address ORDER BY released_at IS NOT NULL",
            asked,
        ),
        "primary": tx.dicts(
            "SELECT eni_id, device, state FROM v_enis WHERE primary_ip = :address", asked
        ),
        "history": tx.dicts(
            "SELECT * FROM v_history WHERE address = :address ORDER BY claimed_at DESC"
            " LIMIT :newest",
            asked,
        ),
        "journal": tx.dicts(
            "SELECT time, kind, text, lease_id FROM v_journal WHERE address = :address"
            " ORDER BY id DESC LIMIT :newest",
            asked,
        ),
    }


def explain_eni(tx: Read, eni_id: str) -> dict[str, Rows]:
    """All about one interface: itself, its addresses, what was asked of EC2, what happened to it."""
    asked = {"eni_id": eni_id, "newest": _NEWEST}
    return {
        "now": tx.dicts("SELECT * FROM v_enis WHERE eni_id = :eni_id", asked),
        "addresses": tx.dicts(
            "SELECT address, state, pod_namespace, pod_name FROM v_addresses"
            " WHERE eni_id = :eni_id AND released_at IS NULL ORDER BY address",
            asked,
        ),
        "intents": tx.dicts(
            "SELECT id, operation, state, cause, error_code, error_text, age_ms FROM v_intents"
            " WHERE subject = :eni_id ORDER BY id DESC LIMIT :newest",
            asked,
        ),
        "journal": tx.dicts(
            "SELECT time, kind, text, address FROM v_journal WHERE eni_id = :eni_id"
            " ORDER BY id DESC LIMIT :newest",
            asked,
        ),
    }
