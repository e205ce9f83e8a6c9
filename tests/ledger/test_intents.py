"""Intent before the call, outcome after; unknown is a state."""

from __future__ import annotations

import pytest

from ledger import database, reads, writes


def test_an_intent_is_a_row_with_its_token_before_anything_is_sent(ledger: database.Ledger) -> None:
    with ledger.write(durable=True) as tx:
        arguments = {"count": 2, "tags": [["team", "net"]]}
        intent = writes.plan_intent(tx, "AssignAddresses", "eni-1", arguments, "warm", "why", 10)
        other = writes.plan_intent(tx, "AssignAddresses", "eni-1", arguments, "warm", "why", 10)
        assert reads.desired(tx, 10).intents == (intent, other)
    assert (intent.state, intent.attempts, intent.arguments) == ("planned", 0, arguments)
    assert len(intent.token) == 32
    assert intent.token != other.token


def test_an_intent_goes_from_planned_over_sent_to_done(ledger: database.Ledger) -> None:
    """Once done it is no longer asked about, and cannot be changed again."""
    with ledger.write(durable=True) as tx:
        intent = writes.plan_intent(tx, "DeleteEni", "eni-1", {}, "tidy", "empty", 10)
        assert reads.unknown_intents(tx) == ()
        writes.intent_sent(tx, intent.id, 11)
        (sent,) = reads.unknown_intents(tx)
        assert (sent.state, sent.attempts, sent.token) == ("sent", 1, intent.token)
        writes.intent_done(tx, intent.id, 12)
        assert reads.desired(tx, 12).intents == ()
        with pytest.raises(LookupError, match="not open"):
            writes.intent_sent(tx, intent.id, 13)


def test_a_lost_reply_stays_open_and_keeps_its_token(ledger: database.Ledger) -> None:
    """It can be sent again with the same token, or be settled by an observation."""
    with ledger.write(durable=True) as tx:
        intent = writes.plan_intent(tx, "CreateEni", "subnet-1", {}, "pod", "a pod waits", 10)
        writes.intent_sent(tx, intent.id, 11)
        writes.intent_unknown(tx, intent.id, "ReadTimeout", "no reply", 5_012, 12)
        (lost,) = reads.unknown_intents(tx)
        assert (lost.state, lost.error) == ("unknown", "ReadTimeout: no reply")
        writes.intent_sent(tx, intent.id, 13)
        (again,) = reads.unknown_intents(tx)
        assert (again.state, again.attempts, again.token) == ("sent", 2, intent.token)
        writes.intent_done(tx, intent.id, 14)
        assert reads.unknown_intents(tx) == ()


def test_a_refused_intent_is_seen_until_its_back_off_is_over(ledger: database.Ledger) -> None:
    """The planner must know what not to try again yet, and the lane when to wake."""
    with ledger.write(durable=True) as tx:
        intent = writes.plan_intent(tx, "CreateEni", "subnet-1", {}, "pod", "a pod waits", 10)
        writes.intent_failed(tx, intent.id, "RequestLimitExceeded", "slow down", 5_000, 12)
        (failed,) = reads.desired(tx, 4_999).intents
        assert (failed.state, failed.retry_at) == ("failed", 5_000)
        assert failed.error == "RequestLimitExceeded: slow down"
        assert reads.next_retry_at(tx, 4_999) == 5_000
        assert reads.desired(tx, 5_000).intents == ()
        assert reads.next_retry_at(tx, 5_000) is None
        assert reads.unknown_intents(tx) == ()


def test_the_journal_tells_an_intents_story(ledger: database.Ledger) -> None:
    with ledger.write(durable=True) as tx:
        intent = writes.plan_intent(tx, "DetachEni", "eni-1", {}, "tidy", "empty", 10)
        writes.intent_sent(tx, intent.id, 11)
        writes.intent_failed(tx, intent.id, "Throttling", "slow down", 20, 12)
        lines = tx.dicts("SELECT kind, eni_id, text FROM v_journal ORDER BY id", {})
    assert [(line["kind"], line["eni_id"], line["text"]) for line in lines] == [
        ("intent.planned", "eni-1", "DetachEni: empty"),
        ("intent.sent", "eni-1", "DetachEni"),
        ("intent.failed", "eni-1", "DetachEni Throttling: slow down"),
    ]
