"""Fault rules hit the calls they name, as often as they say, and the same way each time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.faults import Fault, Faults


def codes(faults: Faults, action: str, who: str, calls: int) -> list[str | None]:
    """Return the error code each of several calls meets."""
    met = [faults.meet(action, who) for _ in range(calls)]
    return [fault.error.code if fault.error else None for fault in met]


def test_without_rules_nothing_happens() -> None:
    """A call meets no delay, no error, no loss."""
    assert Faults().meet("CreateTags", "operator") == Fault(0.0, None, False)


def test_a_rule_hits_its_operation_and_caller_only() -> None:
    """Both are shell patterns."""
    faults = Faults()
    faults.add(op="Assign*", who="i-0a*", error="InternalError")
    assert codes(faults, "AssignIpv6Addresses", "i-0abc", 1) == ["InternalError"]
    assert codes(faults, "AssignIpv6Addresses", "operator", 1) == [None]
    assert codes(faults, "UnassignIpv6Addresses", "i-0abc", 1) == [None]


def test_a_rule_ends_after_its_times() -> None:
    """The third call goes through; another caller's call did not count."""
    faults = Faults()
    faults.add(op="CreateTags", who="i-1", error="Unavailable", times=2)
    assert codes(faults, "CreateTags", "i-2", 5) == [None] * 5
    assert codes(faults, "CreateTags", "i-1", 3) == ["Unavailable", "Unavailable", None]


def test_chance_is_seeded() -> None:
    """The same seed gives the same story; about the asked share is hit."""

    def story(seed: int) -> list[str | None]:
        faults = Faults(seed)
        faults.add(error="InternalError", prob=0.3)
        return codes(faults, "CreateTags", "i-1", 1000)

    assert story(1) == story(1)
    assert story(1) != story(2)
    assert 250 < story(1).count("InternalError") < 350


def test_rules_combine() -> None:
    """Delays add up, the first error counts, any drop loses the reply."""
    faults = Faults()
    faults.add(delay=0.5)
    faults.add(delay=0.25, error="InternalError")
    faults.add(error="Unavailable", drop=True)
    met = faults.meet("CreateTags", "i-1")
    assert (met.delay, met.error and met.error.code, met.drop) == (0.75, "InternalError", True)
    faults.clear()
    assert faults.meet("CreateTags", "i-1") == Fault()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("InternalError", 500),
        ("Unavailable", 503),
        ("RequestLimitExceeded", 503),
        ("UnauthorizedOperation", 403),
        ("InsufficientFreeAddressesInSubnet", 400),
    ],
)
def test_an_error_has_its_http_status(code: str, status: int) -> None:
    """Clients tell by the status whose fault it was."""
    faults = Faults()
    faults.add(error=code, message="as asked")
    error = faults.meet("CreateTags", "i-1").error
    assert error is not None
    assert (error.code, error.message, error.status) == (code, "as asked", status)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({}, "needs an error"),
        ({"op": "CreateTags"}, "needs an error"),
        ({"drop": True, "colour": "red"}, "colour"),
        ({"delay": -1}, "0 or more"),
        ({"drop": True, "prob": 1.5}, "prob"),
        ({"drop": True, "times": "twice"}, "times"),
        ({"drop": True, "times": True}, "times"),
        ({"drop": 1}, "drop"),
        ({"error": 500}, "error"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: dict[str, Any], says: str) -> None:
    """A typing mistake in a test must not silently inject nothing."""
    with pytest.raises(ValueError, match=says):
        Faults().add(**rule)
