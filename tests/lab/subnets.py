"""Subnets, how full they are, and the CIDR reservations inside them.

Does not belong here: giving addresses to interfaces.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from tests.lab import errors, filters, occupancy, tags, vpcs

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

_FILTERS = {
    "tag": "Tags",
    "availability-zone": "AvailabilityZone",
    "availabilityZone": "AvailabilityZone",
    "availability-zone-id": "AvailabilityZoneId",
    "availabilityZoneId": "AvailabilityZoneId",
    "available-ip-address-count": "AvailableIpAddressCount",
    "cidr": "CidrBlock",
    "cidr-block": "CidrBlock",
    "cidrBlock": "CidrBlock",
    "default-for-az": "DefaultForAz",
    "defaultForAz": "DefaultForAz",
    "enable-dns64": "EnableDns64",
    "ipv6-cidr-block-association.association-id": "Ipv6CidrBlockAssociationSet.AssociationId",
    "ipv6-cidr-block-association.ipv6-cidr-block": "Ipv6CidrBlockAssociationSet.Ipv6CidrBlock",
    "ipv6-cidr-block-association.state": "Ipv6CidrBlockAssociationSet.Ipv6CidrBlockState.State",
    "ipv6-native": "Ipv6Native",
    "map-public-ip-on-launch": "MapPublicIpOnLaunch",
    "owner-id": "OwnerId",
    "state": "State",
    "subnet-arn": "SubnetArn",
    "subnet-id": "SubnetId",
    "vpc-id": "VpcId",
}
_RESERVATION_FILTERS = {
    "reservationType": "ReservationType",
    "reservation-type": "ReservationType",
    "subnet-id": "SubnetId",
    "tag": "Tags",
}


def create_subnet(cloud: Cloud, params: Item) -> Item:
    """CreateSubnet: /16 to /28 inside the VPC, no overlap; IPv6 is a /64 of the VPC's /56."""
    vpc = cloud.need("vpc", "vpc", params["VpcId"])
    if "CidrBlock" not in params:
        raise errors.missing("cidrBlock")
    network = vpcs.ipv4_block(params["CidrBlock"], range(16, 29), "InvalidSubnet.Range")
    blocks = [each["CidrBlock"] for each in vpc["CidrBlockAssociationSet"]]
    if not any(network.subnet_of(ipaddress.IPv4Network(block)) for block in blocks):
        raise errors.ApiError("InvalidSubnet.Range", f"The CIDR '{network}' is invalid.")
    siblings = [each for each in cloud.scan("subnet") if each["VpcId"] == vpc["VpcId"]]
    if any(network.overlaps(ipaddress.IPv4Network(each["CidrBlock"])) for each in siblings):
        raise _conflict(network)
    families: dict[int, occupancy.Occupancy] = {4: occupancy.Occupancy(network)}
    ipv6 = []
    if "Ipv6CidrBlock" in params:
        wide = _ipv6_block(vpc, siblings, params["Ipv6CidrBlock"])
        families[6] = occupancy.Occupancy(wide)
        ipv6.append(
            {
                "AssociationId": cloud.new_id("subnet-cidr-assoc"),
                "Ipv6CidrBlock": str(wide),
                "Ipv6CidrBlockState": {"State": "associated"},
            }
        )
    zone = _zone(cloud, params)
    subnet_id = cloud.new_id("subnet")
    cloud.occupancy[subnet_id] = families
    subnet: Item = {
        "SubnetId": subnet_id,
        "SubnetArn": f"arn:aws:ec2:{cloud.region}:{cloud.account}:subnet/{subnet_id}",
        "VpcId": vpc["VpcId"],
        "CidrBlock": str(network),
        "Ipv6CidrBlockAssociationSet": ipv6,
        "AvailabilityZone": zone,
        "AvailabilityZoneId": zone_id(cloud, zone),
        "AvailableIpAddressCount": families[4].free(),
        "AssignIpv6AddressOnCreation": False,
        "DefaultForAz": False,
        "EnableDns64": False,
        "Ipv6Native": False,
        "MapCustomerOwnedIpOnLaunch": False,
        "MapPublicIpOnLaunch": False,
        "OwnerId": cloud.account,
        "PrivateDnsNameOptionsOnLaunch": {
            "HostnameType": "ip-name",
            "EnableResourceNameDnsARecord": False,
            "EnableResourceNameDnsAAAARecord": False,
        },
        "State": "available",
        "Tags": tags.wanted(params, "subnet"),
    }
    return {"Subnet": cloud.put("subnet", subnet_id, subnet)}


def _ipv6_block(vpc: Item, siblings: list[Item], text: str) -> ipaddress.IPv6Network:
    try:
        network = ipaddress.IPv6Network(text)
    except ValueError:
        raise errors.bad_value(text, "ipv6CidrBlock", "This is not a valid CIDR block.") from None
    blocks = [each["Ipv6CidrBlock"] for each in vpc["Ipv6CidrBlockAssociationSet"]]
    inside = any(network.subnet_of(ipaddress.IPv6Network(block)) for block in blocks)
    if network.prefixlen != 64 or not inside:
        raise errors.ApiError("InvalidSubnet.Range", f"The CIDR '{network}' is invalid.")
    for sibling in siblings:
        for each in sibling["Ipv6CidrBlockAssociationSet"]:
            if network.overlaps(ipaddress.IPv6Network(each["Ipv6CidrBlock"])):
                raise _conflict(network)
    return network


def _conflict(network: occupancy.Network) -> errors.ApiError:
    return errors.ApiError(
        "InvalidSubnet.Conflict", f"The CIDR '{network}' conflicts with another subnet"
    )


