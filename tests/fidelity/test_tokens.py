"""Client tokens: the same request twice is one."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.fidelity.workshop import Workshop, refused


@pytest.fixture
def token() -> str:
    return str(uuid.uuid4())


def test_the_same_token_makes_one_interface(ec2: Any, make: Workshop, token: str) -> None:
    first = make.eni(ClientToken=token, Description="once")
    again = make.eni(ClientToken=token, Description="once")
    assert again["NetworkInterfaceId"] == first["NetworkInterfaceId"]
    assert again["PrivateIpAddress"] == first["PrivateIpAddress"]
    alike = ec2.describe_network_interfaces(
        Filters=[
            {"Name": "vpc-id", "Values": [make.place.vpc]},
            {"Name": "description", "Values": ["once"]},
        ]
    )
    assert len(alike["NetworkInterfaces"]) == 1


def test_the_token_comes_back(ec2: Any, make: Workshop, token: str) -> None:
    reply = ec2.create_network_interface(SubnetId=make.place.subnet, ClientToken=token)
    ec2.delete_network_interface(NetworkInterfaceId=reply["NetworkInterface"]["NetworkInterfaceId"])
    assert reply["ClientToken"] == token


def test_another_request_with_the_same_token_is_refused(
    ec2: Any, make: Workshop, token: str
) -> None:
    make.eni(ClientToken=token, Description="one")
    code, _ = refused(
        ec2.create_network_interface,
        SubnetId=make.place.subnet,
        ClientToken=token,
        Description="two",
    )
    assert code == "IdempotentParameterMismatch"


def test_another_token_makes_another_interface(make: Workshop) -> None:
    first, second = (make.eni(ClientToken=str(uuid.uuid4())) for _ in range(2))
    assert first["NetworkInterfaceId"] != second["NetworkInterfaceId"]


def test_a_refused_request_does_not_use_up_its_token(ec2: Any, make: Workshop, token: str) -> None:
    subnet = make.subnet(28)["SubnetId"]
    full = make.eni(SubnetId=subnet, SecondaryPrivateIpAddressCount=10)["NetworkInterfaceId"]
    code, _ = refused(ec2.create_network_interface, SubnetId=subnet, ClientToken=token)
    assert code == "InsufficientFreeAddressesInSubnet"
    ec2.delete_network_interface(NetworkInterfaceId=full)
    assert make.eni(SubnetId=subnet, ClientToken=token)["SubnetId"] == subnet


def test_the_same_token_launches_once(make: Workshop, token: str) -> None:
    first = make.instance(ClientToken=token)
    again = make.instance(ClientToken=token)
    assert again["InstanceId"] == first["InstanceId"]
    assert again["ClientToken"] == token
