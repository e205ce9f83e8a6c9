"""Calls are booked to whoever's access key signed them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.lab import accounting

INSTANCE = "i-0123456789abcdef0"


def row(at: float, who: str, action: str, outcome: str = "ok") -> accounting.Row:
    """Make a journal row of which the rest does not matter."""
    return accounting.Row(at, who, action, outcome, "cloud", lost=False, params={})


def test_an_access_key_leads_back_to_its_instance() -> None:
    """It looks like AWS's and needs no table to be read."""
    key = accounting.access_key(INSTANCE)
    assert re.fullmatch("ASIA[A-Z2-7]{16}", key)
    assert accounting.who_holds(key) == INSTANCE


@pytest.mark.parametrize(
    "key",
    ["AKIAIOSFODNN7EXAMPLE", "x", "ASIA", "ASIAAAAAAAAAAAAAAAAA", "testing", "ASIA!", "ASIA====="],
)
def test_any_other_key_is_the_operators(key: str) -> None:
    """Static credentials of any kind work."""
    assert accounting.who_holds(key) == accounting.OPERATOR


@pytest.mark.parametrize("instance_id", ["", "operator", "i-0123", "i-0123456789ABCDEF0"])
def test_only_instances_have_keys(instance_id: str) -> None:
    """A typing mistake does not become somebody."""
    with pytest.raises(ValueError, match="17 hexadecimal"):
        accounting.access_key(instance_id)


@pytest.mark.parametrize("authorization", [None, "", "Bearer x", "AWS4-HMAC-SHA256 Signature=x"])
def test_an_unsigned_request_is_nobodys(authorization: str | None) -> None:
    """Only SigV4 names a caller."""
    assert accounting.who_signed(authorization) is None


def test_the_journal_answers_by_caller_action_and_time() -> None:
    """Each condition narrows the answer; the order is that of arrival."""
    journal = accounting.Journal()
    rows = [row(1, "i-1", "A"), row(2, "i-2", "A"), row(3, "i-1", "B"), row(4, "i-1", "A", "Bad")]
    for each in rows:
        journal.add(each)
    expected: list[tuple[dict[str, Any], list[accounting.Row]]] = [
        ({}, rows),
        ({"who": "i-1"}, [rows[0], rows[2], rows[3]]),
        ({"action": "A"}, [rows[0], rows[1], rows[3]]),
        ({"who": "i-1", "action": "A", "since": 2}, [rows[3]]),
    ]
    assert [journal.rows(**asked) for asked, _ in expected] == [got for _, got in expected]
    assert accounting.counts(rows) == {
        "i-1": {"A": {"ok": 1, "Bad": 1}, "B": {"ok": 1}},
        "i-2": {"A": {"ok": 1}},
    }


def test_the_journal_is_bounded() -> None:
    """The oldest rows go first."""
    journal = accounting.Journal(keep=2)
    for at in range(5):
        journal.add(row(at, "i-1", "A"))
    assert [each.at for each in journal.rows()] == [3, 4]
