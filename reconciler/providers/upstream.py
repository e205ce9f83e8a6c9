"""The VPC CNI's records on this host: its checkpoint and the runtime's cached results, read and rendered.

Its agent keeps `vpc-cni-ipam/1`, one JSON object a file, one file a network card; libcni keeps the last
result of every attachment. Both belong to root, so they are read before the daemon becomes somebody
else. What follows from them does not belong here.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ledger import model

NETWORK: Final = "aws-cni"
VERSION: Final = "vpc-cni-ipam/1"
_MIGRATED: Final = "unknown"
"""The interface of rows that came from a time when only the sandbox was written down."""
_USUAL_IFNAME: Final = "eth0"
_NS_PER_MS: Final = 1_000_000


def observe(checkpoint: str, cache: str) -> model.Inheritance:
    """What the files say; one that is missing says nothing, one that is unreadable leaves a sentence.

    An attachment that both name is one allocation. IPv4 only: IPv6 allocations are left out.
    """
    faults: list[str] = []
    cached = {(each.container_id, each.ifname): each for each in _cache(Path(cache), faults)}
    found: dict[tuple[str, str], model.Allocation] = {}
    for path in _checkpoints(Path(checkpoint)):
        for each in _checkpoint(path, faults):
            ours = _named(each, cached)
            found[ours.container_id, ours.ifname] = ours
    return model.Inheritance(checkpoint, tuple((cached | found).values()), tuple(faults))


def checkpoints(
    first: str, leases: Iterable[model.Lease], enis: Iterable[model.Eni]
) -> Iterator[tuple[str, str]]:
    """Each network card's file and its text: the first card's, and those that have a lease or a file."""
    card_of = {eni.eni_id: eni.card for eni in enis}
    by_card: dict[str, list[model.Lease]] = {first: []}
    by_card |= {str(path): [] for path in _checkpoints(Path(first))}
    for lease in leases:
        card = card_of.get(lease.eni_id or "", 0)
        name = f"{first.removesuffix('.json')}-nic-{card}.json" if card else first
        by_card.setdefault(name, []).append(lease)
    for name, held in by_card.items():
        yield name, checkpoint(held)


def checkpoint(leases: Iterable[model.Lease]) -> str:
    """The checkpoint's text, as the VPC CNI v1.19 to v1.23 reads it at its start."""
    rows = [
        {
            "networkName": lease.network or NETWORK,
            "containerID": lease.container_id,
            "ifName": lease.ifname,
            "ipv4": lease.address,
            "allocationTimestamp": lease.created_at * _NS_PER_MS,
            "metadata": _metadata(lease),
        }
        for lease in leases
        if lease.address is not None and lease.family == 4
    ]
    return json.dumps({"version": VERSION, "allocations": rows}, separators=(",", ":")) + "\n"


def _metadata(lease: model.Lease) -> dict[str, object]:
    """In its order, without what is empty, as Go's encoder leaves it out (`omitempty`)."""
    named = {"k8sPodNamespace": lease.pod_namespace, "k8sPodName": lease.pod_name}
    return {key: name for key, name in named.items() if name} | {"interfacesCount": 1}


def _checkpoints(first: Path) -> Iterator[Path]:
    """The file of network card 0, and `-nic-N` beside it for the others."""
    if first.exists():
        yield first
    if first.name.endswith(".json"):
        yield from sorted(first.parent.glob(f"{first.name.removesuffix('.json')}-nic-*.json"))


def _checkpoint(path: Path, faults: list[str]) -> Iterator[model.Allocation]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']!r}, not {VERSION!r}")
        rows = [_allocation(row) for row in content["allocations"] or ()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as bad:
        faults.append(f"{path}: {type(bad).__name__}: {bad}")
        return
    yield from (row for row in rows if row is not None)


def _allocation(row: dict[str, Any]) -> model.Allocation | None:
    if not row.get("ipv4"):
        return None
    metadata = row.get("metadata") or {}
    return model.Allocation(
        container_id=str(row["containerID"]),
        ifname=str(row["ifName"]),
        network=str(row["networkName"]),
        address=str(ipaddress.IPv4Address(row["ipv4"])),
        pod_namespace=metadata.get("k8sPodNamespace", ""),
        pod_name=metadata.get("k8sPodName", ""),
        allocated_at=int(row.get("allocationTimestamp", 0)) // _NS_PER_MS,
    )


def _named(
    each: model.Allocation, cached: dict[tuple[str, str], model.Allocation]
) -> model.Allocation:
    """With what the runtime's cache knows besides; old rows lack the interface and the network."""
    known = [c for c in cached.values() if c.container_id == each.container_id]
    if each.ifname == _MIGRATED:
        ifname = known[0].ifname if known else _USUAL_IFNAME
        each = replace(each, ifname=ifname, network=NETWORK)
    cache = cached.get((each.container_id, each.ifname))
    if cache is None:
        return each
    return replace(
        each,
        pod_namespace=each.pod_namespace or cache.pod_namespace,
        pod_name=each.pod_name or cache.pod_name,
        netns=cache.netns,
        cached=True,
    )


def _cache(folder: Path, faults: list[str]) -> Iterator[model.Allocation]:
    """libcni's results of this network; a file for each attachment (libcni, api.go: cacheAdd)."""
    for path in sorted(folder.glob(f"{NETWORK}-*")):
        try:
            found = _result(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as bad:
            faults.append(f"{path}: {type(bad).__name__}: {bad}")
            continue
        if found is not None:
            yield found


def _result(cached: dict[str, Any]) -> model.Allocation | None:
    ips = [ipaddress.ip_interface(ip["address"]) for ip in cached["result"].get("ips") or ()]
    addresses = [str(ip.ip) for ip in ips if ip.version == 4]
    if not addresses:
        return None
    arguments = dict(cached.get("cniArgs") or ())
    interfaces = cached["result"].get("interfaces") or ()
    inside = [i.get("sandbox", "") for i in interfaces if i.get("name") == cached["ifName"]]
    return model.Allocation(
        container_id=str(cached["containerId"]),
        ifname=str(cached["ifName"]),
        network=str(cached.get("networkName") or NETWORK),
        address=addresses[0],
        pod_namespace=arguments.get("K8S_POD_NAMESPACE", ""),
        pod_name=arguments.get("K8S_POD_NAME", ""),
        netns=inside[0] if inside else "",
        cached=True,
    )
