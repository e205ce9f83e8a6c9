"""A VPC with two m5.large nodes and no daemons, for tests of the lab's own fabric.

What does not belong here: assertions.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab import clock, cloud, fabric, node, spaces


class SmallVpc:
    """A cloud whose delays are zero, its fabric, and nodes `one` and `two`, booted."""

    def __init__(self, directory: Path) -> None:
        self.cloud = cloud.Cloud(
            clock.RealClock(), attach_delay=0, detach_delay=0, start_delay=0, stop_delay=0
        )
        vpc = self.call("CreateVpc", CidrBlock="10.0.0.0/16", AmazonProvidedIpv6CidrBlock=True)
        self.vpc = vpc["Vpc"]["VpcId"]
        self.subnets = [
            self.call("CreateSubnet", VpcId=self.vpc, CidrBlock=cidr, Ipv6CidrBlock=cidr6)
            for cidr, cidr6 in zip(("10.0.0.0/20", "10.0.16.0/20"), self._cidrs6(), strict=True)
        ]
        self.fabric = fabric.Fabric(self.cloud, directory)
        self.one, self.two = (self._boot(name, i) for i, name in enumerate(("one", "two")))

    def _cidrs6(self) -> list[str]:
        block = self.call("DescribeVpcs", VpcIds=[self.vpc])["Vpcs"][0]
        whole = block["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"]
        return [whole.replace("/56", "/64"), whole.replace("00::/56", "01::/64")]

    def _boot(self, name: str, index: int) -> node.Node:
        subnet = self.subnets[index]["Subnet"]["SubnetId"]
        reservation = self.call(
            "RunInstances",
            ImageId="ami-0123456789abcdef0",
            InstanceType="m5.large",
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet,
        )
        made = node.Node(name, reservation["Instances"][0]["InstanceId"], self.fabric)
        made.boot()
        return made

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        """One EC2 call by the operator."""
        with self.cloud.lock:
            return self.cloud.call(operation, params, "operator")

    def attach(self, to: node.Node, **params: Any) -> dict[str, Any]:
        """Create an interface in the node's subnet and attach it at the next device index."""
        held = self.held(to)
        made = self.call("CreateNetworkInterface", SubnetId=held[0]["SubnetId"], **params)
        eni = made["NetworkInterface"]["NetworkInterfaceId"]
        self.call(
            "AttachNetworkInterface",
            NetworkInterfaceId=eni,
            InstanceId=to.instance,
            DeviceIndex=len(held),
        )
        return next(x for x in self.held(to) if x["NetworkInterfaceId"] == eni)

    def assign(self, eni: dict[str, Any], **params: Any) -> dict[str, Any]:
        """AssignPrivateIpAddresses on an interface."""
        return self.call(
            "AssignPrivateIpAddresses", NetworkInterfaceId=eni["NetworkInterfaceId"], **params
        )

    def held(self, by: node.Node) -> list[dict[str, Any]]:
        """The interfaces attached to a node now."""
        with self.cloud.lock:
            return self.cloud.interfaces_of(by.instance)

    def close(self) -> None:
        """Power everything off."""
        self.one.close()
        self.two.close()
        self.fabric.close()


@contextlib.contextmanager
def opened(name: str) -> Iterator[SmallVpc]:
    """A small VPC under a folder of its own, also beside another worker's of the same name."""
    vpc = SmallVpc(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=spaces.RUN)))
    try:
        yield vpc
    finally:
        vpc.close()
