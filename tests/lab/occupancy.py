"""Which addresses of a subnet are taken, and where EC2 would put the next one.

One instance per subnet and family. Placement is random, as EC2's is, so a subnet used one address
at a time runs out of whole blocks long before it runs out of addresses.
Does not belong here: limits of an interface, error texts, wire shapes.
"""

from __future__ import annotations

import collections
import ipaddress
import random
from collections.abc import Callable
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

BLOCK_LENGTH = {4: 28, 6: 80}
"""Prefix length of what EC2 delegates to an interface, by family."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A subnet CIDR reservation: first and last address, and whether it is for prefixes."""

    first: int
    last: int
    for_prefixes: bool

    def touches(self, first: int, last: int) -> bool:
        return self.first <= last and first <= self.last

    def contains(self, first: int, last: int) -> bool:
        return self.first <= first and last <= self.last


class Occupancy:
    """The addresses (as integers) and delegated blocks of one subnet in one family."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.first = int(network.network_address)
        self.last = int(network.broadcast_address)
        self.size = self.last - self.first + 1
        self.step = 1 << (network.max_prefixlen - BLOCK_LENGTH[network.version])
        # EC2 keeps the first four addresses and the last one of every subnet, in both families.
        self.kept = {*range(self.first, self.first + 4), self.last}
        self.taken: dict[int, str] = {}
        self.blocks: dict[int, str] = {}
        self.reservations: dict[str, Reservation] = {}
        self._in_block: collections.Counter[int] = collections.Counter()

    def free(self) -> int:
        """AvailableIpAddressCount. Reservations are not subtracted (not verified against AWS)."""
        return self.size - len(self.kept) - len(self.taken) - self.step * len(self.blocks)

    def holder(self, address: int) -> str | None:
        """The interface that holds an address, itself or through a block."""
        return self.taken.get(address) or self.blocks.get(address - address % self.step)

    def take(self, address: int, eni_id: str) -> None:
        self.taken[address] = eni_id
        self._in_block[address - address % self.step] += 1

    def release(self, address: int) -> None:
        del self.taken[address]
        self._in_block[address - address % self.step] -= 1

    def take_block(self, start: int, eni_id: str) -> None:
        self.blocks[start] = eni_id

    def release_block(self, start: int) -> None:
        del self.blocks[start]

    def is_free(self, address: int) -> bool:
        """Inside the subnet, not kept by EC2, held by nobody."""
        inside = self.first <= address <= self.last
        return inside and address not in self.kept and self.holder(address) is None

    def block_is_free(self, start: int) -> bool:
        """A whole aligned block without any taken address.

        EC2 is not verified to avoid blocks that hold an address it keeps; the lab avoids them.
        """
        end = start + self.step - 1
        whole = start % self.step == 0 and self.first <= start and end <= self.last
        kept = start <= self.first + 3 or end == self.last
        return whole and not kept and start not in self.blocks and not self._in_block[start]

    def pick(self, rng: random.Random) -> int | None:
        """A random free address outside every reservation, or None when there is none."""

        def usable(address: int) -> bool:
            return self.is_free(address) and not self._reserved(address, address)

        return _pick(rng, self.first, self.size, 1, usable)

    def pick_block(self, rng: random.Random) -> int | None:
        """A random free block, or None when no whole one is left.

        Not verified against AWS: blocks inside reservations of type prefix come first, then
        blocks outside every reservation.
        """
        for held in self.reservations.values():
            if held.for_prefixes:
                start = held.first + -held.first % self.step
                found = _pick(rng, start, held.last - start + 1, self.step, self.block_is_free)
                if found is not None:
                    return found

        def usable(start: int) -> bool:
            return self.block_is_free(start) and not self._reserved(start, start + self.step - 1)

        start = self.first + -self.first % self.step
        return _pick(rng, start, self.last - start + 1, self.step, usable)

    def _reserved(self, first: int, last: int) -> bool:
        return any(each.touches(first, last) for each in self.reservations.values())


def _pick(
    rng: random.Random, start: int, size: int, step: int, usable: Callable[[int], bool]
) -> int | None:
    """A random usable number of start, start+step, ...: by luck first, then by counting."""
    count = size // step
    if count <= 0:
        return None
    countable = count <= 1 << 20
    for _ in range(16 if countable else 1024):
        candidate = start + rng.randrange(count) * step
        if usable(candidate):
            return candidate
    if not countable:
        return None  # a /64 is never full: only a reservation over nearly all of it ends here
    left = [each for each in range(start, start + count * step, step) if usable(each)]
    return rng.choice(left) if left else None
