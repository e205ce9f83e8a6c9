"""Giving addresses and prefixes to interfaces, and taking them back.

All or nothing: a call that fails changes nothing. A prefix costs one slot of the interface, like an
address. Limits and texts: EC2 API reference, Assign- and UnassignPrivateIpAddresses.
Does not belong here: where in the subnet an automatic address lands (occupancy.py).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab import elastic, errors, subnets, types

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.occupancy import Occupancy
    from tests.lab.store import Item

UNATTACHED_LIMIT = 50
"""Addresses and prefixes of an interface without an instance. Not verified against AWS."""

NO_ROOM_FOR_PREFIXES = "There aren't sufficient free Ipv4 addresses or prefixes"


@dataclass(frozen=True, slots=True)
class Wish:
    """What one call asks for in one family: named ones, and how many automatic ones."""

    family: int
    addresses: tuple[str, ...] = ()
    count: int = 0
    prefixes: tuple[str, ...] = ()
    prefix_count: int = 0

    @property
    def slots(self) -> int:
        return len(self.addresses) + self.count + len(self.prefixes) + self.prefix_count

    def check(self) -> None:
        """EC2 takes one way of asking at a time: names or a count, addresses or prefixes."""
        ways = (self.addresses, self.count, self.prefixes, self.prefix_count)
        if self.count < 0 or self.prefix_count < 0:
            raise errors.value("The count of addresses or prefixes must be positive")
        if sum(map(bool, ways)) > 1:  # the text is not verified against AWS
            raise errors.combination(
                "Specify only one of: specific addresses, a count of addresses, specific prefixes, "
                "a count of prefixes"
            )


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a wish got, as text in EC2's form."""

    addresses: list[str]
    prefixes: list[str]


def draw(cloud: Cloud, subnet_id: str, eni_id: str, wish: Wish) -> Drawn:
    """Take what a wish asks for out of the subnet, or raise and take nothing."""
    space = cloud.occupancy[subnet_id].get(wish.family)
    if space is None:  # code and text are not verified against AWS
        raise errors.value(f"The subnet '{subnet_id}' has no IPv6 CIDR block")
    _check_room(space, wish)
    singles: list[int] = []
    blocks: list[int] = []
    try:
        for text in wish.addresses:
            number = _named_address(space, text)
            space.take(number, eni_id)
            singles.append(number)
        for text in wish.prefixes:
            start = _named_block(space, text)
            space.take_block(start, eni_id)
            blocks.append(start)
        for _ in range(wish.count):
            picked = space.pick(cloud.rng)
            if picked is None:
                raise _no_addresses()
            space.take(picked, eni_id)
            singles.append(picked)
        for _ in range(wish.prefix_count):
            picked = space.pick_block(cloud.rng)
            if picked is None:
                raise errors.ApiError(
                    "InsufficientCidrBlocks",
                    "The specified subnet does not have enough free cidr blocks to satisfy the "
                    "request.",
                )
            space.take_block(picked, eni_id)
            blocks.append(picked)
    except errors.ApiError:
        for number in singles:
            space.release(number)
        for start in blocks:
            space.release_block(start)
        raise
    subnets.recount(cloud, subnet_id)
    return Drawn([shown(space, each) for each in singles], [shown_block(space, b) for b in blocks])


def _no_addresses() -> errors.ApiError:
    return errors.ApiError(
        "InsufficientFreeAddressesInSubnet",
        "The specified subnet does not have enough free addresses to satisfy the request.",
    )


def _check_room(space: Occupancy, wish: Wish) -> None:
    """A subnet too full answers differently for prefixes and for addresses."""
    if wish.prefix_count and space.free() < wish.count + space.step * wish.prefix_count:
        raise errors.value(NO_ROOM_FOR_PREFIXES)
    if space.free() < wish.count:
        raise _no_addresses()


def _named_address(space: Occupancy, text: str) -> int:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise errors.value(f"invalid value for parameter address: {text}") from None
    number = int(address)
    if address.version != space.network.version or not space.first <= number <= space.last:
        raise errors.value("Address does not fall within the subnet's address range")
    if number in space.kept:
        raise errors.value(f"Address {text} is in subnet's reserved address range")
    if not space.is_free(number):
        raise errors.ApiError("InvalidIPAddress.InUse", f"Address {text} is in use.")
    return number


def _named_block(space: Occupancy, text: str) -> int:
    # The texts of malformed and taken prefixes are not verified against AWS.
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise errors.value(f"invalid value for parameter prefix: {text}") from None
    if network.version != space.network.version or network.num_addresses != space.step:
        raise errors.value(f"invalid value for parameter prefix: {text}")
    start = int(network.network_address)
    if not space.first <= start <= space.last:
        raise errors.value("Prefix does not fall within the subnet's address range")
    if not space.block_is_free(start):
        raise errors.ApiError("InvalidIPAddress.InUse", f"Prefix {text} is in use.")
    return start


