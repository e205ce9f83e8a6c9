"""`vpcledger check-pod` on a node of the lab: pods on both interfaces, deleted ones, and wrong words."""

from __future__ import annotations

import json

import pytest

from tests.lab import spaces
from tests.lab.kubelet import Sandbox
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


@pytest.fixture(scope="module")
def pods(served: Lab) -> list[Sandbox]:
    started = served.kubelets[0].start_all(f"web-{n}" for n in range(12))
    live.settle(served.nodes[0])
    return started


def check(node: Node, *words: str) -> tuple[int, dict[str, bool]]:
    done = node.product("check-pod", "--json", *words)
    assert done.stdout, done.stderr
    return done.returncode, {row["check"]: row["ok"] for row in json.loads(done.stdout)}


def test_pods_on_both_interfaces_hold_and_their_ledger_says_where_they_are(
    served: Lab, pods: list[Sandbox]
) -> None:
    """A020 to A026, and A030 to A032 show that they could have failed."""
    node = served.nodes[0]
    for device in (0, 1):
        pod = next(pod for pod in pods if live.interface_of(served, pod) == device)
        status, checks = check(node, pod.name, "--mtu", "9001")
        assert (status, set(checks.values())) == (0, {True}), checks
        assert len(checks) == 10
        wrong = "--primary" if device else "--secondary"
        status, checks = check(node, pod.name, wrong)
        assert (status, [name for name, ok in checks.items() if not ok]) == (1, ["A025"])
        assert check(node, pod.name, "--mtu", "1500")[1]["A022"] is False


def test_without_a_ledger_all_of_it_is_said(served: Lab, pods: list[Sandbox]) -> None:
    node, pod = served.nodes[0], pods[0]
    state = node.state / "nowhere"
    node.environment["VPCLEDGER_STATE_DIR"] = str(state)
    try:
        status, _ = check(node, pod.name, "--ip", pod.address, "--prefix", "eni")
        assert status == 0
        unsaid = node.product("check-pod", pod.name)
        assert unsaid.returncode == 1
        assert "vpcledger: " in unsaid.stderr
    finally:
        del node.environment["VPCLEDGER_STATE_DIR"]
    assert not state.exists()


def test_a_broken_pod_is_told_in_words_and_a_deleted_one_leaves_nothing(
    served: Lab, pods: list[Sandbox]
) -> None:
    node, kubelet = served.nodes[0], served.kubelets[0]
    pod = kubelet.start("passes")
    live.settle(node)
    assert check(node, "default/passes", "--gone")[0] == 1
    kubelet.stop(pod)

    live.until(lambda: check(node, "default/passes", "--gone")[0] == 0, "nothing left")

    told = node.product("check-pod", "default/passes")
    assert told.returncode == 1
    assert "is missing" in told.stdout
    assert "NO" in told.stdout


def test_wrong_words_are_told_what_would_be_right(served: Lab) -> None:
    node = served.nodes[0]
    done = node.product("check-pod", "web-1")
    assert done.returncode == 2
    assert "default/web-1" in done.stderr
    done = node.product("check-pod", "default/nobody")
    assert done.returncode == 1
    assert "--ip" in done.stderr
