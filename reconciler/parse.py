"""The texts of environment variables as values; upstream's parsing, Go's where Go does it.

A function takes the text and returns the value, or raises `Invalid` with a sentence. Which knob is
parsed by which, and what becomes of a text that cannot be used, do not belong here.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable


class Invalid(ValueError):
    """The text cannot be this knob's value; the message says what could.

    `usable` is the part of it that can be used all the same, instead of the default.
    """

    def __init__(self, could: str, usable: object = None) -> None:
        super().__init__(could)
        self.usable = usable


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """Base-10 integers of upstream's families I1 and I2 within bounds."""

    def parse(text: str) -> int:
        bounds = f"a whole number of at least {least}" + (f" and at most {most}" if most else "")
        try:
            value = int(text, 10)
        except ValueError:
            raise Invalid(bounds) from None
        if value < least or (most is not None and value > most):
            raise Invalid(bounds)
        return value

    return parse


def seconds_as_ms(text: str) -> int:
    """Whole seconds, as milliseconds."""
    return integer(0)(text) * 1000


def boolean(text: str) -> bool:
    """What Go's strconv.ParseBool takes, which upstream reads its switches with."""
    if text in {"1", "t", "T", "TRUE", "true", "True"}:
        return True
    if text in {"0", "f", "F", "FALSE", "false", "False"}:
        return False
    raise Invalid("true or false")


def as_it_is(text: str) -> str:
    """Any text."""
    return text


def prefix(text: str) -> str:
    """What host ends of pods' links begin with; upstream's entry point knows these bounds."""
    if not text or len(text) > 4 or text in {"eth", "lo", "vlan"} or "/" in text:
        raise Invalid("one to four characters other than eth, lo and vlan")
    return text


def tags(text: str) -> tuple[tuple[str, str], ...]:
    """A JSON object of strings; keys of the CNI's own name space are dropped, as upstream does."""
    try:
        value = json.loads(text)
    except ValueError:
        raise Invalid('a JSON object of strings, such as {"team": "net"}') from None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise Invalid('a JSON object of strings, such as {"team": "net"}')
    return tuple(sorted((k, v) for k, v in value.items() if "k8s.amazonaws.com" not in k))


def networks(text: str) -> tuple[str, ...]:
    """IPv4 networks between commas; what is none is left out, as upstream does."""
    good, bad = [], []
    for each in filter(None, map(str.strip, text.split(","))):
        try:
            good.append(str(ipaddress.IPv4Network(each, strict=False)))
        except ValueError:
            bad.append(each)
    if bad:
        raise Invalid("IPv4 networks between commas, such as 10.1.0.0/16,10.2.0.0/16", tuple(good))
    return tuple(good)


def mark(text: str) -> int:
    """A packet mark of 32 bits, in any of C's notations."""
    try:
        value = int(text, 0)
    except ValueError:
        value = 0
    if not 1 <= value <= 0xFFFFFFFF:
        raise Invalid("a whole number from 1 to 0xffffffff, such as 0x80")
    return value


def random_snat(text: str) -> str:
    """How source ports are chosen."""
    if text not in {"prng", "hashrandom", "none"}:
        raise Invalid("prng, hashrandom or none")
    return text


def freeze(text: str) -> str:
    """What is not done for now."""
    if text not in {"none", "release", "cloud"}:
        raise Invalid("none, release or cloud")
    return text


def enforcing_mode(text: str) -> str:
    """How security groups of pods are enforced."""
    if text not in {"strict", "standard"}:
        raise Invalid("strict or standard")
    return text


def cni_version(text: str) -> str:
    """A version of the CNI specification that the conflist can be written in."""
    if text not in {"0.4.0", "1.0.0", "1.1.0"}:
        raise Invalid("0.4.0, 1.0.0 or 1.1.0")
    return text


def plugin_log(text: str) -> str:
    """Where plugins behind this one log to."""
    if text == "stdout":
        raise Invalid("a path or stderr: a plugin's standard output is its answer to the runtime")
    return text


def level(text: str) -> str:
    """A level of upstream's log."""
    level = text.lower()
    if level not in {"debug", "info", "warn", "error", "fatal"}:
        raise Invalid("debug, info, warn, error or fatal")
    return level
