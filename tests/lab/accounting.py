"""Who called what, when, and how it ended: the lab's bookkeeping of EC2 calls.

Each instance signs with an access key of its own, which IMDS hands out; so a call is booked to its
node without any help from the caller. Whether a call is allowed does not belong here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import deque
from dataclasses import dataclass
from typing import Any

OPERATOR = "operator"

_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 .*Credential=([A-Za-z0-9]+)/")
_INSTANCE_ID = re.compile(r"i-([0-9a-f]{17})")


@dataclass(frozen=True, slots=True)
class Row:
    """One call.

    `at` is its arrival in seconds since the epoch; `outcome` is "ok" or EC2's error code; `cause`
    is who decided that: "cloud", "throttle", "fault" or "request" (it could not be read); `lost`
    tells that the caller never got the reply.
    """

    at: float
    who: str
    action: str
    outcome: str
    cause: str
    lost: bool
    params: dict[str, Any]


class Journal:
    """The last `keep` calls, oldest first. Not thread-safe: used under the cloud's lock."""

    def __init__(self, keep: int = 100_000) -> None:
        self._rows: deque[Row] = deque(maxlen=keep)

    def add(self, row: Row) -> None:
        """Book one call."""
        self._rows.append(row)

    def rows(
        self, *, who: str | None = None, action: str | None = None, since: float = 0.0
    ) -> list[Row]:
        """Return the calls of `who` to `action` that arrived at `since` or later."""
        return [
            row
            for row in self._rows
            if row.at >= since and who in (None, row.who) and action in (None, row.action)
        ]

    def clear(self) -> None:
        """Forget all calls."""
        self._rows.clear()


def counts(rows: list[Row]) -> dict[str, dict[str, dict[str, int]]]:
    """Return how often each outcome occurred: who -> action -> outcome -> number of calls."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for row in rows:
        outcomes = table.setdefault(row.who, {}).setdefault(row.action, {})
        outcomes[row.outcome] = outcomes.get(row.outcome, 0) + 1
    return table


def access_key(instance_id: str) -> str:
    """Return the access key id of an instance: 20 characters, as AWS's temporary ones are.

    It holds the id itself (68 bits) and 12 bits of check, so that no table of keys is needed.
    Raises ValueError for what is not an instance id.
    """
    match = _INSTANCE_ID.fullmatch(instance_id)
    if match is None:
        raise ValueError(f"an instance id is i- and 17 hexadecimal digits, not {instance_id!r}")
    digits = match[1] + _check(match[1])
    return "ASIA" + base64.b32encode(bytes.fromhex(digits)).decode()


def who_holds(key: str) -> str:
    """Return the instance whose access key this is; anyone else is the operator."""
    try:
        digits = base64.b32decode(key.removeprefix("ASIA")).hex()
    except binascii.Error:
        return OPERATOR
    if not key.startswith("ASIA") or len(digits) != 20 or digits[17:] != _check(digits[:17]):
        return OPERATOR
    return "i-" + digits[:17]


def who_signed(authorization: str | None) -> str | None:
    """Return who signed a request with SigV4, or None if nobody did.

    The signature itself is not verified: the lab takes any static credentials as the operator's.
    """
    match = _CREDENTIAL.match(authorization or "")
    return who_holds(match[1]) if match else None


def _check(digits: str) -> str:
    return hashlib.sha256(digits.encode()).hexdigest()[:3]
