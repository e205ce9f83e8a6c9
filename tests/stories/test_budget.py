"""The price of everything in EC2 calls, as numbers: an interface, a restart, an idle hour, forty nodes at once.

The daemon's parts are real, time is not: an hour passes in a second. What the calls are for is told elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reconciler import settings as knobs
from tests.lab import world
from tests.stories import door, scene
from tests.stories.machine import Machine
from tests.stories.runtime import Runtime


def since(node: scene.Scene, before: int) -> collections.Counter[str]:
    """The calls made after the first `before` ones, by action."""
    return collections.Counter(node.calls()[before:])


def test_a_new_interface_costs_three_calls() -> None:
    """Made with its addresses and tags, attached, and made to die with the instance."""
    with scene.resting(8, settings=knobs.Settings(warm_ip_target=1)) as node:
        before = len(node.calls())
        node.runtime.want(2)
        node.pass_(30)
        assert since(node, before) == {
            "CreateNetworkInterface": 1,
            "AttachNetworkInterface": 1,
            "ModifyNetworkInterfaceAttribute": 1,
        }
        assert all(box and box.state == "up" for box in node.runtime.wanted.values())


def test_ten_pods_that_wait_together_cost_one_call() -> None:
    with scene.resting(
        0, settings=knobs.Settings(warm_ip_target=1), instance_type="m5.xlarge"
    ) as node:
        before = len(node.calls())
        node.runtime.want(10)
        node.pass_(5)
        assert since(node, before) == {"AssignPrivateIpAddresses": 1}


def test_a_restart_with_three_interfaces_costs_one_call() -> None:
    with scene.resting(20, settings=knobs.Settings(warm_ip_target=1)) as node:
        assert len(node.machine.desired().enis) == 3
        node.pass_(600)  # nothing was asked of EC2 lately, so its picture cannot lag behind us
        before = len(node.calls())
        for _ in range(3):
            node.kill()
            node.start()
            node.pass_(600)
        assert since(node, before) == {"DescribeNetworkInterfaces": 3}


def test_an_idle_hour_costs_one_call_at_most() -> None:
    """Each of a day's, with twelve pods on three interfaces and the default settings.

    However the hours are cut: between one call and the next lies an hour, but for the second that the lane
    may be early by.
    """
    with scene.resting(12) as node:
        before = len(node.calls())
        node.pass_(24 * 3600)
        rows = node.ec2.journal.rows(who=node.ec2.node)[before:]
        assert {row.action for row in rows} == {"DescribeNetworkInterfaces"}
        assert len(rows) >= 23, "a look an hour is what notices that somebody took an address"
        between = [later.at - earlier.at for earlier, later in itertools.pairwise(rows)]
        assert min(between) >= 3_599
        hours = collections.Counter(int((row.at - rows[0].at) // 3600) for row in rows)
        print(f"calls in each idle hour of a day: {[*hours.values()]}")


def test_nobody_asks_a_frozen_ec2() -> None:
    """VPCLEDGER_FREEZE=cloud: no call at all, and pods are served while there is something."""
    with scene.resting(2, settings=knobs.Settings(warm_ip_target=2)) as node:
        before = len(node.calls())
        node.kill()
        node.machine.settings = knobs.Settings(warm_ip_target=2, freeze="cloud")
        node.start()
        node.runtime.want(3)
        node.pass_(7200)
        assert since(node, before) == {}
        states = [box.state if box else "none" for box in node.runtime.wanted.values()]
        assert states.count("up") == 4


# ----------------------------------------------------------------------- forty nodes, one account


class OneOfMany:
    """A node of a fleet: its machine and its pods, at the fleet's door."""

    def __init__(self, fleet: scene.Scene, folder: Path, instance: str) -> None:
        seen: Any = SimpleNamespace(cloud=fleet.cloud, node=instance)
        self.fleet, self.instance = fleet, instance
        self.machine = Machine(folder, seen, fleet.time, fleet.rng)
        self.machine.settings = fleet.machine.settings
        for eni in fleet.cloud.interfaces_of(instance):
            self.machine.plug(eni)
        self.runtime = Runtime(self.machine, fleet.rng)

    def speak(self) -> None:
        """What the daemon says next to EC2 is said by this instance."""
        door.speak_as(self.fleet.ec2, self.instance)


