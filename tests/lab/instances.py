"""Instances: launch, life, metadata options, end; and what types there are.

Does not belong here: interfaces after the launch.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from tests.lab import addresses, attachments, errors, filters, groups, interfaces, tags, types

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

FORGOTTEN_AFTER = 3600.0
"""Seconds a terminated instance stays visible (EC2: about an hour)."""

STATES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48}

_METADATA_DEFAULTS: Item = {
    "State": "applied",
    "HttpTokens": "optional",
    "HttpPutResponseHopLimit": 1,
    "HttpEndpoint": "enabled",
    "HttpProtocolIpv6": "disabled",
    "InstanceMetadataTags": "disabled",
}
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
_TYPE_FILTERS = {
    "bare-metal": "BareMetal",
    "hypervisor": "Hypervisor",
    "instance-type": "InstanceType",
    "memory-info.size-in-mib": "MemoryInfo.SizeInMiB",
    "network-info.efa-supported": "NetworkInfo.EfaSupported",
    "network-info.ipv4-addresses-per-interface": "NetworkInfo.Ipv4AddressesPerInterface",
    "network-info.ipv6-addresses-per-interface": "NetworkInfo.Ipv6AddressesPerInterface",
    "network-info.ipv6-supported": "NetworkInfo.Ipv6Supported",
    "network-info.maximum-network-cards": "NetworkInfo.MaximumNetworkCards",
    "network-info.maximum-network-interfaces": "NetworkInfo.MaximumNetworkInterfaces",
    "processor-info.supported-architecture": "ProcessorInfo.SupportedArchitectures",
    "vcpu-info.default-vcpus": "VCpuInfo.DefaultVCpus",
}


def _state(name: str) -> Item:
    return {"Code": STATES[name], "Name": name}


def run_instances(cloud: Cloud, params: Item) -> Item:
    """RunInstances: pending now, running after the start delay; a failure launches nothing."""
    type_name = params.get("InstanceType", "m1.small")
    kind = types.table().get(type_name)
    if kind is None:
        raise errors.value(f"Invalid value '{type_name}' for InstanceType.")
    if not 1 <= params["MinCount"] <= params["MaxCount"]:
        raise errors.value("MinCount must be at least 1 and not larger than MaxCount")
    reservation_id = cloud.new_id("r")
    launched: list[Item] = []
    try:
        for number in range(params["MaxCount"]):
            launched.append(_launch(cloud, params, kind, number, reservation_id))
    except errors.ApiError:
        for instance in launched:
            _undo(cloud, instance["InstanceId"])
        raise
    for instance in launched:
        cloud.after(cloud.start_delay, functools.partial(_started, cloud, instance["InstanceId"]))
    return _reservation(cloud, reservation_id, [shown(cloud, each, 0.0) for each in launched])


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
        "State": _state("pending"),
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
    instance = cloud.change("instance", instance_id, State=_state("running"))
    cloud.emit("instance-running", instance=shown(cloud, instance, 0.0))
    for eni in attachments.held_by(cloud, instance_id):
        attachments.settle(cloud, eni["NetworkInterfaceId"], eni["Attachment"]["AttachmentId"])


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


def _reservation(cloud: Cloud, reservation_id: str, members: list[Item]) -> Item:
    return {
        "ReservationId": reservation_id,
        "OwnerId": cloud.account,
        "Groups": [],
        "Instances": members,
    }


def describe_instances(cloud: Cloud, params: Item) -> Item:
    """DescribeInstances: pages count instances, results come by reservation."""
    ids = params.get("InstanceIds")
    seen = [
        shown(cloud, each, cloud.api_lag) for each in cloud.seen("instance", "i", ids)
    ]
    found = filters.select(seen, params.get("Filters"), _FILTERS)
    members, token = filters.page(cloud, found, params, "InstanceId", ids=ids)
    launches: dict[str, list[Item]] = {}
    for instance in members:
        launches.setdefault(cloud.reservations[instance["InstanceId"]], []).append(instance)
    rows = [_reservation(cloud, launch, inside) for launch, inside in launches.items()]
    return filters.paged("Reservations", rows, token)


def terminate_instances(cloud: Cloud, params: Item) -> Item:
    """TerminateInstances: all must exist; ending an ended one is no error."""
    found = [cloud.need("instance", "i", each) for each in dict.fromkeys(params["InstanceIds"])]
    rows = []
    for instance in found:
        before = instance["State"]
        instance_id = instance["InstanceId"]
        if before["Name"] in ("pending", "running"):
            instance = cloud.change("instance", instance_id, State=_state("shutting-down"))
            cloud.after(cloud.stop_delay, functools.partial(_ended, cloud, instance_id))
        rows.append(
            {
                "InstanceId": instance_id,
                "CurrentState": instance["State"],
                "PreviousState": before,
            }
        )
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
    reason = "User initiated"
    cloud.put(
        "instance",
        instance_id,
        {
            **bare,
            "State": _state("terminated"),
            "StateTransitionReason": reason,
            "SecurityGroups": [],
        },
    )
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


def describe_instance_types(cloud: Cloud, params: Item) -> Item:
    """DescribeInstanceTypes: the members a network plugin reads; pages of 100 unless asked."""
    names = params.get("InstanceTypes")
    known = types.table()
    absent = [name for name in names or [] if name not in known]
    if absent:
        raise errors.ApiError(
            "InvalidInstanceType",
            f"The following supplied instance types do not exist: [{', '.join(absent)}]",
        )
    chosen = [known[name] for name in dict.fromkeys(names)] if names else list(known.values())
    rows = [_shown_type(kind) for kind in chosen]
    found = filters.select(rows, params.get("Filters"), _TYPE_FILTERS)
    page, token = filters.page(cloud, found, params, None, ids=names, most=100, unpaged=100)
    return filters.paged("InstanceTypes", page, token)


@functools.cache
def _shown_type(kind: types.InstanceType) -> Item:
    usual = ["interface"]
    special = ["interface", "efa", "efa-only"]
    first_efa = kind.first_efa_card
    network: Item = {
        "DefaultNetworkCardIndex": 0,
        "EfaSupported": first_efa is not None,
        "Ipv4AddressesPerInterface": kind.ipv4_per_eni,
        "Ipv6AddressesPerInterface": kind.ipv6_per_eni,
        "Ipv6Supported": kind.ipv6_per_eni > 0,
        "MaximumNetworkCards": len(kind.cards),
        "MaximumNetworkInterfaces": sum(kind.cards),
        "NetworkCards": [
            {
                "NetworkCardIndex": card,
                "MaximumNetworkInterfaces": most,
                "InterfaceTypes": special if first_efa is not None and card >= first_efa else usual,
            }
            for card, most in enumerate(kind.cards)
        ],
    }
    if first_efa is not None:
        network["EfaInfo"] = {"MaximumEfaInterfaces": kind.efa_interfaces}
    result: Item = {
        "InstanceType": kind.name,
        "BareMetal": kind.hypervisor == "metal",
        "MemoryInfo": {"SizeInMiB": kind.memory_mib},
        "NetworkInfo": network,
        "ProcessorInfo": {"SupportedArchitectures": list(kind.architectures)},
        "VCpuInfo": {"DefaultVCpus": kind.vcpus},
    }
    if kind.hypervisor != "metal":
        result["Hypervisor"] = kind.hypervisor
    return result


OPERATIONS = {
    "RunInstances": run_instances,
    "DescribeInstances": describe_instances,
    "TerminateInstances": terminate_instances,
    "ModifyInstanceMetadataOptions": modify_instance_metadata_options,
    "DescribeInstanceTypes": describe_instance_types,
}
