"""Phrases of a ruleset as the kernel's nftables expressions, and back: linux/netfilter/nf_tables.h.

Each phrase is a short run of expressions over one register, the same that nft(8) makes of its text. A
run read from the kernel is taken for a phrase only if that phrase would be written exactly so; attributes
that are zero are as good as absent. Tables, chains and sockets do not belong here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from socket import inet_ntop, inet_pton
from typing import NamedTuple

from reconciler.planner import ruleset
from reconciler.providers import netlink

_AF_INET = 2
_NAME_BYTES = 16  # IFNAMSIZ
_STAR = "*"
_REGISTER = 1  # NFT_REG_1; the verdict's is 0
_META_MARK, _META_ARRIVES, _META_LEAVES = 3, 6, 7  # NFT_META_
_CT_STATUS, _CT_MARK, _CONFIRMED = 2, 3, 1 << 3  # NFT_CT_, IPS_CONFIRMED
_NETWORK_HEADER, _DADDR_AT = 1, 16  # NFT_PAYLOAD_, RFC 791
_FIB_TYPE, _LOCAL = 3, 2  # NFT_FIB_RESULT_ADDRTYPE, RTN_LOCAL
_FIB_FLAGS = {"daddr": 2, "daddr . iif": 2 | 8, "saddr . oif": 1 | 16}  # NFTA_FIB_F_
_JUMP, _RETURN = -3, -5  # NFT_
# NF_NAT_RANGE_MAP_IPS, which the kernel adds where an address is given, and PROTO_RANDOM(_FULLY).
_NAT_FLAGS = {"prng": 1 | 1 << 4, "hashrandom": 1 | 1 << 2, "none": 1}
_VALUE, _VERDICT = 1, 2  # NFTA_DATA_
_NESTED = {("cmp", 3), ("bitwise", 4), ("bitwise", 5), ("bitwise", 7), ("immediate", 2)}
_ELEMENT, _NAME, _DATA = 1, 1, 2  # NFTA_LIST_ELEM, NFTA_EXPR_


class Expression(NamedTuple):
    """One expression: its name and its attributes by number, ascending, none of them zero."""

    name: str
    given: tuple[tuple[int, bytes], ...]

    def get(self, kind: int) -> bytes:
        """An attribute's bytes, b"" if it is not there."""
        return dict(self.given).get(kind, b"")


# -------------------------------------------------------------------------------------- writing


def pack(rule: ruleset.Rule) -> bytes:
    """The list of expressions of a rule (NFTA_RULE_EXPRESSIONS' content)."""
    return b"".join(
        netlink.nested(
            _ELEMENT, netlink.text(_NAME, name), netlink.nested(_DATA, *_attributes(given))
        )
        for phrase in rule.phrases
        for name, given in _write(phrase)
    )


def _attributes(given: dict[int, bytes]) -> list[bytes]:
    return [netlink.attribute(kind, value) for kind, value in given.items()]


Written = tuple[str, dict[int, bytes]]


def _write(phrase: ruleset.Phrase) -> list[Written]:  # noqa: C901, PLR0912 - a closed set of words
    match phrase:
        case ruleset.Arrives(link):
            return [_meta(_META_ARRIVES), _equal(_name(link))]
        case ruleset.Leaves(link):
            return [_meta(_META_LEAVES), _equal(_name(link))]
        case ruleset.Local(of):
            fib = {1: _u32(_REGISTER), 2: _u32(_FIB_TYPE), 3: _u32(_FIB_FLAGS[of])}
            return [("fib", fib), _equal(_host(_LOCAL))]
        case ruleset.Destination(cidr):
            return _destination(cidr)
        case ruleset.FirstPacket():
            return [_ct(_CT_STATUS), _bits(_host(_CONFIRMED), _host(0)), _equal(_host(0))]
        case ruleset.Marked(bits):
            return [_ct(_CT_MARK), _bits(_host(bits), _host(0)), _equal(_host(bits))]
        case ruleset.MarkConnection(bits):
            store = {2: _u32(_CT_MARK), 4: _u32(_REGISTER)}
            return [_ct(_CT_MARK), _bits(_host(~bits), _host(bits)), ("ct", store)]
        case ruleset.MarkPacket(bits):
            store = {2: _u32(_META_MARK), 3: _u32(_REGISTER)}
            return [_meta(_META_MARK), _bits(_host(~bits), _host(bits)), ("meta", store)]
        case ruleset.Count():
            return [("counter", {})]
        case ruleset.TranslateSource(address, randomness):
            value = {1: _u32(_REGISTER), 2: _value(inet_pton(_AF_INET, address))}
            nat = {1: _u32(0), 2: _u32(_AF_INET), 3: _u32(_REGISTER), 4: _u32(_REGISTER)}
            nat[7] = _u32(_NAT_FLAGS[randomness])
            return [("immediate", value), ("nat", nat)]
        case ruleset.Jump(chain):
            return [_verdict(_JUMP, netlink.text(2, chain))]
        case ruleset.Return():
            return [_verdict(_RETURN, b"")]
        case ruleset.Foreign(what):
            raise ValueError(f"cannot be written: {what}")


def _destination(cidr: str) -> list[Written]:
    host, _, length = cidr.partition("/")
    packed, bits = inet_pton(_AF_INET, host), int(length)
    whole = bits // 8 if bits % 8 == 0 else 4
    load = {
        1: _u32(_REGISTER),
        2: _u32(_NETWORK_HEADER),
        3: _u32(_DADDR_AT),
        4: _u32(whole),
    }
    mask = (0xFFFFFFFF << (32 - bits) & 0xFFFFFFFF).to_bytes(4, "big")
    masked = [] if bits % 8 == 0 else [_bits(mask, bytes(4))]
    return [("payload", load), *masked, _equal(packed[:whole])]


