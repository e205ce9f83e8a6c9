"""Whatever is dead at a start, and with whatever else: the door opens, pods come and go, the culprit is named.

All 32 combinations of five dependencies, a fresh process each. What hangs instead of refusing is
test_daemon_restart's; how quick an addition is at best, the bench's.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.lab import spaces
from tests.lab.kubelet import Kubelet, Sandbox
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing())),
]

NAMES = {
    "API server": "api_server_down",
    "EC2": "ec2_down",
    "IMDS": "imds_down",
    "nftables": "nat_failed",
    "IAM action": "ec2_denied",
}
"""What may be dead, and the finding that says so."""
COMBINATIONS = sorted(
    (frozenset(dead) for n in range(6) for dead in itertools.combinations(NAMES, n)),
    key=lambda dead: (
        "IAM action" in dead
    ),  # last: its pause of minutes bars what the API is asked about
)
NOBODY = "127.0.0.1:9"
AT_ONCE = 4
SANE_S = 20.0
"""Far beyond the second that decision 8 gives a start, for four of them on a busy machine."""


@dataclass(slots=True)
class Town:
    """One node, whose next start meets the next combination."""

    lab: Lab
    node: Node
    kubelet: Kubelet
    old: Sandbox
    warm: int = 4

    def meet(self, dead: frozenset[str]) -> float:
        """A start with these dead; seconds from the process's beginning to the first pod's network."""
        self.node.kill_daemon()
        self.warm += 1  # there is something to be asked of EC2 each time, and of the API before
        with ExitStack() as broken:
            broken.enter_context(self._endpoints(dead))
            if "nftables" in dead:
                broken.enter_context(live.table_owned(self.node))
            self._refuse(broken, dead)
            since, began = time.time_ns() // 1_000_000, time.monotonic()
            self.node.start_daemon(WARM_IP_TARGET=str(self.warm))
            new = self.kubelet.start("new")
            taken = time.monotonic() - began
            self.kubelet.stop(self.old)
            self.old = new
            assert new.ping(self.node.address), dead
            expected = named(dead)
            live.until(lambda: self._told(since) >= expected, f"{expected} for {sorted(dead)}")
            assert self._told(since) <= expected | implied(dead), dead
            assert self.node.daemon is not None
            assert self.node.daemon.poll() is None, "the daemon of the beginning still runs"
        return taken

    def _told(self, since: int) -> set[str]:
        """Of the five findings those that are open and that this daemon has met; a refused call is repeated
        after a pause that outlives a start, so that one counts as it stands.
        """
        met = f"(last_seen_at >= {since} OR code = 'ec2_denied') AND closed IS NULL"
        rows = live.rows(self.node, f"SELECT code FROM v_findings WHERE {met}")
        return {row["code"] for row in rows} & {*NAMES.values()}

    @contextmanager
    def _endpoints(self, dead: frozenset[str]) -> Iterator[None]:
        """Somewhere nobody listens."""
        elsewhere = {
            "API server": ("CLUSTER_ENDPOINT", f"https://{NOBODY}"),
            "IMDS": ("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{NOBODY}"),
        }
        changed = dict(elsewhere[name] for name in dead if name in elsewhere)
        self.node.environment.update(changed)
        try:
            yield
        finally:
            for name in changed:
                del self.node.environment[name]

    def _refuse(self, broken: ExitStack, dead: frozenset[str]) -> None:
        rules = {
            "EC2": {"error": "InternalError"},
            "IAM action": {"op": "Assign*", "error": "UnauthorizedOperation"},
        }
        for name in sorted(dead & rules.keys()):
            with self.lab.cloud.lock:
                rule = self.lab.front.faults.add(who=self.node.instance, **rules[name])
            broken.callback(self._forget, rule)

    def _forget(self, rule: object) -> None:
        with self.lab.cloud.lock:
            self.lab.front.faults.rules[:] = [
                each for each in self.lab.front.faults.rules if each is not rule
            ]


def named(dead: frozenset[str]) -> set[str]:
    """The findings that must come.

    A denied action shows when it is called, which waits for the pauses that EC2's earlier refusals left in the
    ledger; the API is asked where a plan hangs on it, and a plan that is held up so may not.
    """
    alone = len(dead & {"EC2", "IMDS", "IAM action", "API server"}) == 1
    return {NAMES[name] for name in dead if alone or name not in {"IAM action", "API server"}}


def implied(dead: frozenset[str]) -> set[str]:
    """Those that may come besides: what hides may show, and the role's credentials are metadata's to give."""
    besides = {"ec2_down"} if "IMDS" in dead else set()
    return besides | {NAMES[name] for name in dead} | {"ec2_denied"}


def test_every_combination_leaves_the_door_open_and_is_named() -> None:
    with Lab(nodes=AT_ONCE, instance_type="m5.4xlarge", attach_delay=0.1, throttle=None) as lab:
        lab.kubernetes()
        lab.start(WARM_IP_TARGET="4", IP_COOLDOWN_PERIOD="0")
        towns = [
            Town(lab, node, kubelet, kubelet.start("old"))
            for node, kubelet in zip(lab.nodes, lab.kubelets, strict=True)
        ]
        for town in towns:
            live.settle(town.node)

        def of(number: int) -> list[float]:
            return [towns[number].meet(dead) for dead in COMBINATIONS[number::AT_ONCE]]

        with ThreadPoolExecutor(AT_ONCE) as pool:
            taken = sorted(itertools.chain(*pool.map(of, range(AT_ONCE))))
    assert len(taken) == 32
    print(f"first pod {statistics.median(taken):.2f} s after a start, {taken[-1]:.2f} s at most")
    assert taken[-1] < SANE_S
