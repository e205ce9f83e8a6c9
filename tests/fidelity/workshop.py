"""What a test of EC2's behaviour builds with, and takes down again whatever happens.

Does not belong here: what is tested.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from botocore.exceptions import ClientError

T = TypeVar("T")

VPC_CIDR = "10.99.0.0/16"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where EC2 is, and whether it is the lab, whose dials a test may turn."""

    url: str
    region: str
    is_lab: bool
    instance_type: str = "m5.large"
    image: str = "ami-0123456789abcdef0"

    def dial(self, **seconds: float) -> dict[str, float]:
        """Turn the lab's dials; returns what they were before."""
        before: dict[str, float] = self._lab("dials")
        self._lab("dials", seconds)
        return {name: before[name] for name in seconds}

    def _lab(self, path: str, body: dict[str, float] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}/lab/{path}", data=data, timeout=10) as reply:  # noqa: S310  the lab's own URL
            return json.load(reply)


@dataclass(frozen=True, slots=True)
class Place:
    """A VPC of our own: two subnets in two zones, one security group besides the default."""

    vpc: str
    subnet: str
    subnet_cidr: str
    subnet_ipv6: str
    zone: str
    other_subnet: str
    other_zone: str
    group: str


def nth(subnet: dict[str, Any], index: int) -> str:
    """The address of a subnet that many places from its start."""
    return str(ipaddress.ip_network(subnet["CidrBlock"])[index])