@contextlib.contextmanager
def fleet(count: int, **more: Any) -> Iterator[tuple[scene.Scene, list[OneOfMany]]]:
    """Nodes of one account and Region, all at one clock; EC2's buckets are as large as AWS says."""
    with scene.folder() as folder:
        first = scene.Scene(1, folder, **more)
        first.ec2.arrives, first.ec2.leaves = lambda *_: None, lambda _: None
        first.ec2.pace = (0.0, 0.0)  # all at one instant, which is the worst
        operator = door.operator(first.ec2)
        wide = operator.create_subnet(VpcId=first.world.vpc, CidrBlock="10.0.16.0/20")["Subnet"]
        group = first.world.security_groups[0]
        launched = world.launch(operator, wide["SubnetId"], group, count, "m5.large")
        first.ec2.buckets.scale = 1.0
        nodes = []
        with first.opened():
            for instance in launched:
                (folder / instance).mkdir()
                door.speak_as(first.ec2, instance)
                nodes.append(OneOfMany(first, folder / instance, instance))
            yield first, nodes
            for node in nodes:
                node.machine.close()


def each_works(first: scene.Scene, nodes: list[OneOfMany], seconds: float) -> None:
    """Let time pass, a tenth of a second at a time; what is due on a node is done at that instant."""
    until = first.cloud.clock.now() + seconds
    while first.cloud.clock.now() < until:
        for node in nodes:
            node.speak()
            node.machine.work()
        first.time.sleep(0.1)


def all_crash(first: scene.Scene, nodes: list[OneOfMany], pods: int) -> float:
    """Each comes to rest with so many pods, and then all daemons die at one moment: which."""
    for node in nodes:
        node.speak()
        node.machine.start()
    each_works(first, nodes, 30)
    for node in nodes:
        node.runtime.want(pods)
    each_works(first, nodes, 60)
    for node in nodes:
        node.machine.crash()
        node.runtime.daemon_died()
    return first.cloud.clock.now()


@pytest.mark.slow
def test_forty_nodes_that_restart_together_are_hardly_throttled_and_serve_pods_first() -> None:
    """On each, pods wait for more than its interfaces have, at the same instant.

    Less than one call in a hundred is refused by the buckets that AWS publishes. What pods wait for is
    asked first, and they have it within a second.
    """
    with fleet(40, settings=knobs.Settings(warm_ip_target=2)) as (first, nodes):
        began = all_crash(first, nodes, pods=4)

        for node in nodes:
            node.speak()
            node.machine.start()
            node.runtime.want(5)
        each_works(first, nodes, 1)
        for node in nodes:
            assert all(box and box.state == "up" for box in node.runtime.wanted.values())
        each_works(first, nodes, 20)

        rows = [row for row in first.ec2.journal.rows(since=began) if row.who != "operator"]
        throttled = sum(row.outcome == "RequestLimitExceeded" for row in rows)
        looks = collections.Counter(r.who for r in rows if r.action == "DescribeNetworkInterfaces")
        assert len(looks) == 40
        assert max(looks.values()) == 1
        assert throttled < len(rows) / 100
        for node in nodes:
            lanes = node.machine.rows(
                "SELECT lane FROM v_api_calls WHERE intent_id IS NOT NULL AND at >= "
                f"{int(began * 1000)} ORDER BY id"
            )
            assert lanes[0]["lane"] == "pod"


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [4, 20])
def test_of_forty_nodes_those_with_waiting_pods_come_before_the_others_warm_pools(
    waiting: int,
) -> None:
    """All restart at the same instant, and the others, which want two interfaces more each, ask first.

    Pods need a new interface each. They have it as quickly as if they were alone, and next to nobody is
    throttled: what no pod waits for takes little of EC2's bucket at once.
    """
    with fleet(40, settings=knobs.Settings(warm_ip_target=2)) as (first, nodes):
        began = all_crash(first, nodes, pods=6)

        others, needy = nodes[waiting:], nodes[:waiting]
        for node in others:
            node.machine.settings = knobs.Settings(warm_eni_target=2)
        for node in (*others, *needy):
            node.speak()
            node.machine.start()
        for node in needy:
            node.speak()
            node.runtime.want(6)
        served: dict[str, float] = {}
        while first.cloud.clock.now() < began + 60:
            each_works(first, [*others, *needy], 0.1)
            for node in needy:
                node.speak()
                node.runtime.reconcile()
                if all(box and box.state == "up" for box in node.runtime.wanted.values()):
                    served.setdefault(node.instance, first.cloud.clock.now() - began)

        rows = [row for row in first.ec2.journal.rows(since=began) if row.who != "operator"]
        throttled = [row for row in rows if row.outcome == "RequestLimitExceeded"]
        assert {row.action for row in rows} >= {"AttachNetworkInterface", "CreateNetworkInterface"}
        assert len(served) == waiting
        print(
            f"{waiting} nodes with pods of 40: {len(throttled)} of {len(rows)} calls throttled, "
            f"the last pod served after {max(served.values()):.1f} s"
        )
        assert len(throttled) < len(rows) / 100
        assert not [row for row in throttled if row.who in served]
        assert max(served.values()) < 3
        made = [row for row in rows if row.action == "AttachNetworkInterface"]
        assert {row.who for row in made} >= {node.instance for node in others}, (
            "they get theirs too"
        )
