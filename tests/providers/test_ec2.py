"""EC2's hands see what is there, do what they are told, and never do twice what may have been done."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from ledger import model
from reconciler import errors
from reconciler.planner import actions
from reconciler.providers import ec2, imds
from tests.providers import ec2_lab
from tests.providers.ec2_lab import Ec2Lab

TAG = "node.k8s.amazonaws.com/instance_id"


@pytest.fixture
def calls() -> list[ec2.Call]:
    return []


@pytest.fixture
def hands(lab: Ec2Lab, node: model.Node, calls: list[ec2.Call]) -> ec2.Ec2:
    return ec2.Ec2(node, lab.settings(), calls.append)


def seen(hands: ec2.Ec2, eni_ids: tuple[str, ...] | None = None) -> list[model.ObservedEni]:
    found = hands.observe(eni_ids)
    assert isinstance(found, model.ObservedCloud), found
    return list(found.enis)


def primary(hands: ec2.Ec2) -> str:
    return seen(hands)[0].eni.eni_id


def wish(node: model.Node, secondaries: int = 2) -> actions.CreateEni:
    tags = ((TAG, node.instance_id), ("node.k8s.amazonaws.com/createdAt", "1790000000000"))
    return actions.CreateEni(
        node.subnet_id, node.security_groups, f"aws-K8S-{node.instance_id}", secondaries, tags
    )


def made(hands: ec2.Ec2, node: model.Node, intent: str = "intent-1") -> model.Eni:
    outcome = hands.apply(wish(node), intent)
    assert outcome.error == "", outcome
    fields = outcome.result["eni"]
    assert isinstance(fields, dict)
    return model.Eni(**fields)


def attached(hands: ec2.Ec2, node: model.Node) -> tuple[model.Eni, str]:
    eni = made(hands, node)
    outcome = hands.apply(actions.AttachEni(eni.eni_id, node.instance_id, 1), "t2")
    assert outcome.error == "", outcome
    return eni, str(outcome.result["attachment_id"])


# --------------------------------------------------------------------------- looking


def test_the_primary_interface_is_seen_whole(hands: ec2.Ec2, lab: Ec2Lab, node: model.Node) -> None:
    """Every field of the noun comes from EC2's description."""
    lab.client.assign_private_ip_addresses(
        NetworkInterfaceId=primary(hands), PrivateIpAddresses=["10.0.0.77"]
    )
    (found,) = seen(hands)
    raw = lab.interfaces()[0]
    expected = model.Eni(
        eni_id=raw["NetworkInterfaceId"],
        mac=node.primary_mac,
        subnet_id=node.subnet_id,
        subnet_cidr="10.0.0.0/24",
        primary_ip=node.primary_ip,
        device=0,
        primary=True,
        managed=True,
        state="attached",
        attachment_id=raw["Attachment"]["AttachmentId"],
        delete_on_termination=True,
        attached_at=int(raw["Attachment"]["AttachTime"].timestamp() * 1000),
    )
    assert expected == found.eni
    assert found.addresses == ("10.0.0.77",)


def test_an_interface_is_ours_by_its_tags_alone(
    hands: ec2.Ec2, lab: Ec2Lab, node: model.Node
) -> None:
    """The instance's own tag makes it ours, no_manage=true makes it not; untagged ones stay foreign."""
    for device in (1, 2):
        raw = lab.client.create_network_interface(SubnetId=node.subnet_id)["NetworkInterface"]
        lab.client.attach_network_interface(
            NetworkInterfaceId=raw["NetworkInterfaceId"],
            InstanceId=node.instance_id,
            DeviceIndex=device,
        )
    last = seen(hands)[2].eni.eni_id
    expected = [True, False, False]
    for key, value, managed in (
        (TAG, "i-0123456789abcdef0", False),
        (TAG, node.instance_id, True),
        ("node.k8s.amazonaws.com/no_manage", "true", False),
        ("node.k8s.amazonaws.com/no_manage", "no", True),
    ):
        assert expected == [each.eni.managed for each in seen(hands)]
        lab.client.create_tags(Resources=[last], Tags=[{"Key": key, "Value": value}])
        expected = [True, False, managed]
    assert expected == [each.eni.managed for each in seen(hands)]


