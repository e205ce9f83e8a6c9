"""Every question we ask, by name: `nouns` for the reconciler, `answers` for whoever looks.

A question that only an operator has belongs on the SQL page, asked of the public views.
"""

from __future__ import annotations

from ledger.reads.answers import (
    TABLES,
    QueryRefused,
    explain_address,
    explain_eni,
    explain_pod,
    query,
    show,
)
from ledger.reads.nouns import (
    Counts,
    calls_since,
    clock_step,
    desired,
    eni,
    ever_leased,
    free_count,
    installed_for,
    last_lease_of,
    last_sent_at,
    late_delete,
    lease,
    namesakes,
    next_cooled_at,
    next_retry_at,
    node,
    open_findings,
    open_lease,
    refused_in_a_row,
    retired,
    took_over,
    unknown_intents,
    waiting,
)

__all__ = [
    "TABLES",
    "Counts",
    "QueryRefused",
    "calls_since",
    "clock_step",
    "desired",
    "eni",
    "ever_leased",
    "explain_address",
    "explain_eni",
    "explain_pod",
    "free_count",
    "installed_for",
    "last_lease_of",
    "last_sent_at",
    "late_delete",
    "lease",
    "namesakes",
    "next_cooled_at",
    "next_retry_at",
    "node",
    "open_findings",
    "open_lease",
    "query",
    "refused_in_a_row",
    "retired",
    "show",
    "took_over",
    "unknown_intents",
    "waiting",
]
