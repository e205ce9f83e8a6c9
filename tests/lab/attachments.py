"""Plugging interfaces into instances and pulling them out.

Does not belong here: what an instance does when it ends (instances.py).
"""

from __future__ import annotations

import functools
import ipaddress
from typing import TYPE_CHECKING, Any

from tests.lab import errors, types

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item


def held_by(cloud: Cloud, instance_id: str, ago: float = 0.0) -> list[Item]:
    """An instance's interfaces in any attachment state, by card and device index."""
    found: list[Item] = []
    for eni_id in cloud.companions.get(instance_id, ()):
        eni = cloud.get("interface", eni_id, ago)
        if eni is not None and eni.get("Attachment", {}).get("InstanceId") == instance_id:
            found.append(eni)
    return sorted(found, key=_slot)


def _slot(eni: Item) -> tuple[int, int]:
    return eni["Attachment"]["NetworkCardIndex"], eni["Attachment"]["DeviceIndex"]


def instance_behind(cloud: Cloud, ip: str) -> str | None:
    """The instance whose attached interface, or a branch of its trunk, holds this address."""
    address = ipaddress.ip_address(ip)
    for families in cloud.occupancy.values():
        space = families.get(address.version)
        eni_id = space.holder(int(address)) if space else None
        eni = cloud.get("interface", eni_id) if eni_id else None
        if eni is None:
            continue
        if eni["InterfaceType"] == "branch":
            trunk_id = next(
                (
                    each["TrunkInterfaceId"]
                    for each in cloud.scan("trunk")
                    if each["BranchInterfaceId"] == eni_id
                ),
                "",
            )
            eni = cloud.get("interface", trunk_id) or eni
        attachment = eni.get("Attachment", {})
        if attachment.get("Status") == "attached":
            instance_id: str = attachment["InstanceId"]
            return instance_id
    return None


def attach_network_interface(cloud: Cloud, params: Item) -> Item:
    """AttachNetworkInterface: free slot, same zone, room on the card and for the addresses."""
    eni = cloud.need("interface", "eni", params["NetworkInterfaceId"])
    instance = cloud.need("instance", "i", params["InstanceId"])
    index, card = params["DeviceIndex"], params.get("NetworkCardIndex", 0)
    check_free(eni)
    # Code and text are not verified against AWS.
    if instance["State"]["Name"] not in ("running", "stopped"):
        raise errors.state(f"Instance '{instance['InstanceId']}' is not 'running' or 'stopped'.")
    check_slot(cloud, instance, eni, index, card)
    attachment = plug(cloud, eni, instance["InstanceId"], index, card, delete=False)
    cloud.after(
        cloud.attach_delay,
        functools.partial(settle, cloud, eni["NetworkInterfaceId"], attachment["AttachmentId"]),
    )
    return {"AttachmentId": attachment["AttachmentId"], "NetworkCardIndex": card}


def check_free(eni: Item) -> None:
    """InvalidNetworkInterface.InUse unless the interface is available."""
    if eni["InterfaceType"] == "branch":  # code and text are not verified against AWS
        raise errors.value("A branch network interface cannot be attached to an instance")
    if eni["Status"] != "available":
        raise errors.ApiError(
            "InvalidNetworkInterface.InUse", f"Interface: [{eni['NetworkInterfaceId']}] in use."
        )


def check_slot(cloud: Cloud, instance: Item, eni: Item, index: int, card: int) -> None:
    """Everything EC2 refuses about this interface at this place of this instance."""
    kind = types.table()[instance["InstanceType"]]
    instance_id = instance["InstanceId"]
    if eni["AvailabilityZone"] != instance["Placement"]["AvailabilityZone"]:
        raise errors.combination(
            "You may not attach a network interface to an instance if they are not in the same "
            "availability zone"
        )
    if not 0 <= card < len(kind.cards):  # code and text are not verified against AWS
        raise errors.value(f"Network card index {card} exceeds the limit for {kind.name}")
    present = [each for each in held_by(cloud, instance_id) if _slot(each)[0] == card]
    if any(_slot(each)[1] == index for each in present):
        raise errors.value(
            f"Instance '{instance_id}' already has an interface attached at device index '{index}'."
        )
    if len(present) + 1 > kind.cards[card]:
        raise errors.ApiError(
            "AttachmentLimitExceeded",
            f"Interface count {len(present) + 1} exceeds the limit for {kind.name}",
        )
    _check_efa(cloud, instance_id, eni, kind, card)
    _check_load(eni, kind)


def _check_efa(
    cloud: Cloud, instance_id: str, eni: Item, kind: types.InstanceType, card: int
) -> None:
    # Codes and texts are not verified against AWS.
    if eni["InterfaceType"] not in ("efa", "efa-only"):
        return
    if kind.first_efa_card is None or card < kind.first_efa_card:
        raise errors.ApiError(
            "UnsupportedOperation",
            f"EFA interfaces are not supported on {kind.name} network card {card}",
        )
    present = [each for each in held_by(cloud, instance_id) if each["InterfaceType"][:3] == "efa"]
    if len(present) >= kind.efa_interfaces:
        raise errors.ApiError(
            "AttachmentLimitExceeded",
            f"EFA interface count {len(present) + 1} exceeds the limit for {kind.name}",
        )


