"""Instances as they are shown, changed and ended.

Does not belong here: launching them (launches.py).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tests.lab import attachments, errors, filters, interfaces

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

FORGOTTEN_AFTER = 3600.0
"""Seconds a terminated instance stays visible (EC2: about an hour)."""

STATES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48}

_FILTERS = {
    "tag": "Tags",
    "architecture": "Architecture",
    "availability-zone": "Placement.AvailabilityZone",
    "client-token": "ClientToken",
    "group-id": "SecurityGroups.GroupId",
    "group-name": "SecurityGroups.GroupName",
    "hypervisor": "Hypervisor",
    "iam-instance-profile.arn": "IamInstanceProfile.Arn",
    "image-id": "ImageId",
    "instance-id": "InstanceId",
    "instance-state-code": "State.Code",
    "instance-state-name": "State.Name",
    "instance-type": "InstanceType",
    "instance.group-id": "SecurityGroups.GroupId",
    "ip-address": "PublicIpAddress",
    "launch-index": "AmiLaunchIndex",
    "launch-time": "LaunchTime",
    "metadata-options.http-put-response-hop-limit": "MetadataOptions.HttpPutResponseHopLimit",
    "metadata-options.http-tokens": "MetadataOptions.HttpTokens",
    "network-interface.addresses.private-ip-address":
        "NetworkInterfaces.PrivateIpAddresses.PrivateIpAddress",
    "network-interface.attachment.attachment-id": "NetworkInterfaces.Attachment.AttachmentId",
    "network-interface.attachment.device-index": "NetworkInterfaces.Attachment.DeviceIndex",
    "network-interface.attachment.status": "NetworkInterfaces.Attachment.Status",
    "network-interface.mac-address": "NetworkInterfaces.MacAddress",
    "network-interface.network-interface-id": "NetworkInterfaces.NetworkInterfaceId",
    "network-interface.subnet-id": "NetworkInterfaces.SubnetId",
    "network-interface.vpc-id": "NetworkInterfaces.VpcId",
    "private-dns-name": "PrivateDnsName",
    "private-ip-address": "PrivateIpAddress",
    "source-dest-check": "SourceDestCheck",
    "subnet-id": "SubnetId",
    "tenancy": "Placement.Tenancy",
    "vpc-id": "VpcId",
}  # fmt: skip


def state(name: str) -> Item:
    """The State member for a state's name."""
    return {"Code": STATES[name], "Name": name}


_INTERFACE_MEMBERS = (
    "Association", "ConnectionTrackingConfiguration", "Description", "Groups", "InterfaceType",
    "Ipv4Prefixes", "Ipv6Addresses", "Ipv6Prefixes", "MacAddress", "NetworkInterfaceId", "OwnerId",
    "PrivateDnsName", "PrivateIpAddress", "PrivateIpAddresses", "SourceDestCheck", "Status",
    "SubnetId", "VpcId",
)  # fmt: skip
_ATTACHMENT_MEMBERS = (
    "AttachTime", "AttachmentId", "DeleteOnTermination", "DeviceIndex", "NetworkCardIndex",
    "Status",
)  # fmt: skip
_PUBLIC_MEMBERS = ("IpOwnerId", "PublicDnsName", "PublicIp")


def shown(cloud: Cloud, instance: Item, ago: float) -> Item:
    """An instance with its interfaces as of the same moment, in DescribeInstances shape."""
    held = attachments.held_by(cloud, instance["InstanceId"], ago)
    result = {**instance, "NetworkInterfaces": [_shown_interface(eni) for eni in held]}
    if held:
        result["SourceDestCheck"] = held[0]["SourceDestCheck"]
        result["SecurityGroups"] = held[0]["Groups"]
        if "Association" in held[0]:
            result["PublicIpAddress"] = held[0]["Association"]["PublicIp"]
            result["PublicDnsName"] = held[0]["Association"]["PublicDnsName"]
    return result


def _shown_interface(eni: Item) -> Item:
    result = {member: eni[member] for member in _INTERFACE_MEMBERS if member in eni}
    attachment = eni["Attachment"]
    result["Attachment"] = {member: attachment[member] for member in _ATTACHMENT_MEMBERS}
    if "Association" in eni:
        result["Association"] = _public(eni["Association"])
    result["PrivateIpAddresses"] = [
        {**row, "Association": _public(row["Association"])} if "Association" in row else row
        for row in eni["PrivateIpAddresses"]
    ]
    return result


