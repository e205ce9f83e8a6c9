"""What was said, called, set and found, and how long it is kept."""

from __future__ import annotations

from typing import Any

import pytest

from ledger import database, model, reads, writes
from ledger.writes import record
from tests.ledger import node


def rows(ledger: database.Ledger, sql: str) -> list[dict[str, Any]]:
    with ledger.read() as tx:
        return tx.dicts(sql, {})


def test_the_node_is_one_row_and_the_newest_answer_counts(ledger: database.Ledger) -> None:
    me = model.Node(
        "i-1", "m5.large", "eu-central-1", "eu-central-1a", "vpc-1", "subnet-1", "0e:00", "10.0.0.4",
        ("10.0.0.0/16", "100.64.0.0/16"), ("sg-1", "sg-2"),
    )  # fmt: skip
    with ledger.write() as tx:
        assert reads.node(tx) is None
        writes.record_node(tx, model.Node("i-0", "", "", "", "", "", "", ""), 1)
        writes.record_node(tx, me, 2)
        assert reads.node(tx) == me
    assert rows(ledger, "SELECT count(*) AS n, max(seen_at) AS at FROM node") == [{"n": 1, "at": 2}]


def test_a_boot_is_new_once(ledger: database.Ledger) -> None:
    with ledger.write() as tx:
        assert writes.record_boot(tx, "boot-1", 1)
        assert not writes.record_boot(tx, "boot-1", 2)
        assert writes.record_boot(tx, "boot-2", 3)
    assert rows(
        ledger,
        "SELECT boot_id, first_seen_at, last_start_at, starts FROM boots WHERE boot_id = 'boot-1'",
    ) == [{"boot_id": "boot-1", "first_seen_at": 1, "last_start_at": 2, "starts": 2}]


def test_a_setting_remembers_what_it_replaced_and_since_when(ledger: database.Ledger) -> None:
    for now, value, source in (
        (1, "5", "environment"),
        (2, "5", "environment"),
        (3, "1", "default"),
        (4, "1", "default"),
    ):
        with ledger.write() as tx:
            raw = value if source == "environment" else None
            writes.record_settings(tx, [("WARM_IP_TARGET", value, raw, source)], now)
    (row,) = rows(ledger, "SELECT * FROM v_settings")
    assert row == {
        "name": "WARM_IP_TARGET",
        "value": "1",
        "raw": None,
        "source": "default",
        "documented_by": "deploy/docs/settings.md#warm_ip_target",
        "was": "5",
        "since": 3,
    }


def test_a_finding_said_again_is_the_same_one_and_closes_once(ledger: database.Ledger) -> None:
    with ledger.write() as tx:
        writes.open_finding(tx, "throttled", "AssignAddresses", "once", 1)
        writes.open_finding(tx, "throttled", "AssignAddresses", "twice", 2)
        writes.open_finding(tx, "throttled", "AttachEni", "another subject", 2)
        writes.close_finding(tx, "throttled", "AssignAddresses", 3)
        writes.close_finding(tx, "throttled", "AssignAddresses", 4)
        writes.close_finding(tx, "ec2_down", "", 4)
        writes.open_finding(tx, "throttled", "AssignAddresses", "anew", 5)
    found = rows(
        ledger,
        "SELECT text, first_seen_at, last_seen_at, closed_at FROM v_findings"
        " WHERE subject = 'AssignAddresses' ORDER BY first_seen_at",
    )
    assert found == [
        {"text": "twice", "first_seen_at": 1, "last_seen_at": 2, "closed_at": 3},
        {"text": "anew", "first_seen_at": 5, "last_seen_at": 5, "closed_at": None},
    ]
    lines = rows(ledger, "SELECT kind FROM v_journal WHERE subject LIKE '% AssignAddresses'")
    assert [line["kind"] for line in lines] == [
        "finding.opened",
        "finding.closed",
        "finding.opened",
    ]


def test_requests_and_calls_show_in_their_views(ledger: database.Ledger) -> None:
    """A request waits for an intent and shows how far that is."""
    with ledger.write(durable=True) as tx:
        intent = writes.plan_intent(tx, "CreateEni", "subnet-1", {}, "pod", "a pod waits", 1)
        writes.record_call(
            tx, provider="ec2", operation="CreateNetworkInterface", lane="pod", cause="a pod waits",
            intent_id=intent.id, code="Throttling", duration_us=7, now=2,
        )  # fmt: skip
        writes.record_request(
            tx, command="ADD", container_id="c1", ifname="eth0", code=11, reason="growing",
            waits_for=intent.id, eta_at=9, now=3,
        )  # fmt: skip
    (call,) = rows(ledger, "SELECT time, operation, code, intent_id FROM v_api_calls")
    assert call == {
        "time": "1970-01-01T00:00:00.002Z",
        "operation": "CreateNetworkInterface",
        "code": "Throttling",
        "intent_id": intent.id,
    }
    (request,) = rows(
        ledger, "SELECT reason, waits_for_operation, waits_for_state, eta_at FROM v_requests"
    )
    assert request == {
        "reason": "growing",
        "waits_for_operation": "CreateEni",
        "waits_for_state": "planned",
        "eta_at": 9,
    }


def test_what_is_old_is_forgotten_and_what_is_open_is_not(ledger: database.Ledger) -> None:
    """An ended lease, a tombstone, a closed finding, a finished intent; each has an open twin."""
    made = node.add_eni(ledger, 1, 3)
    late = record.PRUNED_AFTER_MS + 1_000
    with ledger.write(durable=True) as tx:
        gone, kept = node.claim(tx, "c1", 10), node.claim(tx, "c2", 10)
        writes.end(tx, gone.id, "deleted", 20, 0)
        writes.addresses_released(tx, ["10.0.1.12"], 20)
        for subject in ("closed", "open"):
            writes.open_finding(tx, "ec2_down", subject, "", 10)
            writes.plan_intent(tx, "AttachEni", made.eni_id, {}, "warm", subject, 10)
        writes.close_finding(tx, "ec2_down", "closed", 20)
        writes.intent_done(tx, 1, 20)
        writes.note_late_delete(tx, "c9", "eth0", 20)
        assert writes.prune(tx, 20 + record.PRUNED_AFTER_MS) == 1, "the late deletion alone is old"
        assert writes.prune(tx, late) == 4
        assert writes.prune(tx, late) == 0
        assert [lease.id for lease in reads.desired(tx, late).leases] == [kept.id]
        assert reads.lease(tx, gone.id) is None
        assert len(reads.desired(tx, late).addresses) == 2
        assert [intent.cause for intent in reads.desired(tx, late).intents] == ["open"]
    assert [row["subject"] for row in rows(ledger, "SELECT subject FROM findings")] == ["open"]


def test_logs_are_bounded_to_their_newest_rows(
    ledger: database.Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded number of rows goes per call, so that no commit is long."""
    monkeypatch.setattr(record, "_LOGS", (record._oldest("cni_requests", 10),))
    count = "SELECT count(*) AS n, max(id) AS newest, min(id) AS oldest FROM cni_requests"
    with ledger.write() as tx:
        for moment in range(record.PRUNED_AT_ONCE + 100):
            writes.record_request(tx, command="STATUS", now=moment)
        newest = record.PRUNED_AT_ONCE + 100
        assert writes.prune(tx, 1) == record.PRUNED_AT_ONCE
        assert writes.prune(tx, 1) == 90
        assert writes.prune(tx, 1) == 0
        assert tx.dicts(count, {}) == [{"n": 10, "newest": newest, "oldest": newest - 9}]
    assert set(record.KEPT) == {"journal", "cni_requests", "api_calls"}