def _name(link: str) -> bytes:
    if link.endswith(_STAR):
        return link.removesuffix(_STAR).encode()
    return link.encode().ljust(_NAME_BYTES, b"\0")


def _meta(key: int) -> Written:
    return "meta", {2: _u32(key), 1: _u32(_REGISTER)}


def _ct(key: int) -> Written:
    return "ct", {2: _u32(key), 1: _u32(_REGISTER)}


def _equal(value: bytes) -> Written:
    return "cmp", {1: _u32(_REGISTER), 2: _u32(0), 3: _value(value)}


def _bits(mask: bytes, xor: bytes) -> Written:
    register, length = _u32(_REGISTER), _u32(4)
    return "bitwise", {1: register, 2: register, 3: length, 4: _value(mask), 5: _value(xor)}


def _verdict(code: int, chain: bytes) -> Written:
    said = netlink.nested(_VERDICT, netlink.attribute(1, struct.pack(">i", code)), chain)
    return "immediate", {1: _u32(0), 2: said}


def _value(value: bytes) -> bytes:
    return netlink.attribute(_VALUE, value)


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)


def _host(value: int) -> bytes:
    """What a register holds: numbers in the host's own order."""
    return struct.pack("=I", value & 0xFFFFFFFF)


# -------------------------------------------------------------------------------------- reading


def read(data: bytes) -> tuple[ruleset.Phrase, ...]:
    """The phrases of a list of expressions; what is none of ours is Foreign."""
    found = [_expression(body) for body in netlink.each(data, _ELEMENT)]
    said: list[ruleset.Phrase] = []
    while found:
        phrase = _first(found)
        if phrase is None:
            return (*said, ruleset.Foreign(" ".join(each.name for each in found)))
        said.append(phrase)
        found = found[len(_write(phrase)) :]
    return tuple(said)


def _expression(body: bytes) -> Expression:
    given = netlink.attributes(body, 0, len(body))
    name = netlink.string(given.get(_NAME, b""))
    data = given.get(_DATA, b"")
    return _canonical(name, netlink.attributes(data, 0, len(data)))


def _canonical(name: str, given: dict[int, bytes]) -> Expression:
    """Nothing that is zero, nothing of a counter, and inner attributes without flags and padding."""
    if name == "counter":
        return Expression(name, ())
    plain = {
        kind: _plain(value) if (name, kind) in _NESTED else value for kind, value in given.items()
    }
    return Expression(name, tuple(sorted((k, v) for k, v in plain.items() if v.strip(b"\0"))))


def _plain(nested: bytes) -> bytes:
    inner = netlink.attributes(nested, 0, len(nested))
    if _VERDICT in inner:
        told = netlink.attributes(inner[_VERDICT], 0, len(inner[_VERDICT]))
        return b"verdict" + told.get(1, b"") + told.get(2, b"")
    return b"value" + inner.get(_VALUE, b"")


def _first(found: Sequence[Expression]) -> ruleset.Phrase | None:
    """The phrase that is written as the beginning of what was found, if there is one."""
    for guess in _guesses(found):
        run = [_canonical(name, given) for name, given in _write(guess)]
        if run == list(found[: len(run)]):
            return guess
    return None


def _guesses(found: Sequence[Expression]) -> list[ruleset.Phrase]:
    """What it could be, by the first expression and the values in the next two."""
    second, third = (*found[1:3], Expression("", ()), Expression("", ()))[:2]
    value = second.get(3).removeprefix(b"value")
    match found[0].name:
        case "meta":
            name = netlink.string(value)
            if value and len(value) < _NAME_BYTES:
                name += _STAR
            bits = _number(second.get(5))
            return [ruleset.Arrives(name), ruleset.Leaves(name), ruleset.MarkPacket(bits)]
        case "fib":
            return [
                ruleset.Local("daddr"),
                ruleset.Local("daddr . iif"),
                ruleset.Local("saddr . oif"),
            ]
        case "ct":
            marked, store = _number(second.get(4)), _number(second.get(5))
            return [ruleset.FirstPacket(), ruleset.Marked(marked), ruleset.MarkConnection(store)]
        case "payload":
            return _networks(second, third)
        case "counter":
            return [ruleset.Count()]
        case "immediate":
            return _immediates(found[0].get(2))
    return []


def _networks(second: Expression, third: Expression) -> list[ruleset.Phrase]:
    if second.name == "bitwise":
        mask = second.get(4).removeprefix(b"value")
        value, bits = third.get(3), int.from_bytes(mask, "big").bit_count()
    else:
        value = second.get(3)
        bits = 8 * (len(value) - len(b"value"))
    packed = value.removeprefix(b"value")
    if not 0 < len(packed) <= 4:
        return []
    return [ruleset.Destination(f"{inet_ntop(_AF_INET, packed.ljust(4, bytes(1)))}/{bits}")]


def _immediates(said: bytes) -> list[ruleset.Phrase]:
    if said.startswith(b"verdict"):
        return [ruleset.Return(), ruleset.Jump(netlink.string(said[len(b"verdict") + 4 :]))]
    packed = said.removeprefix(b"value")
    if len(packed) != 4:
        return []
    address = inet_ntop(_AF_INET, packed)
    return [ruleset.TranslateSource(address, kind) for kind in ("prng", "hashrandom", "none")]


def _number(value: bytes) -> int:
    packed = value.removeprefix(b"value")
    return int(struct.unpack("=I", packed)[0]) if len(packed) == 4 else 0
