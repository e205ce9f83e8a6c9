"""SIGKILL at every step of every change asked of EC2: nothing is lost, nothing is there twice.

Three moments of each: before EC2 has the call, when it has carried it out and nobody has heard, and when the
reply has come and nothing is written. No sleep finds them and nothing in the product helps: EC2's door holds
the call, or the daemon is stopped (SIGSTOP) until the reply lies in its socket. Then it dies, and the next one
is killed at the next step, until all of them are through. The end has to be that of a node nobody killed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs

import pytest

from tests.lab import accounting, spaces
from tests.lab.node import Node
from tests.lab.reply import Reply
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = [
    pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing())),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

Moment = Literal["before the call", "done, no reply", "reply, no commit"]
MOMENTS: Final[tuple[Moment, ...]] = ("before the call", "done, no reply", "reply, no commit")

GROWTH: Final = (
    "AssignPrivateIpAddresses",
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
)
LITTLE: Final = {"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "3"}
MUCH: Final = {"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "12"}
"""More than the nine that the primary interface of an m5.large carries."""
LESS: Final = {"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "11"}
"""One fewer: neither interface can go."""
BLOCK: Final = {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}
BLOCKS: Final = {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "2"}
DOUBT: Final = "SELECT operation FROM v_intents WHERE state IN ('planned', 'sent', 'unknown')"
AN_HOUR_MS: Final = 3_600_000


class Gate:
    """EC2's door, where one call of one node's is held at one moment."""

    def __init__(self, lab: Lab, action: str, moment: Moment) -> None:
        self._lab, self._action, self._moment = lab, action, moment
        self._reached, self._open = threading.Event(), threading.Event()
        self._taken = threading.Lock()
        self._answer = lab.front.answer

    def __enter__(self) -> Self:
        self._lab.front.answer = self.answer  # type: ignore[method-assign]  # between the wire and EC2
        return self

    def __exit__(self, *_: object) -> None:
        self._lab.front.answer = self._answer  # type: ignore[method-assign]  # as it was
        self._open.set()

    def answer(self, form: str, authorization: str | None) -> Reply | None:
        """Hold the first call of this action; None is a connection that ends without a reply."""
        mine = accounting.who_signed(authorization) == self._lab.nodes[0].instance
        if not mine or parse_qs(form)["Action"] != [self._action]:
            return self._answer(form, authorization)
        if not self._taken.acquire(blocking=False):
            return self._answer(form, authorization)
        if self._moment == "before the call":
            self._hold()
            return None
        reply = self._answer(form, authorization)
        self._hold()
        return reply

    def reached(self) -> None:
        """Wait for the call."""
        found = self._reached.wait(live.PATIENCE_S)
        assert found, f"no {self._action}; {self._lab.nodes[0].tail()}"

    def open(self) -> None:
        """Let the call go on."""
        self._open.set()

    def _hold(self) -> None:
        self._reached.set()
        assert self._open.wait(live.PATIENCE_S), "nobody opened the gate"


def killed_at(lab: Lab, action: str, moment: Moment, settings: dict[str, str]) -> None:
    """Start the daemon and kill it when it is at this moment of this call."""
    node = lab.nodes[0]
    with Gate(lab, action, moment) as gate:
        # A call that is held must not be given up before the daemon is said to be ready.
        node.start_daemon(HTTP_TIMEOUT="60", **settings)
        gate.reached()
        if moment == "reply, no commit":
            assert node.daemon is not None
            os.kill(node.daemon.pid, signal.SIGSTOP)
            # One that is woken by the reply before it is by the signal reads it first.
            live.until(lambda: stopped(node), "every thread of the daemon's stopped")
            gate.open()
            live.until(lambda: unread(node), "the reply in the daemon's socket")
        node.kill_daemon()


def stopped(node: Node) -> bool:
    """Has each thread of the daemon's come to its stop (proc(5), the state in /proc/pid/task/tid/stat)?"""
    assert node.daemon is not None
    tasks = Path(f"/proc/{node.daemon.pid}/task").iterdir()
    return all((t / "stat").read_text().rpartition(")")[2].split()[0] == "T" for t in tasks)


def unread(node: Node) -> bool:
    """Does a Unix stream of the node's hold something that nobody has read (ss(8), Recv-Q)?"""
    rows = [line.split() for line in node.netns.command("ss", "-xHn").splitlines()]
    return any(row[0] == "u_str" and int(row[2]) > 0 for row in rows)


def let_an_hour_pass(node: Node) -> None:
    """What rests, what was attached and what was asked of EC2 is an hour older; no daemon is there meanwhile."""
    if not node.ledger.exists():
        return
    with contextlib.closing(sqlite3.connect(node.ledger)) as file, file:
        file.execute("UPDATE addresses SET rested_since = rested_since - ?", (AN_HOUR_MS,))
        file.execute("UPDATE enis SET attached_at = attached_at - ?", (AN_HOUR_MS,))
        file.execute("UPDATE api_calls SET at = at - ?", (AN_HOUR_MS,))


def held(lab: Lab) -> list[int]:
    """How many secondary addresses EC2 delivers to each interface of the node's, or meant for it."""
    return sorted(len(secondaries(eni)) for eni in interfaces(lab))


def interfaces(lab: Lab) -> list[dict[str, Any]]:
    instance = lab.nodes[0].instance
    with lab.cloud.lock:
        lab.cloud.run_due()
        return [
            eni
            for eni in lab.cloud.scan("interface")
            if eni.get("Attachment", {}).get("InstanceId") == instance
            or any(tag["Value"] == instance for tag in eni.get("TagSet", ()))
        ]


