"""What goes back to a caller over HTTP, whoever answers it and whichever way it travels.

How a reply is put on a socket does not belong here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """Status, headers beyond Content-Length, and body of one HTTP answer.

    `hops` is the IP TTL it leaves with, None for the system's.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    hops: int | None = None


def of_json(value: Any, status: int = 200) -> Reply:
    """Answer with `value` as JSON; moments in time are written in ISO 8601."""
    body = json.dumps(value, default=str).encode() + b"\n"
    return Reply(status, body, {"Content-Type": "application/json"})
