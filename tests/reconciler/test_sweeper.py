"""Deletions that never come: found and closed with a reason, and no pod that lives loses its address."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger import model, writes
from reconciler import sweeper
from reconciler.planner import sweep
from tests.lab import spaces
from tests.lab.whole import Lab
from tests.reconciler import live
from tests.reconciler.door import Door, Pod
from tests.reconciler.live import rows, until

pytestmark = pytest.mark.netns


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path, addresses=(0, 4))
    yield made
    made.close()


class Node:
    """A door with its sweeper; the runtime says what a test has it say."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.says: model.ObservedRuntime | model.Unknown = model.Unknown("no runtime here", 0)
        self.sweeper = sweeper.Sweeper(
            door.ledger,
            door.loop,
            lambda: self.says,
            lambda: not isinstance(self.says, model.Unknown),
            lambda: frozenset(door.verbs.waiting),
            door.clock,
        )

    def lists(self, *pods: Pod) -> None:
        boxes = tuple(model.Sandbox(pod.container, "default", pod.name) for pod in pods)
        self.says = model.ObservedRuntime(self.door.now, boxes)

    def passes(self, count: int = 2) -> None:
        for _ in range(count):
            self.door.now += sweep.LISTED_AFTER_MS
            self.sweeper.tick()

    def loses(self, pod: Pod) -> None:
        """The namespace goes, and its links a moment later, by a work queue of the kernel's."""
        lease = self.door.lease(pod)
        assert lease is not None
        pod.netns.close()
        until(
            lambda: lease.host_ifname not in self.door.node.command("ip", "link"),
            "the end of the namespace's links",
        )

    def reasons(self) -> list[str]:
        ended = "SELECT reason FROM v_leases WHERE state = 'ended' ORDER BY id"
        return [row["reason"] for row in self.door.rows(ended)]


def test_what_gc_said_of_a_sandbox_ends_with_its_lease(door: Door) -> None:
    """The runtime may never collect again."""
    node, pod = Node(door), door.added()
    nobody: dict[str, Any] = {"cni.dev/valid-attachments": []}
    door.call("GC", cniVersion="1.1.0", **nobody)
    open_now = "SELECT code FROM v_findings WHERE closed IS NULL"
    node.passes(1)
    assert door.rows(open_now) == [{"code": "gc_disagrees"}]
    door.call("DEL", pod)
    node.passes(1)
    assert door.rows(open_now) == []


def test_a_sandbox_that_went_without_a_deletion_is_swept(door: Door) -> None:
    """Link and name say so, with no runtime to ask; the node is as if it had never been there."""
    before = door.picture()
    node, lives, gone = Node(door), door.added(), door.added()
    node.passes()
    node.loses(gone)

    node.passes(1)
    assert node.reasons() == []
    node.passes(1)

    assert node.reasons() == ["swept"]
    assert lives.pings("10.0.0.4")
    door.call("DEL", lives)
    door.loop.reap()
    assert door.picture() == before


def test_a_live_pod_outlives_an_empty_and_a_wrong_list(door: Door) -> None:
    node = Node(door)
    pods = [door.added() for _ in range(3)]
    for listed in ([], pods[:1], [door.pod(), door.pod()]):
        node.lists(*listed)
        node.passes(4)
    assert node.reasons() == []
    assert all(pod.pings("10.0.0.4") for pod in pods)
    assert door.rows("SELECT code FROM v_findings WHERE closed IS NULL") == []


def test_a_pod_that_broke_its_own_link_is_doubtful_until_it_is_gone(door: Door) -> None:
    """Its namespace lives: the address is kept; the runtime's list alone does not end it either."""
    node, pod = Node(door), door.added()
    node.passes()
    pod.netns.command("ip", "link", "del", "eth0")
    node.lists()
    node.passes(3)

    assert node.reasons() == []
    doubtful = "SELECT code, subject FROM v_findings WHERE closed IS NULL"
    assert {"code": "sandbox_doubtful", "subject": pod.container} in door.rows(doubtful)
    lease = door.lease(pod)
    assert lease is not None
    assert lease.state == "in_doubt"
    node.loses(pod)
    node.passes()
    assert node.reasons() == ["swept"]
    node.passes(1)
    assert door.rows(doubtful) == []


