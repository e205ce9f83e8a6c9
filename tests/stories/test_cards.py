"""Nodes with several network cards: EFA on any of them, pods on those that the settings give them.

Told on the stories' stage; c6in.32xlarge has two cards of 8 interfaces, p4d.24xlarge four of 15.
"""

from __future__ import annotations

from typing import Any

import pytest

from reconciler import settings as knobs
from tests.stories import door
from tests.stories.scene import Scene
from tests.stories.test_found import told
from tests.stories.test_whose import attach, named

TWO_CARDS, FOUR_CARDS = "c6in.32xlarge", "p4d.24xlarge"
TAG = "node.k8s.amazonaws.com/instance_id"


def held(node: Scene) -> dict[int, int]:
    """Secondary addresses on each card's interfaces, as EC2 has them."""
    found: dict[int, int] = {}
    for eni in node.cloud.interfaces_of(node.ec2.node):
        card = eni["Attachment"]["NetworkCardIndex"]
        found[card] = found.get(card, 0) + len(door.secondaries(eni))
    return found


def tagged(node: Scene) -> dict[str, Any]:
    """A tag that makes an interface this node's."""
    mine = {"Key": TAG, "Value": node.ec2.node}
    return {"TagSpecifications": [{"ResourceType": "network-interface", "Tags": [mine]}]}


def look(node: Scene) -> None:
    """Have EC2 looked at now."""
    node.machine.cloud_loop.look_again()
    node.machine.rung.add("cloud")
    node.pass_(10)


@pytest.mark.parametrize("prefixed", [False, True])
def test_interfaces_on_further_cards_are_left_alone_and_take_no_place_of_the_first(
    prefixed: bool,
) -> None:
    """Though they bear this node's tag, have free addresses or a free prefix, and an efa-only one is among them."""
    settings = knobs.Settings(
        warm_ip_target=1, minimum_ip_target=1, max_eni=2, prefix_delegation=prefixed,
        ip_cooldown_ms=0,
    )  # fmt: skip
    with told(instance_type=FOUR_CARDS, settings=settings) as node:
        count = {"SecondaryPrivateIpAddressCount": 0, "Ipv4PrefixCount": 1} if prefixed else {}
        count = {key: n for key, n in count.items() if n} or {"SecondaryPrivateIpAddressCount": 3}
        theirs = [
            attach(node, 1, card=1, plain=not prefixed, **count, **tagged(node)),
            attach(node, 2, card=1, **tagged(node)),
            attach(node, 1, card=2, plain=False, InterfaceType="efa-only"),
            attach(node, 1, card=3, InterfaceType="efa", **tagged(node)),
        ]
        look(node)
        before = {card: n for card, n in held(node).items() if card}
        node.runtime.want(
            60
        )  # more than one interface of 49 takes: the second place of card 0 is free
        node.settle()
        assert held(node)[0] >= 60
        node.runtime.drop(60)
        node.settle()
        node.pass_(3_600)
        assert [named(node, eni) for eni in theirs] == [[], [], [], []]
        assert {card: n for card, n in held(node).items() if card} == before
        managed = {eni.eni_id: eni.managed for eni in node.machine.desired().enis}
        assert [managed[eni] for eni in theirs] == [False] * 4


@pytest.mark.parametrize("prefixed", [False, True])
def test_each_card_has_a_pool_of_its_own_and_comes_to_rest(prefixed: bool) -> None:
    """ENABLE_MULTI_NIC: an address, or a prefix, on the second card; pods there when the first is full.

    W12: there one prefix of a further card goes and comes every 35 seconds. Here an idle hour changes nothing.
    """
    settings = knobs.Settings(
        warm_ip_target=2, multi_nic=True, max_eni=1, prefix_delegation=prefixed, ip_cooldown_ms=0
    )
    size = 16 if prefixed else 1
    with told(instance_type=TWO_CARDS, settings=settings) as node:
        assert held(node) == {0: 2 if size == 1 else 16, 1: size}
        if prefixed:
            rest = node.calls()
            node.pass_(3_600)
            looks = [call for call in node.calls()[len(rest) :] if call.startswith("Describe")]
            assert node.calls()[len(rest) :] == looks
            return
        node.runtime.want(52)  # the only interface of the first card takes 49
        node.settle()
        desired = node.machine.desired()
        card = {eni.eni_id: eni.card for eni in desired.enis}
        on = [card[lease.eni_id or ""] for lease in desired.leases]
        assert (on.count(0), on.count(1)) == (49, 3)
        second = next(eni for eni in desired.enis if eni.card == 1)
        assert (second.device, second.delete_on_termination) == (1, True)
        rules = {str(t) for t in node.machine.kernel.things.values()}
        assert any("table=10101" in rule for rule in rules), "100 n + device, from 10000 on"
        node.kill()
        node.start()
        node.settle()
        node.runtime.drop(52)
        node.settle()
        assert held(node) == {0: 2, 1: 1}
        assert len(node.calls("CreateNetworkInterface")) == 1


def test_the_setting_can_be_taken_back_while_pods_live_there() -> None:
    """They keep their way, no new pod comes, and EC2 is asked nothing about that card any more."""
    settings = knobs.Settings(warm_ip_target=2, multi_nic=True, max_eni=1, ip_cooldown_ms=0)
    with told(instance_type=TWO_CARDS, settings=settings) as node:
        node.runtime.want(52)
        node.settle()
        second = next(eni.eni_id for eni in node.machine.desired().enis if eni.card == 1)
        calls = len(named(node, second))
        node.kill()
        node.machine.settings = knobs.Settings(warm_ip_target=2, max_eni=1, ip_cooldown_ms=0)
        node.start()
        node.pass_(600)
        rules = {str(t) for t in node.machine.kernel.things.values()}
        assert any("table=10101" in rule for rule in rules)
        node.check()  # EC2 delivers to every pod that runs
        node.runtime.drop(52)
        node.pass_(600)
        node.runtime.want(5)
        node.settle()
        assert second not in {lease.eni_id for lease in node.machine.desired().leases}
        assert len(named(node, second)) == calls
