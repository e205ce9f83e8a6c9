"""The families of refusals: nothing there, no id at all, something left out, only asking."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fidelity.workshop import Place, Workshop, refused

UNKNOWN = "0123456789abcdef0"

NOT_FOUND: list[tuple[str, dict[str, Any], str]] = [
    (
        "describe_network_interfaces",
        {"NetworkInterfaceIds": [f"eni-{UNKNOWN}"]},
        "InvalidNetworkInterfaceID.NotFound",
    ),
    (
        "delete_network_interface",
        {"NetworkInterfaceId": f"eni-{UNKNOWN}"},
        "InvalidNetworkInterfaceID.NotFound",
    ),
    (
        "assign_private_ip_addresses",
        {"NetworkInterfaceId": f"eni-{UNKNOWN}", "SecondaryPrivateIpAddressCount": 1},
        "InvalidNetworkInterfaceID.NotFound",
    ),
    (
        "unassign_private_ip_addresses",
        {"NetworkInterfaceId": f"eni-{UNKNOWN}", "PrivateIpAddresses": ["10.99.1.1"]},
        "InvalidNetworkInterfaceID.NotFound",
    ),
    (
        "assign_ipv6_addresses",
        {"NetworkInterfaceId": f"eni-{UNKNOWN}", "Ipv6AddressCount": 1},
        "InvalidNetworkInterfaceID.NotFound",
    ),
    (
        "modify_network_interface_attribute",
        {"NetworkInterfaceId": f"eni-{UNKNOWN}", "Description": {"Value": "x"}},
        "InvalidNetworkInterfaceID.NotFound",
    ),
    ("describe_instances", {"InstanceIds": [f"i-{UNKNOWN}"]}, "InvalidInstanceID.NotFound"),
    ("terminate_instances", {"InstanceIds": [f"i-{UNKNOWN}"]}, "InvalidInstanceID.NotFound"),
    ("describe_subnets", {"SubnetIds": [f"subnet-{UNKNOWN}"]}, "InvalidSubnetID.NotFound"),
    ("create_network_interface", {"SubnetId": f"subnet-{UNKNOWN}"}, "InvalidSubnetID.NotFound"),
    ("describe_vpcs", {"VpcIds": [f"vpc-{UNKNOWN}"]}, "InvalidVpcID.NotFound"),
    ("describe_security_groups", {"GroupIds": [f"sg-{UNKNOWN}"]}, "InvalidGroup.NotFound"),
]


@pytest.mark.parametrize(("operation", "params", "expected"), NOT_FOUND)
def test_an_unknown_id_is_not_found(
    ec2: Any, operation: str, params: dict[str, Any], expected: str
) -> None:
    code, text = refused(getattr(ec2, operation), **params)
    assert code == expected
    assert UNKNOWN in text, "a caller may drop the quoted id and ask again"


def test_one_unknown_id_among_known_ones_spoils_the_call(ec2: Any, make: Workshop) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    code, text = refused(
        ec2.describe_network_interfaces, NetworkInterfaceIds=[eni, f"eni-{UNKNOWN}"]
    )
    assert code == "InvalidNetworkInterfaceID.NotFound"
    assert text == f"The networkInterface ID 'eni-{UNKNOWN}' does not exist"


def test_an_unknown_instance_takes_no_interface(ec2: Any, make: Workshop) -> None:
    code, _ = refused(
        ec2.attach_network_interface,
        NetworkInterfaceId=make.eni()["NetworkInterfaceId"],
        InstanceId=f"i-{UNKNOWN}",
        DeviceIndex=1,
    )
    assert code == "InvalidInstanceID.NotFound"


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("describe_network_interfaces", {"NetworkInterfaceIds": ["eni-xyz"]}),
        ("delete_network_interface", {"NetworkInterfaceId": "nothing"}),
        ("describe_instances", {"InstanceIds": ["i-xyz"]}),
        ("describe_security_groups", {"GroupIds": ["sg-xyz"]}),
    ],
)
def test_what_is_no_id_is_malformed(ec2: Any, operation: str, params: dict[str, Any]) -> None:
    code, _ = refused(getattr(ec2, operation), **params)
    assert code.endswith(".Malformed")


@pytest.mark.parametrize(
    ("operation", "params", "absent"),
    [
        ("create_network_interface", {}, "subnet"),
        ("delete_network_interface", {}, "networkInterface"),
        ("attach_network_interface", {"DeviceIndex": 1}, ""),
        ("detach_network_interface", {}, "attachmentId"),
        ("assign_private_ip_addresses", {}, "networkInterface"),
    ],
)
def test_what_is_left_out_is_named(
    ec2: Any, operation: str, params: dict[str, Any], absent: str
) -> None:
    code, text = refused(getattr(ec2, operation), **params)
    assert code == "MissingParameter"
    assert absent.lower() in text.lower()


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("create_network_interface", {"SubnetId": "subnet"}),
        ("describe_network_interfaces", {}),
        ("describe_instances", {}),
    ],
)
def test_a_dry_run_says_that_it_would_have_succeeded(
    ec2: Any, place: Place, operation: str, params: dict[str, str]
) -> None:
    wanted = {name: getattr(place, member) for name, member in params.items()}
    code, text = refused(getattr(ec2, operation), DryRun=True, **wanted)
    assert (code, text) == (
        "DryRunOperation",
        "Request would have succeeded, but DryRun flag is set.",
    )


def test_a_dry_run_does_nothing(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)["SubnetId"]
    refused(ec2.create_network_interface, SubnetId=subnet, DryRun=True)
    assert make.free_count(subnet) == 11


def test_an_unknown_type_is_not_described(ec2: Any) -> None:
    code, text = refused(ec2.describe_instance_types, InstanceTypes=["m5.enormous"])
    assert code == "InvalidInstanceType"
    assert "m5.enormous" in text


@pytest.mark.parametrize(
    ("kind", "cards", "addresses", "hypervisor"),
    [
        ("m5.large", [3], 10, "nitro"),
        ("t2.micro", [2], 2, "xen"),
        ("p4d.24xlarge", [15, 15, 15, 15], 50, "nitro"),
        ("c5.metal", [15], 50, None),
    ],
)
def test_a_type_tells_what_it_carries(
    ec2: Any, kind: str, cards: list[int], addresses: int, hypervisor: str | None
) -> None:
    [shown] = ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
    info = shown["NetworkInfo"]
    assert [card["MaximumNetworkInterfaces"] for card in info["NetworkCards"]] == cards
    assert info["MaximumNetworkInterfaces"] == sum(cards)
    assert info["Ipv4AddressesPerInterface"] == addresses
    assert shown.get("Hypervisor") == hypervisor
    assert shown["BareMetal"] is (hypervisor is None)
