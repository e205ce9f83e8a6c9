"""Network interfaces from creation to deletion, except being plugged in.

Does not belong here: attaching (attachments.py), addresses after creation (draws.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab import attachments, draws, elastic, errors, filters, groups, tags, trunks

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

KINDS = ("interface", "efa", "efa-only", "branch", "trunk")
"""InterfaceType values the lab makes; others belong to AWS services."""

_FILTERS = {
    "tag": "TagSet",
    "addresses.association.owner-id": "PrivateIpAddresses.Association.IpOwnerId",
    "addresses.association.public-ip": "PrivateIpAddresses.Association.PublicIp",
    "addresses.primary": "PrivateIpAddresses.Primary",
    "addresses.private-ip-address": "PrivateIpAddresses.PrivateIpAddress",
    "association.allocation-id": "Association.AllocationId",
    "association.association-id": "Association.AssociationId",
    "association.ip-owner-id": "Association.IpOwnerId",
    "association.public-dns-name": "Association.PublicDnsName",
    "association.public-ip": "Association.PublicIp",
    "attachment.attach-time": "Attachment.AttachTime",
    "attachment.attachment-id": "Attachment.AttachmentId",
    "attachment.delete-on-termination": "Attachment.DeleteOnTermination",
    "attachment.device-index": "Attachment.DeviceIndex",
    "attachment.instance-id": "Attachment.InstanceId",
    "attachment.instance-owner-id": "Attachment.InstanceOwnerId",
    "attachment.status": "Attachment.Status",
    "availability-zone": "AvailabilityZone",
    "availability-zone-id": "AvailabilityZoneId",
    "description": "Description",
    "group-id": "Groups.GroupId",
    "group-name": "Groups.GroupName",
    "interface-type": "InterfaceType",
    "ipv6-addresses.ipv6-address": "Ipv6Addresses.Ipv6Address",
    "mac-address": "MacAddress",
    "network-interface-id": "NetworkInterfaceId",
    "operator.managed": "Operator.Managed",
    "operator.principal": "Operator.Principal",
    "owner-id": "OwnerId",
    "private-dns-name": "PrivateDnsName",
    "private-ip-address": "PrivateIpAddress",
    "requester-id": "RequesterId",
    "requester-managed": "RequesterManaged",
    "source-dest-check": "SourceDestCheck",
    "status": "Status",
    "subnet-id": "SubnetId",
    "vpc-id": "VpcId",
}


def create_network_interface(cloud: Cloud, params: Item) -> Item:
    """CreateNetworkInterface."""
    eni = make(cloud, params)
    token = params.get("ClientToken")
    return {"NetworkInterface": eni, **({"ClientToken": token} if token else {})}


def make(cloud: Cloud, params: Item) -> Item:
    """A new interface, from CreateNetworkInterface's parameters or a launch's specification."""
    subnet = cloud.need("subnet", "subnet", params["SubnetId"])
    kind = params.get("InterfaceType") or "interface"
    if kind not in KINDS:
        raise errors.bad_value(kind, "interfaceType", f"Must be one of {', '.join(KINDS)}.")
    chosen = groups.chosen(cloud, subnet["VpcId"], params.get("Groups"))
    labels = tags.wanted(params, "network-interface")
    eni_id = cloud.new_id("eni")
    eni: Item = {
        "NetworkInterfaceId": eni_id,
        "AvailabilityZone": subnet["AvailabilityZone"],
        "AvailabilityZoneId": subnet["AvailabilityZoneId"],
        "Description": params.get("Description", ""),
        "Groups": chosen,
        "InterfaceType": kind,
        "Ipv4Prefixes": [],
        "Ipv6Addresses": [],
        "Ipv6Prefixes": [],
        "MacAddress": _mac(cloud),
        "Operator": {"Managed": False},
        "OwnerId": cloud.account,
        "PrivateIpAddresses": [],
        "RequesterId": cloud.caller,
        "RequesterManaged": False,
        "SourceDestCheck": True,
        "Status": "available",
        "SubnetId": subnet["SubnetId"],
        "TagSet": labels,
        "VpcId": subnet["VpcId"],
    }
    if "ConnectionTrackingSpecification" in params:
        eni["ConnectionTrackingConfiguration"] = params["ConnectionTrackingSpecification"]
    if kind != "efa-only":
        eni.update(_first_addresses(cloud, eni, params))
    elif _address_parameters(params):  # code and text are not verified against AWS
        raise errors.combination("An interface of type efa-only cannot have IP addresses")
    return cloud.put("interface", eni_id, eni)


def _mac(cloud: Cloud) -> str:
    """A locally administered address no interface has had yet."""
    while True:
        octets = cloud.rng.getrandbits(40).to_bytes(5, "big")
        mac = "02:" + ":".join(f"{octet:02x}" for octet in octets)
        if mac not in cloud.macs:
            cloud.macs.add(mac)
            return mac


def _address_parameters(params: Item) -> list[str]:
    names = (
        "PrivateIpAddress", "PrivateIpAddresses", "SecondaryPrivateIpAddressCount",
        "Ipv4Prefixes", "Ipv4PrefixCount",
        "Ipv6Addresses", "Ipv6AddressCount", "Ipv6Prefixes", "Ipv6PrefixCount",
    )  # fmt: skip
    return [name for name in names if params.get(name)]


def _first_addresses(cloud: Cloud, eni: Item, params: Item) -> Item:
    """The address members of a new interface, drawn from its subnet; all or nothing."""
    primary, wish = _ipv4_wish(params)
    wish6 = draws.Wish(
        6,
        _named(params.get("Ipv6Addresses"), "Ipv6Address"),
        params.get("Ipv6AddressCount", 0),
        _named(params.get("Ipv6Prefixes"), "Ipv6Prefix"),
        params.get("Ipv6PrefixCount", 0),
    )
    wish6.check()
    draws.check_limit(cloud, eni, wish)
    draws.check_limit(cloud, eni, wish6)
    place = (cloud, eni["SubnetId"], eni["NetworkInterfaceId"])
    drawn = draws.draw(*place, wish)
    try:
        drawn6 = draws.draw(*place, wish6) if wish6.slots else draws.Drawn([], [])
    except errors.ApiError:
        draws.give_back(cloud, eni, drawn.addresses, drawn.prefixes)
        raise
    first = primary or drawn.addresses[0]
    named = [first, *(each for each in drawn.addresses if each != first)]
    main = bool(params.get("EnablePrimaryIpv6") or params.get("PrimaryIpv6"))
    return {
        "PrivateIpAddress": first,
        "PrivateDnsName": draws.private_dns_name(cloud, first),
        "PrivateIpAddresses": [
            draws.private_entry(cloud, each, primary=each == first) for each in named
        ],
        "Ipv4Prefixes": [{"Ipv4Prefix": each} for each in drawn.prefixes],
        "Ipv6Addresses": [
            {"Ipv6Address": each, "IsPrimaryIpv6": main and number == 0}
            for number, each in enumerate(drawn6.addresses)
        ],
        "Ipv6Prefixes": [{"Ipv6Prefix": each} for each in drawn6.prefixes],
    }


def _named(rows: list[Item] | None, member: str) -> tuple[str, ...]:
    """The member every row of a list must have, though the model lets it be absent."""
    if any(member not in row for row in rows or ()):
        raise errors.missing(member)
    return tuple(row[member] for row in rows or ())


def _ipv4_wish(params: Item) -> tuple[str | None, draws.Wish]:
    """The primary address, if named, and the whole IPv4 wish including it."""
    rows = params.get("PrivateIpAddresses") or []
    marked = list(_named([each for each in rows if each.get("Primary")], "PrivateIpAddress"))
    primary: str | None = params.get("PrivateIpAddress")
    if len(marked) > 1 or (primary and marked and marked != [primary]):
        raise errors.combination("Only one primary private IP address can be specified")
    primary = primary or (marked[0] if marked else None)
    others = _named([each for each in rows if not each.get("Primary")], "PrivateIpAddress")
    wish = draws.Wish(
        4,
        others,
        params.get("SecondaryPrivateIpAddressCount", 0),
        _named(params.get("Ipv4Prefixes"), "Ipv4Prefix"),
        params.get("Ipv4PrefixCount", 0),
    )
    wish.check()
    return primary, draws.Wish(
        4,
        (*((primary,) if primary else ()), *others),
        wish.count + (0 if primary else 1),
        wish.prefixes,
        wish.prefix_count,
    )


def describe_network_interfaces(cloud: Cloud, params: Item) -> Item:
    """DescribeNetworkInterfaces, paged."""
    ids = params.get("NetworkInterfaceIds")
    seen = cloud.seen("interface", "eni", ids)
    found = filters.select(seen, params.get("Filters"), _FILTERS)
    shown, token = filters.page(cloud, found, params, "NetworkInterfaceId", ids=ids)
    return filters.paged("NetworkInterfaces", shown, token)


def delete_network_interface(cloud: Cloud, params: Item) -> Item:
    """DeleteNetworkInterface: refused while anything is plugged into anything."""
    eni = cloud.need("interface", "eni", params["NetworkInterfaceId"])
    eni_id = eni["NetworkInterfaceId"]
    if eni["Status"] != "available":
        raise errors.value(f"Network interface '{eni_id}' is currently in use.")
    destroy(cloud, eni_id)
    return {}


def destroy(cloud: Cloud, eni_id: str, *, quietly: bool = False) -> None:
    """Take an interface out of the world: addresses, public association, branches."""
    eni = cloud.get("interface", eni_id)
    if eni is None:
        return
    elastic.loosen(cloud, eni, [each["PrivateIpAddress"] for each in eni["PrivateIpAddresses"]])
    singles = [each["PrivateIpAddress"] for each in eni["PrivateIpAddresses"]]
    singles += [each["Ipv6Address"] for each in eni["Ipv6Addresses"]]
    blocks = [each["Ipv4Prefix"] for each in eni["Ipv4Prefixes"]]
    blocks += [each["Ipv6Prefix"] for each in eni["Ipv6Prefixes"]]
    draws.give_back(cloud, eni, singles, blocks)
    trunks.dissolve(cloud, eni_id)
    cloud.drop("interface", eni_id)
    if not quietly:
        cloud.emit("deleted", eni_id=eni_id)


_ATTRIBUTES = (
    "Attachment",
    "ConnectionTrackingSpecification",
    "Description",
    "EnablePrimaryIpv6",
    "Groups",
    "SourceDestCheck",
)


def modify_network_interface_attribute(cloud: Cloud, params: Item) -> Item:
    """ModifyNetworkInterfaceAttribute: one attribute a call."""
    eni = cloud.need("interface", "eni", params["NetworkInterfaceId"])
    eni_id = eni["NetworkInterfaceId"]
    named = [name for name in _ATTRIBUTES if name in params]
    if not named:
        raise errors.combination("No attributes specified.")
    if len(named) > 1:
        raise errors.combination(
            f"Fields for multiple attribute types specified: {', '.join(named)}"
        )
    match named[0]:
        case "Attachment":
            attachments.modify(cloud, eni, params["Attachment"])
        case "ConnectionTrackingSpecification":
            wanted = params["ConnectionTrackingSpecification"]
            cloud.change("interface", eni_id, ConnectionTrackingConfiguration=wanted)
        case "Description":
            cloud.change("interface", eni_id, Description=params["Description"].get("Value", ""))
        case "EnablePrimaryIpv6":
            rows = [
                {**each, "IsPrimaryIpv6": bool(params["EnablePrimaryIpv6"]) and number == 0}
                for number, each in enumerate(eni["Ipv6Addresses"])
            ]
            cloud.change("interface", eni_id, Ipv6Addresses=rows)
        case "Groups":
            chosen = groups.chosen(cloud, eni["VpcId"], params["Groups"])
            cloud.emit("groups", eni=cloud.change("interface", eni_id, Groups=chosen))
        case "SourceDestCheck":
            checked = bool(params["SourceDestCheck"].get("Value"))
            cloud.emit(
                "source-check", eni=cloud.change("interface", eni_id, SourceDestCheck=checked)
            )
    return {}


OPERATIONS = {
    "CreateNetworkInterface": create_network_interface,
    "DescribeNetworkInterfaces": describe_network_interfaces,
    "DeleteNetworkInterface": delete_network_interface,
    "ModifyNetworkInterfaceAttribute": modify_network_interface_attribute,
}
