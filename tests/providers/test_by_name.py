"""Addresses and prefixes asked back by name: repeated without harm, and never taken from anybody."""

from __future__ import annotations

import pytest

from ledger import model
from reconciler.planner import actions
from reconciler.providers import ec2
from tests.providers.ec2_lab import Ec2Lab


@pytest.fixture
def hands(lab: Ec2Lab, node: model.Node) -> ec2.Ec2:
    return ec2.Ec2(node, lab.settings())


def shown(hands: ec2.Ec2) -> model.ObservedEni:
    """The primary interface as EC2 shows it."""
    seen = hands.observe()
    assert isinstance(seen, model.ObservedCloud), seen
    return seen.enis[0]


def done(hands: ec2.Ec2, action: actions.CloudAction) -> dict[str, object]:
    outcome = hands.apply(action, "t")
    assert outcome.error == "", outcome
    return outcome.result


def test_addresses_come_back_to_their_interface_and_asking_again_changes_nothing(
    hands: ec2.Ec2,
) -> None:
    """All of them, some of them, none of them there: the answer is the same."""
    eni_id = shown(hands).eni.eni_id
    done(hands, actions.AssignAddresses(eni_id, 3))
    three = shown(hands).addresses
    for gone in (three, three[:1], ()):
        if gone:
            done(hands, actions.UnassignAddresses(eni_id, gone))
        back = done(hands, actions.RegainAddresses(eni_id, three))
        assert back == {"regained": list(three), "lost": []}
        assert {*shown(hands).addresses} == {*three}


def test_so_do_prefixes(hands: ec2.Ec2) -> None:
    eni_id = shown(hands).eni.eni_id
    done(hands, actions.AssignPrefixes(eni_id, 2))
    two = shown(hands).prefixes
    for gone in (two, two[:1], ()):
        if gone:
            done(hands, actions.UnassignPrefixes(eni_id, gone))
        assert done(hands, actions.RegainPrefixes(eni_id, two))["regained"] == list(two)
        assert {*shown(hands).prefixes} == {*two}


def test_what_another_interface_has_stays_there_and_the_rest_comes_back(
    hands: ec2.Ec2, lab: Ec2Lab, node: model.Node
) -> None:
    eni_id = shown(hands).eni.eni_id
    done(hands, actions.AssignAddresses(eni_id, 2))
    kept, lost = shown(hands).addresses
    done(hands, actions.UnassignAddresses(eni_id, (kept, lost)))
    theirs = lab.client.create_network_interface(
        SubnetId=node.subnet_id, Groups=list(node.security_groups), PrivateIpAddress=lost
    )["NetworkInterface"]["NetworkInterfaceId"]
    back = done(hands, actions.RegainAddresses(eni_id, (kept, lost)))
    assert back == {"regained": [kept], "lost": [(lost, theirs)]}
    assert shown(hands).addresses == (kept,)


def test_a_prefix_that_somebody_has_is_refused(
    hands: ec2.Ec2, lab: Ec2Lab, node: model.Node
) -> None:
    """EC2 has no question that would tell who; the refusal comes through and is tried again later."""
    eni_id = shown(hands).eni.eni_id
    done(hands, actions.AssignPrefixes(eni_id, 1))
    prefixes = shown(hands).prefixes
    done(hands, actions.UnassignPrefixes(eni_id, prefixes))
    lab.client.create_network_interface(
        SubnetId=node.subnet_id,
        Groups=list(node.security_groups),
        Ipv4Prefixes=[{"Ipv4Prefix": prefixes[0]}],
    )
    outcome = hands.apply(actions.RegainPrefixes(eni_id, prefixes), "t")
    assert (outcome.error, outcome.unknown) == ("InvalidIPAddress.InUse", False)


def test_one_by_one_and_stopped_half_way_nobody_can_say(hands: ec2.Ec2, lab: Ec2Lab) -> None:
    """Two are named and one is there: asked singly, the second try meets a refusal that says nothing of the first."""
    eni_id = shown(hands).eni.eni_id
    done(hands, actions.AssignAddresses(eni_id, 2))
    there, gone = shown(hands).addresses
    done(hands, actions.UnassignAddresses(eni_id, (gone,)))
    lab.fault(
        "DescribeNetworkInterfaces", error="UnauthorizedOperation", times=1
    )  # the question whose the first one is
    outcome = hands.apply(actions.RegainAddresses(eni_id, (there, gone)), "t")
    assert outcome.unknown
    assert done(hands, actions.RegainAddresses(eni_id, (there, gone)))["lost"] == []
    assert {*shown(hands).addresses} == {there, gone}
