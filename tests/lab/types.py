"""What an instance type can carry: the facts of `types.json` by name.

Does not belong here: enforcing a limit.
"""

from __future__ import annotations

import functools
import json
import pathlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstanceType:
    """The facts of one type the lab needs; the columns of `types.json`."""

    name: str
    ipv4_per_eni: int
    ipv6_per_eni: int
    cards: tuple[int, ...]
    """How many interfaces each network card takes, by card index."""
    hypervisor: str
    """nitro, xen or metal."""
    first_efa_card: int | None
    efa_interfaces: int
    vcpus: int
    memory_mib: int
    architectures: tuple[str, ...]

    @property
    def takes_prefixes(self) -> bool:
        """Prefixes need Nitro; bare metal counts (EC2 user guide, prefix delegation)."""
        return self.hypervisor != "xen"


@functools.cache
def table() -> dict[str, InstanceType]:
    """Every known type by name."""
    rows = json.loads(pathlib.Path(__file__).with_name("types.json").read_text())
    known: dict[str, InstanceType] = {}
    for name, row in rows.items():
        if not name.startswith("_"):
            v4, v6, cards, hypervisor, *efa, vcpus, memory, architectures = row
            known[name] = InstanceType(
                name, v4, v6, tuple(cards), hypervisor, *efa, vcpus, memory,
                tuple(architectures.split("/")),
            )  # fmt: skip
    return known
