"""A running daemon's table, marks and sysctls: there before pods, mended when broken, silent otherwise."""

from __future__ import annotations

import time

import pytest

from tests.lab import spaces
from tests.lab.kubelet import Sandbox
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))

REPAIR_S = 1.0
INTERNET = "198.51.100.1"
"""An address of the lab that is off the VPC."""


@pytest.fixture(scope="module")
def pods(served: Lab) -> list[Sandbox]:
    """Pods of node1 on both of its interfaces, once the warm pool rests."""
    started = served.kubelets[0].start_all(f"web-{n}" for n in range(12))
    live.settle(served.nodes[0])
    return started


@pytest.fixture(scope="module")
def second(served: Lab, pods: list[Sandbox]) -> Sandbox:
    """A pod whose address is on the second interface."""
    return next(pod for pod in pods if live.interface_of(served, pod) == 1)


@pytest.fixture
def node(served: Lab, pods: list[Sandbox]) -> Node:
    return served.nodes[0]


def nft(node: Node, *words: str, stdin: str = "") -> str:
    return node.netns.command("nft", *words, stdin=stdin)


def picture(node: Node) -> list[str]:
    """Links, addresses, rules, routes, all of nftables without counters, and what rp_filter says."""
    ruleset = nft(node, "-s", "list", "ruleset")
    tables = sorted(f"table {each}" for each in ruleset.split("\ntable "))
    return [*live.picture(node), *tables, node.netns.sysctl("ipv4/conf/eth0/rp_filter")]


def last_line(node: Node) -> int:
    return int(live.rows(node, "SELECT max(id) AS last FROM v_journal")[0]["last"])


def test_the_table_is_there_when_pods_can_come(node: Node) -> None:
    listed = nft(node, "list", "table", "ip", "vpcledger")
    assert f"snat to {node.address} fully-random" in listed
    assert 'iifname "eth0" fib daddr . iif type local' in listed
    assert "fwmark 0x80/0x80 lookup main" in node.netns.command(
        "ip", "rule", "show", "pref", "1024"
    )
    assert node.netns.sysctl("ipv4/conf/eth0/rp_filter") == "2"


def test_off_the_vpc_a_pods_packets_leave_by_eth0_with_the_nodes_address(
    node: Node, second: Sandbox
) -> None:
    """Counted where they leave; the answers come back through loose reverse path filtering."""
    nft(node, "-f", "-", stdin=COUNTING.replace("THE_POD", second.address))
    try:
        assert second.ping(INTERNET, wait=5)
        counted = nft(node, "list", "table", "ip", "counting")
    finally:
        nft(node, "delete", "table", "ip", "counting")
    assert f"ip saddr {second.address} counter packets 0 " in counted
    assert 'oifname "eth1" ip daddr 198.51.100.1 counter packets 0 ' in counted
    assert 'oifname "eth0" ip daddr 198.51.100.1 counter packets 1 ' in counted


FOREIGN_BIT = 0x40000


def test_others_bits_of_a_packets_mark_survive_on_every_packet(node: Node, second: Sandbox) -> None:
    """Somebody marks before us; all of it is still there when the packet leaves, with ours beside it."""
    nft(
        node,
        "-f",
        "-",
        stdin=f"""
table ip somebody {{
    chain early {{
        type filter hook prerouting priority -160; policy accept;
        iifname "eni*" ip daddr {INTERNET} meta mark set meta mark | {FOREIGN_BIT}
    }}
    chain late {{
        type filter hook postrouting priority 300; policy accept;
        oifname "eth0" ip daddr {INTERNET} meta mark {FOREIGN_BIT | 0x80:#x} counter comment "both"
        oifname "eth0" ip daddr {INTERNET} counter comment "all"
    }}
}}
""",
    )
    try:
        second.netns.command("ping", "-c3", "-i0.1", "-W5", INTERNET)
        counted = nft(node, "list", "table", "ip", "somebody")
    finally:
        nft(node, "delete", "table", "ip", "somebody")
    lines = [line for line in counted.splitlines() if "counter" in line]
    assert [line.partition("packets ")[2].split()[0] for line in lines] == ["3", "3"]


COUNTING = f"""
table ip counting {{
    chain out {{
        type filter hook postrouting priority 300; policy accept;
        oifname "eth1" ip daddr {INTERNET} counter
        oifname "eth0" ip daddr {INTERNET} counter
        oifname "eth0" ip saddr THE_POD counter
    }}
}}
"""

VANDALISM = {
    "our table deleted": "nft delete table ip vpcledger",
    "all tables flushed": "nft flush ruleset",
    "a chain emptied": "nft flush chain ip vpcledger translate",
    "a rule slipped in": "nft insert rule ip vpcledger off-vpc accept",
    "our table put to sleep": "nft add table ip vpcledger { flags dormant; }",
    "the rule for the mark deleted": "ip rule del pref 1024",
    "the rules flushed": "ip rule flush",
    "a table of routes flushed": "ip route flush table 2",
    "rp_filter set back": "sysctl -qw net.ipv4.conf.eth0.rp_filter=1",
}


