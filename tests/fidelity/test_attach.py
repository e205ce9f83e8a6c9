"""Attaching interfaces, launching with them, and changing what can be changed on them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fidelity.workshop import Workshop, eventually, refused


def test_an_unattached_interface_is_available(make: Workshop) -> None:
    seen = make.shown(make.eni()["NetworkInterfaceId"])
    assert (seen["Status"], "Attachment" in seen) == ("available", False)


def test_attaching_becomes_attached(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    reply = ec2.attach_network_interface(NetworkInterfaceId=eni, InstanceId=node, DeviceIndex=1)
    first = make.shown(eni)
    assert first["Status"] == "in-use"
    assert first["Attachment"]["Status"] in ("attaching", "attached")
    make.wait_attachment(eni, "attached")
    attachment = make.shown(eni)["Attachment"]
    assert attachment["AttachmentId"] == reply["AttachmentId"]
    assert (attachment["InstanceId"], attachment["DeviceIndex"]) == (node, 1)
    assert (attachment["NetworkCardIndex"], reply["NetworkCardIndex"]) == (0, 0)


@pytest.mark.lab_only("the delay of an attachment is the lab's to choose")
def test_an_attachment_is_attaching_for_a_while(ec2: Any, make: Workshop, node: str) -> None:
    before = make.endpoint.dial(attach_delay=0.5)
    try:
        eni = make.eni()["NetworkInterfaceId"]
        ec2.attach_network_interface(NetworkInterfaceId=eni, InstanceId=node, DeviceIndex=1)
        assert make.shown(eni)["Attachment"]["Status"] == "attaching"
        make.wait_attachment(eni, "attached")
    finally:
        make.endpoint.dial(**before)


def test_the_instance_shows_its_interfaces(make: Workshop, node: str) -> None:
    eni = make.eni(SecondaryPrivateIpAddressCount=1)["NetworkInterfaceId"]
    attachment = make.attach(eni, node, index=2)
    shown = {each["NetworkInterfaceId"]: each for each in interfaces(make, node)}
    assert shown[eni]["Attachment"]["AttachmentId"] == attachment
    assert shown[eni]["Attachment"]["DeviceIndex"] == 2
    assert len(shown[eni]["PrivateIpAddresses"]) == 2


def interfaces(make: Workshop, instance_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = make.shown_instance(instance_id)["NetworkInterfaces"]
    return found


def test_an_attached_interface_survives_its_instance_by_default(make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    make.attach(eni, node)
    assert make.shown(eni)["Attachment"]["DeleteOnTermination"] is False


def test_delete_on_termination_can_be_set(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    attachment = make.attach(eni, node)
    ec2.modify_network_interface_attribute(
        NetworkInterfaceId=eni,
        Attachment={"AttachmentId": attachment, "DeleteOnTermination": True},
    )
    assert make.shown(eni)["Attachment"]["DeleteOnTermination"] is True


def test_another_attachments_id_is_not_found(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    make.attach(eni, node)
    code, _ = refused(
        ec2.modify_network_interface_attribute,
        NetworkInterfaceId=eni,
        Attachment={"AttachmentId": "eni-attach-0123456789abcdef0", "DeleteOnTermination": True},
    )
    assert code == "InvalidAttachmentID.NotFound"


def test_a_device_index_takes_one_interface(ec2: Any, make: Workshop, node: str) -> None:
    make.attach(make.eni()["NetworkInterfaceId"], node, index=1)
    code, text = refused(
        ec2.attach_network_interface,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        InstanceId=node,
        DeviceIndex=1,
    )
    assert (code, text) == (
        "InvalidParameterValue",
        f"Instance '{node}' already has an interface attached at device index '1'.",
    )


def test_an_interface_is_attached_once(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    make.attach(eni, node, index=1)
    code, text = refused(
        ec2.attach_network_interface, NetworkInterfaceId=eni, InstanceId=node, DeviceIndex=2
    )
    assert code == "InvalidNetworkInterface.InUse"
    assert eni in text


def test_an_instance_takes_as_many_interfaces_as_its_type_allows(
    ec2: Any, make: Workshop, node: str, limits: dict[str, Any]
) -> None:
    most = limits["NetworkCards"][0]["MaximumNetworkInterfaces"]
    for index in range(1, most):
        make.attach(make.eni()["NetworkInterfaceId"], node, index=index)
    code, text = refused(
        ec2.attach_network_interface,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        InstanceId=node,
        DeviceIndex=most,
    )
    assert (code, text) == (
        "AttachmentLimitExceeded",
        f"Interface count {most + 1} exceeds the limit for {make.endpoint.instance_type}",
    )


def test_interface_and_instance_share_a_zone(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni(SubnetId=make.place.other_subnet)["NetworkInterfaceId"]
    code, text = refused(
        ec2.attach_network_interface, NetworkInterfaceId=eni, InstanceId=node, DeviceIndex=1
    )
    assert code == "InvalidParameterCombination"
    assert "not in the same availability zone" in text


def test_more_addresses_than_the_type_allows_are_not_attached(
    ec2: Any, make: Workshop, node: str, limits: dict[str, Any]
) -> None:
    most = limits["Ipv4AddressesPerInterface"]
    eni = make.eni(SecondaryPrivateIpAddressCount=most)["NetworkInterfaceId"]
    code, _ = refused(
        ec2.attach_network_interface, NetworkInterfaceId=eni, InstanceId=node, DeviceIndex=1
    )
    assert code == "PrivateIpAddressLimitExceeded"


def test_a_card_the_instance_does_not_have_is_refused(
    ec2: Any, make: Workshop, node: str, limits: dict[str, Any]
) -> None:
    code, _ = refused(
        ec2.attach_network_interface,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        InstanceId=node,
        DeviceIndex=1,
        NetworkCardIndex=limits["MaximumNetworkCards"],
    )
    assert code == "InvalidParameterValue"


@pytest.mark.lab_only("the type with four network cards is too dear")
def test_each_network_card_counts_its_own_indices(make: Workshop) -> None:
    instance = make.instance("p4d.24xlarge")["InstanceId"]
    for card in (0, 1):
        make.attach(make.eni()["NetworkInterfaceId"], instance, index=1, card=card)
    slots = [
        (each["Attachment"]["NetworkCardIndex"], each["Attachment"]["DeviceIndex"])
        for each in interfaces(make, instance)
    ]
    assert slots == [(0, 0), (0, 1), (1, 1)]


@pytest.mark.lab_only("EFA comes with dear types")
@pytest.mark.parametrize("kind", ["efa", "efa-only"])
def test_efa_needs_a_type_that_has_it(ec2: Any, make: Workshop, node: str, kind: str) -> None:
    eni = make.eni(InterfaceType=kind)["NetworkInterfaceId"]
    refused(ec2.attach_network_interface, NetworkInterfaceId=eni, InstanceId=node, DeviceIndex=1)
    make.attach(eni, make.instance("p4d.24xlarge")["InstanceId"], card=1)
    assert make.shown(eni)["InterfaceType"] == kind


def test_an_efa_only_interface_has_no_address(make: Workshop) -> None:
    eni = make.eni(InterfaceType="efa-only")
    assert ("PrivateIpAddress" in eni, eni["PrivateIpAddresses"]) == (False, [])


def test_a_terminated_instance_takes_no_interface(ec2: Any, make: Workshop) -> None:
    instance = make.instance()["InstanceId"]
    make.terminate(instance)
    eni = make.eni()["NetworkInterfaceId"]
    refused(
        ec2.attach_network_interface, NetworkInterfaceId=eni, InstanceId=instance, DeviceIndex=1
    )
    assert make.shown(eni)["Status"] == "available"


# Launching.


def test_the_first_interface_goes_with_its_instance(make: Workshop, node: str) -> None:
    primary = next(i for i in interfaces(make, node) if i["Attachment"]["DeviceIndex"] == 0)
    assert primary["Attachment"]["DeleteOnTermination"] is True
    assert primary["PrivateIpAddress"] == make.shown_instance(node)["PrivateIpAddress"]


def test_a_launch_can_bring_several_interfaces(make: Workshop) -> None:
    subnet, group = make.place.subnet, make.place.group
    instance = make.instance(
        NetworkInterfaces=[
            {"DeviceIndex": 1, "SubnetId": subnet, "SecondaryPrivateIpAddressCount": 2},
            {"DeviceIndex": 0, "SubnetId": subnet, "Groups": [group], "Description": "first"},
        ]
    )
    first, second = instance["NetworkInterfaces"]
    assert (first["Description"], first["Groups"][0]["GroupId"]) == ("first", group)
    assert len(second["PrivateIpAddresses"]) == 3


def test_a_launch_of_an_unknown_type_is_refused(ec2: Any, make: Workshop) -> None:
    code, _ = refused(
        ec2.run_instances,
        ImageId=make.endpoint.image,
        InstanceType="m5.enormous",
        MinCount=1,
        MaxCount=1,
        SubnetId=make.place.subnet,
    )
    assert code in ("InvalidParameterValue", "InvalidInstanceType")


def test_a_launch_into_a_full_subnet_leaves_nothing(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)["SubnetId"]
    make.eni(SubnetId=subnet, SecondaryPrivateIpAddressCount=9)
    code, _ = refused(
        ec2.run_instances,
        ImageId=make.endpoint.image,
        InstanceType=make.endpoint.instance_type,
        MinCount=2,
        MaxCount=2,
        SubnetId=subnet,
    )
    assert code == "InsufficientFreeAddressesInSubnet"
    assert make.free_count(subnet) == 1


def test_metadata_options_can_be_changed(ec2: Any, make: Workshop, node: str) -> None:
    ec2.modify_instance_metadata_options(
        InstanceId=node, HttpTokens="required", HttpPutResponseHopLimit=2
    )
    options = eventually(
        lambda: (
            (seen := make.shown_instance(node)["MetadataOptions"])["State"] == "applied" and seen
        ),
        "applied",
    )
    assert (options["HttpTokens"], options["HttpPutResponseHopLimit"]) == ("required", 2)
    assert options["HttpEndpoint"] == "enabled"
