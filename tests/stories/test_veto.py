"""Instance metadata can contradict and never allow: what they miss is asked about before a pod gets it.

Told on the stories' stage, with metadata that lag on their own or leave things out.
"""

from __future__ import annotations

from typing import Any

from reconciler import settings as knobs
from tests.stories import door
from tests.stories.scene import Scene
from tests.stories.test_found import told

FEW = knobs.Settings(warm_ip_target=3, ip_cooldown_ms=0)
NO_MORE = knobs.Settings(warm_ip_target=3, max_eni=1, ip_cooldown_ms=0)
LOOK = "DescribeNetworkInterfaces"


def free(node: Scene) -> list[str]:
    """Addresses that the next pod could be given."""
    rows = node.machine.desired().addresses
    return [
        a.address for a in rows if a.state == "assigned" and not a.leased and not a.absent_since
    ]


def taken_away(node: Scene, address: str) -> None:
    """Somebody takes it from its interface."""
    [eni_id] = [a.eni_id for a in node.machine.desired().addresses if a.address == address]
    node.operator(
        "UnassignPrivateIpAddresses", NetworkInterfaceId=eni_id, PrivateIpAddresses=[address]
    )


def served(node: Scene) -> list[str]:
    return [each.address for each in node.runtime.sandboxes if each.state == "up"]


def test_what_metadata_miss_is_asked_about_at_once_and_given_to_no_pod() -> None:
    """EC2 itself would be looked at only within the hour; its answer is that the address is gone."""
    with told(instance_type="t3.small", settings=FEW) as node:
        node.pass_(700)
        looks = len(node.calls(LOOK))
        gone = free(node)[0]
        taken_away(node, gone)
        node.pass_(35)
        assert gone not in free(node)
        assert len(node.calls(LOOK)) == looks + 1
        node.runtime.want(5)
        node.settle()  # EC2 delivers to every pod that runs, or an invariant breaks
        assert gone not in served(node)


def test_while_ec2_cannot_be_asked_it_is_kept_from_pods() -> None:
    """And is a pod's again when EC2 has said that it is there."""
    with told(instance_type="t3.small", settings=NO_MORE) as node:
        node.pass_(700)
        node.ec2.faults.add(op="Describe*", who=node.ec2.node, error="InternalError")
        [missed, *others] = free(node)
        node.metadata.hides = {missed}
        node.pass_(35)
        assert sorted(free(node)) == sorted(others)
        node.runtime.want(3)
        node.pass_(20)
        assert sorted(served(node)) == sorted(others)
        node.ec2.faults.clear()
        node.pass_(120)
        node.runtime.reconcile()
        assert missed in served(node)
        node.metadata.hides = set()


def test_metadata_that_leave_things_out_for_hours_cost_a_few_looks_and_no_pod() -> None:
    """A whole interface is not shown any more; EC2 is believed, twice, and the pool rests."""
    with told(instance_type="t3.small", settings=FEW) as node:
        node.runtime.want(5)
        node.settle()
        node.pass_(700)
        before, looks = node.calls(), len(node.calls(LOOK))
        hidden = {eni["NetworkInterfaceId"] for eni in node.cloud.interfaces_of(node.ec2.node)}
        node.metadata.hides = hidden
        node.pass_(3 * 3_600)
        assert len(node.calls(LOOK)) - looks <= 2 + 3, "two for the veto, and one an hour"
        assert set(node.calls()[len(before) :]) <= {LOOK}
        node.runtime.replace(3)
        node.pass_(10)
        assert len(served(node)) == 5
        node.metadata.hides = set()
        node.settle()


def test_a_live_pods_address_that_metadata_miss_is_back_within_a_minute() -> None:
    """They are asked every half minute, and EC2 then; the pod's lease is its lease all the while."""
    with told(instance_type="t3.small", settings=FEW) as node:
        node.runtime.want(2)
        node.settle()
        node.pass_(700)
        before = served(node)
        taken_away(node, before[0])
        node.pass_(60)
        held: dict[str, dict[str, Any]] = door.truth(node.cloud, node.ec2.node)
        assert {*before} <= set().union(*(door.secondaries(eni) for eni in held.values()))
        assert served(node) == before


def test_metadata_that_show_more_grant_nothing() -> None:
    """An address that only they show is nobody's, however long they show it."""
    with told(instance_type="t3.small", settings=FEW) as node:
        node.runtime.want(1)
        node.settle()
        node.cloud.imds_lag = 4_000
        taken = free(node)[0]
        node.runtime.drop(1)
        taken_away(node, taken)
        node.machine.cloud_loop.look_again()
        node.machine.rung.add("cloud")
        node.pass_(2_000)
        assert taken not in free(node)
        node.cloud.imds_lag = 0
        node.settle()
