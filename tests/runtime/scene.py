"""Two nodes of the lab, each with a daemon and a containerd, and a picture of all that pods may leave there.

The first has the usual chain of plugins, the second the longest: bandwidth and tuning behind portmap.
What a test does with them does not belong here.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live
from tests.runtime.containerd import Containerd, keep_results_inside

POOL = {"MINIMUM_IP_TARGET": "9", "IP_COOLDOWN_PERIOD": "1"}
"""Nine addresses, which the first interface carries: pods come and go without a call to EC2."""
SWEEP = {"VPCLEDGER_SANDBOX_INTERVAL": "2"}
"""Looks for pods that went without a deletion come quickly; it still takes two that agree."""
LONG_CHAIN = {"ENABLE_BANDWIDTH_PLUGIN": "true", "DISABLE_POD_V6": "true"}

PATIENCE_S = 60.0


@dataclass(slots=True, eq=False)
class Scene:
    """The lab and the runtimes of its two nodes, in order."""

    lab: Lab
    runtimes: list[Containerd]

    def up(self) -> None:
        """Start daemons and runtimes, and one pod each that leaves what plugins never take away."""
        keep_results_inside()
        chains: list[dict[str, str]] = [{}, LONG_CHAIN]
        at_once(*map(self._start_daemon, self.runtimes, chains))
        self.lab.on_each(Containerd.start, self.runtimes)
        self.lab.on_each(_first_pod, self.runtimes)
        self.lab.on_each(live.settle, self.lab.nodes)

    @staticmethod
    def _start_daemon(runtime: Containerd, chain: dict[str, str]) -> Callable[[], None]:
        asks = {"VPCLEDGER_CRI_SOCKET": str(runtime.socket)}
        return lambda: runtime.node.start_daemon(**POOL, **SWEEP, **chain, **asks)

    def down(self) -> None:
        """End the runtimes; the lab is its maker's."""
        self.lab.on_each(Containerd.close, self.runtimes)

    def picture(self) -> Counter[str]:
        """What is on the nodes now, each thing in words with how often it is there."""
        seen: Counter[str] = Counter()
        for things in self.lab.on_each(_things, self.runtimes):
            seen.update(things)
        return seen

    def leases(self) -> list[str]:
        """Open leases of both nodes."""
        asked = "SELECT pod_name, address, state FROM v_leases WHERE state <> 'ended'"
        found = self.lab.on_each(lambda node: live.rows(node, asked), self.lab.nodes)
        return [str(row) for rows in found for row in rows]

    def await_picture(self, before: Counter[str]) -> None:
        """Until all is as it was; AssertionError with what is there besides, or no longer.

        The daemon removes links and closes sockets behind its replies, containerd ends its shims so.
        """
        deadline = time.monotonic() + PATIENCE_S
        while (now := self.picture()) != before:
            assert time.monotonic() < deadline, f"left: {now - before}\ngone: {before - now}"
            time.sleep(0.1)
        open_leases = self.leases()
        assert open_leases == []


def _things(runtime: Containerd) -> list[str]:
    """What is on one node."""
    node = runtime.node
    found = [*runtime.leftovers(), *live.picture(node), *_firewall(node), *_open(node)]
    found += [f"spooled {path.name}" for path in (node.state / "spool").glob("*.del")]
    return [f"{node.name}: {thing}" for thing in found]


def _first_pod(runtime: Containerd) -> None:
    """portmap makes its chains with the first host port and leaves them, empty, for good."""
    runtime.end(runtime.run("first", ports={7999: 79}))


def _firewall(node: Node) -> Iterable[str]:
    """Tables, chains, rules and set elements without counters and numbers that change by themselves."""
    for item in json.loads(node.netns.command("nft", "-j", "list", "ruleset"))["nftables"]:
        yield f"nft {json.dumps(_still(item), sort_keys=True)}"


def _still(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _still(item[key]) for key in item if key not in {"handle", "packets", "bytes"}}
    return [_still(each) for each in item] if isinstance(item, list) else item


def _open(node: Node) -> Iterable[str]:
    """The daemon's descriptors, each by its kind: `socket`, `net`, or a path.

    Every thread that reads keeps a connection to the ledger, and a lane's thread starts when two lanes
    first overlap: connections are told only where there are more than threads, the writer's and the
    checkpointer's.
    """
    assert node.daemon
    process = Path(f"/proc/{node.daemon.pid}")
    found: Counter[str] = Counter()
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found[f"open {str(link.readlink()).partition(':')[0]}"] += 1
    connections = len(list((process / "task").iterdir())) + 2
    for path in (node.ledger, f"{node.ledger}-wal"):
        found[f"open {path}"] = max(1, found[f"open {path}"] - connections)
    return found.elements()


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """Do all of it at the same time; the results in order, or the first error."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [each.result() for each in [pool.submit(one) for one in work]]