def test_untagged_ones_are_ours_if_the_setting_says_so(lab: Ec2Lab, node: model.Node) -> None:
    """MANAGE_UNTAGGED_ENI, upstream's default there and not here: no_manage goes first, detached ones stay theirs."""
    ids = []
    for device in (1, 2, None):
        raw = lab.client.create_network_interface(SubnetId=node.subnet_id)["NetworkInterface"]
        ids.append(raw["NetworkInterfaceId"])
        if device is not None:
            lab.client.attach_network_interface(
                NetworkInterfaceId=ids[-1], InstanceId=node.instance_id, DeviceIndex=device
            )
    no_manage = {"Key": "node.k8s.amazonaws.com/no_manage", "Value": "true"}
    lab.client.create_tags(Resources=[ids[1]], Tags=[no_manage])
    hands = ec2.Ec2(node, lab.settings(manage_untagged=True))
    assert {each.eni.eni_id: each.eni.managed for each in seen(hands, tuple(ids))} == {
        ids[0]: True,
        ids[1]: False,
        ids[2]: False,
    }


def test_an_interface_made_and_not_attached_is_seen_too(hands: ec2.Ec2, node: model.Node) -> None:
    """Found by its tag, with the intent that made it: how a lost reply is settled."""
    eni = made(hands, node, "intent-7")
    found = seen(hands)[-1]
    assert eni == found.eni
    assert found.eni.state == "created"
    assert found.tags["vpcledger/intent"] == "intent-7"
    assert found.tags["node.k8s.amazonaws.com/createdAt"] == "2026-09-21T14:13:20Z"


def test_interfaces_can_be_asked_for_by_id_and_missing_ones_are_left_out(
    hands: ec2.Ec2, node: model.Node
) -> None:
    """A filter, not an id list: no NotFound, and the larger bucket."""
    eni = made(hands, node)
    missing = "eni-0123456789abcdef0"
    assert [each.eni.eni_id for each in seen(hands, (eni.eni_id, missing))] == [eni.eni_id]
    assert seen(hands, (missing,)) == []


def test_what_attaches_and_detaches_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """EC2's attachment states become the interface's."""
    ec2_lab.without_credentials(monkeypatch)
    with ec2_lab.opened(attach_delay=3600) as lab:
        found = imds.Imds(lab.settings()).observe()
        assert not isinstance(found, model.Unknown)
        hands = ec2.Ec2(found[0], lab.settings())
        eni, attachment_id = attached(hands, found[0])
        assert seen(hands, (eni.eni_id,))[0].eni.state == "attaching"
        assert seen(hands, (eni.eni_id,))[0].eni.attachment_id == attachment_id


# --------------------------------------------------------------------------- doing


def test_addresses_are_assigned_and_only_the_new_ones_named(hands: ec2.Ec2) -> None:
    """The reply is what the ledger writes down."""
    eni_id = primary(hands)
    first = hands.apply(actions.AssignAddresses(eni_id, 2), "").result["addresses"]
    second = hands.apply(actions.AssignAddresses(eni_id, 1), "").result["addresses"]
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert (len(first), len(second)) == (2, 1)
    assert sorted(first + second) == sorted(seen(hands)[0].addresses)


def test_releasing_is_done_once_and_again(hands: ec2.Ec2) -> None:
    """An address that is gone already is no obstacle to the others, nor an error by itself."""
    eni_id = primary(hands)
    names = hands.apply(actions.AssignAddresses(eni_id, 3), "").result["addresses"]
    assert isinstance(names, list)
    assert hands.apply(actions.UnassignAddresses(eni_id, (names[0],)), "").error == ""
    assert hands.apply(actions.UnassignAddresses(eni_id, (names[0], names[1])), "").error == ""
    assert seen(hands)[0].addresses == (names[2],)
    assert hands.apply(actions.UnassignAddresses(eni_id, (names[0],)), "").error == ""
    gone = actions.UnassignAddresses("eni-0123456789abcdef0", ("10.0.0.9",))
    assert hands.apply(gone, "").error == ""


def test_an_interface_lives_from_create_to_delete(hands: ec2.Ec2, node: model.Node) -> None:
    """Every verb in turn; each that ends something is success when repeated."""
    eni, attachment_id = attached(hands, node)
    again = hands.apply(actions.AttachEni(eni.eni_id, node.instance_id, 1), "")
    assert again.result == {"attachment_id": attachment_id}
    elsewhere = hands.apply(actions.AttachEni(eni.eni_id, node.instance_id, 2), "")
    assert elsewhere.error == "InvalidNetworkInterface.InUse"
    assert not seen(hands, (eni.eni_id,))[0].eni.delete_on_termination
    mend = actions.SetDeleteOnTermination(eni.eni_id, attachment_id)
    assert hands.apply(mend, "").error == ""
    assert seen(hands, (eni.eni_id,))[0].eni.delete_on_termination
    assert hands.apply(actions.DeleteEni(eni.eni_id), "").error == "InvalidParameterValue"
    for action in (actions.DetachEni(eni.eni_id, attachment_id), actions.DeleteEni(eni.eni_id)):
        assert hands.apply(action, "").error == ""
        assert hands.apply(action, "").error == ""
    assert seen(hands, (eni.eni_id,)) == []


