"""What an ADD puts into the kernel, object for object as `ip` shows it, and what the runtime is told of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import spaces
from tests.reconciler.door import Door, Pod

pytestmark = pytest.mark.netns

LOCALLY_ADMINISTERED, GROUP = 2, 1
"""Bits of a MAC's first octet (IEEE 802)."""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """One address on each interface: the first pod is the primary's, the second the other's."""
    made = Door(tmp_path, addresses=(1, 1))
    yield made
    made.close()


def ip(netns: spaces.Netns, *what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(netns.command("ip", "-4", "-d", "-j", *what) or "[]")
    return found


def selected(rows: list[dict[str, Any]], *keys: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.get(key) for key in keys) for row in rows)


def rules(netns: spaces.Netns) -> list[tuple[Any, ...]]:
    return selected(ip(netns, "rule"), "priority", "src", "dst", "table", "protocol")


def routes(netns: spaces.Netns, table: str) -> list[tuple[Any, ...]]:
    rows = ip(netns, "route", "show", "table", table)
    return selected(rows, "dst", "gateway", "dev", "scope", "protocol")


def names(netns: spaces.Netns) -> set[str]:
    return {row["ifname"] for row in ip(netns, "link")}


def link(netns: spaces.Netns, name: str) -> dict[str, Any]:
    (row,) = ip(netns, "link", "show", name)
    return row


def host_name(pod: Pod) -> str:
    return str(pod.result["interfaces"][0]["name"])


@pytest.mark.parametrize("nth", [0, 1])
def test_the_node_gets_a_link_a_route_and_rules_and_nothing_else(door: Door, nth: int) -> None:
    """A pod of the primary interface has rule 512 alone; another's has rule 1536 as well."""
    pods = [door.pod(), door.pod()]
    if nth == 1:
        pods[0].result = door.call("ADD", pods[0]).said
    pod = pods[nth]
    links, before, main = names(door.node), rules(door.node), routes(door.node, "main")
    addresses = ip(door.node, "address")
    other = routes(door.node, "2")

    pod.result = door.call("ADD", pod).said

    name, lease = host_name(pod), door.lease(pod)
    assert lease is not None
    assert names(door.node) - links == {name}
    row = link(door.node, name)
    assert row["linkinfo"]["info_kind"] == "veth"
    assert (row["mtu"], row["ifalias"]) == (9001, f"vpcledger:{lease.id}")
    assert "UP" in row["flags"]
    assert int(row["address"][:2], 16) & (LOCALLY_ADMINISTERED | GROUP) == LOCALLY_ADMINISTERED
    added = [each for each in rules(door.node) if each not in before]
    expected: list[tuple[Any, ...]] = [(512, "all", pod.address, "main", "201")]
    if nth == 1:
        expected.append((1536, pod.address, None, "2", "201"))
    assert added == expected
    assert [each for each in routes(door.node, "main") if each not in main] == [
        (pod.address, None, name, "link", "201")
    ]
    assert routes(door.node, "2") == other
    assert [each for each in ip(door.node, "address") if each.get("ifname") != name] == addresses
    assert ip(door.node, "address", "show", name) in ([], [{}])


def test_the_pod_gets_its_address_two_routes_and_a_neighbour(door: Door) -> None:
    pod = door.added()
    inside = pod.netns
    host = link(door.node, host_name(pod))

    assert names(inside) == {"lo", "eth0"}
    row = link(inside, "eth0")
    assert (row["mtu"], row["linkinfo"]["info_kind"]) == (9001, "veth")
    assert row["address"] not in {host["address"], "00:00:00:00:00:00"}
    (shown,) = ip(inside, "address", "show", "eth0")
    (address,) = shown["addr_info"]
    assert (address["local"], address["prefixlen"]) == (pod.address, 32)
    assert routes(inside, "main") == [
        ("169.254.1.1", None, "eth0", "link", "201"),
        ("default", "169.254.1.1", "eth0", "global", "201"),
    ]
    (neighbour,) = [row for row in ip(inside, "neigh") if "PERMANENT" in row["state"]]
    assert (neighbour["dst"], neighbour["lladdr"]) == ("169.254.1.1", host["address"])
    assert [each[0] for each in rules(inside)] == [0, 32766, 32767]


@pytest.mark.parametrize("ifname", ["eth0", "net1", "a-15-byte-name-"])
def test_the_pods_end_has_the_name_the_runtime_chose(door: Door, ifname: str) -> None:
    pod = door.pod(ifname=ifname)
    pod.result = door.call("ADD", pod).said
    assert names(pod.netns) == {"lo", ifname}
    assert pod.pings("10.0.0.4")
    assert door.call("DEL", pod).status == 0
    assert names(pod.netns) == {"lo"}


def test_two_interfaces_of_one_pod_have_an_address_and_a_host_link_each(door: Door) -> None:
    """Their host links differ by name, and deleting one leaves the other."""
    pod = door.added("web-1")
    twin = door.pod("web-1", ifname="net1")
    twin.netns.close()
    twin.netns, twin.container = pod.netns, pod.container
    answer = door.call("ADD", twin)
    assert answer.status == 0, answer.said
    twin.result = answer.said
    assert twin.address != pod.address
    assert host_name(twin) != host_name(pod)

    assert door.call("DEL", twin).status == 0

    assert names(pod.netns) == {"lo", "eth0"}
    assert door.lease(pod) is not None
    assert door.call("CHECK", pod, prevResult=pod.result).status == 0
    assert pod.pings("10.0.0.4")
    door.pods.remove(twin)


def test_settings_choose_the_mtu_and_the_links_prefix(tmp_path: Path) -> None:
    door = Door(tmp_path, POD_MTU="1300", AWS_VPC_K8S_CNI_VETHPREFIX="veth")
    try:
        pod = door.added("web-1")
        name = host_name(pod)
        assert name == "veth0761ccbeace"
        assert (link(door.node, name)["mtu"], link(pod.netns, "eth0")["mtu"]) == (1300, 1300)
    finally:
        door.close()


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_the_whole_result_is_that_of_its_version(door: Door, version: str) -> None:
    """`version` in an address before 1.0.0, the links' MTU from 1.1.0 on (CNI specification, section 5)."""
    pod = door.pod()
    said = door.call("ADD", pod, cniVersion=version).said
    lease = door.lease(pod)
    assert lease is not None

    host: dict[str, Any] = {"name": lease.host_ifname, "mac": lease.host_mac}
    mac = link(pod.netns, "eth0")["address"]
    inside: dict[str, Any] = {"name": "eth0", "mac": mac, "sandbox": pod.netns.path}
    address: dict[str, Any] = {"address": f"{lease.address}/32", "interface": 1}
    if version < "1.0.0":
        address["version"] = "4"
    if version == "1.1.0":
        host["mtu"] = inside["mtu"] = 9001
    assert said == {
        "cniVersion": version,
        "interfaces": [host, inside],
        "ips": [address],
        "dns": {},
    }
