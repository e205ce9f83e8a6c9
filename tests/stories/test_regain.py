"""A live pod's address is taken from its interface: the pod gets it back, whatever happens to the call.

Told on the stories' stage, where EC2 is the lab's by its wire format and the daemon may die at any moment.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from reconciler import settings as knobs
from tests.stories import door
from tests.stories.scene import Scene
from tests.stories.test_found import told

SINGLE = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0)
WHOLE = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0, prefix_delegation=True)
ASSIGN, UNASSIGN = "AssignPrivateIpAddresses", "UnassignPrivateIpAddresses"
KINDS = {"PrivateIpAddresses": SINGLE, "Ipv4Prefixes": WHOLE}
FAULTS: dict[str, dict[str, Any] | None] = {
    "nothing": None,
    "reply lost": {"drop": True},
    "request lost": {"drop": True, "error": "InternalError"},
    "refused": {"error": "UnauthorizedOperation"},
    "throttled": {"error": "RequestLimitExceeded"},
}
AUDIT_S = 3_700


def taken_away(node: Scene, kind: str, pods: int = 2) -> tuple[str, list[str], dict[str, str]]:
    """Somebody takes the pods' addresses from their interface: its id, their names, the pods' addresses."""
    node.runtime.want(pods)
    node.settle()
    node.pass_(600)  # until no picture can be older than the assignment
    before = told_to(node)
    desired = node.machine.desired()
    held = [a for a in desired.addresses if a.address in before.values()]
    [eni_id] = {a.eni_id for a in held}
    names = sorted({a.prefix or a.address for a in held})
    node.operator(UNASSIGN, NetworkInterfaceId=eni_id, **{kind: names})
    return eni_id, names, before


def told_to(node: Scene) -> dict[str, str]:
    """What each running pod was told is its address."""
    return {each.container: each.address for each in node.runtime.sandboxes if each.state == "up"}


def dark(node: Scene) -> set[str]:
    """Addresses of running pods that EC2 does not deliver to this node."""
    held = door.truth(node.cloud, node.ec2.node).values()
    return {*told_to(node).values()}.difference(*(door.secondaries(eni) for eni in held))


def asked_back(node: Scene, kind: str) -> list[Any]:
    """Calls that named something to be assigned."""
    rows = node.ec2.journal.rows(who=node.ec2.node, action=ASSIGN)
    return [row for row in rows if row.params.get(kind)]


def effective(node: Scene, kind: str) -> list[Any]:
    """Those that EC2 carried out."""
    return [row for row in asked_back(node, kind) if row.outcome == "ok"]


def look(node: Scene) -> None:
    """Have EC2 looked at, as it is once an hour."""
    node.machine.cloud_loop.look_again()
    node.machine.rung.add("cloud")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_live_pod_gets_its_own_address_back(kind: str, fault: str) -> None:
    """By name, so that a lost reply is settled by saying the same again: nothing is assigned twice."""
    with told(instance_type="t3.small", settings=KINDS[kind]) as node:
        eni_id, names, before = taken_away(node, kind)
        assert dark(node) == {*before.values()}
        rule = FAULTS[fault]
        if rule:
            node.ec2.faults.add(op=ASSIGN, who=node.ec2.node, times=1, **rule)
        node.pass_(AUDIT_S)
        node.ec2.faults.clear()
        node.settle()
        assert dark(node) == set()
        assert told_to(node) == before
        named = asked_back(node, kind)
        assert {row.params["NetworkInterfaceId"] for row in named} == {eni_id}
        assert {each for row in named for each in row.params[kind]} == {*names}
        assert not any(row.params.get("AllowReassignment") for row in named)
        assert len(effective(node, kind)) == 1, "EC2 assigned it once"


@pytest.mark.parametrize("kind", KINDS)
def test_a_daemon_that_dies_at_any_moment_of_it_gets_it_back_once(kind: str) -> None:
    """Killed at the first, second, ... commit or call from the look that notices it on, until none is left."""
    with told(instance_type="t3.small", settings=KINDS[kind]) as node:
        eni_id, names, before = taken_away(node, kind)
        for moment in itertools.count():
            already = len(effective(node, kind))
            deaths, node.machine.fuse = node.machine.crashes, moment
            look(node)
            node.pass_(10)
            survived = node.machine.crashes == deaths
            node.machine.fuse = None
            node.start()
            node.pass_(400)
            assert (told_to(node), dark(node)) == (before, set()), f"killed at moment {moment}"
            assert len(effective(node, kind)) == already + 1, f"killed at moment {moment}"
            if survived:
                break
            node.operator(UNASSIGN, NetworkInterfaceId=eni_id, **{kind: names})
        node.settle()
        assert moment > 10, "it was killed at too few of the steps"


def test_an_address_that_somebody_else_has_now_stays_theirs_and_is_a_finding() -> None:
    """Never with AllowReassignment; the finding closes when the pod is made anew, with another address."""
    with told(instance_type="t3.small", settings=SINGLE) as node:
        eni_id, [address], _ = taken_away(node, "PrivateIpAddresses", pods=1)
        [subnet] = {eni.subnet_id for eni in node.machine.desired().enis if eni.eni_id == eni_id}
        theirs = node.operator(
            "CreateNetworkInterface",
            SubnetId=subnet,
            PrivateIpAddresses=[
                {"PrivateIpAddress": address, "Primary": False},
                {"PrivateIpAddress": _free(node, subnet), "Primary": True},
            ],
        )["NetworkInterface"]["NetworkInterfaceId"]
        node.pass_(AUDIT_S)
        findings = "SELECT code, subject FROM v_findings WHERE closed IS NULL"
        assert node.machine.rows(findings) == [{"code": "address_lost", "subject": address}]
        calls = len(asked_back(node, "PrivateIpAddresses"))
        node.pass_(AUDIT_S)
        assert len(asked_back(node, "PrivateIpAddresses")) == calls == 1
        node.runtime.replace(1)
        node.settle()
        assert address not in told_to(node).values()
        assert node.machine.rows(findings) == []
        [eni] = [e for e in node.cloud.scan("interface") if e["NetworkInterfaceId"] == theirs]
        assert address in door.secondaries(eni)


def _free(node: Scene, subnet: str) -> str:
    """An address of the subnet that nobody has."""
    made = node.operator("CreateNetworkInterface", SubnetId=subnet)["NetworkInterface"]
    node.operator("DeleteNetworkInterface", NetworkInterfaceId=made["NetworkInterfaceId"])
    return str(made["PrivateIpAddress"])


def test_what_only_seems_gone_is_asked_for_without_harm() -> None:
    """It was given back already, and EC2's picture is older than that: saying it again changes nothing."""
    with told(instance_type="t3.small", settings=SINGLE) as node:
        node.cloud.api_lag = 200
        eni_id, names, before = taken_away(node, "PrivateIpAddresses")
        node.pass_(100)
        node.operator(ASSIGN, NetworkInterfaceId=eni_id, PrivateIpAddresses=names)
        node.pass_(150)
        look(node)
        node.pass_(1)
        assert asked_back(node, "PrivateIpAddresses"), "the picture was not that old"
        assert dark(node) == set()
        node.cloud.api_lag = 0
        node.pass_(400)
        node.settle()
        assert told_to(node) == before
        assert dark(node) == set()