def test_the_same_token_makes_one_interface(hands: ec2.Ec2, lab: Ec2Lab, node: model.Node) -> None:
    """Whoever holds the intent may repeat it; another token makes another."""
    first, second = made(hands, node, "a"), made(hands, node, "a")
    assert first == second
    assert made(hands, node, "b") != first
    assert len(lab.interfaces()) == 3


def test_ec2s_refusals_come_through_and_are_classified(hands: ec2.Ec2, node: model.Node) -> None:
    """Code and text as EC2 gave them; errors.from_ec2 knows who must act."""
    outcome = hands.apply(actions.AssignAddresses(primary(hands), 60), "")
    assert (outcome.error, outcome.unknown) == ("PrivateIpAddressLimitExceeded", False)
    assert isinstance(errors.from_ec2(outcome.error, outcome.text), errors.Full)
    nowhere = dataclasses.replace(wish(node), subnet_id="subnet-0123456789abcdef0")
    assert hands.apply(nowhere, "t").error == "InvalidSubnetID.NotFound"


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("InsufficientFreeAddressesInSubnet", errors.Full, "subnet_full"),
        ("InsufficientCidrBlocks", errors.Full, "subnet_full"),
        ("UnauthorizedOperation", errors.Refused, "ec2_denied"),
        ("InvalidParameterValue", errors.TryLater, "ec2_error"),
    ],
)
def test_a_refusal_is_not_repeated(
    hands: ec2.Ec2, lab: Ec2Lab, code: str, kind: type[errors.VpcledgerError], reason: str
) -> None:
    """Only throttles are worth asking again at once."""
    eni_id = primary(hands)
    lab.fault("AssignPrivateIpAddresses", error=code, times=5)
    outcome = hands.apply(actions.AssignAddresses(eni_id, 1), "")
    found = errors.from_ec2(outcome.error, outcome.text)
    assert (kind, reason, False) == (type(found), found.reason, outcome.unknown)
    assert lab.called("AssignPrivateIpAddresses") == [("AssignPrivateIpAddresses", code)]


# --------------------------------------------------------------------------- throttles, losses


def test_a_throttled_call_is_repeated_and_each_try_counts(
    hands: ec2.Ec2, lab: Ec2Lab, calls: list[ec2.Call]
) -> None:
    """A throttle, then success: one outcome, and each try is told of."""
    eni_id = primary(hands)
    lab.fault("AssignPrivateIpAddresses", error="RequestLimitExceeded", times=1)
    assert hands.apply(actions.AssignAddresses(eni_id, 1), "").error == ""
    outcomes = [outcome for _, outcome in lab.called("AssignPrivateIpAddresses")]
    assert outcomes == ["RequestLimitExceeded", "ok"]
    told = [(c.operation, c.code, c.attempts) for c in calls if c.operation.startswith("Assign")]
    throttled = "RequestLimitExceeded"
    name = "AssignPrivateIpAddresses"
    assert told == [(name, throttled, 1), (name, "ok", 2)]
    assert all(call.duration_us > 0 for call in calls)


def loses(hands: ec2.Ec2, node: model.Node, name: str) -> actions.CloudAction:
    """A verb to lose the reply of, with its ground prepared."""
    if name == "CreateNetworkInterface":
        return wish(node)
    if name == "AssignPrivateIpAddresses":
        return actions.AssignAddresses(primary(hands), 2)
    if name == "CreateTags":
        return actions.TagEni(primary(hands), (("team", "net"),))
    if name == "AttachNetworkInterface":
        return actions.AttachEni(made(hands, node).eni_id, node.instance_id, 1)
    if name == "UnassignPrivateIpAddresses":
        addresses = hands.apply(actions.AssignAddresses(primary(hands), 1), "").result["addresses"]
        assert isinstance(addresses, list)
        return actions.UnassignAddresses(primary(hands), tuple(addresses))
    eni, attachment_id = attached(hands, node)
    if name == "ModifyNetworkInterfaceAttribute":
        return actions.SetDeleteOnTermination(eni.eni_id, attachment_id)
    if name == "DetachNetworkInterface":
        return actions.DetachEni(eni.eni_id, attachment_id)
    hands.apply(actions.DetachEni(eni.eni_id, attachment_id), "")
    return actions.DeleteEni(eni.eni_id)


@pytest.mark.parametrize("operation", sorted(ec2.ACTION.values()))
def test_a_mutation_whose_reply_is_lost_is_unknown_and_sent_once(
    hands: ec2.Ec2, lab: Ec2Lab, node: model.Node, operation: str
) -> None:
    """EC2 did it and we do not know: no blind repetition, for any verb."""
    action = loses(hands, node, operation)
    before = len(lab.called(operation))
    lab.fault(operation, drop=True, times=1)
    outcome = hands.apply(action, "lost")
    assert (outcome.unknown, outcome.error) == (True, "ConnectionClosed")
    assert isinstance(errors.from_ec2(outcome.error, outcome.text), errors.TryLater)
    assert len(lab.called(operation)) == before + 1


