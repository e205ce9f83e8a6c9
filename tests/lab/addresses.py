"""Assign and unassign: addresses and prefixes of an interface that exists, in both families.

All or nothing: a call that fails changes nothing.
Does not belong here: taking addresses out of a subnet (draws.py).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from tests.lab import draws, elastic, errors

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item


def assign_private_ip_addresses(cloud: Cloud, params: Item) -> Item:
    """AssignPrivateIpAddresses: the reply names only what is new.

    One exception, not verified against AWS: with AllowReassignment, a named address the interface
    has already counts as assigned, so that saying the same twice is harmless.
    """
    eni = cloud.need("interface", "eni", params["NetworkInterfaceId"])
    wish = draws.Wish(
        4,
        tuple(params.get("PrivateIpAddresses") or ()),
        params.get("SecondaryPrivateIpAddressCount", 0),
        tuple(params.get("Ipv4Prefixes") or ()),
        params.get("Ipv4PrefixCount", 0),
    )
    wish.check()
    if not wish.slots:  # the code is not verified against AWS
        raise errors.missing("secondaryPrivateIpAddressCount")
    moving = _movable(cloud, eni, wish, may_move=params.get("AllowReassignment", False))
    staying = tuple(a for a in wish.addresses if _holds(eni, a))
    fresh = tuple(a for a in wish.addresses if a not in moving and a not in staying)
    draws.check_limit(
        cloud, eni, draws.Wish(4, (*fresh, *moving), wish.count, wish.prefixes, wish.prefix_count)
    )
    rest = draws.Wish(4, fresh, wish.count, wish.prefixes, wish.prefix_count)
    drawn = draws.draw(cloud, eni["SubnetId"], eni["NetworkInterfaceId"], rest)
    for address, holder in moving.items():
        _move(cloud, address, holder, eni["NetworkInterfaceId"])
    added = [
        draws.private_entry(cloud, each, primary=False) for each in (*drawn.addresses, *moving)
    ]
    eni = cloud.change(
        "interface",
        eni["NetworkInterfaceId"],
        PrivateIpAddresses=[*eni["PrivateIpAddresses"], *added],
        Ipv4Prefixes=[*eni["Ipv4Prefixes"], *({"Ipv4Prefix": each} for each in drawn.prefixes)],
    )
    cloud.emit("addresses", eni=eni)
    return {
        "NetworkInterfaceId": eni["NetworkInterfaceId"],
        "AssignedPrivateIpAddresses": [
            {"PrivateIpAddress": each} for each in (*staying, *drawn.addresses, *moving)
        ],
        "AssignedIpv4Prefixes": [{"Ipv4Prefix": each} for each in drawn.prefixes],
    }


def _holds(eni: Item, address: str) -> bool:
    return any(each["PrivateIpAddress"] == address for each in eni["PrivateIpAddresses"])


def _movable(cloud: Cloud, eni: Item, wish: draws.Wish, *, may_move: bool) -> dict[str, str]:
    """Named addresses held elsewhere -> the holder; refused unless they may move.

    A primary address or one inside a prefix never moves. Whether EC2 accepts, without
    AllowReassignment, an address the interface itself has already is not verified; the lab refuses.
    """
    space = cloud.occupancy[eni["SubnetId"]][4]
    moving: dict[str, str] = {}
    stuck: list[str] = []
    for text in wish.addresses:
        try:
            number = int(ipaddress.IPv4Address(text))
        except ValueError:
            continue  # draw() refuses it with the right text
        holder = space.holder(number)
        if holder is None:
            continue
        if not may_move or number not in space.taken or _is_primary(cloud, holder, text):
            stuck.append(text)
        elif holder != eni["NetworkInterfaceId"]:
            moving[text] = holder
    if stuck:
        raise errors.value(f"[{', '.join(stuck)}] are assigned, but move is not allowed.")
    return moving


def _is_primary(cloud: Cloud, eni_id: str, address: str) -> bool:
    eni = cloud.get("interface", eni_id)
    return eni is not None and eni["PrivateIpAddress"] == address


def _move(cloud: Cloud, address: str, source_id: str, target_id: str) -> None:
    """A secondary address leaves one interface for another."""
    source = cloud.get("interface", source_id)
    if source is None:
        return
    elastic.loosen(cloud, source, [address])
    kept = [e for e in source["PrivateIpAddresses"] if e["PrivateIpAddress"] != address]
    source = cloud.change("interface", source_id, PrivateIpAddresses=kept)
    space = cloud.occupancy[source["SubnetId"]][4]
    space.taken[int(ipaddress.IPv4Address(address))] = target_id
    cloud.emit("addresses", eni=source)


def unassign_private_ip_addresses(cloud: Cloud, params: Item) -> Item:
    """UnassignPrivateIpAddresses: secondaries and prefixes of this interface only."""
    eni = cloud.need("interface", "eni", params["NetworkInterfaceId"])
    gone = list(dict.fromkeys(params.get("PrivateIpAddresses") or []))
    blocks = list(dict.fromkeys(params.get("Ipv4Prefixes") or []))
    if not gone and not blocks:
        raise errors.missing("privateIpAddress")
    held = {each["PrivateIpAddress"] for each in eni["PrivateIpAddresses"]}
    _check_foreign(eni, gone, held, blocks, {each["Ipv4Prefix"] for each in eni["Ipv4Prefixes"]})
    if eni.get("PrivateIpAddress") in gone:  # code and text are not verified against AWS
        raise errors.value("The primary private IP address of an interface cannot be unassigned")
    elastic.loosen(cloud, eni, gone)
    draws.give_back(cloud, eni, gone, blocks)
    rows = eni["PrivateIpAddresses"]
    eni = cloud.change(
        "interface",
        eni["NetworkInterfaceId"],
        PrivateIpAddresses=[each for each in rows if each["PrivateIpAddress"] not in gone],
        Ipv4Prefixes=[each for each in eni["Ipv4Prefixes"] if each["Ipv4Prefix"] not in blocks],
    )
    cloud.emit("addresses", eni=eni)
    return {}


def _check_foreign(
    eni: Item, gone: list[str], held: set[str], blocks: list[str], held_blocks: set[str]
) -> None:
    """Refuse what the interface does not have. The texts are not verified against AWS."""
    eni_id = eni["NetworkInterfaceId"]
    foreign = [each for each in gone if each not in held]
    if foreign:
        named = ", ".join(foreign)
        raise errors.value(f"Some of [{named}] addresses are not assigned to interface {eni_id}")
    foreign = [each for each in blocks if each not in held_blocks]
    if foreign:
        named = ", ".join(foreign)
        raise errors.value(f"Some of [{named}] prefixes are not assigned to interface {eni_id}")


def assign_ipv6_addresses(cloud: Cloud, params: Item) -> Item:
    """AssignIpv6Addresses: addresses or /80 prefixes; the reply names only what is new."""
    eni = cloud.need("interface", "eni", params["NetworkInterfaceId"])
    wish = draws.Wish(
        6,
        tuple(params.get("Ipv6Addresses") or ()),
        params.get("Ipv6AddressCount", 0),
        tuple(params.get("Ipv6Prefixes") or ()),
        params.get("Ipv6PrefixCount", 0),
    )
    wish.check()
    if not wish.slots:
        raise errors.missing("ipv6AddressCount")
    draws.check_limit(cloud, eni, wish)
    drawn = draws.draw(cloud, eni["SubnetId"], eni["NetworkInterfaceId"], wish)
    rows = [{"Ipv6Address": each, "IsPrimaryIpv6": False} for each in drawn.addresses]
    eni = cloud.change(
        "interface",
        eni["NetworkInterfaceId"],
        Ipv6Addresses=[*eni["Ipv6Addresses"], *rows],
        Ipv6Prefixes=[*eni["Ipv6Prefixes"], *({"Ipv6Prefix": each} for each in drawn.prefixes)],
    )
    cloud.emit("addresses", eni=eni)
    return {
        "NetworkInterfaceId": eni["NetworkInterfaceId"],
        "AssignedIpv6Addresses": drawn.addresses,
        "AssignedIpv6Prefixes": drawn.prefixes,
    }


def unassign_ipv6_addresses(cloud: Cloud, params: Item) -> Item:
    """UnassignIpv6Addresses: addresses or prefixes of this interface only."""
    eni = cloud.need("interface", "eni", params["NetworkInterfaceId"])
    gone = list(dict.fromkeys(params.get("Ipv6Addresses") or []))
    blocks = list(dict.fromkeys(params.get("Ipv6Prefixes") or []))
    if not gone and not blocks:
        raise errors.missing("ipv6Addresses")
    held = {each["Ipv6Address"] for each in eni["Ipv6Addresses"]}
    _check_foreign(eni, gone, held, blocks, {each["Ipv6Prefix"] for each in eni["Ipv6Prefixes"]})
    draws.give_back(cloud, eni, gone, blocks)
    eni = cloud.change(
        "interface",
        eni["NetworkInterfaceId"],
        Ipv6Addresses=[each for each in eni["Ipv6Addresses"] if each["Ipv6Address"] not in gone],
        Ipv6Prefixes=[each for each in eni["Ipv6Prefixes"] if each["Ipv6Prefix"] not in blocks],
    )
    cloud.emit("addresses", eni=eni)
    return {
        "NetworkInterfaceId": eni["NetworkInterfaceId"],
        "UnassignedIpv6Addresses": gone,
        "UnassignedIpv6Prefixes": blocks,
    }


OPERATIONS = {
    "AssignPrivateIpAddresses": assign_private_ip_addresses,
    "UnassignPrivateIpAddresses": unassign_private_ip_addresses,
    "AssignIpv6Addresses": assign_ipv6_addresses,
    "UnassignIpv6Addresses": unassign_ipv6_addresses,
}
