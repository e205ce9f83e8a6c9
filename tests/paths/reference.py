"""What a node needs besides routes and rules for its pods, laid by hand: the paths' tests without a daemon for it.

It stands in only where the daemon has made no table of its own, and goes when it does on every node. What
the right table is, is the planner's affair; this one says that the paths can be had at all.
"""

from __future__ import annotations

from tests.lab.node import Node

_RANDOM = {"hashrandom": "random", "none": ""}


def lay(node: Node, mode: str) -> None:
    """Marks, source translation, the rule for marked packets, a loose reverse path on eth0."""
    if "table ip vpcledger\n" in node.netns.command("nft", "list", "tables"):
        return
    cidrs = ["10.0.0.0/16", *(["10.1.0.0/16", "172.16.0.0/16"] if mode == "excluded" else [])]
    exempt = f"ip daddr {{ {', '.join(cidrs)} }} return"
    snat = mode != "external"
    lines = [
        "table ip reference {}",
        "delete table ip reference",
        "table ip reference {",
        "chain inbound { type filter hook prerouting priority -150;",
        'iifname "eth0" fib daddr . iif type local ct mark set ct mark or 0x80',
        "}",
        "chain outbound { type filter hook prerouting priority -90;",
        *(['iifname "eni*" ct state new ct direction original jump beyond'] if snat else []),
        'iifname "eni*" ct mark and 0x80 == 0x80 meta mark set meta mark or 0x80',
        "}",
        "chain beyond {",
        "fib daddr type local return",
        exempt,
        "ct mark set ct mark or 0x80",
        "}",
        "chain translate { type nat hook postrouting priority 110;",
        "fib saddr . oif type local return",
        "fib daddr type local return",
        exempt,
        *([f"snat to {node.address} {_RANDOM.get(mode, 'fully-random')}"] if snat else []),
        "}",
        "}",
    ]
    node.netns.command("nft", "-f", "-", stdin="\n".join(lines))
    if "1024:" not in node.netns.command("ip", "rule"):
        rule = "rule add fwmark 0x80/0x80 lookup main priority 1024"
        node.netns.command("ip", "-batch", "-", stdin=rule)
    node.netns.sysctl("ipv4/conf/eth0/rp_filter", 2)