def test_a_lost_create_is_settled_by_its_token(
    hands: ec2.Ec2, lab: Ec2Lab, node: model.Node
) -> None:
    """The interface is there; the same token finds it and makes no second one."""
    lab.fault("CreateNetworkInterface", drop=True, times=1)
    assert hands.apply(wish(node), "once").unknown
    eni = made(hands, node, "once")
    assert [each.eni.eni_id for each in seen(hands)[1:]] == [eni.eni_id]


@pytest.mark.parametrize("code", ["InternalError", "Unavailable"])
def test_a_server_error_leaves_a_mutation_unknown_and_is_asked_again_for_a_look(
    hands: ec2.Ec2, lab: Ec2Lab, code: str
) -> None:
    """HTTP 5xx does not say what was done; a description changes nothing."""
    eni_id = primary(hands)
    lab.fault("*", error=code, times=1)
    outcome = hands.apply(actions.AssignAddresses(eni_id, 1), "")
    assert (outcome.unknown, outcome.error) == (True, code)
    lab.fault("DescribeNetworkInterfaces", error=code, times=1)
    assert len(seen(hands)) == 1


def test_a_look_at_what_is_all_known_and_attached_is_one_call(hands: ec2.Ec2, lab: Ec2Lab) -> None:
    """Else the second question is what bears this instance's tag, and what is unknown has a subnet."""
    known = tuple(each.eni for each in seen(hands))
    questions = ["DescribeNetworkInterfaces", "DescribeNetworkInterfaces", "DescribeSubnets"]
    assert sorted(name for name, _ in lab.called()) == questions

    fresh = ec2.Ec2(hands._node, lab.settings())
    found = fresh.observe(known=known)

    assert isinstance(found, model.ObservedCloud)
    assert tuple(each.eni for each in found.enis) == known
    assert len(lab.called()) == len(questions) + 1
    apart = dataclasses.replace(known[0], eni_id="eni-0123456789abcdef0")
    fresh.observe(known=(*known, apart))
    assert len(lab.called()) == len(questions) + 3


def test_a_look_that_gets_no_answer_is_unknown(hands: ec2.Ec2, lab: Ec2Lab) -> None:
    """Tried READ_ATTEMPTS times, then told, with what went wrong."""
    lab.fault("DescribeNetworkInterfaces", drop=True)
    found = hands.observe()
    assert isinstance(found, model.Unknown)
    assert "ConnectionClosed" in found.why
    assert len(lab.called("DescribeNetworkInterfaces")) == ec2.READ_ATTEMPTS


def test_nobody_listening_is_down_and_nothing_is_unknown(lab: Ec2Lab, node: model.Node) -> None:
    """What was not sent was not done."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        hands = ec2.Ec2(node, dataclasses.replace(lab.settings(), ec2_endpoint=endpoint))
        outcome = hands.apply(actions.AssignAddresses("eni-0123456789abcdef0", 1), "")
    assert (outcome.error, outcome.unknown) == ("EndpointConnectionError", False)
    assert errors.from_ec2(outcome.error, outcome.text).reason == "ec2_down"


def test_without_credentials_nothing_is_sent(lab: Ec2Lab, node: model.Node) -> None:
    """The instance has no role, or metadata is out of reach."""
    settings = dataclasses.replace(lab.settings(), imds_endpoint=f"{lab.mount.endpoint}/nothing/")
    outcome = ec2.Ec2(node, settings).apply(actions.DeleteEni("eni-0123456789abcdef0"), "")
    assert (outcome.error, outcome.unknown) == ("NoCredentials", False)
    assert lab.called() == []


# --------------------------------------------------------------------------- costs


def test_a_look_costs_two_calls_of_the_large_bucket(hands: ec2.Ec2, lab: Ec2Lab) -> None:
    """The subnet's block is asked for once; then a look is two filtered descriptions."""
    seen(hands)
    before = len(lab.called())
    seen(hands)
    assert lab.called()[before:] == [("DescribeNetworkInterfaces", "ok")] * 2


def test_calls_name_upstreams_product(hands: ec2.Ec2) -> None:
    """CloudTrail and IAM conditions on the user agent keep matching."""
    agents: list[str] = []
    hands._client.meta.events.register(
        "before-call", lambda params, **_: agents.append(params["headers"]["User-Agent"])
    )
    primary(hands)
    assert agents
    assert all("amazon-vpc-cni-k8s/" in agent for agent in agents)
