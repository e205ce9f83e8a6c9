"""Security groups: names, ids, who uses them.

Does not belong here: their rules (`permissions`), packets (`firewall`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab import errors, filters, permissions, tags

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

MOST_PER_INTERFACE = 5
"""EC2's default quota of security groups per interface."""

_FILTERS = {
    "tag": "Tags",
    "description": "Description",
    "group-id": "GroupId",
    "group-name": "GroupName",
    "owner-id": "OwnerId",
    "vpc-id": "VpcId",
}


def add(
    cloud: Cloud, vpc_id: str, name: str, description: str, labels: list[Item] | None = None
) -> Item:
    """Put a group into a VPC."""
    group_id = cloud.new_id("sg")
    vpc = cloud.get("vpc", vpc_id) or {}
    ipv6 = bool(vpc.get("Ipv6CidrBlockAssociationSet"))
    entry = permissions.members_in(group_id, cloud.account) if name == "default" else []
    arn = f"arn:aws:ec2:{cloud.region}:{cloud.account}:security-group/{group_id}"
    group: Item = {
        "GroupId": group_id,
        "GroupName": name,
        "Description": description,
        "OwnerId": cloud.account,
        "VpcId": vpc_id,
        "IpPermissions": entry,
        "IpPermissionsEgress": permissions.everything_out(ipv6=ipv6),
        "SecurityGroupArn": arn,
        "Tags": labels or [],
    }
    return cloud.put("group", group_id, group)


def of_vpc(cloud: Cloud, vpc_id: str) -> list[Item]:
    """The groups of a VPC, its default one first."""
    return [group for group in cloud.scan("group") if group["VpcId"] == vpc_id]


def chosen(cloud: Cloud, vpc_id: str, group_ids: list[str] | None) -> list[Item]:
    """GroupIdentifier list for an interface; without ids the VPC's default group."""
    if not group_ids:
        return [_identifier(of_vpc(cloud, vpc_id)[0])]
    distinct = list(dict.fromkeys(group_ids))
    if len(distinct) > MOST_PER_INTERFACE:
        raise errors.ApiError(
            "SecurityGroupsPerInterfaceLimitExceeded",
            "You have exceeded the maximum number of security groups per network interface.",
        )
    found = [cloud.need("group", "sg", group_id) for group_id in distinct]
    for group in found:
        if group["VpcId"] != vpc_id:
            raise errors.ApiError(
                "InvalidGroup.NotFound",
                f"The security group '{group['GroupId']}' does not exist in VPC '{vpc_id}'",
            )
    return [_identifier(group) for group in found]


def _identifier(group: Item) -> Item:
    return {"GroupId": group["GroupId"], "GroupName": group["GroupName"]}


def create_security_group(cloud: Cloud, params: Item) -> Item:
    """CreateSecurityGroup: names are unique in a VPC."""
    if "VpcId" not in params:
        raise errors.ApiError("VPCIdNotSpecified", "No default VPC for this user")
    vpc_id = cloud.need("vpc", "vpc", params["VpcId"])["VpcId"]
    name = params["GroupName"]
    if any(group["GroupName"] == name for group in of_vpc(cloud, vpc_id)):
        raise errors.ApiError(
            "InvalidGroup.Duplicate",
            f"The security group '{name}' already exists for VPC '{vpc_id}'",
        )
    labels = tags.wanted(params, "security-group")
    group = add(cloud, vpc_id, name, params["Description"], labels)
    return {
        "GroupId": group["GroupId"],
        "Tags": labels,
        "SecurityGroupArn": group["SecurityGroupArn"],
    }


def describe_security_groups(cloud: Cloud, params: Item) -> Item:
    """DescribeSecurityGroups, paged."""
    ids = params.get("GroupIds")
    seen = cloud.seen("group", "sg", ids)
    if params.get("GroupNames"):
        seen = [group for group in seen if group["GroupName"] in params["GroupNames"]]
    found = filters.select(seen, params.get("Filters"), _FILTERS)
    shown, token = filters.page(cloud, found, params, "GroupId", ids=ids)
    return filters.paged("SecurityGroups", shown, token)


def delete_security_group(cloud: Cloud, params: Item) -> Item:
    """DeleteSecurityGroup: refused for the default group and while an interface uses it."""
    if "GroupId" not in params:
        raise errors.missing("groupId")
    group = cloud.need("group", "sg", params["GroupId"])
    group_id = group["GroupId"]
    if group["GroupName"] == "default":
        raise errors.ApiError(
            "CannotDelete",
            f'the specified group: "{group_id}" name: "default" cannot be deleted by a user',
        )
    for eni in cloud.scan("interface"):
        if any(each["GroupId"] == group_id for each in eni["Groups"]):
            raise errors.dependency(f"resource {group_id} has a dependent object")
    cloud.drop("group", group_id)
    return {"Return": True, "GroupId": group_id}


OPERATIONS = {
    "CreateSecurityGroup": create_security_group,
    "DescribeSecurityGroups": describe_security_groups,
    "DeleteSecurityGroup": delete_security_group,
}
