"""Taking addresses and prefixes out of a subnet for an interface, and putting them back.

A prefix costs one slot of the interface, like an address. Limits and texts: EC2 API reference,
AssignPrivateIpAddresses and CreateNetworkInterface.
Does not belong here: where in the subnet an automatic address lands (occupancy.py).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab import errors, subnets, types

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
