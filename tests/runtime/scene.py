"""Two nodes of the lab, each with a daemon and a containerd, and a picture of all that pods may leave there.

The first has the usual chain of plugins, the second the longest: bandwidth and tuning behind portmap.
What a test does with them does not belong here.
"""

from __future__ import annotations

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
        one, two = self.lab.nodes
        at_once(lambda: one.start_daemon(**POOL), lambda: two.start_daemon(**POOL, **LONG_CHAIN))
        self.lab.on_each(Containerd.start, self.runtimes)
        self.lab.on_each(_first_pod, self.runtimes)
        self.lab.on_each(live.settle, self.lab.nodes)

    def down(self) -> None:
        """End the runtimes; the lab is its maker's."""
        self.lab.on_each(Containerd.close, self.runtimes)

    def picture(self) -> Counter[str]:
        """What is on the nodes now, each thing in words with how often it is there."""
        seen: Counter[str] = Counter()
        for runtime in self.runtimes:
            node = runtime.node
            things = [*runtime.leftovers(), *live.picture(node), *_firewall(node), *_open(node)]
            things += [f"spooled {path.name}" for path in (node.state / "spool").glob("*.del")]
            seen.update(f"{node.name}: {thing}" for thing in things)
        return seen

    def leases(self) -> list[str]:
        """Open leases of both nodes."""
        asked = "SELECT pod_name, address, state FROM v_leases WHERE state <> 'ended'"
        return [f"{node.name}: {row}" for node in self.lab.nodes for row in live.rows(node, asked)]

    def await_picture(self, before: Counter[str]) -> None:
        """Until all is as it was; AssertionError with what is there besides, or no longer.

        The daemon removes links and closes sockets behind its replies, containerd ends its shims so.
        """
        deadline = time.monotonic() + PATIENCE_S
        while (now := self.picture()) != before:
            assert time.monotonic() < deadline, f"left: {now - before}\ngone: {before - now}"
            time.sleep(0.1)
        assert self.leases() == []


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
    """The daemon's descriptors, each by its kind: `socket`, `net`, or a path."""
    assert node.daemon
    for link in Path(f"/proc/{node.daemon.pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue  # closed meanwhile
        yield f"open {target.partition(':')[0]}"


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """Do all of it at the same time; the results in order, or the first error."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [each.result() for each in [pool.submit(one) for one in work]]
