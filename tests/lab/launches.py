"""RunInstances: an instance with its first interfaces, or nothing.

Does not belong here: what happens to the instance later.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tests.lab import attachments, errors, instances, interfaces, tags, types

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

_METADATA_DEFAULTS: Item = {
    "State": "applied",
    "HttpTokens": "optional",
    "HttpPutResponseHopLimit": 1,
    "HttpEndpoint": "enabled",
    "HttpProtocolIpv6": "disabled",
    "InstanceMetadataTags": "disabled",
}


def run_instances(cloud: Cloud, params: Item) -> Item:
    """RunInstances: pending now, running after the start delay; a failure launches nothing."""
    type_name = params.get("InstanceType", "m1.small")
    kind = types.table().get(type_name)
    if kind is None:
        raise errors.value(f"Invalid value '{type_name}' for InstanceType.")
    if not 1 <= params["MinCount"] <= params["MaxCount"]:
        raise errors.value("MinCount must be at least 1 and not larger than MaxCount")
    reservation_id = cloud.new_id("r")
    launched: list[str] = []
    try:
        for number in range(params["MaxCount"]):
            instance = _launch(cloud, params, kind, number, reservation_id)
            launched.append(instance["InstanceId"])
    except errors.ApiError:
        for instance_id in launched:
            _undo(cloud, instance_id)
        raise
    for instance_id in launched:
        cloud.after(cloud.start_delay, functools.partial(_started, cloud, instance_id))
    members = [cloud.instance(instance_id) or {} for instance_id in launched]
    return instances.reservation(cloud, reservation_id, members)


def _launch(
    cloud: Cloud, params: Item, kind: types.InstanceType, number: int, reservation_id: str
) -> Item:
    instance_id = cloud.new_id("i")
    specifications = _specifications(params)
    instance = _blank(cloud, params, kind, instance_id, number, specifications)
    cloud.put("instance", instance_id, instance)
    cloud.reservations[instance_id] = reservation_id
    try:
        for specification in sorted(specifications, key=lambda each: each.get("DeviceIndex", 0)):
            _equip(cloud, instance, specification, params)
    except errors.ApiError:
        _undo(cloud, instance_id)
        raise
    first = attachments.held_by(cloud, instance_id)[0]
    members = {
        "SubnetId": first["SubnetId"],
        "VpcId": first["VpcId"],
        "SecurityGroups": first["Groups"],
    }
    for member in ("PrivateIpAddress", "PrivateDnsName"):
        if member in first:
            members[member] = first[member]
    return cloud.change("instance", instance_id, **members)


def _specifications(params: Item) -> list[Item]:
    """The interfaces a launch wants; without NetworkInterfaces, one from the top-level members."""
    given: list[Item] = params.get("NetworkInterfaces") or []
    if given:
        if "SubnetId" in params or "SecurityGroupIds" in params:
            raise errors.combination(
                "Network interfaces and an instance-level subnet ID or security groups may not be "
                "specified on the same request"
            )
        if all(each.get("DeviceIndex", 0) != 0 for each in given):
            raise errors.value("A network interface with device index 0 is required")
        return given
    names = ("SubnetId", "PrivateIpAddress", "Ipv6AddressCount", "Ipv6Addresses")
    only = {name: params[name] for name in names if name in params}
    return [{"DeviceIndex": 0, "Groups": params.get("SecurityGroupIds"), **only}]


def _blank(
    cloud: Cloud,
    params: Item,
    kind: types.InstanceType,
    instance_id: str,
    number: int,
    specifications: list[Item],
) -> Item:
    """The instance without what its first interface decides."""
    options = {
        key: part for key, part in (params.get("MetadataOptions") or {}).items() if part is not None
    }
    architectures = [each for each in kind.architectures if each != "i386"]
    instance: Item = {
        "AmiLaunchIndex": number,
        "Architecture": architectures[0] if architectures else "i386",
        "BlockDeviceMappings": [],
        "ClientToken": params.get("ClientToken", ""),
        "CurrentInstanceBootMode": "legacy-bios",
        "EbsOptimized": False,
        "EnaSupport": True,
        "Hypervisor": "xen",  # what DescribeInstances says for Nitro too
        "ImageId": params.get("ImageId", "ami-0123456789abcdef0"),
        "InstanceId": instance_id,
        "InstanceType": kind.name,
        "LaunchTime": cloud.stamp(),
        "MetadataOptions": {**_METADATA_DEFAULTS, **options},
        "Monitoring": {"State": "disabled"},
        "Placement": {
            "AvailabilityZone": _zone_of(cloud, params, specifications),
            "GroupName": "",
            "Tenancy": "default",
        },
        "ProductCodes": [],
        "RootDeviceName": "/dev/xvda",
        "RootDeviceType": "ebs",
        "SecurityGroups": [],
        "SourceDestCheck": True,
        "State": instances.state("pending"),
        "StateTransitionReason": "",
        "Tags": tags.wanted(params, "instance"),
        "VirtualizationType": "hvm",
    }
    profile = params.get("IamInstanceProfile")
    if profile:
        name = profile.get("Name", "profile")
        arn = f"arn:aws:iam::{cloud.account}:instance-profile/{name}"
        instance["IamInstanceProfile"] = {"Arn": profile.get("Arn", arn), "Id": "AIPALABPROFILE"}
    return instance


def _zone_of(cloud: Cloud, params: Item, specifications: list[Item]) -> str:
    """A launch happens in the zone of its first interface."""
    first = min(specifications, key=lambda each: each.get("DeviceIndex", 0))
    if "NetworkInterfaceId" in first:
        eni = cloud.need("interface", "eni", first["NetworkInterfaceId"])
        return str(eni["AvailabilityZone"])
    if "SubnetId" not in first:
        raise errors.ApiError("VPCIdNotSpecified", "No default VPC for this user.")
    subnet = cloud.need("subnet", "subnet", first["SubnetId"])
    wanted = (params.get("Placement") or {}).get("AvailabilityZone", subnet["AvailabilityZone"])
    if wanted != subnet["AvailabilityZone"]:
        raise errors.value(
            f"The specified subnet '{subnet['SubnetId']}' is not in availability zone '{wanted}'"
        )
    return str(wanted)


def _equip(cloud: Cloud, instance: Item, specification: Item, params: Item) -> None:
    """One interface of a launch: made or taken, checked like an attach, plugged."""
    index, card = specification.get("DeviceIndex", 0), specification.get("NetworkCardIndex", 0)
    existing = "NetworkInterfaceId" in specification
    if existing:
        eni = cloud.need("interface", "eni", specification["NetworkInterfaceId"])
        attachments.check_free(eni)
    else:
        labels = {"TagSpecifications": params.get("TagSpecifications")}
        eni = interfaces.make(cloud, {**specification, **labels})
    try:
        attachments.check_slot(cloud, instance, eni, index, card)
    except errors.ApiError:
        if not existing:
            interfaces.destroy(cloud, eni["NetworkInterfaceId"], quietly=True)
        raise
    delete = specification.get("DeleteOnTermination", not existing)
    attachments.plug(cloud, eni, instance["InstanceId"], index, card, delete=delete)


def _undo(cloud: Cloud, instance_id: str) -> None:
    """A launch that failed half way leaves nothing."""
    for eni in attachments.held_by(cloud, instance_id):
        if eni["Attachment"]["DeleteOnTermination"]:
            interfaces.destroy(cloud, eni["NetworkInterfaceId"], quietly=True)
        else:
            attachments.unplug(cloud, eni)
    cloud.drop("instance", instance_id)


def _started(cloud: Cloud, instance_id: str) -> None:
    instance = cloud.get("instance", instance_id)
    if instance is None or instance["State"]["Name"] != "pending":
        return
    instance = cloud.change("instance", instance_id, State=instances.state("running"))
    cloud.emit("instance-running", instance=instances.shown(cloud, instance, 0.0))
    for eni in attachments.held_by(cloud, instance_id):
        attachments.settle(cloud, eni["NetworkInterfaceId"], eni["Attachment"]["AttachmentId"])


OPERATIONS = {"RunInstances": run_instances}