def refused(call: Callable[..., Any], **params: Any) -> tuple[str, str]:
    """Call and expect EC2's refusal; returns its code and text."""
    with pytest.raises(ClientError) as caught:
        call(**params)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def eventually(look: Callable[[], T | None], what: str, seconds: float = 60.0) -> T:
    """Poll until `look` gives something true: EC2 has no event for a change of state."""
    deadline = time.monotonic() + seconds
    pauses = itertools.chain((0.02,) * 50, itertools.repeat(0.5))
    while not (seen := look()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(next(pauses))
    return seen


@dataclass(slots=True)
class Workshop:
    """Makes interfaces, subnets and instances for one test and removes them after it."""

    ec2: Any
    endpoint: Endpoint
    place: Place
    blocks: Iterator[int]
    _undo: list[Callable[[], None]] = field(default_factory=list)

    # Making.

    def eni(self, **params: Any) -> dict[str, Any]:
        """A new interface, in the shared subnet unless SubnetId says otherwise."""
        wanted = {"SubnetId": self.place.subnet, **params}
        made: dict[str, Any] = self.ec2.create_network_interface(**wanted)["NetworkInterface"]
        self._undo.append(lambda: self._remove(made["NetworkInterfaceId"]))
        return made

    def subnet(self, length: int, **params: Any) -> dict[str, Any]:
        """A fresh subnet of that prefix length (24 or longer) in the first zone."""
        made: dict[str, Any] = self.ec2.create_subnet(
            VpcId=self.place.vpc,
            CidrBlock=f"10.99.{next(self.blocks)}.0/{length}",
            AvailabilityZone=self.place.zone,
            **params,
        )["Subnet"]
        subnet_id = made["SubnetId"]
        self._undo.append(lambda: self.ec2.delete_subnet(SubnetId=subnet_id))
        return made

    def reservation(self, subnet_id: str, cidr: str, kind: str) -> dict[str, Any]:
        """A CIDR reservation in a subnet."""
        made: dict[str, Any] = self.ec2.create_subnet_cidr_reservation(
            SubnetId=subnet_id, Cidr=cidr, ReservationType=kind
        )["SubnetCidrReservation"]
        return made

    def group(self, name: str) -> str:
        """A security group in the VPC."""
        made: str = self.ec2.create_security_group(
            GroupName=name, Description=name, VpcId=self.place.vpc
        )["GroupId"]
        self._undo.append(lambda: self.ec2.delete_security_group(GroupId=made))
        return made

    def instance(self, kind: str | None = None, **params: Any) -> dict[str, Any]:
        """A running instance of its own; the shared one is the fixture `node`."""
        launch = {
            "ImageId": self.endpoint.image,
            "InstanceType": kind or self.endpoint.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
        }
        if "NetworkInterfaces" not in params:
            launch["SubnetId"] = self.place.subnet
        made = self.ec2.run_instances(**{**launch, **params})["Instances"][0]
        instance_id = made["InstanceId"]
        self._undo.append(lambda: self.terminate(instance_id))
        return eventually(lambda: self._running(instance_id), f"{instance_id} running")

    def _running(self, instance_id: str) -> dict[str, Any] | None:
        seen = self.shown_instance(instance_id)
        attached = all(i["Attachment"]["Status"] == "attached" for i in seen["NetworkInterfaces"])
        return seen if seen["State"]["Name"] == "running" and attached else None

    def attach(self, eni_id: str, instance_id: str, index: int = 1, card: int = 0) -> str:
        """Attach and wait until it is; returns the attachment id."""
        attachment: str = self.ec2.attach_network_interface(
            NetworkInterfaceId=eni_id,
            InstanceId=instance_id,
            DeviceIndex=index,
            NetworkCardIndex=card,
        )["AttachmentId"]
        self.wait_attachment(eni_id, "attached")
        return attachment

    def branch_off(self, branch: str, trunk: str, vlan: int = 7) -> dict[str, Any]:
        """Associate a branch interface with a trunk."""
        made: dict[str, Any] = self.ec2.associate_trunk_interface(
            BranchInterfaceId=branch, TrunkInterfaceId=trunk, VlanId=vlan
        )["InterfaceAssociation"]
        self._undo.append(lambda: self._part(made["AssociationId"]))
        return made

    # Looking.

    def shown(self, eni_id: str) -> dict[str, Any]:
        """The interface as DescribeNetworkInterfaces shows it."""
        found = self.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])
        only: dict[str, Any] = found["NetworkInterfaces"][0]
        return only

    def addresses(self, eni_id: str) -> list[str]:
        """Every private address of an interface, the primary one first."""
        rows = self.shown(eni_id)["PrivateIpAddresses"]
        rows.sort(key=lambda row: not row["Primary"])
        return [row["PrivateIpAddress"] for row in rows]

    def shown_instance(self, instance_id: str) -> dict[str, Any]:
        """The instance as DescribeInstances shows it."""
        found = self.ec2.describe_instances(InstanceIds=[instance_id])
        only: dict[str, Any] = found["Reservations"][0]["Instances"][0]
        return only

    def free_count(self, subnet_id: str) -> int:
        """AvailableIpAddressCount."""
        found = self.ec2.describe_subnets(SubnetIds=[subnet_id])["Subnets"]
        count: int = found[0]["AvailableIpAddressCount"]
        return count

    def wait_attachment(self, eni_id: str, status: str) -> None:
        """Wait for an attachment to reach a status."""
        eventually(
            lambda: self.shown(eni_id).get("Attachment", {}).get("Status") == status,
            f"{eni_id} {status}",
        )

    def wait_available(self, eni_id: str) -> None:
        """Wait until an interface is attached to nothing."""
        eventually(lambda: self.shown(eni_id)["Status"] == "available", f"{eni_id} available")

    # Unmaking.

    def terminate(self, instance_id: str) -> None:
        """Terminate and wait for the end."""
        self.ec2.terminate_instances(InstanceIds=[instance_id])
        eventually(
            lambda: self.shown_instance(instance_id)["State"]["Name"] == "terminated",
            f"{instance_id} terminated",
            300,
        )

    def _part(self, association_id: str) -> None:
        with contextlib.suppress(ClientError):  # ended already
            self.ec2.disassociate_trunk_interface(AssociationId=association_id)

    def _remove(self, eni_id: str) -> None:
        with contextlib.suppress(ClientError):  # gone already: the test deleted it
            attachment = self.shown(eni_id).get("Attachment")
            if attachment and attachment["Status"] == "attaching":
                self.wait_attachment(eni_id, "attached")
                attachment = self.shown(eni_id)["Attachment"]
            if attachment and attachment["Status"] == "attached":
                self.ec2.detach_network_interface(AttachmentId=attachment["AttachmentId"])
            self.wait_available(eni_id)
            self.ec2.delete_network_interface(NetworkInterfaceId=eni_id)

    def close(self) -> None:
        """Remove everything, latest first."""
        while self._undo:
            self._undo.pop()()
