"""How interfaces and instances end, and what is left of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fidelity.workshop import Workshop, refused


def test_a_detached_interface_is_available_again(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    ec2.detach_network_interface(AttachmentId=make.attach(eni, node))
    first = make.shown(eni)
    assert first["Status"] == "available" or first["Attachment"]["Status"] == "detaching"
    make.wait_available(eni)
    assert "Attachment" not in make.shown(eni)
    shown = make.shown_instance(node)["NetworkInterfaces"]
    assert eni not in [each["NetworkInterfaceId"] for each in shown]


def test_a_detached_interface_keeps_its_addresses(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni(SecondaryPrivateIpAddressCount=3)["NetworkInterfaceId"]
    before = make.addresses(eni)
    ec2.detach_network_interface(AttachmentId=make.attach(eni, node))
    make.wait_available(eni)
    assert make.addresses(eni) == before


def test_a_detached_interface_can_be_attached_again(ec2: Any, make: Workshop, node: str) -> None:
    """At the same index, with a new attachment id."""
    eni = make.eni()["NetworkInterfaceId"]
    first = make.attach(eni, node)
    ec2.detach_network_interface(AttachmentId=first)
    make.wait_available(eni)
    assert make.attach(eni, node) != first


def test_the_primary_interface_cannot_be_detached(ec2: Any, make: Workshop, node: str) -> None:
    [primary] = make.shown_instance(node)["NetworkInterfaces"]
    code, text = refused(
        ec2.detach_network_interface, AttachmentId=primary["Attachment"]["AttachmentId"]
    )
    assert (code, text) == (
        "OperationNotPermitted",
        "The network interface at device index 0 and networkCard index 0 cannot be detached.",
    )


def test_the_primary_interface_cannot_be_detached_beside_others_either(
    ec2: Any, make: Workshop, node: str
) -> None:
    make.attach(make.eni()["NetworkInterfaceId"], node)
    primary = make.shown_instance(node)["NetworkInterfaces"][0]
    code, _ = refused(
        ec2.detach_network_interface, AttachmentId=primary["Attachment"]["AttachmentId"]
    )
    assert code == "OperationNotPermitted"


def test_an_unknown_attachment_is_not_found(ec2: Any) -> None:
    unknown = "eni-attach-0123456789abcdef0"
    code, text = refused(ec2.detach_network_interface, AttachmentId=unknown)
    assert code == "InvalidAttachmentID.NotFound"
    assert unknown in text


def test_an_ended_attachment_is_not_found(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    attachment = make.attach(eni, node)
    ec2.detach_network_interface(AttachmentId=attachment)
    make.wait_available(eni)
    code, _ = refused(ec2.detach_network_interface, AttachmentId=attachment)
    assert code == "InvalidAttachmentID.NotFound"


@pytest.mark.lab_only("needs a detachment that takes its time")
def test_a_detaching_interface_is_in_use(ec2: Any, make: Workshop, node: str) -> None:
    """It can neither be deleted nor attached nor detached once more."""
    before = make.endpoint.dial(detach_delay=1.0)
    try:
        eni = make.eni()["NetworkInterfaceId"]
        attachment = make.attach(eni, node)
        ec2.detach_network_interface(AttachmentId=attachment)
        codes = [
            refused(ec2.delete_network_interface, NetworkInterfaceId=eni)[0],
            refused(
                ec2.attach_network_interface, NetworkInterfaceId=eni, InstanceId=node, DeviceIndex=2
            )[0],
            refused(ec2.detach_network_interface, AttachmentId=attachment)[0],
        ]
        assert codes == ["InvalidParameterValue", "InvalidNetworkInterface.InUse", "IncorrectState"]
        assert make.shown(eni)["Attachment"]["Status"] == "detaching"
        make.wait_available(eni)
    finally:
        make.endpoint.dial(**before)


def test_an_attached_interface_cannot_be_deleted(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    make.attach(eni, node)
    code, text = refused(ec2.delete_network_interface, NetworkInterfaceId=eni)
    assert (code, text) == (
        "InvalidParameterValue",
        f"Network interface '{eni}' is currently in use.",
    )


def test_a_deleted_interface_is_not_found(ec2: Any, make: Workshop) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    ec2.delete_network_interface(NetworkInterfaceId=eni)
    expected = (
        "InvalidNetworkInterfaceID.NotFound",
        f"The networkInterface ID '{eni}' does not exist",
    )
    assert refused(ec2.delete_network_interface, NetworkInterfaceId=eni) == expected
    assert refused(ec2.describe_network_interfaces, NetworkInterfaceIds=[eni]) == expected


def test_an_instances_end_frees_its_slots_and_addresses(ec2: Any, make: Workshop) -> None:
    """Its first interface is deleted with it."""
    subnet = make.subnet(28)["SubnetId"]
    launched = make.instance(NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": subnet}])
    primary = launched["NetworkInterfaces"][0]["NetworkInterfaceId"]
    assert make.free_count(subnet) == 10
    make.terminate(launched["InstanceId"])
    code, _ = refused(ec2.describe_network_interfaces, NetworkInterfaceIds=[primary])
    assert code == "InvalidNetworkInterfaceID.NotFound"
    assert make.free_count(subnet) == 11


def test_delete_on_termination_is_honoured(ec2: Any, make: Workshop) -> None:
    instance = make.instance()["InstanceId"]
    goes, stays = make.eni()["NetworkInterfaceId"], make.eni()["NetworkInterfaceId"]
    attachment = make.attach(goes, instance, index=1)
    make.attach(stays, instance, index=2)
    ec2.modify_network_interface_attribute(
        NetworkInterfaceId=goes,
        Attachment={"AttachmentId": attachment, "DeleteOnTermination": True},
    )
    make.terminate(instance)
    code, _ = refused(ec2.describe_network_interfaces, NetworkInterfaceIds=[goes])
    assert code == "InvalidNetworkInterfaceID.NotFound"
    left = make.shown(stays)
    assert (left["Status"], "Attachment" in left) == ("available", False)


def test_a_terminated_instance_stays_visible_for_a_while(ec2: Any, make: Workshop) -> None:
    instance = make.instance()["InstanceId"]
    make.terminate(instance)
    shown = make.shown_instance(instance)
    assert shown["State"] == {"Code": 48, "Name": "terminated"}
    assert shown["NetworkInterfaces"] == []
    assert "PrivateIpAddress" not in shown


def test_termination_tells_both_states(ec2: Any, make: Workshop) -> None:
    """And ending what has ended is no error."""
    instance = make.instance()["InstanceId"]
    [first] = ec2.terminate_instances(InstanceIds=[instance])["TerminatingInstances"]
    assert first["PreviousState"]["Name"] == "running"
    assert first["CurrentState"]["Name"] == "shutting-down"
    make.terminate(instance)
    [again] = ec2.terminate_instances(InstanceIds=[instance])["TerminatingInstances"]
    assert again["PreviousState"]["Name"] == again["CurrentState"]["Name"] == "terminated"


def test_termination_of_an_unknown_instance_ends_none(ec2: Any, make: Workshop, node: str) -> None:
    code, _ = refused(ec2.terminate_instances, InstanceIds=[node, "i-0123456789abcdef0"])
    assert code == "InvalidInstanceID.NotFound"
    assert make.shown_instance(node)["State"]["Name"] == "running"
