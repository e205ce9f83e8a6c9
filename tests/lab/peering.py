"""A second VPC, 10.1.0.0/16, peered with a fabric's: a Cloud and a fabric of its own, and an instance in it.

It has what any VPC of the lab has: ports that deliver to the interface that owns an address, the
source/destination check, security groups. The peering is a link between the two routers, and each knows the
other's network by it (VPC Peering Guide, "Update your route tables"). Its account is another one, so that its
security group cannot name the first VPC's groups and lets in by network.

Not simulated: the call that asks for a peering and the one that accepts it, DNS across it.
What does not belong here: the first VPC, and what else lies beyond it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.lab import fabric as fabrics
from tests.lab.clock import RealClock
from tests.lab.cloud import Cloud
from tests.lab.netns import Netns

if TYPE_CHECKING:
    from tests.lab.fabric import Fabric

NETWORK = "10.1.0.0/16"
_SUBNET, ADDRESS = "10.1.0.0/24", "10.1.0.10"


class PeeredVpc:
    """The second VPC of one fabric, until `close()`: `netns` is its instance, `eni` that one's interface."""

    def __init__(self, first: Fabric, *, open_to: str) -> None:
        """`open_to` is the network that its instance's security group lets in."""
        cloud = Cloud(RealClock(), account="444455556666", attach_delay=0, start_delay=0)

        def call(operation: str, **params: Any) -> dict[str, Any]:
            with cloud.lock:
                return cloud.call(operation, params, "operator")

        vpc = call("CreateVpc", CidrBlock=NETWORK)["Vpc"]["VpcId"]
        subnet = call("CreateSubnet", VpcId=vpc, CidrBlock=_SUBNET)["Subnet"]["SubnetId"]
        made = call("CreateSecurityGroup", GroupName="peer", Description="peer", VpcId=vpc)
        call(
            "AuthorizeSecurityGroupIngress",
            GroupId=made["GroupId"],
            IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": open_to}]}],
        )
        [instance] = call(
            "RunInstances",
            ImageId="ami-0123456789abcdef0",
            InstanceType="t3.micro",
            MinCount=1,
            MaxCount=1,
            SubnetId=subnet,
            PrivateIpAddress=ADDRESS,
            SecurityGroupIds=[made["GroupId"]],
        )["Instances"]
        self.fabric = fabrics.Fabric(cloud, first.directory / "peered")
        self.netns = Netns("peer", directory=first.directory / "netns")
        for which in ("all", "default"):
            self.netns.sysctl(f"ipv4/conf/{which}/rp_filter", 0)
        self.fabric.join(instance["InstanceId"], self.netns)
        eni = self.fabric.primary(instance["InstanceId"])
        self.eni, router = eni["NetworkInterfaceId"], self.fabric.gateway(subnet)
        lines = fabrics.boot_lines("eth0", ADDRESS, router)
        self.netns.command("ip", "-batch", "-", stdin="\n".join(lines))
        self.fabric.await_link(self.eni)

    def close(self) -> None:
        """Take it down, its end of the peering with it."""
        self.fabric.close()
        self.netns.close()
