"""What an instance type can carry: interfaces per network card and addresses per interface.

The numbers stand in limits.json, one type a line (EC2 DescribeInstanceTypes: NetworkInfo). How many of
them a node should use does not belong here.
"""

from __future__ import annotations

import functools
import json
import pathlib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one instance type.

    `enis` is the most interfaces on the default card, `ipv4_per_eni` counts an interface's primary
    address too, `cards` the most interfaces on each network card by its index.
    """

    enis: int
    ipv4_per_eni: int
    cards: tuple[int, ...]
    hypervisor: Literal["nitro", "xen", "metal"]

    def on(self, card: int) -> int:
        """The most interfaces on that network card; 0 for one that the type has not."""
        return self.cards[card] if 0 <= card < len(self.cards) else 0

    @property
    def slots(self) -> int:
        """Secondary addresses per interface: what pods can have, for no pod has a primary address."""
        return self.ipv4_per_eni - 1


@functools.cache
def lookup(instance_type: str) -> Limits | None:
    """The limits of `instance_type`, None if the table does not know it."""
    # The whole table would stay in memory for the sake of one line; a daemon asks for one type only.
    row = json.loads(pathlib.Path(__file__).with_name("limits.json").read_bytes()).get(
        instance_type
    )
    if row is None or instance_type.startswith("_"):
        return None
    enis, addresses, cards, hypervisor = row
    return Limits(enis, addresses, tuple(cards), hypervisor)