def test_a_doubt_that_was_none_passes(door: Door) -> None:
    """The link is back (somebody had taken it to another namespace, say): active again."""
    node, pod = Node(door), door.added()
    node.passes()
    lease = door.lease(pod)
    assert lease is not None
    with door.ledger.write() as tx:
        writes.doubt(tx, lease.id, door.now)
    node.passes(1)
    lease = door.lease(pod)
    assert lease is not None
    assert lease.state == "active"


def test_a_name_in_a_folder_never_seen_is_no_witness(door: Door) -> None:
    """A daemon without the host's folder would find every namespace gone."""
    node, pod = Node(door), door.added()
    node.loses(pod)
    node.passes(3)
    assert node.reasons() == []
    node.lists()
    node.passes(2)
    assert node.reasons() == ["swept"]


def test_a_deletion_the_kernel_refused_is_finished(door: Door) -> None:
    """The runtime may never repeat it: what was begun goes on by itself."""
    node, pod = Node(door), door.added()
    lease = door.lease(pod)
    assert lease is not None
    with door.ledger.write() as tx:
        writes.mark_owner_removing(tx, "lease", str(lease.id), door.now)

    node.passes(1)

    assert node.reasons() == ["deleted"]


def test_a_sandbox_whose_namesake_came_keeps_its_lease_until_it_is_deleted(door: Door) -> None:
    node = Node(door)
    door.loop.reap_soon = lambda: None
    old = door.added("web-0")
    new = door.added("web-0")
    node.lists(old, new)

    node.passes()

    assert door.lease(old) is not None
    assert door.call("DEL", old).status == 0
    assert node.reasons() == ["deleted"]


def test_who_waits_for_nobody_is_forgotten(tmp_path: Path) -> None:
    """The runtime never came back for it, neither with an ADD nor with a DEL."""
    door = Door(tmp_path, addresses=(0, 0))
    try:
        node = Node(door)
        door.call("ADD", door.pod())
        node.passes(1)
        assert node.reasons() == []
        node.passes(sweep.WAITED_MS // sweep.LISTED_AFTER_MS)
        assert node.reasons() == ["gave_up_waiting"]
    finally:
        door.close()


@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
def test_a_daemon_finds_them_within_a_minute(lab: Lab) -> None:
    """With its own settings, while other pods live on; no runtime is there to be asked."""
    lab.start()
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    pods = kubelet.start_all(f"web-{n}" for n in range(6))
    until(lambda: rows(node, "SELECT 1 FROM v_pods"), "pods")
    for pod in pods[:3]:
        pod.netns.close()

    until(
        lambda: rows(node, "SELECT 1 FROM v_leases WHERE reason = 'swept' LIMIT 1 OFFSET 2"),
        "three swept leases",
    )

    assert len(rows(node, "SELECT 1 FROM v_pods")) == 3
    assert all(pod.ping(node.address) for pod in pods[3:])
    live.settle(node)


@pytest.mark.slow
def test_a_runtime_that_hangs_costs_no_live_pod_its_address(lab: Lab) -> None:
    """Its socket takes the daemon's call and never answers; a pod that went is found all the same."""
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    with socket.socket(socket.AF_UNIX) as hanging:
        node.run.mkdir(parents=True, exist_ok=True)
        hanging.bind(str(node.run / "hangs.sock"))
        hanging.listen()
        node.start_daemon(
            VPCLEDGER_CRI_SOCKET=str(node.run / "hangs.sock"), VPCLEDGER_SANDBOX_INTERVAL="1"
        )
        lives, goes = kubelet.start_all(["lives", "goes"])
        until(lambda: "runtime_silent" in live.findings(node), "the runtime's silence")
        goes.netns.close()

        until(lambda: rows(node, "SELECT 1 FROM v_leases WHERE reason = 'swept'"), "a swept lease")

        assert [row["pod_name"] for row in rows(node, "SELECT pod_name FROM v_pods")] == ["lives"]
        assert lives.ping(node.address)