def _public(association: Item) -> Item:
    return {member: association[member] for member in _PUBLIC_MEMBERS}


def reservation(cloud: Cloud, reservation_id: str, members: list[Item]) -> Item:
    """One launch with its instances, as RunInstances and DescribeInstances show it."""
    return {
        "ReservationId": reservation_id,
        "OwnerId": cloud.account,
        "Groups": [],
        "Instances": members,
    }


def describe_instances(cloud: Cloud, params: Item) -> Item:
    """DescribeInstances: pages count instances, results come by reservation."""
    ids = params.get("InstanceIds")
    seen = [shown(cloud, each, cloud.api_lag) for each in cloud.seen("instance", "i", ids)]
    found = filters.select(seen, params.get("Filters"), _FILTERS)
    members, token = filters.page(cloud, found, params, "InstanceId", ids=ids)
    launches: dict[str, list[Item]] = {}
    for instance in members:
        launches.setdefault(cloud.reservations[instance["InstanceId"]], []).append(instance)
    rows = [reservation(cloud, launch, inside) for launch, inside in launches.items()]
    return filters.paged("Reservations", rows, token)


def terminate_instances(cloud: Cloud, params: Item) -> Item:
    """TerminateInstances: all must exist; ending an ended one is no error."""
    found = [cloud.need("instance", "i", each) for each in dict.fromkeys(params["InstanceIds"])]
    rows = []
    for instance in found:
        before = now = instance["State"]
        instance_id = instance["InstanceId"]
        if before["Name"] in ("pending", "running"):
            now = state("shutting-down")
            cloud.change("instance", instance_id, State=now)
            cloud.after(cloud.stop_delay, functools.partial(_ended, cloud, instance_id))
        rows.append({"InstanceId": instance_id, "CurrentState": now, "PreviousState": before})
    return {"TerminatingInstances": rows}


def _ended(cloud: Cloud, instance_id: str) -> None:
    """Interfaces with DeleteOnTermination go, the others become available."""
    instance = cloud.get("instance", instance_id)
    if instance is None:
        return
    for eni in attachments.held_by(cloud, instance_id):
        delete = eni["Attachment"]["DeleteOnTermination"]
        attachments.unplug(cloud, eni)
        if delete:
            interfaces.destroy(cloud, eni["NetworkInterfaceId"])
    left = ("PrivateIpAddress", "PrivateDnsName", "SubnetId", "VpcId")
    bare = {member: part for member, part in instance.items() if member not in left}
    changed = {
        "State": state("terminated"),
        "StateTransitionReason": "User initiated",
        "SecurityGroups": [],
    }
    cloud.put("instance", instance_id, {**bare, **changed})
    cloud.emit("instance-terminated", instance_id=instance_id)
    cloud.after(FORGOTTEN_AFTER, functools.partial(_forgotten, cloud, instance_id))


def _forgotten(cloud: Cloud, instance_id: str) -> None:
    if cloud.get("instance", instance_id) is not None:
        cloud.drop("instance", instance_id)


def modify_instance_metadata_options(cloud: Cloud, params: Item) -> Item:
    """ModifyInstanceMetadataOptions: only what is named changes."""
    instance = cloud.need("instance", "i", params["InstanceId"])
    names = (
        "HttpTokens", "HttpPutResponseHopLimit", "HttpEndpoint", "HttpProtocolIpv6",
        "InstanceMetadataTags",
    )  # fmt: skip
    wanted = {name: params[name] for name in names if name in params}
    hops = wanted.get("HttpPutResponseHopLimit", 1)
    if not 1 <= hops <= 64:
        raise errors.bad_value(hops, "httpPutResponseHopLimit", "Must be between 1 and 64.")
    options = {**instance["MetadataOptions"], **wanted}
    cloud.change("instance", instance["InstanceId"], MetadataOptions=options)
    return {
        "InstanceId": instance["InstanceId"],
        "InstanceMetadataOptions": {**options, "State": "pending"},
    }


OPERATIONS = {
    "DescribeInstances": describe_instances,
    "TerminateInstances": terminate_instances,
    "ModifyInstanceMetadataOptions": modify_instance_metadata_options,
}
