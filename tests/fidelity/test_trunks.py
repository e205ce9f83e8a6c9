"""Trunk and branch interfaces. AWS reserves these actions; elsewhere than in the lab they are skipped."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fidelity.workshop import Workshop, refused

pytestmark = pytest.mark.lab_only("AWS lets only its own controllers associate branches")


def branch(make: Workshop) -> str:
    made: str = make.eni(InterfaceType="branch")["NetworkInterfaceId"]
    return made


def trunk(make: Workshop) -> str:
    made: str = make.eni(InterfaceType="trunk")["NetworkInterfaceId"]
    return made


def test_the_type_of_an_interface_is_kept(make: Workshop) -> None:
    assert make.shown(branch(make))["InterfaceType"] == "branch"
    assert make.shown(trunk(make))["InterfaceType"] == "trunk"


def test_an_association_ties_a_branch_to_a_vlan(ec2: Any, make: Workshop) -> None:
    one, above = branch(make), trunk(make)
    made = ec2.associate_trunk_interface(BranchInterfaceId=one, TrunkInterfaceId=above, VlanId=7)[
        "InterfaceAssociation"
    ]
    assert (made["VlanId"], made["InterfaceProtocol"]) == (7, "VLAN")
    assert make.shown(one)["Status"] == "in-use"
    listed = ec2.describe_trunk_interface_associations(AssociationIds=[made["AssociationId"]])
    [row] = listed["InterfaceAssociations"]
    assert (row["BranchInterfaceId"], row["TrunkInterfaceId"]) == (one, above)


def test_an_ended_association_frees_the_branch(ec2: Any, make: Workshop) -> None:
    one = branch(make)
    made = make.branch_off(one, trunk(make))["AssociationId"]
    assert ec2.disassociate_trunk_interface(AssociationId=made)["Return"] is True
    assert make.shown(one)["Status"] == "available"
    code, _ = refused(ec2.disassociate_trunk_interface, AssociationId=made)
    assert code.endswith(".NotFound")


def test_a_vlan_is_used_once_on_a_trunk(ec2: Any, make: Workshop) -> None:
    above = trunk(make)
    make.branch_off(branch(make), above)
    code, _ = refused(
        ec2.associate_trunk_interface,
        BranchInterfaceId=branch(make),
        TrunkInterfaceId=above,
        VlanId=7,
    )
    assert code == "InvalidParameterValue"


def test_ordinary_interfaces_are_neither_trunk_nor_branch(ec2: Any, make: Workshop) -> None:
    plain = make.eni()["NetworkInterfaceId"]
    for wanted in (
        {"BranchInterfaceId": plain, "TrunkInterfaceId": trunk(make)},
        {"BranchInterfaceId": branch(make), "TrunkInterfaceId": plain},
    ):
        code, _ = refused(ec2.associate_trunk_interface, VlanId=7, **wanted)
        assert code == "InvalidParameterValue"


def test_an_associated_branch_cannot_be_deleted(ec2: Any, make: Workshop) -> None:
    one = branch(make)
    make.branch_off(one, trunk(make))
    code, _ = refused(ec2.delete_network_interface, NetworkInterfaceId=one)
    assert code == "InvalidParameterValue"


def test_a_branch_is_not_attached_itself(ec2: Any, make: Workshop, node: str) -> None:
    code, _ = refused(
        ec2.attach_network_interface,
        NetworkInterfaceId=branch(make),
        InstanceId=node,
        DeviceIndex=1,
    )
    assert code == "InvalidParameterValue"


def test_a_trunks_end_frees_its_branches(ec2: Any, make: Workshop) -> None:
    one, above = branch(make), trunk(make)
    make.branch_off(one, above)
    ec2.delete_network_interface(NetworkInterfaceId=above)
    assert make.shown(one)["Status"] == "available"
