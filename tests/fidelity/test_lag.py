"""Eventual consistency, with a lag one can choose: reads look back, writes do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fidelity.workshop import Workshop, eventually, refused

pytestmark = pytest.mark.lab_only("EC2's lag cannot be chosen")


@pytest.fixture
def lag(make: Workshop) -> Iterator[Callable[[float], object]]:
    """Sets the lag of reads in seconds; back to none after the test."""
    yield lambda seconds: make.endpoint.dial(api_lag=seconds)
    make.endpoint.dial(api_lag=0.0)


def test_what_was_just_made_is_not_found_yet(
    ec2: Any, make: Workshop, lag: Callable[[float], object]
) -> None:
    lag(0.3)
    eni = make.eni()["NetworkInterfaceId"]
    code, _ = refused(ec2.describe_network_interfaces, NetworkInterfaceIds=[eni])
    assert code == "InvalidNetworkInterfaceID.NotFound"

    eventually(lambda: _visible(make, eni), f"{eni} visible")


def test_a_write_sees_the_present(ec2: Any, make: Workshop, lag: Callable[[float], object]) -> None:
    """Assigning works on what no read shows yet, and its reply names the new address."""
    lag(5.0)
    eni = make.eni()["NetworkInterfaceId"]
    reply = ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1
    )
    assert len(reply["AssignedPrivateIpAddresses"]) == 1


def test_what_was_just_deleted_is_still_shown(
    ec2: Any, make: Workshop, lag: Callable[[float], object]
) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    eventually(lambda: make.shown(eni), "made")
    lag(0.3)
    eventually(lambda: _visible(make, eni), "visible at that distance")
    ec2.delete_network_interface(NetworkInterfaceId=eni)
    assert make.shown(eni)["NetworkInterfaceId"] == eni
    eventually(lambda: not _visible(make, eni), "gone at that distance")


def _visible(make: Workshop, eni: str) -> bool:
    try:
        return bool(make.shown(eni))
    except ClientError:
        return False


def test_the_free_count_lags_too(ec2: Any, make: Workshop, lag: Callable[[float], object]) -> None:
    subnet = make.subnet(28)["SubnetId"]
    lag(0.5)
    eventually(lambda: subnet in _subnets(ec2), "visible at that distance")
    make.eni(SubnetId=subnet)
    assert make.free_count(subnet) == 11
    eventually(lambda: make.free_count(subnet) == 10, "counted at that distance")


def _subnets(ec2: Any) -> list[str]:
    return [each["SubnetId"] for each in ec2.describe_subnets()["Subnets"]]
