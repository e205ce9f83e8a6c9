"""The node's nftables, looked at and changed over nfnetlink: `observe`, `apply`, `watch`.

Messages of our own and no child process: an ordinary user with CAP_NET_ADMIN sends them, the node's image
needs no nft, and a look costs one question while the ruleset's generation stands still. Only the table
asked about is read and only tables named in an action are changed, each in one transaction: packets meet
the old table or the new one. See linux/netfilter/nf_tables.h. Deciding what the table says, and what its
rules look like on the wire, do not belong here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from ledger import model
from reconciler.planner import actions, ruleset
from reconciler.providers import channel, expressions, netlink, watch
from reconciler.providers.netlink import Message

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_
_NEW_TABLE, _GET_TABLE, _DEL_TABLE = 0, 1, 2  # NFT_MSG_
_NEW_CHAIN, _GET_CHAIN, _NEW_RULE, _GET_RULE = 3, 4, 6, 7
_NEW_GENERATION, _GET_GENERATION = 15, 16
_NEWS = 7  # NFNLGRP_NFTABLES
_APPEND = 0x800  # NLM_F_APPEND

_HEADER = struct.Struct("=BBxx")  # nfgenmsg of a subsystem's message: family, version, no resource
_IPV4 = 2  # NFPROTO_IPV4
_T_NAME, _T_FLAGS, _T_USE = 1, 2, 3  # NFTA_TABLE_
_C_TABLE, _C_NAME, _C_HOOK, _C_POLICY, _C_TYPE, _C_FLAGS = 1, 3, 4, 5, 7, 10  # NFTA_CHAIN_
_H_POINT, _H_PRIORITY = 1, 2  # NFTA_HOOK_
_R_TABLE, _R_CHAIN, _R_EXPRESSIONS, _R_USERDATA = 1, 2, 4, 7  # NFTA_RULE_
_G_ID = 1  # NFTA_GEN_ID
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT
_POINTS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}  # NF_INET_
_ACCEPT, _BASE = 1, 1  # NF_ACCEPT, NFT_CHAIN_BASE
_LOOKS = 8  # at a table that is being changed meanwhile
_GONE = "ENOENT"

# linux/filter.h: the message's type (bytes 4 and 5 of a netlink header) is a new generation, or drop.
# Every transaction ends with one such message, however many rules it changed: kube-proxy's may be
# thousands, and none of them wakes us.
_SO_ATTACH_FILTER = 26
_GENERATION_AS_READ = int.from_bytes(
    struct.pack("=H", _SUBSYSTEM << 8 | _NEW_GENERATION), "big"
)  # a filter loads in network order
_FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x28, 0, 0, 4),  # ldh [4]
        (0x15, 0, 1, _GENERATION_AS_READ),  # jeq
        (0x06, 0, 0, 0xFFFFFFFF),  # ret: all of it
        (0x06, 0, 0, 0),  # ret: nothing
    )
)


class Nftables:
    """One table of the family ip in the network namespace this process lives in; threads may share it."""

    def __init__(self, table: str, chains: Sequence[str]) -> None:
        """`chains` are those a table of ours can have. The socket is opened with the first use."""
        self.table, self.chains = table, tuple(chains)
        self._lock = threading.Lock()
        self._open: channel.Channel | None = None
        self._seen: tuple[int, ruleset.Table | None] | None = None

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            if self._open is not None:
                self._open.close()
                self._open = None

    def observe(self) -> ruleset.Observed | model.Unknown:
        """The table as it is, every change by anybody included; Unknown with the reason.

        Nothing but the generation is asked for while that is the one of the last look.
        """
        try:
            with self._lock:
                return ruleset.Observed(_now(), self._look())
        except OSError as failed:
            return model.Unknown(f"nftables: {os.strerror(failed.errno or 0)}", _now())

    def apply(self, steps: Sequence[actions.NatAction]) -> list[actions.Outcome]:
        """Carry out each step as a transaction of its own and say what became of it, in order.

        An error is an errno's name, its text the kernel's own words; already gone is success.
        """
        with self._lock:
            return [self._carry_out(step) for step in steps]

    def watch(self) -> watch.Watch:
        """News of every transaction in the node's nftables, one piece each; ours are among them.

        OSError without the capability, or where the kernel has no nftables.
        """
        listening = channel.netfilter_socket()
        program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
        listening.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(_FILTER) // 8, ctypes.addressof(program)),
        )
        return watch.Watch(listening, (_NEWS,))

    @property
    def _channel(self) -> channel.Channel:
        """The open socket; OSError where the kernel has no nftables."""
        if self._open is None:
            self._open = channel.Channel(channel.netfilter_socket())
        return self._open

    # ------------------------------------------------------------------ looking

    def _look(self) -> ruleset.Table | None:
        for _ in range(_LOOKS):
            before = self._generation()
            if self._seen is not None and self._seen[0] == before:
                return self._seen[1]
            table = self._read()
            if self._generation() == before:
                self._seen = before, table
                return table
        raise OSError(errno.EINTR, "the ruleset changes faster than it can be read")

    def _generation(self) -> int:
        told = self._ask(_message(_GET_GENERATION))
        return _number(told[_G_ID]) if told else 0

    def _read(self) -> ruleset.Table | None:
        told = self._ask(_message(_GET_TABLE, netlink.text(_T_NAME, self.table)))
        if told is None:
            return None
        hooks = {name: hook for name in self.chains if (hook := self._chain(name)) is not None}
        strange = [text for _, text in hooks.values() if text]
        if any(told.get(_T_FLAGS, b"")):
            strange.append("flags")
        more = _number(told[_T_USE]) - len(hooks)
        if more:
            strange.append(f"{more} chains or sets")
        rules = self._rules(hooks)
        return ruleset.Table(
            self.table,
            tuple(ruleset.Chain(name, tuple(rules[name]), hooks[name][0]) for name in hooks),
            tuple(strange),
        )

    def _chain(self, name: str) -> tuple[ruleset.Hook | None, str] | None:
        """Its hook and what is strange about it; None if there is no such chain."""
        told = self._ask(
            _message(_GET_CHAIN, netlink.text(_C_TABLE, self.table), netlink.text(_C_NAME, name))
        )
        if told is None:
            return None
        flags = _number(told[_C_FLAGS]) if _C_FLAGS in told else 0
        if _C_HOOK not in told:
            return None, f"{name}: flags" if flags else ""
        hook = netlink.attributes(told[_C_HOOK], 0, len(told[_C_HOOK]))
        number = _number(hook[_H_POINT])
        point = next((point for point, nth in _POINTS.items() if nth == number), str(number))
        (priority,) = struct.unpack(">i", hook[_H_PRIORITY])
        kind = netlink.string(told[_C_TYPE])
        if kind not in {"filter", "nat"} or _number(told[_C_POLICY]) != _ACCEPT or flags & ~_BASE:
            return None, f"{name}: {kind} with another policy or flags"
        return ruleset.Hook("nat" if kind == "nat" else "filter", point, priority), ""

    def _rules(self, hooks: Iterable[str]) -> dict[str, list[ruleset.Rule]]:
        rules: dict[str, list[ruleset.Rule]] = {name: [] for name in hooks}
        question = _message(_GET_RULE, netlink.text(_R_TABLE, self.table), flags=netlink.DUMP)
        for data in self._channel.dump(question):
            for told in _answers(data):
                if netlink.string(told.get(_R_TABLE, b"")) != self.table:
                    continue
                rules.setdefault(netlink.string(told[_R_CHAIN]), []).append(
                    ruleset.Rule(
                        expressions.read(told.get(_R_EXPRESSIONS, b"")),
                        _comment(told.get(_R_USERDATA, b"")),
                    )
                )
        return rules

    def _ask(self, question: Message) -> dict[int, bytes] | None:
        """The attributes of the one answer; None if what was asked for is not there."""
        (answer,) = self._channel.ask([question])
        if answer.refusal is None:
            return next(_answers(answer.data))
        if answer.refusal.code == _GONE:
            return None
        raise OSError(getattr(errno, answer.refusal.code, errno.EIO), answer.refusal.text)

    # ------------------------------------------------------------------ changing

    def _carry_out(self, step: actions.NatAction) -> actions.Outcome:
        if isinstance(step, actions.ReplaceTable):
            changes = _replacement(step.table)
        else:
            changes = [_message(_DEL_TABLE, netlink.text(_T_NAME, step.name))]
        changes[-1] = changes[-1]._replace(flags=changes[-1].flags | netlink.ACK)
        try:
            refused = self._channel.transact([_edge(_BEGIN), *changes, _edge(_END)])
        except OSError as failed:
            code = errno.errorcode.get(failed.errno or 0, str(failed.errno))
            return actions.Outcome(step, code, str(failed))
        if refused is None or (isinstance(step, actions.RemoveTable) and refused.code == _GONE):
            return actions.Outcome(step)
        return actions.Outcome(step, refused.code, refused.text)


def _replacement(table: ruleset.Table) -> list[Message]:
    """Out with a table of that name whatever it is, and in with this one: nft's own idiom."""
    name = netlink.text(_T_NAME, table.name)
    new = _message(_NEW_TABLE, name, flags=netlink.CREATE)
    messages = [new, _message(_DEL_TABLE, name), new]
    for chain in table.chains:
        given = [netlink.text(_C_TABLE, table.name), netlink.text(_C_NAME, chain.name)]
        if chain.hook is not None:
            hook = netlink.nested(
                _C_HOOK,
                netlink.attribute(_H_POINT, struct.pack(">I", _POINTS[chain.hook.point])),
                netlink.attribute(_H_PRIORITY, struct.pack(">i", chain.hook.priority)),
            )
            policy = netlink.attribute(_C_POLICY, struct.pack(">I", _ACCEPT))
            given += [hook, policy, netlink.text(_C_TYPE, chain.hook.kind)]
        messages.append(_message(_NEW_CHAIN, *given, flags=netlink.CREATE))
    for chain in table.chains:
        for rule in chain.rules:
            given = [
                netlink.text(_R_TABLE, table.name),
                netlink.text(_R_CHAIN, chain.name),
                netlink.nested(_R_EXPRESSIONS, expressions.pack(rule)),
            ]
            if rule.comment:
                comment = rule.comment.encode() + b"\0"
                data = bytes([_COMMENT, len(comment)]) + comment
                given.append(netlink.attribute(_R_USERDATA, data))
            messages.append(_message(_NEW_RULE, *given, flags=netlink.CREATE | _APPEND))
    return messages


def _message(kind: int, *attributes: bytes, flags: int = 0) -> Message:
    return Message(_SUBSYSTEM << 8 | kind, flags, _HEADER.pack(_IPV4, 0) + b"".join(attributes))


def _edge(kind: int) -> Message:
    """The begin or the end of a transaction, which names its subsystem."""
    return Message(kind, 0, struct.pack(">BBH", 0, 0, _SUBSYSTEM))


def _answers(data: bytes) -> Iterator[dict[int, bytes]]:
    """The attributes of each message of ours in a datagram."""
    for frame in netlink.frames(data):
        if frame.kind >> 8 == _SUBSYSTEM:
            yield netlink.attributes(data, frame.start + _HEADER.size, frame.end)


def _comment(data: bytes) -> str:
    """The comment in a rule's user data, which is a list of kind, length and value."""
    at = 0
    while at + 2 <= len(data):
        kind, length = data[at], data[at + 1]
        if kind == _COMMENT:
            return netlink.string(data[at + 2 : at + 2 + length])
        at += 2 + length
    return ""


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _now() -> int:
    return time.time_ns() // 1_000_000