def _check_load(eni: Item, kind: types.InstanceType) -> None:
    """The addresses it brings must fit the type. The code is not verified against AWS."""
    ipv4 = len(eni["PrivateIpAddresses"]) + len(eni["Ipv4Prefixes"])
    ipv6 = len(eni["Ipv6Addresses"]) + len(eni["Ipv6Prefixes"])
    if ipv4 > kind.ipv4_per_eni or ipv6 > kind.ipv6_per_eni:
        raise errors.ApiError(
            "PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit."
        )
    if not kind.takes_prefixes and (eni["Ipv4Prefixes"] or eni["Ipv6Prefixes"]):
        raise errors.ApiError(
            "UnsupportedOperation", f"Prefixes are not supported on instance type {kind.name}"
        )


def plug(
    cloud: Cloud, eni: Item, instance_id: str, index: int, card: int, *, delete: bool
) -> dict[str, Any]:
    """Record the attachment as attaching; `settle` completes it."""
    attachment: Item = {
        "AttachTime": cloud.stamp(),
        "AttachmentId": cloud.new_id("eni-attach"),
        "DeleteOnTermination": delete,
        "DeviceIndex": index,
        "NetworkCardIndex": card,
        "InstanceId": instance_id,
        "InstanceOwnerId": cloud.account,
        "Status": "attaching",
    }
    cloud.companions.setdefault(instance_id, set()).add(eni["NetworkInterfaceId"])
    cloud.change("interface", eni["NetworkInterfaceId"], Attachment=attachment, Status="in-use")
    return attachment


def settle(cloud: Cloud, eni_id: str, attachment_id: str) -> None:
    """attaching -> attached, if that attachment is still the one."""
    eni = cloud.get("interface", eni_id)
    attachment = eni.get("Attachment", {}) if eni else {}
    if attachment.get("AttachmentId") != attachment_id or attachment["Status"] != "attaching":
        return
    eni = cloud.change("interface", eni_id, Attachment={**attachment, "Status": "attached"})
    cloud.emit("attached", eni=eni)


def detach_network_interface(cloud: Cloud, params: Item) -> Item:
    """DetachNetworkInterface: never the primary one; a moment passes before it is available."""
    eni = _attached_as(cloud, params["AttachmentId"])
    attachment = eni["Attachment"]
    if _slot(eni) == (0, 0):
        raise errors.ApiError(
            "OperationNotPermitted",
            "The network interface at device index 0 and networkCard index 0 cannot be detached.",
        )
    if attachment["Status"] != "attached":  # code and text are not verified against AWS
        raise errors.state(
            f"Network interface attachment '{attachment['AttachmentId']}' is currently "
            f"{attachment['Status']}"
        )
    eni_id = eni["NetworkInterfaceId"]
    cloud.change("interface", eni_id, Attachment={**attachment, "Status": "detaching"})
    cloud.after(
        cloud.detach_delay,
        functools.partial(_come_off, cloud, eni_id, attachment["AttachmentId"]),
    )
    return {}


def _attached_as(cloud: Cloud, attachment_id: str) -> Item:
    """The interface of an attachment id, or EC2's Malformed or NotFound."""
    for eni in cloud.scan("interface"):
        if eni.get("Attachment", {}).get("AttachmentId") == attachment_id:
            return eni
    return cloud.need("attachment", "eni-attach", attachment_id)  # raises: nothing has that kind


def _come_off(cloud: Cloud, eni_id: str, attachment_id: str) -> None:
    eni = cloud.get("interface", eni_id)
    if eni and eni.get("Attachment", {}).get("AttachmentId") == attachment_id:
        unplug(cloud, eni)


def unplug(cloud: Cloud, eni: Item) -> None:
    """The interface is free again."""
    eni_id, instance_id = eni["NetworkInterfaceId"], eni["Attachment"]["InstanceId"]
    bare = {member: part for member, part in eni.items() if member != "Attachment"}
    bare = cloud.put("interface", eni_id, {**bare, "Status": "available"})
    cloud.emit("detached", eni=bare, instance_id=instance_id)


def modify(cloud: Cloud, eni: Item, change: Item) -> None:
    """ModifyNetworkInterfaceAttribute's Attachment: DeleteOnTermination."""
    attachment = eni.get("Attachment", {})
    if attachment.get("AttachmentId") != change.get("AttachmentId") or not attachment:
        raise errors.not_found("eni-attach", [change.get("AttachmentId", "")])
    wanted = change.get("DeleteOnTermination")
    if wanted is not None:
        updated = {**attachment, "DeleteOnTermination": wanted}
        cloud.change("interface", eni["NetworkInterfaceId"], Attachment=updated)


OPERATIONS = {
    "AttachNetworkInterface": attach_network_interface,
    "DetachNetworkInterface": detach_network_interface,
}
