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
from pathlib import Path
from typing import Any

from tests.lab import spaces
from tests.lab.kubelet import CniError, Kubelet, Sandbox
from tests.lab.node import DaemonFailed, Node
from tests.lab.whole import Lab

PODS = 20
"""On each node: an m5.large interface carries nine pods, so the pool must grow twice while pods wait."""

CAP_NET_ADMIN = 1 << 12  # linux/capability.h

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
    except (NotSeen, CniError, DaemonFailed) as failed:
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
            try:
                self.look_at(lab)
                pods = self.add(lab)
                self.ping(lab, pods)
                self.delete_half(lab, pods)
                self.ask(lab)
                self.end(lab)
            except (NotSeen, CniError):
                for node in lab.nodes:
                    print(f"the end of {node.name}'s log:\n{node.tail()}")
                raise
        self.say("all of it was seen")

    def look_at(self, lab: Lab) -> None:
        """Who the daemons are, read from the running processes."""
        seen = {_identity(node) for node in lab.nodes}
        _hold(len(seen) == 1, f"the daemons differ: {seen}")
        [(uid, capabilities)] = seen
        _hold(capabilities == CAP_NET_ADMIN, f"the daemons have capabilities {capabilities:#x}")
        _hold(uid != 0 or spaces.tier() == "single", "the daemons run as root")
        self.say(f"vpcledger runs on both: uid {uid}, one capability, CAP_NET_ADMIN")

    def add(self, lab: Lab) -> list[list[Sandbox]]:
        """Forty pods at once: more than the first interfaces hold, so EC2 is asked while pods wait."""
        self.say(f"starting {PODS} pods on each node, ten at a time, by CNI ADD")
        started = lab.on_each(self._start, lab.kubelets)
        for kubelet, sandboxes in zip(lab.kubelets, started, strict=True):
            name, enis = kubelet.node.name, _by_interface(sandboxes, lab)
            self.say(f"{name}: {len(sandboxes)} pods have addresses, on {len(enis)} interfaces")
            for eni, boxes in enis.items():
                print(f"         {eni}")
                for few in (boxes[at : at + 3] for at in range(0, len(boxes), 3)):
                    print(
                        "".join(f"           {box.pod:8} {box.address:10}" for box in few).rstrip()
                    )
            _hold(sum(map(len, enis.values())) == PODS, f"EC2 never gave {name} some of these")
            _hold(len(enis) > 1, f"{name} has one interface only")
        addresses = Counter(box.address for boxes in started for box in boxes)
        _hold(len(addresses) == 2 * PODS, f"an address was given twice: {addresses.most_common(1)}")
        return started

    def _start(self, kubelet: Kubelet) -> list[Sandbox]:
        return kubelet.start_all(f"web-{kubelet.node.name[-1]}-{n}" for n in range(PODS))

    def ping(self, lab: Lab, pods: list[list[Sandbox]]) -> None:
        """All pairs of one pod per interface of either node."""
        sample = [held[0] for boxes in pods for held in _by_interface(boxes, lab).values()]
        pairs = list(itertools.permutations(sample, 2))
        answered = lab.on_each(lambda pair: pair[0].ping(pair[1].address), pairs)
        lost = [
            f"{a.name} -> {b.name}" for (a, b), ok in zip(pairs, answered, strict=True) if not ok
        ]
        _hold(not lost, f"no answer: {lost}")
        for one, other in pairs[: len(sample) - 1]:
            print(f"         {one.pod} {one.address} -> {other.pod} {other.address}")
        drops = lab.fabric.drops()
        _hold(not drops, f"the source check dropped {drops}")
        self.say(
            f"all {len(pairs)} pings between {len(sample)} pods, one on every interface, were answered;"
            " 0 packets dropped by the source check"
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
        answer = lab.nodes[0].product("sql", WHO_HAD_WHAT)
        _hold(answer.returncode == 0, answer.stderr)
        print(f'\n$ vpcledger sql "{WHO_HAD_WHAT}"\n{answer.stdout}')
        calls = Counter(row["operation"] for row in _rows(lab.nodes[0], "show", "calls"))
        asked = ", ".join(f"{count} {name}" for name, count in sorted(calls.items()))
        self.say(f"EC2 calls of node1 so far: {asked}")

    def end(self, lab: Lab) -> None:
        """All pods go; the kernel is as it was, the ledger remembers."""
        lab.on_each(
            lambda kubelet: kubelet.stop_all(list(kubelet.sandboxes.values())), lab.kubelets
        )
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


def _by_interface(boxes: list[Sandbox], lab: Lab) -> dict[str, list[Sandbox]]:
    """Pods by the interface that EC2 says holds their address: "eth1 eni-0123"."""
    pods = {box.address: box for box in boxes}
    found: dict[str, list[Sandbox]] = {}
    with lab.cloud.lock:
        enis = [eni for node in lab.nodes for eni in lab.cloud.interfaces_of(node.instance)]
    for eni in enis:
        name = f"eth{eni['Attachment']['DeviceIndex']} {eni['NetworkInterfaceId']}"
        held = [pods.get(each["PrivateIpAddress"]) for each in eni["PrivateIpAddresses"]]
        if any(held):
            found[name] = [box for box in held if box]
    return found


def _identity(node: Node) -> tuple[int, int]:
    """The effective uid and capabilities of a node's daemon, as proc(5) shows them."""
    pid = node.daemon.pid if node.daemon else 0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return int(fields["Uid"].split()[1]), int(fields["CapEff"], 16)


def _is_a_pods(line: str) -> bool:
    return line.startswith(("512:", "1536:")) or ": eni" in line or " dev eni" in line


def _hold(seen: bool, otherwise: str) -> None:
    if not seen:
        raise NotSeen(otherwise)
