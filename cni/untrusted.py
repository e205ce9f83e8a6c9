"""A JSON object from an untrusted hand: either plain and bounded, or a ValueError that says why.

Bounded means: size, depth, numbers that 64 bits hold, text that is UTF-8 without NUL, no key twice.
Whoever keeps the value (SQLite, a reply, a log line) can then rely on it. What the keys mean does
not belong here.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 64
"""How deep it may nest: beyond any real configuration, far below Python's own limit."""

_LARGEST = (1 << 63) - 1


def load_object(text: bytes, *, largest: int) -> dict[str, Any]:
    """The object in at most `largest` bytes of UTF-8; ValueError for anything else."""
    if len(text) > largest:
        raise ValueError(f"it is larger than {largest} bytes")
    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError(f"it nests deeper than {MAX_DEPTH} levels") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    _check(value)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names a key twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check(root: object) -> None:
    """Walk the value level by level, without recursion."""
    level, depth = [root], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                if "\0" in value or not (value.isascii() or _encodes(value)):
                    raise ValueError("a text holds NUL or half a surrogate pair")
            elif isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
                raise ValueError("a number is out of range")
        level = below


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
