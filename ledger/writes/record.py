"""What was asked and called, which settings are in force, what is wrong, and how long that is kept.

What a change means to an interface, an address or a lease does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import bindparam, delete, insert, literal_column, update
from sqlalchemy import text as sql
from sqlalchemy.dialects import sqlite

from ledger import schema
from ledger.database import Statement, Write
from ledger.writes import journal

_requests, _calls, _findings = schema.cni_requests, schema.api_calls, schema.findings

SEVERITY = {
    "gc_disagrees": "info",
    "ledger_damaged": "warning",
    "runtime_silent": "warning",
    "sandbox_doubtful": "warning",
    "growing": "info",
    "throttled": "info",
    "spool_unreadable": "warning",
    "subnet_full": "warning",
}
"""Of a finding's code; what is not named here is an error."""

KEPT = {"journal": 200_000, "cni_requests": 50_000, "api_calls": 50_000}
"""Rows kept of each log, the newest ones."""
DAY_MS = 86_400_000
PRUNED_AFTER_MS = 30 * DAY_MS
"""Age at which ended leases, tombstones, closed findings and finished intents are forgotten."""
LATE_DELETES_AFTER_MS = 60 * 60 * 1000
PRUNED_AT_ONCE = 2_000
"""Rows of one table forgotten per call, so that no commit is long."""

_REQUEST = Statement(
    insert(_requests), [column.name for column in _requests.c if column.name != "id"]
)
_CALL = Statement(insert(_calls), [column.name for column in _calls.c if column.name != "id"])

_setting = sqlite.insert(schema.settings)
_SETTING = Statement(
    _setting.on_conflict_do_update(
        index_elements=["name"],
        set_={
            "was": literal_column(
                "CASE WHEN settings.value <> excluded.value THEN settings.value ELSE was END"
            ),
            "since": literal_column(
                "CASE WHEN settings.value <> excluded.value THEN excluded.since ELSE since END"
            ),
            "value": _setting.excluded.value,
            "raw": _setting.excluded.raw,
            "source": _setting.excluded.source,
        },
    ),
    ("name", "value", "raw", "source", "documented_by", "was", "since"),
)

_SEEN_AGAIN = Statement(
    update(_findings)
    .where(
        _findings.c.code == bindparam("of_code"),
        _findings.c.subject == bindparam("of_subject"),
        _findings.c.closed_at.is_(None),
    )
    .values(last_seen_at=bindparam("now"), text=bindparam("says"))
)
_FINDING = Statement(
    insert(_findings), ("code", "subject", "text", "severity", "first_seen_at", "last_seen_at")
)
_CLOSE = Statement(
    update(_findings)
    .where(
        _findings.c.code == bindparam("of_code"),
        _findings.c.subject == bindparam("of_subject"),
        _findings.c.closed_at.is_(None),
    )
    .values(closed_at=bindparam("now"))
)


def record_settings(
    tx: Write, readings: Iterable[tuple[str, str, str | None, str]], now: int
) -> None:
    """The settings of this start as (name, value, raw, source); a change keeps the value before."""
    for name, value, raw, source in readings:
        tx.run(
            _SETTING,
            name=name,
            value=value,
            raw=raw,
            source=source,
            documented_by=f"deploy/docs/settings.md#{name.lower()}",
            was=None,
            since=now,
        )


def record_request(
    tx: Write,
    *,
    command: str,
    container_id: str = "",
    ifname: str = "",
    netns: str = "",
    pod_namespace: str = "",
    pod_name: str = "",
    lease_id: int | None = None,
    code: int = 0,
    reason: str = "",
    detail: str = "",
    waits_for: int | None = None,
    eta_at: int | None = None,
    duration_us: int = 0,
    via: str = "socket",
    now: int,
) -> None:
    """What the runtime asked and what it was told; a refusal (code not 0) has its reason code."""
    tx.run(
        _REQUEST,
        at=now,
        command=command,
        via=via,
        container_id=container_id,
        ifname=ifname,
        netns=netns,
        pod_namespace=pod_namespace,
        pod_name=pod_name,
        lease_id=lease_id,
        code=code,
        reason=reason,
        detail=detail,
        waits_for=waits_for,
        eta_at=eta_at,
        duration_us=duration_us,
    )


def record_call(
    tx: Write,
    *,
    provider: str,
    operation: str,
    lane: str,
    cause: str,
    intent_id: int | None = None,
    code: str = "",
    duration_us: int = 0,
    now: int,
) -> None:
    """One call to EC2 or instance metadata; `code` is empty on success."""
    tx.run(
        _CALL,
        at=now,
        provider=provider,
        operation=operation,
        lane=lane,
        cause=cause,
        intent_id=intent_id,
        code=code,
        duration_us=duration_us,
    )


def open_finding(tx: Write, code: str, subject: str, text: str, now: int) -> None:
    """Something is wrong or doubtful; said again, it is the same finding seen once more."""
    if tx.run(_SEEN_AGAIN, of_code=code, of_subject=subject, says=text, now=now).rowcount:
        return
    tx.run(
        _FINDING,
        code=code,
        subject=subject,
        text=text,
        severity=SEVERITY.get(code, "error"),
        first_seen_at=now,
        last_seen_at=now,
    )
    journal.line(tx, now, "finding.opened", f"{code} {subject}".rstrip(), text)


def close_finding(tx: Write, code: str, subject: str, now: int) -> None:
    """It is no longer so; closing what is not open is no change."""
    if tx.run(_CLOSE, of_code=code, of_subject=subject, now=now).rowcount:
        journal.line(tx, now, "finding.closed", f"{code} {subject}".rstrip())


def _oldest(table: str, kept: int) -> Statement:
    """Forget rows of a log beyond the newest `kept`."""
    doomed = f"id <= (SELECT max(id) - {kept} FROM {table}) LIMIT {PRUNED_AT_ONCE}"
    return Statement(
        sql(f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {doomed})")
    )


def _older(table: str, moment: str) -> Statement:
    """Forget rows whose `moment` is before `before`; rows without one stay."""
    doomed = f"{moment} < :before LIMIT {PRUNED_AT_ONCE}"
    return Statement(
        sql(f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {doomed})")
    )


_LOGS = tuple(_oldest(*each) for each in KEPT.items())
_AGED = tuple(
    _older(table, moment)
    for table, moment in (
        ("leases", "ended_at"),
        ("addresses", "released_at"),
        ("findings", "closed_at"),
        ("intents", "ended_at"),
    )
)
_LATE = Statement(delete(schema.late_deletes).where(schema.late_deletes.c.at < bindparam("before")))


def prune(tx: Write, now: int) -> int:
    """Forget what is old, a bounded number of rows a call; how many. Open rows are never touched."""
    forgotten = sum(tx.run(statement).rowcount for statement in _LOGS)
    for statement in _AGED:
        forgotten += tx.run(statement, before=now - PRUNED_AFTER_MS).rowcount
    return forgotten + tx.run(_LATE, before=now - LATE_DELETES_AFTER_MS).rowcount
