"""The daemon is killed under real sandboxes, and the runtime is: pods go on, and their ends are told."""

from __future__ import annotations

import pytest

from tests.reconciler import live
from tests.reconciler.live import until
from tests.runtime.cri import READY, CriError
from tests.runtime.scene import Scene


def test_pods_outlive_a_killed_daemon_and_deletions_wait_for_the_next(scene: Scene) -> None:
    """SIGKILL: packets flow, a new sandbox is refused, an old one ends; the next daemon knows it all."""
    runtime, far = scene.runtimes
    node = runtime.node
    stays, goes, peer = runtime.run("stays"), runtime.run("goes"), far.run("peer")
    assert node.kill_daemon() == -9

    assert stays.ping(peer.address)
    assert peer.ping(stays.address)
    with pytest.raises(CriError, match=r'plugin type="aws-cni".*daemon'):
        runtime.run("early")
    runtime.end(goes)
    assert len(list((node.state / "spool").glob("*.del"))) >= 1

    node.start_daemon()
    ended = f"SELECT state, reason FROM v_leases WHERE container_id = '{goes.id}'"
    assert live.rows(node, ended) == [{"state": "ended", "reason": "deleted_late"}]
    runtime.end_all("early")
    late = runtime.run("late")
    assert late.ping(peer.address)
    assert stays.ping(late.address)
    for each, pod in ((runtime, stays), (runtime, late), (far, peer)):
        each.end(pod)


def test_pods_outlive_a_killed_containerd(scene: Scene) -> None:
    """SIGKILL: packets flow; the next containerd finds the sandbox with its address and can end it.

    The daemon, which asks the runtime for its sandboxes, says that it is silent, for as long as it is.
    """
    runtime, far = scene.runtimes
    pod, peer = runtime.run("web", ports={8080: 80}), far.run("peer")
    assert "runtime_silent" not in live.findings(runtime.node)
    runtime.kill()

    assert pod.ping(peer.address)
    until(lambda: "runtime_silent" in live.findings(runtime.node), "the finding")
    runtime.start()
    until(lambda: "runtime_silent" not in live.findings(runtime.node), "its end")

    told = runtime.status(pod.id)["status"]
    assert (told["state"], told["network"]["ip"]) == (READY, pod.address)
    other = runtime.run("other")
    assert other.ping(pod.address)
    for each, one in ((runtime, pod), (runtime, other), (far, peer)):
        each.end(one)


def test_both_killed_at_once_come_back_to_the_same_pods(scene: Scene) -> None:
    """As an out-of-memory killer would: whichever is back first, the pod is one and the same."""
    runtime, far = scene.runtimes
    node = runtime.node
    pod, peer = runtime.run("web"), far.run("peer")
    lease = f"SELECT id, address, state FROM v_leases WHERE container_id = '{pod.id}'"
    before = live.rows(node, lease)
    node.kill_daemon()
    runtime.kill()

    runtime.start()
    node.start_daemon()

    assert live.rows(node, lease) == before
    assert pod.ping(peer.address)
    until(
        lambda: runtime.conditions()["NetworkReady"], "its network, after the conflist came again"
    )
    runtime.end(pod)
    far.end(peer)