def shown(space: Occupancy, number: int) -> str:
    """An address as EC2 writes it."""
    v4 = space.network.version == 4
    return str(ipaddress.IPv4Address(number) if v4 else ipaddress.IPv6Address(number))


def shown_block(space: Occupancy, start: int) -> str:
    """A delegated prefix as EC2 writes it."""
    return shown(space, start) + ("/28" if space.network.version == 4 else "/80")


def give_back(cloud: Cloud, eni: Item, addresses: list[str], prefixes: list[str]) -> None:
    """Addresses and prefixes of an interface return to its subnet."""
    spaces = cloud.occupancy[eni["SubnetId"]]
    for text in addresses:
        address = ipaddress.ip_address(text)
        spaces[address.version].release(int(address))
    for text in prefixes:
        network = ipaddress.ip_network(text)
        spaces[network.version].release_block(int(network.network_address))
    subnets.recount(cloud, eni["SubnetId"])


def check_limit(cloud: Cloud, eni: Item, wish: Wish) -> None:
    """PrivateIpAddressLimitExceeded when the interface cannot carry that many more."""
    kind = type_of(cloud, eni)
    if wish.family == 4:
        held = len(eni["PrivateIpAddresses"]) + len(eni["Ipv4Prefixes"])
        limit = kind.ipv4_per_eni if kind else UNATTACHED_LIMIT
    else:
        held = len(eni["Ipv6Addresses"]) + len(eni["Ipv6Prefixes"])
        limit = kind.ipv6_per_eni if kind else UNATTACHED_LIMIT
    if held + wish.slots > limit:  # the code for IPv6 is not verified against AWS
        raise errors.ApiError(
            "PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit."
        )
    if kind and not kind.takes_prefixes and (wish.prefixes or wish.prefix_count):
        # Code and text are not verified against AWS.
        raise errors.ApiError(
            "UnsupportedOperation", f"Prefixes are not supported on instance type {kind.name}"
        )


def type_of(cloud: Cloud, eni: Item) -> types.InstanceType | None:
    """The instance type behind an interface, or None while it is not attached."""
    attachment = eni.get("Attachment")
    instance = attachment and cloud.get("instance", attachment["InstanceId"])
    return types.table()[instance["InstanceType"]] if instance else None


def private_entry(cloud: Cloud, address: str, *, primary: bool) -> Item:
    """One row of an interface's PrivateIpAddresses."""
    name = private_dns_name(cloud, address)
    return {"Primary": primary, "PrivateDnsName": name, "PrivateIpAddress": address}


def private_dns_name(cloud: Cloud, address: str) -> str:
    """The name by address that a VPC's resolver knows."""
    zone = "ec2.internal" if cloud.region == "us-east-1" else f"{cloud.region}.compute.internal"
    return f"ip-{address.replace('.', '-')}.{zone}"


def assign_private_ip_addresses(cloud: Cloud, params: Item) -> Item:
    """AssignPrivateIpAddresses: the reply names only what is new."""
    eni = cloud.need("interface", "eni", params["NetworkInterfaceId"])
    wish = Wish(
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
    check_limit(cloud, eni, Wish(4, (*fresh, *moving), wish.count, wish.prefixes, wish.prefix_count))
    rest = Wish(4, fresh, wish.count, wish.prefixes, wish.prefix_count)
    drawn = draw(cloud, eni["SubnetId"], eni["NetworkInterfaceId"], rest)
    for address, holder in moving.items():
        _move(cloud, address, holder, eni["NetworkInterfaceId"])
    added = [private_entry(cloud, each, primary=False) for each in (*drawn.addresses, *moving)]
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


def _movable(cloud: Cloud, eni: Item, wish: Wish, *, may_move: bool) -> dict[str, str]:
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
    give_back(cloud, eni, gone, blocks)
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
    wish = Wish(
        6,
        tuple(params.get("Ipv6Addresses") or ()),
        params.get("Ipv6AddressCount", 0),
        tuple(params.get("Ipv6Prefixes") or ()),
        params.get("Ipv6PrefixCount", 0),
    )
    wish.check()
    if not wish.slots:
        raise errors.missing("ipv6AddressCount")
    check_limit(cloud, eni, wish)
    drawn = draw(cloud, eni["SubnetId"], eni["NetworkInterfaceId"], wish)
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
    give_back(cloud, eni, gone, blocks)
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
