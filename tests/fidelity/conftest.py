"""Where the suite finds EC2: an endpoint it is given, or a lab it starts itself.

    pytest tests/fidelity                                     # a lab of its own
    pytest tests/fidelity --ec2-endpoint https://ec2.eu-west-1.amazonaws.com --ec2-image ami-...

VPCLEDGER_FIDELITY_ENDPOINT and VPCLEDGER_FIDELITY_IMAGE do the same as the options. Credentials are
boto3's usual business. Against EC2 the suite builds a VPC of its own, launches small instances and
removes everything; differences it reports are worth an issue.
Does not belong here: what is tested.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.fidelity.workshop import VPC_CIDR, Endpoint, Place, Workshop

LAB_DELAYS = ("--start-delay", "0.05", "--attach-delay", "0.05", "--detach-delay", "0.05")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options above."""
    group = parser.getgroup("fidelity")
    group.addoption("--ec2-endpoint", default=None, help="URL of EC2; without it, a lab is started")
    group.addoption("--ec2-image", default=None, help="AMI to launch (x86_64) when it is not a lab")
    group.addoption("--ec2-type", default="m5.large", help="instance type to launch")


def pytest_configure(config: pytest.Config) -> None:
    """Say what `lab_only` means."""
    config.addinivalue_line(
        "markers", "lab_only(reason): needs something only the lab has; skipped elsewhere"
    )


@pytest.fixture(scope="session")
def endpoint(pytestconfig: pytest.Config) -> Iterator[Endpoint]:
    """EC2, wherever it is."""
    url = pytestconfig.getoption("--ec2-endpoint", None) or os.environ.get(
        "VPCLEDGER_FIDELITY_ENDPOINT"
    )
    kind = pytestconfig.getoption("--ec2-type", "m5.large")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "eu-west-1"
    if url:
        image = pytestconfig.getoption("--ec2-image", None) or os.environ.get(
            "VPCLEDGER_FIDELITY_IMAGE", "ami-0123456789abcdef0"
        )
        yield Endpoint(url.rstrip("/"), region, _is_lab(url), kind, image)
        return
    command = [sys.executable, "-m", "tests.lab", "ec2", "--port", "0", "--instances", "0"]
    with subprocess.Popen(
        [*command, "--no-throttle", "--region", region, *LAB_DELAYS],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as lab:
        assert lab.stdout is not None
        described = json.loads(lab.stdout.readline())
        mount = Endpoint(described["endpoint"].rstrip("/"), region, is_lab=True, instance_type=kind)
        mount.dial(stop_delay=0.05)
        yield mount
        lab.terminate()


def _is_lab(url: str) -> bool:
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/lab/dials", timeout=10) as reply:  # noqa: S310  the caller's own endpoint
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="session")
def ec2(endpoint: Endpoint) -> Any:
    """A client that lets wrong values through, for EC2 to judge."""
    static = {"aws_access_key_id": "AKIAFIDELITY", "aws_secret_access_key": "secret"}
    return boto3.Session().client(
        "ec2",
        region_name=endpoint.region,
        endpoint_url=endpoint.url,
        config=Config(
            parameter_validation=False, retries={"mode": "standard", "total_max_attempts": 5}
        ),
        **(static if endpoint.is_lab else {}),
    )


@pytest.fixture(scope="session")
def blocks() -> Iterator[int]:
    """Third octets for subnets of single tests."""
    return itertools.count(10)


@pytest.fixture(scope="session")
def place(ec2: Any, endpoint: Endpoint) -> Iterator[Place]:
    """The VPC all tests share."""
    zones = [
        zone["ZoneName"]
        for zone in ec2.describe_availability_zones()["AvailabilityZones"]
        if zone.get("ZoneType", "availability-zone") == "availability-zone"
    ]
    made = ec2.create_vpc(CidrBlock=VPC_CIDR, AmazonProvidedIpv6CidrBlock=True)["Vpc"]
    vpc = made["VpcId"]
    wide = ec2.describe_vpcs(VpcIds=[vpc])["Vpcs"][0]["Ipv6CidrBlockAssociationSet"][0]
    narrow = wide["Ipv6CidrBlock"].replace("/56", "/64")
    first, second = "10.99.0.0/22", "10.99.4.0/24"
    subnet = ec2.create_subnet(
        VpcId=vpc, CidrBlock=first, Ipv6CidrBlock=narrow, AvailabilityZone=zones[0]
    )["Subnet"]["SubnetId"]
    other = ec2.create_subnet(VpcId=vpc, CidrBlock=second, AvailabilityZone=zones[1])["Subnet"]
    group = ec2.create_security_group(GroupName="pods", Description="pods", VpcId=vpc)["GroupId"]
    yield Place(vpc, subnet, first, narrow, zones[0], other["SubnetId"], zones[1], group)
    for subnet_id in (subnet, other["SubnetId"]):
        ec2.delete_subnet(SubnetId=subnet_id)
    ec2.delete_security_group(GroupId=group)
    ec2.delete_vpc(VpcId=vpc)


@pytest.fixture
def make(
    request: pytest.FixtureRequest,
    ec2: Any,
    endpoint: Endpoint,
    place: Place,
    blocks: Iterator[int],
) -> Iterator[Workshop]:
    """Builds for one test, and cleans up after it."""
    workshop = Workshop(ec2, endpoint, place, blocks)
    yield workshop
    workshop.close()


@pytest.fixture(scope="session")
def node(ec2: Any, endpoint: Endpoint, place: Place, blocks: Iterator[int]) -> Iterator[str]:
    """A running instance all tests share; what they attach they detach."""
    workshop = Workshop(ec2, endpoint, place, blocks)
    yield workshop.instance()["InstanceId"]
    workshop.close()


@pytest.fixture(scope="session")
def limits(ec2: Any, endpoint: Endpoint) -> dict[str, Any]:
    """NetworkInfo of the instance type the tests launch."""
    found = ec2.describe_instance_types(InstanceTypes=[endpoint.instance_type])
    info: dict[str, Any] = found["InstanceTypes"][0]["NetworkInfo"]
    return info


@pytest.fixture(autouse=True)
def _only_in_the_lab(request: pytest.FixtureRequest, endpoint: Endpoint) -> None:
    mark = request.node.get_closest_marker("lab_only")
    if mark and not endpoint.is_lab:
        pytest.skip(f"only in the lab: {mark.args[0]}")
