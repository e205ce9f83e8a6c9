"""Failures of the VPC CNI told by their numbers, and how the same story ends here.

Issues of aws/amazon-vpc-cni-k8s: 3824 and pull request 3876 (live pods forgotten after a restart), 3019 (two
pods with one address), 3887 (an address that EC2 no longer delivers is given out), 69 (interfaces left behind).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from reconciler import settings as knobs
from tests.stories import door, scene


@contextlib.contextmanager
def running(pods: int, **more: Any) -> Iterator[scene.Scene]:
    """A node at rest with so many pods."""
    with scene.resting(pods, seed=3, **more) as node:
        assert up(node) == pods
        yield node


def up(node: scene.Scene) -> int:
    """How many pods have their address."""
    return sum(box is not None and box.state == "up" for box in node.runtime.wanted.values())


def addresses(node: scene.Scene) -> dict[str, str]:
    return {box.container: box.address for box in node.runtime.sandboxes if box.state == "up"}


def test_3876_three_prefixes_of_which_metadata_show_two_at_the_restart() -> None:
    """Upstream dropped the third prefix's sixteen pods as stale and overwrote the file that knew them."""
    blocks = knobs.Settings(prefix_delegation=True, warm_prefix_target=1)
    with running(36, settings=blocks, instance_type="m5.large") as node:
        before = addresses(node)
        held = door.truth(node.cloud, node.ec2.node)
        delegated = [p["Ipv4Prefix"] for eni in held.values() for p in eni.get("Ipv4Prefixes", ())]
        assert len(delegated) >= 3
        node.kill()
        node.metadata.hides = {delegated[0]}
        node.start()
        for _ in range(10):
            node.pass_(61)
            node.check()
        assert addresses(node) == before
        node.metadata.hides = set()
        node.settle()
        assert addresses(node) == before


def test_3824_a_restart_with_stale_metadata_forgets_no_pod_and_repeats_no_failed_add() -> None:
    """Metadata of minutes ago, EC2's as old: pods keep their leases, and new ones are served meanwhile."""
    with running(12, settings=knobs.Settings(warm_ip_target=2)) as node:
        before = addresses(node)
        node.kill()
        held = door.truth(node.cloud, node.ec2.node)
        node.metadata.hides = {a for eni in held.values() for a in door.secondaries(eni)}
        node.cloud.api_lag = node.cloud.imds_lag = 300
        node.start()
        node.runtime.want(2)
        for _ in range(6):
            node.pass_(30)
            node.check()
        now = addresses(node)
        assert before.items() <= now.items()
        assert len(now) == 14
        assert not node.calls("UnassignPrivateIpAddresses", "DetachNetworkInterface")


def test_3824_every_refused_add_says_why_and_the_silence_ends_in_a_finding() -> None:
    """Forty-six hours of failing ADDs with nothing to be seen: here the first says so, and so does the ledger."""
    with running(0, settings=knobs.Settings(warm_ip_target=1)) as node:
        node.ec2.faults.add(op="AssignPrivateIpAddresses", who="*", error="UnauthorizedOperation")
        node.ec2.faults.add(op="CreateNetworkInterface", who="*", error="UnauthorizedOperation")
        node.runtime.want(3)
        node.pass_(10)
        assert {reason for _, reason in node.runtime.refusals} == {"ec2_denied"}
        codes = node.machine.rows("SELECT code FROM v_findings WHERE closed IS NULL")
        assert {"code": "ec2_denied"} in codes


def test_3887_an_address_given_back_before_a_restart_is_given_to_no_pod() -> None:
    """Metadata and EC2 still list it; the record that it was given back outlives the daemon."""
    roomy = knobs.Settings(warm_ip_target=1, ip_cooldown_ms=0)
    with running(8, settings=roomy) as node:
        node.runtime.drop(7)
        while not node.calls("UnassignPrivateIpAddresses"):
            node.pass_(1)
        released = node.machine.rows("SELECT address FROM v_addresses WHERE state = 'released'")
        assert released
        node.kill()
        node.cloud.api_lag = node.cloud.imds_lag = 120
        node.start()
        node.runtime.want(8)
        for _ in range(12):
            node.pass_(10)
            node.check()
        held = door.truth(node.cloud, node.ec2.node)
        there = {address for eni in held.values() for address in door.secondaries(eni)}
        assert set(addresses(node).values()) <= there
        node.cloud.api_lag = node.cloud.imds_lag = 0
        node.settle()
        assert up(node) == 9


def test_3019_a_busy_restart_gives_no_address_to_two_pods() -> None:
    """Pods come and go by dozens, the daemon dies again and again, metadata show a part, then another."""
    with running(10, settings=knobs.Settings(warm_ip_target=2, ip_cooldown_ms=0)) as node:
        for round_ in range(12):
            node.runtime.drop(4)
            node.runtime.want(5)
            node.machine.fuse = node.rng.randrange(30)
            held = door.truth(node.cloud, node.ec2.node)
            every = sorted(a for eni in held.values() for a in door.secondaries(eni))
            node.metadata.hides = set(every[round_ % 2 :: 2])
            node.pass_(5)
            node.check()
            node.start()
            node.runtime.reconcile()
            node.check()
        node.metadata.hides, node.machine.fuse = set(), None
        node.settle()


def test_69_a_node_that_dies_half_way_through_a_new_interface_leaves_none_behind() -> None:
    """Created and not attached, attached and not marked: the next run ends it, and EC2 has no more than that."""
    for action in (
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
    ):
        with running(8, settings=knobs.Settings(warm_ip_target=1)) as node:
            node.ec2.faults.add(op=action, drop=True, times=1)
            node.runtime.want(2)
            while action not in node.calls():
                node.pass_(0.1)
            node.kill()
            node.start()
            node.settle()
            held = door.truth(node.cloud, node.ec2.node)
            assert len(held) == 2
            assert all(eni["Attachment"]["DeleteOnTermination"] for eni in held.values())
