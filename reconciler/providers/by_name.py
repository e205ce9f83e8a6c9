"""Addresses and prefixes that a call names: given back, or asked back. Done already is success.

EC2 refuses a call as a whole if one of the things named stands in its way, without saying which; asked one
by one, it does say. And it says it of this moment, while a description may be older than what a lost call
did. Calls for a number of addresses, and how a call is sent, do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from reconciler import errors

ADDRESSES: Final = "PrivateIpAddresses"
PREFIXES: Final = "Ipv4Prefixes"
"""EC2's parameters that name secondary addresses and /28 prefixes."""

T = TypeVar("T")
Call = Callable[..., object]
Describe = Callable[..., Iterable[dict[str, Any]]]


class Failed(Exception):
    """A call that gave no result; `unknown` if a mutation may have been carried out."""

    def __init__(self, code: str, text: str, *, unknown: bool, again: bool) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text, self.unknown = code, text, unknown
        self.again = again
        """The same description may give a result if asked again at once."""

    @property
    def throttled(self) -> bool:
        """Was it turned away for the account's pace?"""
        return errors.from_ec2(self.code, self.text).reason == "throttled"


def unassign(call: Call, eni_id: str, kind: str, things: tuple[str, ...]) -> None:
    """UnassignPrivateIpAddresses of what is still there; `kind` is ADDRESSES or PREFIXES."""
    try:
        call("UnassignPrivateIpAddresses", **{"NetworkInterfaceId": eni_id, kind: list(things)})
    except Failed as failed:
        if failed.code != "InvalidParameterValue" or "not assigned" not in failed.text:
            raise
        if len(things) > 1:
            _each(things, lambda thing: unassign(call, eni_id, kind, (thing,)))


def regain(
    call: Call, describe: Describe, eni_id: str, kind: str, things: tuple[str, ...]
) -> tuple[list[str], list[tuple[str, str]]]:
    """AssignPrivateIpAddresses by name: what is this interface's now, and what another has, with its id.

    Never with AllowReassignment: what EC2 has given to somebody else meanwhile stays theirs. One that is
    refused and that no description shows anywhere raises: the picture is older than whoever has it.
    """
    try:
        call("AssignPrivateIpAddresses", **{"NetworkInterfaceId": eni_id, kind: list(things)})
    except Failed as failed:
        if not _is_taken(failed):
            raise
        if len(things) == 1:
            return _whose(describe, eni_id, kind, things[0], failed)
    else:
        return list(things), []
    each = _each(things, lambda thing: regain(call, describe, eni_id, kind, (thing,)))
    return [name for ours, _ in each for name in ours], [pair for _, lost in each for pair in lost]


def _is_taken(failed: Failed) -> bool:
    """Somebody has it, maybe we (EC2's texts and codes for addresses and for prefixes)."""
    moved = failed.code == "InvalidParameterValue" and "move is not allowed" in failed.text
    return moved or failed.code == "InvalidIPAddress.InUse"


def _whose(
    describe: Describe, eni_id: str, kind: str, thing: str, failed: Failed
) -> tuple[list[str], list[tuple[str, str]]]:
    """EC2 has a filter for who holds an address, and none for a prefix."""
    if kind == PREFIXES:
        [mine] = list(describe(("network-interface-id", (eni_id,)))) or [{}]
        if any(each["Ipv4Prefix"] == thing for each in mine.get("Ipv4Prefixes", ())):
            return [thing], []
        raise failed
    holders = [
        raw["NetworkInterfaceId"] for raw in describe(("addresses.private-ip-address", (thing,)))
    ]
    if eni_id in holders:
        return [thing], []
    if holders:
        return [], [(thing, holders[0])]
    raise failed


def _each(things: tuple[str, ...], one: Callable[[str], T]) -> list[T]:
    """One by one; if that stops half-way, nobody can say which of them are done."""
    try:
        return [one(thing) for thing in things]
    except Failed as failed:
        failed.unknown = True
        raise
