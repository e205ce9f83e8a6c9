"""What an instance type can carry: the facts of `types.json` by name.

Does not belong here: enforcing a limit.
"""

from __future__ import annotations

import functools
import json
import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab import errors, filters

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

_FILTERS = {
    "bare-metal": "BareMetal",
    "hypervisor": "Hypervisor",
    "instance-type": "InstanceType",
    "memory-info.size-in-mib": "MemoryInfo.SizeInMiB",
    "network-info.efa-supported": "NetworkInfo.EfaSupported",
    "network-info.ipv4-addresses-per-interface": "NetworkInfo.Ipv4AddressesPerInterface",
    "network-info.ipv6-addresses-per-interface": "NetworkInfo.Ipv6AddressesPerInterface",
    "network-info.ipv6-supported": "NetworkInfo.Ipv6Supported",
    "network-info.maximum-network-cards": "NetworkInfo.MaximumNetworkCards",
    "network-info.maximum-network-interfaces": "NetworkInfo.MaximumNetworkInterfaces",
    "processor-info.supported-architecture": "ProcessorInfo.SupportedArchitectures",
    "vcpu-info.default-vcpus": "VCpuInfo.DefaultVCpus",
}


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
            v4, v6, cards, hypervisor, first_efa, efas, vcpus, memory, architectures = row
            known[name] = InstanceType(
                name, v4, v6, tuple(cards), hypervisor, first_efa, efas, vcpus, memory,
                tuple(architectures.split("/")),
            )  # fmt: skip
    return known


def describe_instance_types(cloud: Cloud, params: Item) -> Item:
    """DescribeInstanceTypes: the members a network plugin reads; pages of 100 unless asked."""
    names = params.get("InstanceTypes")
    known = table()
    absent = [name for name in names or [] if name not in known]
    if absent:
        raise errors.ApiError(
            "InvalidInstanceType",
            f"The following supplied instance types do not exist: [{', '.join(absent)}]",
        )
    chosen = [known[name] for name in dict.fromkeys(names)] if names else list(known.values())
    rows = [_shown_type(kind) for kind in chosen]
    found = filters.select(rows, params.get("Filters"), _FILTERS)
    page, token = filters.page(cloud, found, params, None, ids=names, most=100, unpaged=100)
    return filters.paged("InstanceTypes", page, token)


@functools.cache
def _shown_type(kind: InstanceType) -> Item:
    usual = ["interface"]
    special = ["interface", "efa", "efa-only"]
    first_efa = kind.first_efa_card
    network: Item = {
        "DefaultNetworkCardIndex": 0,
        "EfaSupported": first_efa is not None,
        "Ipv4AddressesPerInterface": kind.ipv4_per_eni,
        "Ipv6AddressesPerInterface": kind.ipv6_per_eni,
        "Ipv6Supported": kind.ipv6_per_eni > 0,
        "MaximumNetworkCards": len(kind.cards),
        "MaximumNetworkInterfaces": sum(kind.cards),
        "NetworkCards": [
            {
                "NetworkCardIndex": card,
                "MaximumNetworkInterfaces": most,
                "InterfaceTypes": special if first_efa is not None and card >= first_efa else usual,
            }
            for card, most in enumerate(kind.cards)
        ],
    }
    if first_efa is not None:
        network["EfaInfo"] = {"MaximumEfaInterfaces": kind.efa_interfaces}
    result: Item = {
        "InstanceType": kind.name,
        "BareMetal": kind.hypervisor == "metal",
        "MemoryInfo": {"SizeInMiB": kind.memory_mib},
        "NetworkInfo": network,
        "ProcessorInfo": {"SupportedArchitectures": list(kind.architectures)},
        "VCpuInfo": {"DefaultVCpus": kind.vcpus},
    }
    if kind.hypervisor != "metal":
        result["Hypervisor"] = kind.hypervisor
    return result


OPERATIONS = {"DescribeInstanceTypes": describe_instance_types}
