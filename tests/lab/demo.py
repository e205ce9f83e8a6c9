"""`python -m tests.lab demo`, what `make lab` runs: forty pods on two nodes, from nothing to nothing.

Each step says what it shows and fails loudly if it does not hold: exit code 0 means that every claim was
seen. The product is used by its command line, its launcher and its ledger alone. How a part is tested in
depth does not belong here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from typing import Any

from tests.lab import spaces
from tests.lab.kubelet import Kubelet, Sandbox
from tests.lab.node import DaemonFailed, Node
from tests.lab.whole import Lab

PODS = 20
"""On each node: an m5.large interface carries nine pods, so the pool must grow twice while pods wait."""

WHO_HAD_WHAT = (
    "SELECT address, pod_name, held_ms AS ms, reason FROM v_history"
    " WHERE reason <> '' ORDER BY held_until DESC LIMIT 3"
)


class NotSeen(AssertionError):
    """A claim of the tour that did not hold; the text says which and what was seen."""


def main(argv: list[str]) -> int:
    """Run the tour; 0 if all of it was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of ids and addresses")
    args = parser.parse_args(argv)
    if not spaces.is_main():
        reason = spaces.forbidden()
        if reason:
            sys.stderr.write(f"{reason}\n")
            return 2
        spaces.enter([sys.executable, "-m", "tests.lab", "demo", *argv])
    tour = Tour(seed=args.seed)
    try:
        tour.run()
    except (NotSeen, DaemonFailed) as failed:
        tour.say(f"NOT SEEN: {failed}")
        return 1
    return 0


class Tour:
    """One run; `say` prints with the seconds since it began."""

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"{time.monotonic() - self.began:5.1f} s  {text}", flush=True)

    def run(self) -> None:
        """The steps in order."""
        self.say("building a VPC: network namespaces, routes, a source check" + _tier())
        with Lab(seed=self.seed) as lab:
            for node in lab.nodes:
                self.say(f"{node.name} is {node.instance}, m5.large, {node.address}")
            lab.start()
            self.say("vpcledger runs on both, as an ordinary user with CAP_NET_ADMIN alone")
            pods = self.add(lab)
            self.ping(lab, pods)
            self.delete_half(lab, pods)
            self.ask(lab)
            self.end(lab)
        self.say("all of it was seen")

    def add(self, lab: Lab) -> list[list[Sandbox]]:
        """Forty pods at once: more than the first interfaces hold, so EC2 is asked while pods wait."""
        self.say(f"starting {PODS} pods on each node, ten at a time, by CNI ADD")
        started = lab.on_each(self._start, lab.kubelets)
        for kubelet, sandboxes in zip(lab.kubelets, started, strict=True):
            enis = _rows(kubelet.node, "show", "enis")
            held = ", ".join(f"eth{eni['device']} {eni['leased']} of {eni['held']}" for eni in enis)
            self.say(f"{kubelet.node.name}: {len(sandboxes)} pods have addresses; {held}")
            _hold(len(enis) > 1, f"{kubelet.node.name} has one interface only")
        addresses = Counter(box.address for boxes in started for box in boxes)
        _hold(len(addresses) == 2 * PODS, f"an address was given twice: {addresses.most_common(1)}")
        return started

    def _start(self, kubelet: Kubelet) -> list[Sandbox]:
        return kubelet.start_all(f"web-{kubelet.node.name[-1]}-{n}" for n in range(PODS))

    def ping(self, lab: Lab, pods: list[list[Sandbox]]) -> None:
        """All pairs of one pod per interface of either node."""
        sample = [box for boxes in pods for box in _one_per_interface(boxes, lab)]
        pairs = list(itertools.permutations(sample, 2))
        for one, other in pairs[:4]:
            self.say(f"  {one.pod} {one.address} -> {other.pod} {other.address}")
        answered = lab.on_each(lambda pair: pair[0].ping(pair[1].address), pairs)
        lost = [
            f"{a.name} -> {b.name}" for (a, b), ok in zip(pairs, answered, strict=True) if not ok
        ]
        _hold(not lost, f"no answer: {lost}")
        drops = lab.fabric.drops()
        _hold(not drops, f"the source check dropped {drops}")
        self.say(
            f"all {len(pairs)} pings between {len(sample)} pods on every interface were answered; "
            "0 packets dropped by the source check"
        )

    def delete_half(self, lab: Lab, pods: list[list[Sandbox]]) -> None:
        """Every other pod goes; what stays is checked by CNI CHECK."""
        lab.on_each(lambda n: lab.kubelets[n].stop_all(pods[n][::2]), range(len(pods)))
        for kubelet, boxes in zip(lab.kubelets, pods, strict=True):
            for box in boxes[1::2]:
                kubelet.check(box)
            left = _rows(kubelet.node, "show", "pods")
            _hold(len(left) == PODS // 2, f"{kubelet.node.name} has {len(left)} leases")
        self.say(f"{PODS} pods deleted; CHECK finds the other {PODS} in order")

    def ask(self, lab: Lab) -> None:
        """An operator's question."""
        self.say("who held which address, and why not any more?")
        print(f'\n$ vpcledger sql "{WHO_HAD_WHAT}"')
        print(lab.nodes[0].product("sql", WHO_HAD_WHAT).stdout)
        calls = Counter(row["operation"] for row in _rows(lab.nodes[0], "show", "calls"))
        asked = ", ".join(f"{count} {name}" for name, count in sorted(calls.items()))
        self.say(f"EC2 calls of node1 so far: {asked}")

    def end(self, lab: Lab) -> None:
        """All pods go; the kernel is as it was, the ledger remembers."""
        lab.on_each(lambda kubelet: kubelet.stop_all(kubelet.sandboxes.values()), lab.kubelets)
        for node in lab.nodes:
            for what, argv in (
                ("links", ("ip", "-o", "link", "show", "type", "veth")),
                ("rules", ("ip", "rule")),
                ("routes", ("ip", "route")),
            ):
                left = [line for line in node.netns.command(*argv).splitlines() if _is_a_pods(line)]
                _hold(not left, f"{node.name} still has {what}: {left}")
            _hold(not _rows(node, "show", "pods"), f"{node.name} still has leases")
            status = node.stop_daemon()
            _hold(status == 0, f"the daemon of {node.name} ended with {status}")
        self.say("all pods deleted: no link, rule, route or lease is left")


def _tier() -> str:
    if spaces.tier() == "single":
        return " (this user has no subuids: the daemons keep the lab's only user)"
    return ""


def _rows(node: Node, *argv: str) -> list[dict[str, Any]]:
    done = node.product(*argv, "--json")
    _hold(done.returncode == 0, f"vpcledger {' '.join(argv)}: {done.stderr.strip()}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def _one_per_interface(boxes: list[Sandbox], lab: Lab) -> list[Sandbox]:
    owners: dict[str, Sandbox] = {}
    with lab.cloud.lock:
        for eni in lab.cloud.scan("interface"):
            for each in eni["PrivateIpAddresses"]:
                for box in boxes:
                    if box.address == each["PrivateIpAddress"]:
                        owners.setdefault(eni["NetworkInterfaceId"], box)
    return list(owners.values())


def _is_a_pods(line: str) -> bool:
    return line.startswith(("512:", "1536:")) or ": eni" in line or " dev eni" in line


def _hold(seen: bool, otherwise: str) -> None:
    if not seen:
        raise NotSeen(otherwise)
