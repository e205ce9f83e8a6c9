"""A node with its daemon as a process: what its ledger, its namespace and EC2's journal show.

What a test expects of them does not belong here.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.kubelet import CniError, Kubelet, Sandbox
from tests.lab.node import Node
from tests.lab.whole import Lab

PATIENCE_S = 60.0


def until(seen: Callable[[], object], what: str, patience: float = PATIENCE_S) -> None:
    """Another process's doing, of which nothing tells us: looked for until a deadline."""
    deadline = time.monotonic() + patience
    while not seen():
        assert time.monotonic() < deadline, f"not seen in {patience} s: {what}"
        time.sleep(0.05)


def same(left: Callable[[], set[Any]], right: Callable[[], set[Any]], what: str) -> None:
    """Wait until two views of one thing agree; in which they still differ is told when they do not."""
    differ: list[set[Any]] = [set(), set()]

    def agree() -> bool:
        one, other = left(), right()
        differ[:] = [one - other, other - one]
        return one == other

    try:
        until(agree, what)
    except AssertionError as late:
        raise AssertionError(f"{late}; only there: {differ[0]}, only here: {differ[1]}") from None


def rows(node: Node, sql: str) -> list[dict[str, Any]]:
    """The ledger's answer, by the command line."""
    done = node.product("sql", "--json", sql)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def findings(node: Node) -> set[str]:
    """Codes of the open ones."""
    return {row["code"] for row in rows(node, "SELECT code FROM v_findings WHERE closed IS NULL")}


def changes(lab: Lab) -> Counter[str]:
    """EC2 mutations that the first node's daemon has made, by action."""
    return +Counter({name: n for name, n in calls(lab).items() if not name.startswith("Describe")})


def calls(lab: Lab) -> Counter[str]:
    """All EC2 calls of the first node's daemon, by action."""
    return Counter(row.action for row in lab.front.journal.rows(who=lab.nodes[0].instance))


def settle(node: Node) -> None:
    """Wait until the warm pool has what it wants and all of it can be used."""

    def settled() -> bool:
        plan = json.loads(node.product("plan", "--json").stdout)
        on_the_way = "SELECT 1 FROM v_addresses WHERE state = 'unusable'"
        return not plan["actions"] and not rows(node, on_the_way)

    until(settled, "a plan without actions")


def refused(kubelet: Kubelet, name: str) -> CniError:
    """The first refusal of a pod that is not tried again."""
    sandbox = kubelet.sandbox(name)
    with pytest.raises(CniError) as told:
        kubelet.add(sandbox)
    kubelet.remove(sandbox)
    return told.value


def picture(node: Node) -> list[str]:
    """The node's links, IPv4 addresses, rules and routes.

    Without what follows a change by itself, a moment later: operational state and carrier (RFC 2863),
    and links that are out of service and about to be removed.
    """
    until(lambda: '"ended' not in node.netns.command("ip", "-j", "link"), "retired links removed")
    found = []
    for what in (("link",), ("address",), ("rule",), ("route", "show", "table", "all")):
        for row in json.loads(node.netns.command("ip", "-4", "-j", *what)):
            row.pop("operstate", None)
            if "flags" in row:
                row["flags"] = sorted({*row["flags"]} - {"LOWER_UP", "NO-CARRIER", "linkdown"})
            found.append(json.dumps(row, sort_keys=True))
    return sorted(found)


def status_of(pid: int) -> dict[str, str]:
    """proc(5) status of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def children_of(pid: int) -> dict[int, str]:
    """Processes that any thread of a process has started, each with its command line."""
    listed = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return {
        int(child): Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        for child in " ".join(listed).split()
    }


def interface_of(lab: Lab, pod: Sandbox) -> int:
    """Device index of the interface on which EC2 holds this pod's address."""
    with lab.cloud.lock:
        enis = lab.cloud.interfaces_of(lab.nodes[0].instance)
    for eni in enis:
        if pod.address in {each["PrivateIpAddress"] for each in eni["PrivateIpAddresses"]}:
            return int(eni["Attachment"]["DeviceIndex"])
    raise AssertionError(f"EC2 has not assigned {pod.address} to this node")


@contextmanager
def table_owned(node: Node) -> Iterator[None]:
    """Another process owns the table of our name, so that the kernel lets nobody else replace it."""
    owner = node.netns.run(
        subprocess.Popen, ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    table = "table ip vpcledger"
    owner.stdin.write(f"add {table}; delete {table}; add {table} {{ flags owner; }}\nlist tables\n")
    owner.stdin.flush()
    while table not in owner.stdout.readline():
        pass
    try:
        yield
    finally:
        owner.stdin.close()
        owner.stdout.close()
        owner.wait()  # the kernel removes what the dead one owned
