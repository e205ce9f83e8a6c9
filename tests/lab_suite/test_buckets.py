"""Throttling has the sizes and rates EC2 publishes, per action and shared by all callers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.buckets import Buckets

FILTER = {"Filters": [{"Name": "vpc-id", "Values": ["vpc-1"]}]}


def burst(buckets: Buckets, action: str, params: dict[str, Any], now: float) -> int:
    """Call until refused and return how many calls went through."""
    done = 0
    while buckets.take(action, params, now):
        done += 1
        assert done < 10_000
    return done


@pytest.mark.parametrize(
    ("action", "params", "capacity", "refill"),
    [
        ("AssignPrivateIpAddresses", {}, 100, 5),
        ("UnassignPrivateIpAddresses", {}, 100, 5),
        ("AssignIpv6Addresses", {}, 100, 5),
        ("CreateNetworkInterface", {}, 100, 5),
        ("DeleteNetworkInterface", {}, 100, 5),
        ("ModifyNetworkInterfaceAttribute", {}, 100, 5),
        ("TerminateInstances", {}, 100, 5),
        ("CreateTags", {}, 100, 10),
        ("DeleteTags", {}, 100, 10),
        ("AttachNetworkInterface", {}, 50, 5),
        ("DetachNetworkInterface", {}, 50, 5),
        ("UnassignIpv6Addresses", {}, 50, 5),
        ("DescribeSubnets", {}, 100, 20),
        ("GetSubnetCidrReservations", {}, 100, 20),
        ("DescribeNetworkInterfaces", {}, 50, 10),
        ("DescribeNetworkInterfaces", {"NetworkInterfaceIds": ["eni-1"]}, 50, 10),
        ("DescribeInstances", {"InstanceIds": ["i-1"]}, 50, 10),
        ("DescribeSecurityGroups", {}, 50, 10),
        ("DescribeNetworkInterfaces", FILTER, 100, 20),
        ("DescribeNetworkInterfaces", {"MaxResults": 5}, 100, 20),
        ("RunInstances", {"MaxCount": 1}, 5, 2),
        ("CreateSubnetCidrReservation", {}, 5, 1),
        ("DeleteSubnetCidrReservation", {}, 5, 1),
    ],
)
def test_published_sizes_and_rates(
    action: str, params: dict[str, Any], capacity: int, refill: int
) -> None:
    """A burst gets the capacity, two seconds later twice the refill, after a day the capacity."""
    buckets = Buckets()
    got = [burst(buckets, action, params, now) for now in (1000.0, 1002.0, 90_000.0)]
    assert got == [capacity, 2 * refill, capacity]


def test_actions_do_not_share_a_bucket() -> None:
    """An emptied bucket of one action leaves the others full, the costly reads' as well."""
    buckets = Buckets()
    burst(buckets, "AssignPrivateIpAddresses", {}, 0.0)
    burst(buckets, "DescribeNetworkInterfaces", {}, 0.0)
    assert burst(buckets, "CreateNetworkInterface", {}, 0.0) == 100
    assert burst(buckets, "DescribeNetworkInterfaces", FILTER, 0.0) == 100


def test_launches_are_counted_in_instances_too() -> None:
    """A thousand instances at once, then two more each second; a refused call costs nothing."""
    buckets = Buckets()
    assert not buckets.take("RunInstances", {"MaxCount": 1001}, 0.0)
    assert buckets.take("RunInstances", {"MaxCount": 1000}, 0.0)
    assert not buckets.take("RunInstances", {"MaxCount": 3}, 1.0)
    assert buckets.take("RunInstances", {"MaxCount": 2}, 1.0)


@pytest.mark.parametrize(("scale", "capacity"), [(0.1, 10), (0, 0), (2, 200)])
def test_a_scale_applies_to_sizes(scale: float, capacity: int) -> None:
    """The dial makes all buckets smaller or larger; 0 refuses everything."""
    assert burst(Buckets(scale), "CreateTags", {}, 0.0) == capacity


def test_a_bucket_turned_down_is_not_fuller_than_its_size() -> None:
    """Turning the dial takes effect at once, in both directions, and None is off."""
    buckets = Buckets()
    assert buckets.take("CreateTags", {}, 0.0)
    buckets.scale = 0.1
    assert burst(buckets, "CreateTags", {}, 0.0) == 10
    buckets.scale = None
    assert all(buckets.take("CreateTags", {}, 0.0) for _ in range(1000))
    buckets.scale = 1
    buckets.fill()
    assert burst(buckets, "CreateTags", {}, 0.0) == 100
