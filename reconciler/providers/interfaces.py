"""EC2's description of a network interface as our nouns, and our wish for one in EC2's parameters.

Shapes are those of DescribeNetworkInterfaces and CreateNetworkInterface (EC2 API reference); tags are
the upstream CNI's. Calling EC2 does not belong here.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Final

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, tags

_STATES: Final[dict[str, model.EniState]] = {
    "attaching": "attaching",
    "attached": "attached",
    "detaching": "detaching",
    "detached": "created",
}

Json = dict[str, Any]


def observed(
    raw: Json, subnet_cidr: str, node: model.Node, settings: knobs.Settings
) -> model.ObservedEni:
    """One entry of DescribeNetworkInterfaces or CreateNetworkInterface's answer."""
    labels = {tag["Key"]: tag["Value"] for tag in raw.get("TagSet", ())}
    private = raw.get("PrivateIpAddresses", ())
    return model.ObservedEni(
        eni=_eni(raw, labels, subnet_cidr, node, settings),
        addresses=tuple(a["PrivateIpAddress"] for a in private if not a.get("Primary")),
        prefixes=tuple(p["Ipv4Prefix"] for p in raw.get("Ipv4Prefixes", ())),
        tags=labels,
        security_groups=tuple(group["GroupId"] for group in raw.get("Groups", ())),
        description=raw.get("Description", ""),
        created_at=_born(labels.get(tags.CREATED, "")),
    )


def _eni(
    raw: Json, labels: dict[str, str], subnet_cidr: str, node: model.Node, settings: knobs.Settings
) -> model.Eni:
    attachment = raw.get("Attachment", {})
    attached_at = attachment.get("AttachTime")
    here = attachment.get("InstanceId", node.instance_id) == node.instance_id
    device, card = attachment.get("DeviceIndex", -1), attachment.get("NetworkCardIndex", 0)
    primary = here and device == 0 and card == 0
    return model.Eni(
        eni_id=raw["NetworkInterfaceId"],
        mac=raw["MacAddress"],
        subnet_id=raw["SubnetId"],
        subnet_cidr=subnet_cidr,
        primary_ip=raw.get("PrivateIpAddress", ""),
        device=device,
        card=card,
        kind=raw.get("InterfaceType", "interface"),
        primary=primary,
        managed=primary
        or (
            here
            and (card == 0 or settings.multi_nic)
            and _managed(labels, node, settings.manage_untagged and device >= 0)
        ),
        state=_STATES[attachment.get("Status", "detached")],
        attachment_id=attachment.get("AttachmentId"),
        delete_on_termination=attachment.get("DeleteOnTermination", False),
        attached_at=int(attached_at.timestamp() * 1000) if attached_at else None,
    )


def _managed(labels: dict[str, str], node: model.Node, untagged: bool) -> bool:
    """Upstream's order: no_manage decides if it is there, then the instance's own tag, then the setting.

    Unlike upstream, an interface without either tag stays its owner's unless the setting says otherwise.
    """
    if tags.NO_MANAGE in labels:
        return labels[tags.NO_MANAGE] != "true"
    return untagged or labels.get(tags.INSTANCE) == node.instance_id


def create_parameters(wish: actions.CreateEni, token: str) -> Json:
    """CreateNetworkInterface's parameters; equal arguments give equal ones, or EC2 refuses the token."""
    parameters: Json = {
        "SubnetId": wish.subnet_id,
        "Groups": list(wish.security_groups),
        "Description": wish.description,
        "ClientToken": token,
        "TagSpecifications": [
            {
                "ResourceType": "network-interface",
                "Tags": tag_list((*wish.tags, (tags.INTENT, token))),
            }
        ],
    }
    if wish.secondaries:
        parameters["SecondaryPrivateIpAddressCount"] = wish.secondaries
    if wish.prefixes:
        parameters["Ipv4PrefixCount"] = wish.prefixes
    return parameters


def tag_list(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Tags as EC2 takes them; the time of creation as upstream writes it."""
    return [
        {"Key": key, "Value": _created(value) if key == tags.CREATED else value}
        for key, value in pairs
    ]


def _created(milliseconds: str) -> str:
    """RFC 3339 in UTC, as upstream's cleanup of leaked interfaces reads it."""
    return dt.datetime.fromtimestamp(int(milliseconds) // 1000, dt.UTC).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )


def _born(text: str) -> int | None:
    """Milliseconds since the epoch of an RFC 3339 time; None if it is none."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment.tzinfo is None else int(moment.timestamp() * 1000)
