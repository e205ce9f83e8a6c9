"""Private IPv4 addresses: where they come from, who may have them, how they leave."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from tests.fidelity.workshop import Place, Workshop, nth, refused


def usable(cidr: str) -> set[str]:
    """What EC2 gives out of a subnet: all but the first four and the last."""
    return {str(address) for address in ipaddress.ip_network(cidr)} - {
        str(ipaddress.ip_network(cidr)[index]) for index in (0, 1, 2, 3, -1)
    }


def test_a_new_interface_has_one_primary_address_of_its_subnet(make: Workshop) -> None:
    eni = make.eni()
    assert eni["PrivateIpAddress"] in usable(make.place.subnet_cidr)
    [row] = eni["PrivateIpAddresses"]
    assert (row["PrivateIpAddress"], row["Primary"]) == (eni["PrivateIpAddress"], True)


def test_automatic_addresses_fill_a_subnet_without_collision(make: Workshop) -> None:
    """A /28 has eleven addresses to give; ten ways of asking for one more never repeat."""
    subnet = make.subnet(28)
    enis = [make.eni(SubnetId=subnet["SubnetId"]) for _ in range(11)]
    assert {eni["PrivateIpAddress"] for eni in enis} == usable(subnet["CidrBlock"])


def test_secondaries_fill_a_subnet_without_collision(make: Workshop) -> None:
    subnet = make.subnet(28)
    eni = make.eni(SubnetId=subnet["SubnetId"], SecondaryPrivateIpAddressCount=10)
    rows = [row["PrivateIpAddress"] for row in eni["PrivateIpAddresses"]]
    assert (len(rows), set(rows)) == (11, usable(subnet["CidrBlock"]))


def test_a_full_subnet_refuses_a_new_interface(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)["SubnetId"]
    make.eni(SubnetId=subnet, SecondaryPrivateIpAddressCount=10)
    code, text = refused(ec2.create_network_interface, SubnetId=subnet)
    assert code == "InsufficientFreeAddressesInSubnet"
    assert "does not have enough free addresses" in text


def test_a_subnet_too_full_for_the_count_gives_nothing(ec2: Any, make: Workshop) -> None:
    """Five are free, six are wanted: none is assigned."""
    subnet = make.subnet(28)["SubnetId"]
    eni = make.eni(SubnetId=subnet, SecondaryPrivateIpAddressCount=5)["NetworkInterfaceId"]
    code, _ = refused(
        ec2.assign_private_ip_addresses, NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=6
    )
    assert code == "InsufficientFreeAddressesInSubnet"
    assert len(make.addresses(eni)) == 6


def test_a_named_primary_address_is_given(make: Workshop) -> None:
    subnet = make.subnet(28)
    eni = make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddress=nth(subnet, 7))
    assert eni["PrivateIpAddress"] == nth(subnet, 7)


def test_named_addresses_may_say_which_is_primary(make: Workshop) -> None:
    subnet = make.subnet(28)
    second, first = nth(subnet, 7), nth(subnet, 8)
    rows = [{"PrivateIpAddress": second}, {"PrivateIpAddress": first, "Primary": True}]
    eni = make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddresses=rows)
    assert eni["PrivateIpAddress"] == first
    assert make.addresses(eni["NetworkInterfaceId"]) == [first, second]


def test_a_named_address_that_is_taken_is_refused(ec2: Any, make: Workshop) -> None:
    taken = make.eni()["PrivateIpAddress"]
    code, text = refused(
        ec2.create_network_interface, SubnetId=make.place.subnet, PrivateIpAddress=taken
    )
    assert (code, text) == ("InvalidIPAddress.InUse", f"Address {taken} is in use.")


def test_a_named_address_outside_the_subnet_is_refused(ec2: Any, place: Place) -> None:
    code, text = refused(
        ec2.create_network_interface, SubnetId=place.subnet, PrivateIpAddress="10.99.200.9"
    )
    assert code == "InvalidParameterValue"
    assert "does not fall within the subnet's address range" in text


@pytest.mark.parametrize("address", ["10.99.0.0", "10.99.0.1", "10.99.0.3", "10.99.3.255"])
def test_the_addresses_ec2_keeps_are_refused(ec2: Any, place: Place, address: str) -> None:
    code, text = refused(
        ec2.create_network_interface, SubnetId=place.subnet, PrivateIpAddress=address
    )
    assert code == "InvalidParameterValue"
    assert "reserved address range" in text


def test_what_is_no_address_is_refused(ec2: Any, place: Place) -> None:
    code, text = refused(
        ec2.create_network_interface, SubnetId=place.subnet, PrivateIpAddress="10.99.0"
    )
    assert (code, text) == (
        "InvalidParameterValue",
        "invalid value for parameter address: 10.99.0",
    )


def test_a_refused_creation_keeps_no_address(ec2: Any, make: Workshop) -> None:
    """The good one of two named addresses is free afterwards."""
    subnet = make.subnet(28)
    good, bad = nth(subnet, 5), nth(subnet, 1)
    rows = [{"PrivateIpAddress": good, "Primary": True}, {"PrivateIpAddress": bad}]
    refused(ec2.create_network_interface, SubnetId=subnet["SubnetId"], PrivateIpAddresses=rows)
    assert make.free_count(subnet["SubnetId"]) == 11
    assert make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddress=good)["PrivateIpAddress"] == good


def test_the_reply_of_assign_names_only_the_new_addresses(ec2: Any, make: Workshop) -> None:
    eni = make.eni(SecondaryPrivateIpAddressCount=2)["NetworkInterfaceId"]
    before = set(make.addresses(eni))
    reply = ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=3
    )
    named = {row["PrivateIpAddress"] for row in reply["AssignedPrivateIpAddresses"]}
    assert (len(named), named & before) == (3, set())
    assert set(make.addresses(eni)) == before | named
    assert reply["NetworkInterfaceId"] == eni


def test_a_named_address_is_assigned(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)
    eni = make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddress=nth(subnet, 7))
    ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], PrivateIpAddresses=[nth(subnet, 9)]
    )
    assert make.addresses(eni["NetworkInterfaceId"]) == [nth(subnet, 7), nth(subnet, 9)]


def test_anothers_address_is_not_assigned(ec2: Any, make: Workshop) -> None:
    held = make.eni(SecondaryPrivateIpAddressCount=1)["NetworkInterfaceId"]
    address = make.addresses(held)[1]
    code, text = refused(
        ec2.assign_private_ip_addresses,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        PrivateIpAddresses=[address],
    )
    assert (code, text) == (
        "InvalidParameterValue",
        f"[{address}] are assigned, but move is not allowed.",
    )


def test_with_reassignment_anothers_address_moves(ec2: Any, make: Workshop) -> None:
    """It leaves the first interface: no address is ever on two."""
    first = make.eni(SecondaryPrivateIpAddressCount=1)["NetworkInterfaceId"]
    second = make.eni()["NetworkInterfaceId"]
    address = make.addresses(first)[1]
    reply = ec2.assign_private_ip_addresses(
        NetworkInterfaceId=second, PrivateIpAddresses=[address], AllowReassignment=True
    )
    assert [row["PrivateIpAddress"] for row in reply["AssignedPrivateIpAddresses"]] == [address]
    assert address not in make.addresses(first)
    assert make.addresses(second)[1:] == [address]


def test_a_primary_address_never_moves(ec2: Any, make: Workshop) -> None:
    primary = make.eni()["PrivateIpAddress"]
    code, _ = refused(
        ec2.assign_private_ip_addresses,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        PrivateIpAddresses=[primary],
        AllowReassignment=True,
    )
    assert code == "InvalidParameterValue"


def test_an_unassigned_address_is_free_again(ec2: Any, make: Workshop) -> None:
    eni = make.eni(SecondaryPrivateIpAddressCount=1)["NetworkInterfaceId"]
    address = make.addresses(eni)[1]
    ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=[address])
    assert address not in make.addresses(eni)
    assert make.eni(PrivateIpAddress=address)["PrivateIpAddress"] == address


def test_the_primary_address_cannot_be_unassigned(ec2: Any, make: Workshop) -> None:
    eni = make.eni()
    code, _ = refused(
        ec2.unassign_private_ip_addresses,
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        PrivateIpAddresses=[eni["PrivateIpAddress"]],
    )
    assert code == "InvalidParameterValue"
    assert make.addresses(eni["NetworkInterfaceId"]) == [eni["PrivateIpAddress"]]


def test_a_foreign_address_cannot_be_unassigned(ec2: Any, make: Workshop) -> None:
    """And the call changes nothing, though its other address was right."""
    eni = make.eni(SecondaryPrivateIpAddressCount=1)["NetworkInterfaceId"]
    foreign = make.eni()["PrivateIpAddress"]
    before = make.addresses(eni)
    code, _ = refused(
        ec2.unassign_private_ip_addresses,
        NetworkInterfaceId=eni,
        PrivateIpAddresses=[before[1], foreign],
    )
    assert code == "InvalidParameterValue"
    assert make.addresses(eni) == before


def test_an_attached_interface_carries_what_its_type_allows(
    ec2: Any, make: Workshop, node: str, limits: dict[str, Any]
) -> None:
    most = limits["Ipv4AddressesPerInterface"]
    eni = make.eni(SecondaryPrivateIpAddressCount=most - 1)["NetworkInterfaceId"]
    make.attach(eni, node)
    code, text = refused(
        ec2.assign_private_ip_addresses, NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1
    )
    assert (code, text) == (
        "PrivateIpAddressLimitExceeded",
        "Number of private addresses will exceed limit.",
    )


def test_a_call_over_the_limit_assigns_nothing(
    ec2: Any, make: Workshop, node: str, limits: dict[str, Any]
) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    make.attach(eni, node)
    code, _ = refused(
        ec2.assign_private_ip_addresses,
        NetworkInterfaceId=eni,
        SecondaryPrivateIpAddressCount=limits["Ipv4AddressesPerInterface"],
    )
    assert code == "PrivateIpAddressLimitExceeded"
    assert len(make.addresses(eni)) == 1


def test_an_unattached_interface_has_a_limit_too(ec2: Any, place: Place) -> None:
    code, _ = refused(
        ec2.create_network_interface, SubnetId=place.subnet, SecondaryPrivateIpAddressCount=60
    )
    assert code == "PrivateIpAddressLimitExceeded"


def test_names_and_a_count_exclude_each_other(ec2: Any, make: Workshop) -> None:
    code, _ = refused(
        ec2.assign_private_ip_addresses,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        PrivateIpAddresses=["10.99.1.91"],
        SecondaryPrivateIpAddressCount=1,
    )
    assert code == "InvalidParameterCombination"


def test_deleting_an_interface_frees_its_addresses(ec2: Any, make: Workshop) -> None:
    eni = make.eni(SecondaryPrivateIpAddressCount=2)
    address = eni["PrivateIpAddress"]
    ec2.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])
    assert make.eni(PrivateIpAddress=address)["PrivateIpAddress"] == address


def test_the_free_count_follows_addresses(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)
    assert subnet["AvailableIpAddressCount"] == 11
    eni = make.eni(SubnetId=subnet["SubnetId"], SecondaryPrivateIpAddressCount=3)
    assert make.free_count(subnet["SubnetId"]) == 7
    second = eni["PrivateIpAddresses"][1]["PrivateIpAddress"]
    ec2.unassign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], PrivateIpAddresses=[second]
    )
    assert make.free_count(subnet["SubnetId"]) == 8


def test_every_interface_has_a_mac_of_its_own(make: Workshop) -> None:
    macs = {make.eni()["MacAddress"] for _ in range(5)}
    assert len(macs) == 5
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs), "locally administered, unicast"


def test_an_elastic_address_shows_on_its_private_address(ec2: Any, make: Workshop) -> None:
    """And leaves with it: unassigning ends the association."""
    eni = make.eni(SecondaryPrivateIpAddressCount=1)["NetworkInterfaceId"]
    address = make.addresses(eni)[1]
    elastic = ec2.allocate_address(Domain="vpc")
    try:
        ec2.associate_address(
            AllocationId=elastic["AllocationId"], NetworkInterfaceId=eni, PrivateIpAddress=address
        )
        rows = {row["PrivateIpAddress"]: row for row in make.shown(eni)["PrivateIpAddresses"]}
        assert rows[address]["Association"]["PublicIp"] == elastic["PublicIp"]
        ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni, PrivateIpAddresses=[address])
        [shown] = ec2.describe_addresses(AllocationIds=[elastic["AllocationId"]])["Addresses"]
        assert "AssociationId" not in shown
    finally:
        ec2.release_address(AllocationId=elastic["AllocationId"])
