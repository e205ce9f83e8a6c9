"""Delegated prefixes, reservations, and IPv6."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from tests.fidelity.workshop import Place, Workshop, nth, refused


def inside(address: str, prefix: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(prefix)


def prefixes(eni: dict[str, Any]) -> list[str]:
    return [row["Ipv4Prefix"] for row in eni["Ipv4Prefixes"]]


def test_a_prefix_is_an_aligned_28_of_the_subnet(make: Workshop) -> None:
    """ip_network refuses host bits, so parsing is the test of alignment."""
    [prefix] = prefixes(make.eni(Ipv4PrefixCount=1))
    network = ipaddress.IPv4Network(prefix)
    assert network.prefixlen == 28
    assert network.subnet_of(ipaddress.IPv4Network(make.place.subnet_cidr))


def test_prefixes_never_overlap(make: Workshop) -> None:
    given = [each for _ in range(4) for each in prefixes(make.eni(Ipv4PrefixCount=3))]
    assert len(set(given)) == 12


def test_automatic_addresses_stay_out_of_prefixes(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(26)
    first = nth(subnet, 5)
    held = prefixes(
        make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddress=first, Ipv4PrefixCount=2)
    )
    other = make.eni(SubnetId=subnet["SubnetId"], SecondaryPrivateIpAddressCount=20)
    addresses = [row["PrivateIpAddress"] for row in other["PrivateIpAddresses"]]
    assert [a for a in addresses for prefix in held if inside(a, prefix)] == []


def test_a_named_prefix_is_assigned(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(26)
    eni = make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddress=nth(subnet, 5))
    prefix = nth(subnet, 16) + "/28"
    reply = ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], Ipv4Prefixes=[prefix]
    )
    assert [row["Ipv4Prefix"] for row in reply["AssignedIpv4Prefixes"]] == [prefix]
    assert prefixes(make.shown(eni["NetworkInterfaceId"])) == [prefix]


@pytest.mark.parametrize(
    "prefix", ["10.99.2.65/28", "10.99.2.64/27", "10.99.2.64", "10.99.99.0/28"]
)
def test_what_is_no_28_of_the_subnet_is_refused(ec2: Any, make: Workshop, prefix: str) -> None:
    code, _ = refused(
        ec2.assign_private_ip_addresses,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        Ipv4Prefixes=[prefix],
    )
    assert code == "InvalidParameterValue"


def test_an_address_inside_anothers_prefix_is_refused(ec2: Any, make: Workshop) -> None:
    [prefix] = prefixes(make.eni(Ipv4PrefixCount=1))
    code, _ = refused(
        ec2.create_network_interface,
        SubnetId=make.place.subnet,
        PrivateIpAddress=str(ipaddress.ip_network(prefix)[5]),
    )
    assert code == "InvalidIPAddress.InUse"


def test_the_reply_of_assign_names_only_the_new_prefixes(ec2: Any, make: Workshop) -> None:
    eni = make.eni(Ipv4PrefixCount=1)
    reply = ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], Ipv4PrefixCount=1
    )
    [new] = [row["Ipv4Prefix"] for row in reply["AssignedIpv4Prefixes"]]
    assert new not in prefixes(eni)
    assert sorted(prefixes(make.shown(eni["NetworkInterfaceId"]))) == sorted([*prefixes(eni), new])


def test_a_prefix_takes_one_slot_of_an_attached_interface(
    ec2: Any, make: Workshop, node: str, limits: dict[str, Any]
) -> None:
    most = limits["Ipv4AddressesPerInterface"]
    eni = make.eni(Ipv4PrefixCount=most - 2)["NetworkInterfaceId"]
    make.attach(eni, node)
    ec2.assign_private_ip_addresses(NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1)
    code, _ = refused(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni, Ipv4PrefixCount=1)
    assert code == "PrivateIpAddressLimitExceeded"


def test_the_free_count_follows_prefixes(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(26)["SubnetId"]
    eni = make.eni(SubnetId=subnet, Ipv4PrefixCount=1)
    assert make.free_count(subnet) == 64 - 5 - 1 - 16
    ec2.unassign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], Ipv4Prefixes=prefixes(eni)
    )
    assert make.free_count(subnet) == 64 - 5 - 1


def test_a_prefix_not_on_the_interface_cannot_be_unassigned(ec2: Any, make: Workshop) -> None:
    [foreign] = prefixes(make.eni(Ipv4PrefixCount=1))
    code, _ = refused(
        ec2.unassign_private_ip_addresses,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        Ipv4Prefixes=[foreign],
    )
    assert code == "InvalidParameterValue"


def test_a_subnet_with_too_few_addresses_refuses_prefixes_by_text(ec2: Any, make: Workshop) -> None:
    """The code alone would not tell: it is the general InvalidParameterValue."""
    eni = make.eni(SubnetId=make.subnet(28)["SubnetId"])["NetworkInterfaceId"]
    code, text = refused(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni, Ipv4PrefixCount=1)
    assert code == "InvalidParameterValue"
    assert "There aren't sufficient free Ipv4 addresses or prefixes" in text


def test_creation_with_prefixes_in_a_full_subnet_says_the_same(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)["SubnetId"]
    code, text = refused(ec2.create_network_interface, SubnetId=subnet, Ipv4PrefixCount=1)
    assert code == "InvalidParameterValue"
    assert "There aren't sufficient free Ipv4 addresses or prefixes" in text
    assert make.free_count(subnet) == 11, "the primary address was given back"


def test_a_fragmented_subnet_has_no_blocks(ec2: Any, make: Workshop) -> None:
    """Fifty-five addresses are free, one is taken in each of the four blocks."""
    subnet = make.subnet(26)
    rows = [
        {"PrivateIpAddress": nth(subnet, index), "Primary": index == 10}
        for index in (10, 20, 40, 50)
    ]
    eni = make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddresses=rows)["NetworkInterfaceId"]
    code, text = refused(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni, Ipv4PrefixCount=1)
    assert code == "InsufficientCidrBlocks"
    assert "enough free cidr blocks" in text
    assert make.free_count(subnet["SubnetId"]) == 55


def test_prefixes_and_addresses_exclude_each_other(ec2: Any, make: Workshop) -> None:
    code, _ = refused(
        ec2.create_network_interface,
        SubnetId=make.place.subnet,
        Ipv4PrefixCount=1,
        SecondaryPrivateIpAddressCount=1,
    )
    assert code == "InvalidParameterCombination"


# Reservations.


def test_automatic_addresses_stay_out_of_reservations(make: Workshop) -> None:
    """Of a /27 one half is reserved; the other half still fills to its last address."""
    subnet = make.subnet(27)
    upper = nth(subnet, 16) + "/28"
    make.reservation(subnet["SubnetId"], upper, "explicit")
    eni = make.eni(SubnetId=subnet["SubnetId"], SecondaryPrivateIpAddressCount=11)
    addresses = [row["PrivateIpAddress"] for row in eni["PrivateIpAddresses"]]
    assert [address for address in addresses if inside(address, upper)] == []


def test_a_reserved_address_can_be_named(make: Workshop) -> None:
    subnet = make.subnet(27)
    make.reservation(subnet["SubnetId"], nth(subnet, 16) + "/28", "explicit")
    wanted = nth(subnet, 20)
    eni = make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddress=wanted)
    assert eni["PrivateIpAddress"] == wanted


def test_automatic_prefixes_stay_out_of_explicit_reservations(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(26)
    reserved = nth(subnet, 16) + "/28"
    make.reservation(subnet["SubnetId"], reserved, "explicit")
    first = nth(subnet, 5)
    eni = make.eni(SubnetId=subnet["SubnetId"], PrivateIpAddress=first, Ipv4PrefixCount=1)
    assert prefixes(eni) != [reserved]


def test_automatic_prefixes_come_from_a_prefix_reservation(make: Workshop) -> None:
    """And automatic addresses do not."""
    subnet = make.subnet(25)
    reserved = nth(subnet, 64) + "/27"
    make.reservation(subnet["SubnetId"], reserved, "prefix")
    eni = make.eni(SubnetId=subnet["SubnetId"], Ipv4PrefixCount=2)
    assert all(
        ipaddress.IPv4Network(each).subnet_of(ipaddress.IPv4Network(reserved))
        for each in prefixes(eni)
    )
    assert not inside(eni["PrivateIpAddress"], reserved)


def test_reservations_are_listed_by_family_and_deleted(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(26)
    cidr = nth(subnet, 32) + "/28"
    made = make.reservation(subnet["SubnetId"], cidr, "prefix")
    listed = ec2.get_subnet_cidr_reservations(SubnetId=subnet["SubnetId"])
    assert [row["Cidr"] for row in listed["SubnetIpv4CidrReservations"]] == [cidr]
    assert listed["SubnetIpv6CidrReservations"] == []
    ec2.delete_subnet_cidr_reservation(SubnetCidrReservationId=made["SubnetCidrReservationId"])
    listed = ec2.get_subnet_cidr_reservations(SubnetId=subnet["SubnetId"])
    assert listed["SubnetIpv4CidrReservations"] == []


def test_reservations_may_not_overlap(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(26)
    make.reservation(subnet["SubnetId"], subnet["CidrBlock"].replace("/26", "/27"), "prefix")
    code, _ = refused(
        ec2.create_subnet_cidr_reservation,
        SubnetId=subnet["SubnetId"],
        Cidr=nth(subnet, 16) + "/28",
        ReservationType="explicit",
    )
    assert code.startswith("Invalid")


# IPv6.


def test_an_ipv6_address_comes_from_the_subnets_64(ec2: Any, make: Workshop) -> None:
    eni = make.eni(Ipv6AddressCount=1)
    [row] = eni["Ipv6Addresses"]
    assert inside(row["Ipv6Address"], make.place.subnet_ipv6)
    reply = ec2.assign_ipv6_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], Ipv6AddressCount=2
    )
    new = reply["AssignedIpv6Addresses"]
    assert (len(new), row["Ipv6Address"] in new) == (2, False)


def test_an_ipv6_prefix_is_an_80_of_the_subnet(ec2: Any, make: Workshop) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    reply = ec2.assign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6PrefixCount=1)
    [prefix] = reply["AssignedIpv6Prefixes"]
    network = ipaddress.IPv6Network(prefix)
    assert network.prefixlen == 80
    assert network.subnet_of(ipaddress.IPv6Network(make.place.subnet_ipv6))
    assert make.shown(eni)["Ipv6Prefixes"] == [{"Ipv6Prefix": prefix}]


def test_ipv6_is_unassigned_by_name(ec2: Any, make: Workshop) -> None:
    eni = make.eni(Ipv6PrefixCount=1)
    [row] = eni["Ipv6Prefixes"]
    reply = ec2.unassign_ipv6_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], Ipv6Prefixes=[row["Ipv6Prefix"]]
    )
    assert reply["UnassignedIpv6Prefixes"] == [row["Ipv6Prefix"]]
    assert make.shown(eni["NetworkInterfaceId"])["Ipv6Prefixes"] == []


def test_ipv6_not_on_the_interface_cannot_be_unassigned(ec2: Any, make: Workshop) -> None:
    [row] = make.eni(Ipv6AddressCount=1)["Ipv6Addresses"]
    code, _ = refused(
        ec2.unassign_ipv6_addresses,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        Ipv6Addresses=[row["Ipv6Address"]],
    )
    assert code == "InvalidParameterValue"


def test_a_subnet_without_ipv6_gives_none(ec2: Any, place: Place) -> None:
    code, _ = refused(ec2.create_network_interface, SubnetId=place.other_subnet, Ipv6AddressCount=1)
    assert code == "InvalidParameterValue"
