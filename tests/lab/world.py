"""The lab's default world, built through the API: a VPC, two subnets, a security group, instances.

Any EC2 client will do, in process or over HTTP. What runs on the instances does not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VPC_CIDR = "10.0.0.0/16"
NODE_CIDR = "10.0.0.0/24"
OTHER_CIDR = "10.0.1.0/24"
WIDE_CIDR = "10.0.16.0/20"
"""For nodes with a thousand pods, in the place of NODE_CIDR."""
IMAGE = "ami-0123456789abcdef0"
# What EKS gives its managed nodes: IMDSv2 only, and pods one hop behind the node may ask too.
METADATA_OPTIONS = {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}


@dataclass(frozen=True, slots=True)
class World:
    """Ids of what was built; the instances are in the first subnet."""

    vpc: str
    subnets: tuple[str, ...]
    security_groups: tuple[str, ...]
    instances: tuple[str, ...]


def build(
    ec2: Any, *, instances: int = 2, instance_type: str = "m5.large", nodes_in: str = NODE_CIDR
) -> World:
    """Build the world with a boto3 EC2 client. Raises its ClientError for an unknown type.

    The instances are still pending when this returns, if the lab's start delay says so.
    """
    vpc = ec2.create_vpc(CidrBlock=VPC_CIDR)["Vpc"]["VpcId"]
    zone = ec2.meta.region_name
    subnets = tuple(
        ec2.create_subnet(VpcId=vpc, CidrBlock=cidr, AvailabilityZone=f"{zone}{letter}")["Subnet"][
            "SubnetId"
        ]
        for cidr, letter in ((nodes_in, "a"), (OTHER_CIDR, "b"))
    )
    group = ec2.create_security_group(
        GroupName="nodes", Description="Nodes of the cluster", VpcId=vpc
    )["GroupId"]
    # As the cluster security group of EKS: its members may do anything to each other.
    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}],
    )
    return World(vpc, subnets, (group,), launch(ec2, subnets[0], group, instances, instance_type))


def launch(ec2: Any, subnet: str, group: str, count: int, instance_type: str) -> tuple[str, ...]:
    """Launch `count` instances into a subnet and return their ids, in launch order."""
    if count == 0:
        return ()
    launched = ec2.run_instances(
        ImageId=IMAGE,
        InstanceType=instance_type,
        MinCount=count,
        MaxCount=count,
        SubnetId=subnet,
        SecurityGroupIds=[group],
        MetadataOptions=METADATA_OPTIONS,
    )["Instances"]
    ordered = sorted(launched, key=lambda instance: int(instance["AmiLaunchIndex"]))
    return tuple(instance["InstanceId"] for instance in ordered)
