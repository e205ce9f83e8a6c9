"""The rules of security groups: authorized, revoked, shown as IpPermissions.

A rule is one (direction, protocol, ports, source or destination); EC2 shows those that share protocol
and ports as one IpPermission. A new group lets everything out and nothing in; a VPC's default group
also lets its own members in (VPC User Guide, "Default security groups"). Prefix lists are unknown here.

What does not belong here: packets (`firewall`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.lab import errors

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

ALL = "-1"
"""IpProtocol: any protocol, all ports."""

_NUMBERS = {"6": "tcp", "17": "udp", "1": "icmp", "58": "icmpv6"}
_MOST = 60
"""EC2's default quota of rules per group, direction and family."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `peer` is a CIDR or a group's id; ports are None where the protocol has none.

    For ICMP the ports are type and code, -1 for any (API reference, IpPermission).
    """

    protocol: str
    first: int | None
    last: int | None
    peer: str


def of(group: Item, direction: str) -> list[Rule]:
    """The rules of a group in DescribeSecurityGroups shape; `direction` is "ingress" or "egress"."""
    return list(_flat(group[_MEMBER[direction]]))


def everything_out(*, ipv6: bool) -> list[Item]:
    """IpPermissionsEgress of a new group."""
    rules = [Rule(ALL, None, None, "0.0.0.0/0")]
    return shown([*rules, Rule(ALL, None, None, "::/0")] if ipv6 else rules, "")


def members_in(group: str, account: str) -> list[Item]:
    """IpPermissions of a VPC's default group."""
    return shown([Rule(ALL, None, None, group)], account)


def shown(rules: Iterable[Rule], account: str) -> list[Item]:
    """Rules as IpPermissions: those of one protocol and range together."""
    found: dict[tuple[str, int | None, int | None], Item] = {}
    for rule in rules:
        known = found.setdefault(
            (rule.protocol, rule.first, rule.last),
            {
                "IpProtocol": rule.protocol,
                **({} if rule.first is None else {"FromPort": rule.first, "ToPort": rule.last}),
                "IpRanges": [],
                "Ipv6Ranges": [],
                "PrefixListIds": [],
                "UserIdGroupPairs": [],
            },
        )
        if rule.peer.startswith("sg-"):
            known["UserIdGroupPairs"].append({"GroupId": rule.peer, "UserId": account})
        elif ":" in rule.peer:
            known["Ipv6Ranges"].append({"CidrIpv6": rule.peer})
        else:
            known["IpRanges"].append({"CidrIp": rule.peer})
    return list(found.values())


_MEMBER = {"ingress": "IpPermissions", "egress": "IpPermissionsEgress"}


def _flat(permissions: Iterable[Item]) -> Iterator[Rule]:
    for each in permissions:
        if "IpProtocol" not in each:
            raise errors.missing("ipProtocol")
        named: str = each["IpProtocol"]
        protocol = _NUMBERS.get(named, named)
        first = None if protocol == ALL else each.get("FromPort")
        last = None if protocol == ALL else each.get("ToPort")
        if first is not None and last is not None and 0 <= last < first:
            raise errors.value(f"Invalid value '{first}-{last}' for portRange. Must be low-high.")
        for key, name in (
            ("IpRanges", "CidrIp"),
            ("Ipv6Ranges", "CidrIpv6"),
            ("UserIdGroupPairs", "GroupId"),
        ):
            for peer in each.get(key) or ():
                if name not in peer:
                    raise errors.missing(name)
                yield Rule(protocol, first, last, peer[name])


def _asked(cloud: Cloud, params: Item) -> tuple[Item, list[Rule]]:
    """The group of a request and the rules it names; EC2 also takes one rule in flat members."""
    if "GroupId" not in params:
        raise errors.missing("groupId")
    group = cloud.need("group", "sg", params["GroupId"])
    permissions = list(params.get("IpPermissions") or ())
    if "IpProtocol" in params:
        flat = {key: params[key] for key in ("IpProtocol", "FromPort", "ToPort") if key in params}
        permissions.append({**flat, "IpRanges": [{"CidrIp": params.get("CidrIp", "")}]})
    if not permissions:
        raise errors.missing("ipPermissions")
    rules = list(_flat(permissions))
    for rule in rules:
        if rule.peer.startswith("sg-"):
            cloud.need("group", "sg", rule.peer)
            continue
        try:
            ipaddress.ip_network(rule.peer)
        except ValueError:
            raise errors.value(f"CIDR block {rule.peer} is malformed") from None
    return group, rules


def _told(rule: Rule) -> str:
    ports = "ALL" if rule.first is None else f"from port: {rule.first}, to port: {rule.last}"
    return f"peer: {rule.peer}, {rule.protocol.upper()}, {ports}, ALLOW"


def _authorize(cloud: Cloud, params: Item, direction: str) -> Item:
    group, rules = _asked(cloud, params)
    known = of(group, direction)
    for rule in rules:
        if rule in known:
            raise errors.ApiError(
                "InvalidPermission.Duplicate",
                f'the specified rule "{_told(rule)}" already exists',
            )
    if len(known) + len(rules) > _MOST:
        raise errors.ApiError(
            "RulesPerSecurityGroupLimitExceeded",
            "The maximum number of rules per security group has been reached.",
        )
    _keep(cloud, group, direction, [*known, *rules])
    return {"Return": True, "SecurityGroupRules": [_row(cloud, group, r, direction) for r in rules]}


def _row(cloud: Cloud, group: Item, rule: Rule, direction: str) -> Item:
    key = "CidrIpv6" if ":" in rule.peer else "CidrIpv4"
    peer: dict[str, Any] = {key: rule.peer}
    if rule.peer.startswith("sg-"):
        peer = {"ReferencedGroupInfo": {"GroupId": rule.peer, "UserId": cloud.account}}
    return {
        "SecurityGroupRuleId": cloud.new_id("sgr"),
        "GroupId": group["GroupId"],
        "GroupOwnerId": cloud.account,
        "IsEgress": direction == "egress",
        "IpProtocol": rule.protocol,
        "FromPort": -1 if rule.first is None else rule.first,
        "ToPort": -1 if rule.last is None else rule.last,
        **peer,
    }


def _revoke(cloud: Cloud, params: Item, direction: str) -> Item:
    group, rules = _asked(cloud, params)
    known = of(group, direction)
    for rule in rules:
        if rule not in known:
            raise errors.ApiError(
                "InvalidPermission.NotFound",
                "The specified rule does not exist in this security group.",
            )
    _keep(cloud, group, direction, [rule for rule in known if rule not in rules])
    return {"Return": True}


def _keep(cloud: Cloud, group: Item, direction: str, rules: list[Rule]) -> None:
    members = {_MEMBER[direction]: shown(rules, cloud.account)}
    cloud.emit("rules", group=cloud.change("group", group["GroupId"], **members))


OPERATIONS = {
    "AuthorizeSecurityGroupIngress": lambda cloud, params: _authorize(cloud, params, "ingress"),
    "AuthorizeSecurityGroupEgress": lambda cloud, params: _authorize(cloud, params, "egress"),
    "RevokeSecurityGroupIngress": lambda cloud, params: _revoke(cloud, params, "ingress"),
    "RevokeSecurityGroupEgress": lambda cloud, params: _revoke(cloud, params, "egress"),
}
