"""The read-only views, which are public: their names and columns are kept from release to release.

A view belongs to the program, not to the file: `migrate` lays them anew where they differ. Tables are
not public and may change with any migration. A view that answers one question only does not belong
here; it stands on the SQL page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from ledger.schema.cloud import addresses, enis
from ledger.schema.pods import cni_requests, installed, leases
from ledger.schema.record import api_calls, findings, intents, journal, settings

NOW = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
"""Milliseconds since the epoch in SQL (unixepoch('subsec') asks for SQLite 3.42)."""

Columns = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class View:
    """A public view; each column is its name, its expression and its comment."""

    name: str
    comment: str
    columns: Columns
    source: str

    @property
    def ddl(self) -> str:
        """The CREATE VIEW statement."""
        listed = ",\n  ".join(f"{expression} AS {name}" for name, expression, _ in self.columns)
        return f"CREATE VIEW {self.name} AS SELECT\n  {listed}\nFROM {self.source}"


def _same(table: Table, *names: str) -> Columns:
    """Columns shown as they are, with their own comments."""

    def comment(column: Any) -> str:
        return str(column.comment)

    return tuple((name, f"{table.name}.{name}", comment(table.c[name])) for name in names)


def _time(name: str, moment: str, comment: str) -> Columns:
    """A moment as UTC text with milliseconds, empty where there is none."""
    iso = f"strftime('%Y-%m-%dT%H:%M:%fZ', {moment} / 1000.0, 'unixepoch')"
    return ((name, iso, comment),)


_LEASE_WITH_ENI = "leases LEFT JOIN enis ON enis.eni_id = leases.eni_id"
_OPEN_LEASE = "leases.address = addresses.address AND leases.ended_at IS NULL"
_USE = f"""CASE WHEN addresses.state <> 'assigned' THEN addresses.state
    WHEN leases.id IS NOT NULL THEN 'leased'
    WHEN addresses.absent_since IS NOT NULL THEN 'absent'
    WHEN addresses.cooling_until > {NOW} THEN 'cooling'
    WHEN enis.state <> 'usable' OR enis.managed = 0 THEN 'unusable'
    WHEN enis.subnet_id IN (SELECT subnet_id FROM excluded_subnets) THEN 'unusable'
    ELSE 'free' END"""
_USE_SAYS = (
    "free, leased, cooling, absent (observations miss it), unusable (its interface is not wired yet, "
    "draining, not ours or in an excluded subnet), quarantine, releasing or released; computed when asked. An address in quarantine may be leased all the same: see lease_id."
)
_LEASED = """(SELECT count(*) FROM leases l
    WHERE l.eni_id = enis.eni_id AND l.ended_at IS NULL)"""
_COUNT = "(SELECT count(*) FROM addresses a WHERE a.eni_id = enis.eni_id AND {0})"

VIEWS = (
    View(
        "v_leases",
        "Every lease, open and ended.",
        (
            *_same(leases, "id", "pod_namespace", "pod_name", "pod_uid", "container_id", "ifname"),
            *_same(leases, "family", "address", "eni_id"),
            *_same(enis, "device"),
            *_same(leases, "state", "reason", "network", "netns", "host_ifname", "host_mac"),
            *_same(leases, "boot_id", "created_at", "claimed_at", "activated_at", "ended_at"),
        ),
        _LEASE_WITH_ENI,
    ),
    View(
        "v_pods",
        "Pods that hold or wait for an address now.",
        (
            *_same(leases, "pod_namespace", "pod_name", "address", "state", "reason"),
            ("lease_id", "leases.id", "The lease."),
            *_same(leases, "container_id", "ifname", "host_ifname", "eni_id"),
            *_same(enis, "device"),
            *_time("since", "leases.created_at", "When the runtime first asked, UTC."),
            ("age_ms", f"{NOW} - leases.created_at", "Milliseconds since then."),
        ),
        f"{_LEASE_WITH_ENI} WHERE leases.ended_at IS NULL",
    ),
    View(
        "v_addresses",
        "Every secondary address, with what it can be used for now.",
        (
            *_same(addresses, "address", "family", "eni_id"),
            *_same(enis, "device"),
            *_same(addresses, "prefix"),
            (
                "state",
                _USE,
                _USE_SAYS,
            ),
            ("lease_id", "leases.id", "The open lease, if any."),
            *_same(leases, "pod_namespace", "pod_name"),
            *_same(addresses, "source", "assigned_at", "rested_since", "cooling_until"),
            *_same(addresses, "absent_since", "released_at", "reason"),
        ),
        "addresses JOIN enis ON enis.eni_id = addresses.eni_id "
        f"LEFT JOIN leases ON {_OPEN_LEASE} AND addresses.released_at IS NULL",
    ),
    View(
        "v_enis",
        "Every interface with its counts of addresses.",
        (
            *_same(enis, "eni_id", "device", "card", "state", "managed", "is_primary", "kind"),
            *_same(enis, "mac", "primary_ip", "subnet_id", "subnet_cidr", "attachment_id"),
            *_same(enis, "delete_on_termination", "source"),
            ("held", _COUNT.format("a.released_at IS NULL"), "Addresses EC2 delivers to it."),
            (
                "leased",
                _LEASED,
                "Addresses held by pods.",
            ),
            (
                "cooling",
                _COUNT.format(f"a.state = 'assigned' AND a.cooling_until > {NOW}"),
                "Addresses not to be used again yet.",
            ),
            ("quarantine", _COUNT.format("a.state = 'quarantine'"), "Doubtful addresses."),
            *_same(enis, "created_at", "attached_at", "changed_at", "absent_since"),
            *_same(enis, "gone_at", "gone_reason"),
        ),
        "enis",
    ),
    View(
        "v_history",
        "Who held an address when.",
        (
            *_same(leases, "address", "pod_namespace", "pod_name", "pod_uid", "container_id"),
            *_same(leases, "ifname", "eni_id"),
            *_time("held_from", "leases.claimed_at", "When it was claimed, UTC."),
            *_time("held_until", "leases.ended_at", "When the lease ended, UTC; empty if open."),
            (
                "held_ms",
                f"coalesce(leases.ended_at, {NOW}) - leases.claimed_at",
                "For how many milliseconds so far.",
            ),
            *_same(leases, "reason", "claimed_at", "ended_at"),
            ("lease_id", "leases.id", "The lease."),
        ),
        "leases WHERE leases.address IS NOT NULL",
    ),
    View(
        "v_requests",
        "What the runtime asked and was told.",
        (
            *_same(cni_requests, "id"),
            *_time("time", "cni_requests.at", "When the answer was given, UTC."),
            *_same(cni_requests, "command", "via", "pod_namespace", "pod_name", "container_id"),
            *_same(cni_requests, "ifname", "netns", "lease_id", "code", "reason", "detail"),
            *_same(cni_requests, "waits_for"),
            ("waits_for_operation", "intents.operation", "The EC2 action it waits for."),
            ("waits_for_state", "intents.state", "How far that is."),
            *_same(cni_requests, "eta_at", "duration_us", "at"),
        ),
        "cni_requests LEFT JOIN intents ON intents.id = cni_requests.waits_for",
    ),
    View(
        "v_intents",
        "Changes asked of EC2, finished and unfinished.",
        (
            *_same(intents, "id", "operation", "subject", "arguments", "token", "state", "lane"),
            *_same(intents, "cause", "attempts", "error_code", "error_text", "created_at"),
            *_same(intents, "sent_at", "ended_at", "retry_at"),
            (
                "age_ms",
                f"coalesce(intents.ended_at, {NOW}) - intents.created_at",
                "Milliseconds from commit to outcome, or until now.",
            ),
        ),
        "intents",
    ),
    View(
        "v_api_calls",
        "Calls to EC2 and instance metadata, each with its cause.",
        (
            *_same(api_calls, "id"),
            *_time("time", "api_calls.at", "When the call ended, UTC."),
            *_same(api_calls, "provider", "operation", "lane", "cause", "intent_id", "code"),
            *_same(api_calls, "duration_us", "at"),
        ),
        "api_calls",
    ),
    View(
        "v_findings",
        "What is wrong or doubtful, open and closed.",
        (
            *_same(findings, "code", "subject", "severity", "text"),
            *_time("since", "findings.first_seen_at", "Since when, UTC."),
            *_time("closed", "findings.closed_at", "When it was no longer so, UTC."),
            (
                "age_ms",
                f"coalesce(findings.closed_at, {NOW}) - findings.first_seen_at",
                "For how many milliseconds.",
            ),
            *_same(findings, "first_seen_at", "last_seen_at", "closed_at"),
        ),
        "findings",
    ),
    View(
        "v_settings",
        "The settings in force and where each comes from.",
        _same(settings, "name", "value", "raw", "source", "documented_by", "was", "since"),
        "settings",
    ),
    View(
        "v_journal",
        "One line per change, in the order of commits.",
        (
            *_same(journal, "id"),
            *_time("time", "journal.at", "When, UTC."),
            *_same(journal, "kind", "subject", "text", "lease_id", "eni_id", "address"),
            *_same(journal, "intent_id", "at"),
        ),
        "journal",
    ),
    View(
        "v_objects",
        "Kernel objects the ledger vouches for.",
        (
            *_same(installed, "kind", "key", "place", "state", "error", "owner_kind", "owner"),
            *_same(leases, "pod_namespace", "pod_name"),
            *_same(installed, "changed_at"),
        ),
        "installed LEFT JOIN leases ON installed.owner_kind = 'lease' "
        "AND leases.id = CAST(installed.owner AS INTEGER)",
    ),
)
