"""Elastic IP addresses: the public association of a private address.

Does not belong here: NAT; the fabric asks the association and does the rest.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from tests.lab import attachments, errors, filters, tags

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

_POOL = int(ipaddress.IPv4Address("203.0.113.0"))
"""TEST-NET-3 (RFC 5737), then on: never an address somebody owns in earnest."""

_FILTERS = {
    "tag": "Tags",
    "allocation-id": "AllocationId",
    "association-id": "AssociationId",
    "instance-id": "InstanceId",
    "network-border-group": "NetworkBorderGroup",
    "network-interface-id": "NetworkInterfaceId",
    "network-interface-owner-id": "NetworkInterfaceOwnerId",
    "private-ip-address": "PrivateIpAddress",
    "public-ip": "PublicIp",
}


def allocate_address(cloud: Cloud, params: Item) -> Item:
    """AllocateAddress: the lowest free address of the pool."""
    used = {each["PublicIp"] for each in cloud.scan("address")}
    pool = (str(ipaddress.IPv4Address(_POOL + number)) for number in range(1, 255))
    public = next((each for each in pool if each not in used), None)
    if public is None:
        raise errors.ApiError(
            "AddressLimitExceeded", "The maximum number of addresses has been reached."
        )
    allocation_id = cloud.new_id("eipalloc")
    address: Item = {
        "AllocationId": allocation_id,
        "PublicIp": public,
        "Domain": "vpc",
        "NetworkBorderGroup": cloud.region,
        "PublicIpv4Pool": "amazon",
        "Tags": tags.wanted(params, "elastic-ip"),
    }
    cloud.put("address", allocation_id, address)
    return {key: part for key, part in address.items() if key != "Tags"}


def associate_address(cloud: Cloud, params: Item) -> Item:
    """AssociateAddress: to a private address of an interface, by default the primary one."""
    if "AllocationId" not in params:
        raise errors.missing("AllocationId")
    address = cloud.need("address", "eipalloc", params["AllocationId"])
    eni = _target(cloud, params)
    private: str = params.get("PrivateIpAddress") or eni["PrivateIpAddress"]
    row = next((r for r in eni["PrivateIpAddresses"] if r["PrivateIpAddress"] == private), None)
    if row is None:  # the text is not verified against AWS
        raise errors.value(f"{private} is not assigned to {eni['NetworkInterfaceId']}")
    taken = "AssociationId" in address or "Association" in row
    if taken and not params.get("AllowReassociation", True):
        raise errors.ApiError(
            "Resource.AlreadyAssociated",
            f"resource {address['AllocationId']} is already associated with another resource",
        )
    if "AssociationId" in address:
        _separate(cloud, address)
    if "Association" in row:
        loosen(cloud, eni, [private])
    association_id = cloud.new_id("eipassoc")
    members = {
        "AssociationId": association_id,
        "NetworkInterfaceId": eni["NetworkInterfaceId"],
        "NetworkInterfaceOwnerId": cloud.account,
        "PrivateIpAddress": private,
    }
    if "Attachment" in eni:
        members["InstanceId"] = eni["Attachment"]["InstanceId"]
    address = cloud.change("address", address["AllocationId"], **members)
    _mark(cloud, eni["NetworkInterfaceId"], private, _shown(cloud, address))
    return {"AssociationId": association_id}


def _target(cloud: Cloud, params: Item) -> Item:
    if "NetworkInterfaceId" in params:
        return cloud.need("interface", "eni", params["NetworkInterfaceId"])
    if "InstanceId" not in params:
        raise errors.missing("networkInterfaceId or instanceId")
    instance = cloud.need("instance", "i", params["InstanceId"])
    held = attachments.held_by(cloud, instance["InstanceId"])
    if not held:
        raise errors.ApiError(
            "InvalidInstanceID", f"The instance '{instance['InstanceId']}' has no interface"
        )
    return held[0]


def _shown(cloud: Cloud, address: Item) -> Item:
    """The Association of an interface's address."""
    dashed = address["PublicIp"].replace(".", "-")
    zone = "compute-1" if cloud.region == "us-east-1" else f"{cloud.region}.compute"
    return {
        "AllocationId": address["AllocationId"],
        "AssociationId": address["AssociationId"],
        "IpOwnerId": cloud.account,
        "PublicDnsName": f"ec2-{dashed}.{zone}.amazonaws.com",
        "PublicIp": address["PublicIp"],
    }


def _mark(cloud: Cloud, eni_id: str, private: str, association: Item | None) -> None:
    """Set or clear the Association on an interface's address, and on top for the primary."""
    eni = cloud.get("interface", eni_id)
    if eni is None:
        return
    extra = {"Association": association} if association else {}
    rows = [
        {**{k: v for k, v in row.items() if k != "Association"}, **extra}
        if row["PrivateIpAddress"] == private
        else row
        for row in eni["PrivateIpAddresses"]
    ]
    updated = {**eni, "PrivateIpAddresses": rows}
    if eni.get("PrivateIpAddress") == private:
        updated.pop("Association", None)
        updated.update(extra)
    cloud.emit("addresses", eni=cloud.put("interface", eni_id, updated))


_ASSOCIATED = (
    "AssociationId", "InstanceId", "NetworkInterfaceId", "NetworkInterfaceOwnerId",
    "PrivateIpAddress",
)  # fmt: skip


def _separate(cloud: Cloud, address: Item) -> None:
    bare = {key: part for key, part in address.items() if key not in _ASSOCIATED}
    cloud.put("address", address["AllocationId"], bare)
    _mark(cloud, address["NetworkInterfaceId"], address["PrivateIpAddress"], None)


def loosen(cloud: Cloud, eni: Item, private: list[str]) -> None:
    """Private addresses are about to leave an interface: their public associations end."""
    for address in cloud.scan("address"):
        mine = address.get("NetworkInterfaceId") == eni["NetworkInterfaceId"]
        if mine and address["PrivateIpAddress"] in private:
            _separate(cloud, address)


def disassociate_address(cloud: Cloud, params: Item) -> Item:
    """DisassociateAddress by association id."""
    association_id = params.get("AssociationId", "")
    for address in cloud.scan("address"):
        if address.get("AssociationId") == association_id:
            _separate(cloud, address)
            return {}
    cloud.need("association", "eipassoc", association_id)  # raises: nothing has that kind
    return {}


def release_address(cloud: Cloud, params: Item) -> Item:
    """ReleaseAddress: refused while associated."""
    address = cloud.need("address", "eipalloc", params.get("AllocationId", ""))
    if "AssociationId" in address:
        raise errors.ApiError("InvalidIPAddress.InUse", f"Address {address['PublicIp']} is in use.")
    cloud.drop("address", address["AllocationId"])
    return {}


def describe_addresses(cloud: Cloud, params: Item) -> Item:
    """DescribeAddresses: not paged."""
    seen = cloud.seen("address", "eipalloc", params.get("AllocationIds"))
    if params.get("PublicIps"):
        seen = [address for address in seen if address["PublicIp"] in params["PublicIps"]]
    return {"Addresses": filters.select(seen, params.get("Filters"), _FILTERS)}


OPERATIONS = {
    "AllocateAddress": allocate_address,
    "AssociateAddress": associate_address,
    "DisassociateAddress": disassociate_address,
    "ReleaseAddress": release_address,
    "DescribeAddresses": describe_addresses,
}