def forget_tags(lab: Lab) -> None:
    """Somebody takes our mark off the node's interfaces."""
    for eni in interfaces(lab):
        if eni["TagSet"]:
            lab.ec2.delete_tags(Resources=[eni["NetworkInterfaceId"]], Tags=eni["TagSet"])


def regroup(lab: Lab) -> str:
    """Somebody gives the primary interface another security group, which the node's others follow; its id."""
    [primary] = [eni for eni in interfaces(lab) if eni["Attachment"]["DeviceIndex"] == 0]
    group = lab.ec2.create_security_group(
        GroupName="other", Description="another", VpcId=primary["VpcId"]
    )["GroupId"]
    lab.ec2.modify_network_interface_attribute(
        NetworkInterfaceId=primary["NetworkInterfaceId"], Groups=[group]
    )
    return str(group)


def groups(lab: Lab) -> set[str]:
    """Of all the node's interfaces together."""
    return {group["GroupId"] for eni in interfaces(lab) for group in eni["Groups"]}


def blocks(lab: Lab) -> int:
    """How many prefixes EC2 delegates to the node's interfaces."""
    return sum(len(eni.get("Ipv4Prefixes", ())) for eni in interfaces(lab))


def secondaries(eni: dict[str, Any]) -> set[str]:
    """The interface's secondary addresses, those of its prefixes included."""
    single = {a["PrivateIpAddress"] for a in eni["PrivateIpAddresses"] if not a["Primary"]}
    delegated = [ipaddress.ip_network(p["Ipv4Prefix"]) for p in eni.get("Ipv4Prefixes", ())]
    return single | {str(address) for block in delegated for address in block}


def agree(lab: Lab) -> None:
    """No orphan, no address twice, one interface for a token; the ledger has what EC2 has."""
    node = lab.nodes[0]
    enis = interfaces(lab)
    rows = live.rows(node, "SELECT eni_id FROM v_enis WHERE state <> 'gone'")
    assert {row["eni_id"] for row in rows} == {eni["NetworkInterfaceId"] for eni in enis}
    assert all(eni["Attachment"]["DeleteOnTermination"] for eni in enis)
    rows = live.rows(node, "SELECT address, eni_id FROM v_addresses WHERE released_at IS NULL")
    known = sorted((row["eni_id"], row["address"]) for row in rows)
    assert known == sorted((e["NetworkInterfaceId"], a) for e in enis for a in secondaries(e))
    made = [t["Value"] for e in enis for t in e.get("TagSet", ()) if t["Key"] == "vpcledger/intent"]
    assert len(made) == len(set(made))


def rest(lab: Lab, wanted: Callable[[], bool], settings: dict[str, str]) -> None:
    """A daemon that nobody kills comes to this end; then it is away again."""
    node = lab.nodes[0]
    node.start_daemon(**settings)
    try:
        live.until(wanted, f"the end under {settings}")
    except AssertionError as late:
        raise AssertionError(f"{late}; {held(lab)}; {node.tail()}") from None
    live.settle(node)
    live.until(lambda: not live.rows(node, DOUBT), "an outcome of every call")
    agree(lab)
    node.stop_daemon()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One instance, its daemon not yet started."""
    with Lab(nodes=1, attach_delay=0.1, throttle=None) as whole:
        yield whole


@pytest.mark.parametrize("moment", [*MOMENTS, None])
def test_killed_at_each_step_of_growth_and_of_giving_back(lab: Lab, moment: Moment | None) -> None:
    """Nine calls, a death at each; the same addresses and interfaces as with none (None)."""
    node, kubelet = lab.nodes[0], lab.kubelets[0]

    def deaths(settings: dict[str, str], *actions: str) -> None:
        for action in actions:
            let_an_hour_pass(node)
            if moment is not None:
                killed_at(lab, action, moment, settings)
        let_an_hour_pass(node)

    node.start_daemon(**LITTLE)
    pods = kubelet.start_all(["web-0", "web-1"])
    live.settle(node)
    node.stop_daemon()
    forget_tags(lab)

    deaths(LITTLE, "CreateTags")
    rest(lab, lambda: held(lab) == [3], LITTLE)
    deaths(MUCH, *GROWTH)
    rest(lab, lambda: held(lab) == [3, 9], MUCH)
    group = regroup(lab)
    deaths(MUCH, "ModifyNetworkInterfaceAttribute")
    rest(lab, lambda: groups(lab) == {group}, MUCH)
    deaths(LESS, "UnassignPrivateIpAddresses")
    rest(lab, lambda: held(lab) in ([2, 9], [3, 8]), LESS)
    deaths(LITTLE, "DetachNetworkInterface", "DeleteNetworkInterface")
    rest(lab, lambda: held(lab) == [3], LITTLE)

    created = lab.front.journal.rows(who=node.instance, action="CreateNetworkInterface")
    assert len({row.params["ClientToken"] for row in created}) == 1
    node.start_daemon()
    for pod in pods:
        kubelet.check(pod)
        assert pod.ping(node.address)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_prefixes_come_and_go(lab: Lab, moment: Moment) -> None:
    """As many blocks as are wanted, and in the ledger what EC2 has."""
    node = lab.nodes[0]
    rest(lab, lambda: blocks(lab) == 1, BLOCK)
    killed_at(lab, "AssignPrivateIpAddresses", moment, BLOCKS)
    rest(lab, lambda: blocks(lab) == 2, BLOCKS)
    let_an_hour_pass(node)
    killed_at(lab, "UnassignPrivateIpAddresses", moment, BLOCK)
    let_an_hour_pass(node)
    rest(lab, lambda: blocks(lab) == 1, BLOCK)
