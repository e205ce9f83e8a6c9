"""What can be changed on an interface: groups, source check, description, one at a time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fidelity.workshop import Workshop, refused


def test_without_groups_the_default_group_is_used(ec2: Any, make: Workshop) -> None:
    [group] = make.eni()["Groups"]
    assert group["GroupName"] == "default"


def test_groups_are_replaced_as_a_whole(ec2: Any, make: Workshop) -> None:
    group = make.group("replacement")
    eni = make.eni(Groups=[make.place.group])["NetworkInterfaceId"]
    ec2.modify_network_interface_attribute(NetworkInterfaceId=eni, Groups=[group])
    assert [each["GroupId"] for each in make.shown(eni)["Groups"]] == [group]


def test_an_unknown_group_is_refused(ec2: Any, make: Workshop) -> None:
    unknown = "sg-0123456789abcdef0"
    code, text = refused(ec2.create_network_interface, SubnetId=make.place.subnet, Groups=[unknown])
    assert code in ("InvalidGroup.NotFound", "InvalidSecurityGroupID.NotFound")
    assert unknown in text


def test_six_groups_are_too_many(ec2: Any, make: Workshop) -> None:
    groups = [make.group(f"one of six {number}") for number in range(6)]
    code, _ = refused(ec2.create_network_interface, SubnetId=make.place.subnet, Groups=groups)
    assert code == "SecurityGroupsPerInterfaceLimitExceeded"


def test_the_source_check_can_be_switched_off(ec2: Any, make: Workshop) -> None:
    eni = make.eni()
    assert eni["SourceDestCheck"] is True
    ec2.modify_network_interface_attribute(
        NetworkInterfaceId=eni["NetworkInterfaceId"], SourceDestCheck={"Value": False}
    )
    assert make.shown(eni["NetworkInterfaceId"])["SourceDestCheck"] is False


def test_the_description_can_be_changed(ec2: Any, make: Workshop) -> None:
    eni = make.eni(Description="before")["NetworkInterfaceId"]
    ec2.modify_network_interface_attribute(NetworkInterfaceId=eni, Description={"Value": "after"})
    assert make.shown(eni)["Description"] == "after"


@pytest.mark.parametrize(
    "attributes", [{}, {"SourceDestCheck": {"Value": True}, "Description": {"Value": "both"}}]
)
def test_one_attribute_is_changed_at_a_time(
    ec2: Any, make: Workshop, attributes: dict[str, Any]
) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    code, _ = refused(ec2.modify_network_interface_attribute, NetworkInterfaceId=eni, **attributes)
    assert code == "InvalidParameterCombination"
    assert make.shown(eni)["Description"] == ""


def test_connection_tracking_is_kept(make: Workshop) -> None:
    """A new interface can copy the timeouts of the primary one."""
    eni = make.eni(ConnectionTrackingSpecification={"UdpTimeout": 45})["NetworkInterfaceId"]
    assert make.shown(eni)["ConnectionTrackingConfiguration"]["UdpTimeout"] == 45