def _zone(cloud: Cloud, params: Item) -> str:
    names = [cloud.region + letter for letter in vpcs.ZONES]
    by_id = {zone_id(cloud, name): name for name in names}
    wanted: str = params.get("AvailabilityZone") or by_id.get(
        params.get("AvailabilityZoneId", ""), names[0]
    )
    if wanted not in names:
        raise errors.bad_value(
            wanted,
            "availabilityZone",
            "Subnets can currently only be created in the following availability zones: "
            + ", ".join(names)
            + ".",
        )
    return wanted


def zone_id(cloud: Cloud, zone: str) -> str:
    """eu-west-1a -> euw1-az1 (the same order in this account, unlike in most)."""
    return f"{vpcs.zone_id_stem(cloud.region)}-az{vpcs.ZONES.index(zone[-1]) + 1}"


def recount(cloud: Cloud, subnet_id: str) -> None:
    """Let AvailableIpAddressCount follow the addresses and blocks given out."""
    count = cloud.occupancy[subnet_id][4].free()
    cloud.change("subnet", subnet_id, AvailableIpAddressCount=count)


def describe_subnets(cloud: Cloud, params: Item) -> Item:
    """DescribeSubnets, paged."""
    ids = params.get("SubnetIds")
    seen = cloud.seen("subnet", "subnet", ids)
    found = filters.select(seen, params.get("Filters"), _FILTERS)
    shown, token = filters.page(cloud, found, params, "SubnetId", ids=ids)
    return filters.paged("Subnets", shown, token)


def delete_subnet(cloud: Cloud, params: Item) -> Item:
    """DeleteSubnet: refused while an interface lives there."""
    subnet_id = params["SubnetId"]
    cloud.need("subnet", "subnet", subnet_id)
    if any(eni["SubnetId"] == subnet_id for eni in cloud.scan("interface")):
        raise errors.dependency(f"The subnet '{subnet_id}' has dependencies and cannot be deleted.")
    for reservation in cloud.scan("reservation"):
        if reservation["SubnetId"] == subnet_id:
            cloud.drop("reservation", reservation["SubnetCidrReservationId"])
    cloud.drop("subnet", subnet_id)
    del cloud.occupancy[subnet_id]
    return {}


def create_subnet_cidr_reservation(cloud: Cloud, params: Item) -> Item:
    """CreateSubnetCidrReservation: automatic placement keeps out, whatever is there stays.

    Reservations of one VPC may not overlap (VPC user guide, subnet CIDR reservations).
    """
    subnet = cloud.need("subnet", "subnet", params["SubnetId"])
    kind = params["ReservationType"]
    if kind not in ("prefix", "explicit"):
        raise errors.bad_value(kind, "reservationType", "Must be one of prefix, explicit.")
    text = params["Cidr"]
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise errors.bad_value(text, "cidr", "This is not a valid CIDR block.") from None
    space = cloud.occupancy[subnet["SubnetId"]].get(network.version)
    held = occupancy.Reservation(
        int(network.network_address), int(network.broadcast_address), kind == "prefix"
    )
    # Code and text of both refusals are not verified against AWS.
    if space is None or not (space.first <= held.first and held.last <= space.last):
        raise errors.bad_value(text, "cidr", "The CIDR is not within the subnet.")
    if any(each.touches(held.first, held.last) for each in space.reservations.values()):
        raise errors.bad_value(text, "cidr", "The CIDR overlaps with another reservation.")
    reservation_id = cloud.new_id("scr")
    space.reservations[reservation_id] = held
    reservation: Item = {
        "SubnetCidrReservationId": reservation_id,
        "SubnetId": subnet["SubnetId"],
        "Cidr": text,
        "ReservationType": kind,
        "OwnerId": cloud.account,
        "Description": params.get("Description", ""),
        "Tags": tags.wanted(params, "subnet-cidr-reservation"),
    }
    return {"SubnetCidrReservation": cloud.put("reservation", reservation_id, reservation)}


def delete_subnet_cidr_reservation(cloud: Cloud, params: Item) -> Item:
    """DeleteSubnetCidrReservation."""
    reservation_id = params["SubnetCidrReservationId"]
    reservation = cloud.need("reservation", "scr", reservation_id)
    for space in cloud.occupancy[reservation["SubnetId"]].values():
        space.reservations.pop(reservation_id, None)
    cloud.drop("reservation", reservation_id)
    return {"DeletedSubnetCidrReservation": reservation}


def get_subnet_cidr_reservations(cloud: Cloud, params: Item) -> Item:
    """GetSubnetCidrReservations: both families, paged together."""
    subnet_id = params["SubnetId"]
    cloud.seen("subnet", "subnet", [subnet_id])
    seen = [r for r in cloud.scan("reservation", cloud.api_lag) if r["SubnetId"] == subnet_id]
    found = filters.select(seen, params.get("Filters"), _RESERVATION_FILTERS)
    shown, token = filters.page(cloud, found, params, "SubnetCidrReservationId")
    result: Item = {
        "SubnetIpv4CidrReservations": [each for each in shown if ":" not in each["Cidr"]],
        "SubnetIpv6CidrReservations": [each for each in shown if ":" in each["Cidr"]],
    }
    return result if token is None else {**result, "NextToken": token}


OPERATIONS = {
    "CreateSubnet": create_subnet,
    "DescribeSubnets": describe_subnets,
    "DeleteSubnet": delete_subnet,
    "CreateSubnetCidrReservation": create_subnet_cidr_reservation,
    "DeleteSubnetCidrReservation": delete_subnet_cidr_reservation,
    "GetSubnetCidrReservations": get_subnet_cidr_reservations,
}
