"""Which subnets their tags keep pods out of: upstream's rule of subnet discovery, for interfaces that are there.

What becomes of interfaces in such a subnet is pool's and release's to say; finding further subnets does
not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ledger import model
from reconciler import settings as knobs

ROLE: Final = "kubernetes.io/role/cni"
CLUSTERS: Final = "cni.networking.k8s.aws/cluster/"


def excluded(seen: Iterable[model.ObservedSubnet], settings: knobs.Settings) -> dict[str, str]:
    """The excluded ones, each with the tag that says so; none unless the setting heeds tags."""
    if not settings.subnet_tags:
        return {}
    reasons = {each.subnet_id: _reason(each.tags, settings.cluster_name) for each in seen}
    return {subnet_id: reason for subnet_id, reason in reasons.items() if reason}


def _reason(tags: dict[str, str], cluster: str) -> str:
    role = tags.get(ROLE, "")
    if role == "0":
        return f"{ROLE}=0"
    theirs = sorted(key for key in tags if key.startswith(CLUSTERS))
    if role and cluster and theirs and CLUSTERS + cluster not in theirs:
        return f"{theirs[0]} and not {CLUSTERS}{cluster}"
    return ""