@pytest.mark.parametrize("act", VANDALISM)
def test_what_is_broken_is_mended_within_a_second(node: Node, second: Sandbox, act: str) -> None:
    """`ip rule flush` and `ip route flush` are what systemd-networkd does when it is restarted."""
    before = picture(node)
    began = time.monotonic()
    if act == "rp_filter set back":
        node.netns.sysctl("ipv4/conf/eth0/rp_filter", 1)
    else:
        node.netns.command("sh", "-c", VANDALISM[act].replace("{", "'{").replace("}", "}'"))
    if act == "the rules flushed":  # the kernel's own are not ours to bring back
        node.netns.command("ip", "rule", "add", "pref", "32766", "lookup", "main")
        node.netns.command("ip", "rule", "add", "pref", "32767", "lookup", "default")

    live.until(lambda: _like(picture(node), before), f"the repair of {act}")

    assert time.monotonic() - began < REPAIR_S
    assert second.ping(INTERNET, wait=5)


def _like(now: list[str], before: list[str]) -> bool:
    """The same objects; whose hand made a rule (its protocol) is not seen where the kernel's were lost."""
    return [row.replace(', "protocol": "kernel"', "") for row in now] == [
        row.replace(', "protocol": "kernel"', "") for row in before
    ]


def test_others_tables_are_never_touched(node: Node) -> None:
    """Byte for byte, handles included, through a repair beside them."""
    foreign = [f"table ip foreign{n} {{ chain c {{ counter; }}; }}" for n in range(25)]
    foreign += [f"table inet vpcledger{n} {{ set s {{ type ipv4_addr; }}; }}" for n in range(25)]
    nft(node, "-f", "-", stdin="\n".join(foreign))
    names = [line.split()[1:3] for line in foreign]
    before = [nft(node, "-a", "list", "table", *name) for name in names]
    nft(node, "delete", "table", "ip", "vpcledger")
    live.until(lambda: "table ip vpcledger\n" in nft(node, "list", "tables"), "our table")
    assert [nft(node, "-a", "list", "table", *name) for name in names] == before
    for name in names:
        nft(node, "delete", "table", *name)


def test_others_transactions_are_no_work(node: Node) -> None:
    """However many rules somebody else changes, nothing is written by us, to the kernel or the ledger."""
    last, handle = last_line(node), nft(node, "-a", "list", "table", "ip", "vpcledger")
    rules = "".join(
        f"add rule ip many c ip daddr 10.9.{n >> 8}.{n & 255} accept\n" for n in range(999)
    )
    nft(node, "-f", "-", stdin=f"add table ip many\nadd chain ip many c\n{rules}")
    nft(node, "delete", "table", "ip", "many")
    nft(node, "delete", "table", "ip", "vpcledger")  # a change of ours as the end of the wait
    live.until(lambda: "table ip vpcledger\n" in nft(node, "list", "tables"), "our table")
    told = live.rows(node, f"SELECT kind FROM v_journal WHERE id > {last}")
    assert [row["kind"] for row in told] == ["kernel.mended"]
    assert nft(node, "list", "table", "ip", "vpcledger").count("\n") == handle.count("\n")
    assert "nat_failed" not in live.findings(node)


def test_a_restart_writes_nothing_that_is_there_already(node: Node) -> None:
    """The same objects with the same handles, and not one line in the journal about the kernel."""
    before, handles = picture(node), nft(node, "-s", "-a", "list", "ruleset")
    last = last_line(node)
    assert node.stop_daemon() == 0
    assert (picture(node), nft(node, "-s", "-a", "list", "ruleset")) == (before, handles)

    node.start_daemon()
    live.settle(node)

    assert (picture(node), nft(node, "-s", "-a", "list", "ruleset")) == (before, handles)
    told = live.rows(node, f"SELECT kind FROM v_journal WHERE id > {last} AND kind LIKE 'kernel.%'")
    assert told == []


def test_settings_that_change_change_the_table_and_what_is_remembered_stays(node: Node) -> None:
    """An earlier mark keeps its rule until the next boot, for open connections bear it."""
    try:
        assert node.stop_daemon() == 0
        node.start_daemon(
            AWS_VPC_K8S_CNI_CONNMARK="0x100",
            AWS_VPC_K8S_CNI_RANDOMIZESNAT="none",
            AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS="198.51.100.0/24",
            AWS_EXTERNAL_SERVICE_CIDRS="203.0.113.0/24",
            AWS_VPC_CNI_NODE_PORT_SUPPORT="false",
            DISABLE_TCP_EARLY_DEMUX="true",
        )
        live.until(lambda: f"snat to {node.address}\n" in nft(node, "list", "ruleset"), "the table")
        live.settle(node)
        assert node.netns.sysctl("ipv4/tcp_early_demux") == "0"
        listed = nft(node, "list", "table", "ip", "vpcledger")
        assert "ip daddr 198.51.100.0/24 return" in listed
        assert "fib daddr . iif" not in listed
        for mark in ("0x00000080", "0x00000100"):
            assert f"ct mark & {mark} == {mark} meta mark set meta mark | {mark}" in listed
        rules = node.netns.command("ip", "rule")
        assert "fwmark 0x80/0x80 lookup main" in rules
        assert "fwmark 0x100/0x100 lookup main" in rules
        assert "1535:\tfrom all to 203.0.113.0/24 lookup main" in rules
    finally:
        for name in (
            "AWS_VPC_K8S_CNI_CONNMARK",
            "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
            "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
            "AWS_EXTERNAL_SERVICE_CIDRS",
            "AWS_VPC_CNI_NODE_PORT_SUPPORT",
            "DISABLE_TCP_EARLY_DEMUX",
        ):
            node.environment.pop(name, None)
        node.stop_daemon()
        node.start_daemon()
        live.settle(node)
    rules = node.netns.command("ip", "rule")
    assert node.netns.sysctl("ipv4/tcp_early_demux") == "1"
    assert "1535:" not in rules
    assert "fwmark 0x100/0x100 lookup main" in rules
