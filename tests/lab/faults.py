"""Faults on demand: rules that refuse a call, slow it down, or lose its reply.

A rule is written `{op, who, error | delay | drop, times, prob}`. Randomness is seeded, so a story
repeats. What EC2 refuses by itself does not belong here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import UnionType
from typing import Any

from tests.lab.errors import ApiError

# HTTP statuses of server-side codes; all others are 400 (EC2 API reference, server error codes).
STATUSES = {
    "InternalError": 500,
    "InternalFailure": 500,
    "Unavailable": 503,
    "ServiceUnavailable": 503,
    "RequestLimitExceeded": 503,
    "UnauthorizedOperation": 403,
}


@dataclass(slots=True)
class Rule:
    """What shall go wrong, for whom, and how often.

    `op` and `who` are shell patterns of action names and callers. `error` is an error code sent
    instead of doing the work, `message` its text; `delay` is in seconds, before the work; `drop`
    does the work and loses the reply (with `error`: the request is lost and no work is done).
    `times` is how often at most, None without end; `prob` the chance at each matching call.
    """

    op: str = "*"
    who: str = "*"
    error: str | None = None
    message: str = "The lab was asked to refuse this call."
    delay: float = 0.0
    drop: bool = False
    times: int | None = None
    prob: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a rule that does nothing or cannot be read, with a ValueError."""
        if self.error is None and not self.delay and not self.drop:
            raise ValueError("a fault needs an error code, a delay in seconds or drop")
        if self.delay < 0 or not 0 <= self.prob <= 1:
            raise ValueError("a fault's delay is 0 or more seconds and its prob is 0 to 1")


@dataclass(frozen=True, slots=True)
class Fault:
    """What meets one call: seconds of delay, then perhaps a refusal; then perhaps no reply."""

    delay: float = 0.0
    error: ApiError | None = None
    drop: bool = False


class Faults:
    """The rules in force, first match first. Not thread-safe: used under the cloud's lock."""

    def __init__(self, seed: int = 0) -> None:
        self.rules: list[Rule] = []
        self._rng = random.Random(seed)

    def add(self, **rule: Any) -> Rule:
        """Put a rule in force. Raises ValueError for one that cannot be meant."""
        made = read(rule)
        self.rules.append(made)
        return made

    def clear(self) -> None:
        """Take all rules out of force."""
        self.rules.clear()

    def meet(self, action: str, who: str) -> Fault:
        """Decide what goes wrong with this call; delays add up, the first error counts."""
        delay, error, drop = 0.0, None, False
        for rule in self.rules:
            if (
                rule.times == 0
                or not fnmatchcase(action, rule.op)
                or not fnmatchcase(who, rule.who)
            ):
                continue
            if rule.prob < 1 and self._rng.random() >= rule.prob:
                continue
            if rule.times is not None:
                rule.times -= 1
            delay += rule.delay
            drop = drop or rule.drop
            if error is None and rule.error is not None:
                error = ApiError(rule.error, rule.message, STATUSES.get(rule.error, 400))
        return Fault(delay, error, drop)


# What a rule's members are when they come from outside.
_KINDS: dict[str, type | UnionType] = {
    "op": str,
    "who": str,
    "error": str | None,
    "message": str,
    "delay": int | float,
    "drop": bool,
    "times": int | None,
    "prob": int | float,
}


def read(rule: Any) -> Rule:
    """Read a rule. Raises ValueError, which says what is wrong, for one that cannot be meant."""
    if not isinstance(rule, dict):
        raise ValueError(f"a fault is an object with some of {sorted(_KINDS)}, not {rule!r}")
    for name, value in rule.items():
        if name not in _KINDS:
            raise ValueError(f"a fault has {sorted(_KINDS)}, but not {name!r}")
        if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and name != "drop"):
            raise ValueError(f"a fault's {name} cannot be {value!r}")
    return Rule(**rule)
