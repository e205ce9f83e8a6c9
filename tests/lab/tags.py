"""Tags: on creation, later, and as a list of their own.

Does not belong here: filtering other things by tag (filters.py does).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.lab import errors, filters

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

MOST = 50
"""Tags one resource may carry."""

# Identifier prefix -> (kind in the store, member that holds the tags, EC2's resource type).
_TAGGED = {
    "eni": ("interface", "TagSet", "network-interface"),
    "i": ("instance", "Tags", "instance"),
    "subnet": ("subnet", "Tags", "subnet"),
    "vpc": ("vpc", "Tags", "vpc"),
    "sg": ("group", "Tags", "security-group"),
    "scr": ("reservation", "Tags", "subnet-cidr-reservation"),
    "eipalloc": ("address", "Tags", "elastic-ip"),
    "trunk-assoc": ("trunk", "Tags", "trunk-interface-association"),
}
_FILTERS = {
    "tag": "_self",
    "key": "Key",
    "value": "Value",
    "resource-id": "ResourceId",
    "resource-type": "ResourceType",
}


def wanted(params: Item, resource_type: str) -> list[Item]:
    """The tags a request wants on a new resource of this type."""
    labels: list[Item] = []
    for specification in params.get("TagSpecifications") or []:
        if specification.get("ResourceType") == resource_type:
            labels.extend(specification.get("Tags") or [])
    return merged([], labels)


def merged(present: list[Item], added: list[Item]) -> list[Item]:
    """Present tags with others set over them; EC2's rules on keys, values and their number."""
    labels = {tag["Key"]: tag["Value"] for tag in present}
    for tag in added:
        key, content = tag.get("Key", ""), tag.get("Value", "")
        if key.lower().startswith("aws:"):
            raise errors.value("Tag keys starting with 'aws:' are reserved for internal use")
        if not 1 <= len(key) <= 127:
            raise errors.value(f"Tag key exceeds the maximum length of 127 characters: '{key}'")
        if len(content) > 255:
            raise errors.value("Tag value exceeds the maximum length of 255 characters")
        labels[key] = content
    if len(labels) > MOST:
        raise errors.ApiError("TagLimitExceeded", f"More than {MOST} tags specified")
    return [{"Key": key, "Value": content} for key, content in labels.items()]


def _place(cloud: Cloud, resource: str) -> tuple[str, str]:
    """Kind and tag member of an id that must exist."""
    match = re.fullmatch(r"([a-z-]+)-[0-9a-f]+", resource)
    if match is None or match[1] not in _TAGGED:
        raise errors.ApiError("InvalidID", f"The ID '{resource}' is not valid")
    kind, member, _ = _TAGGED[match[1]]
    cloud.need(kind, match[1], resource)
    return kind, member


def create_tags(cloud: Cloud, params: Item) -> Item:
    """CreateTags: all resources must exist, then each is tagged."""
    if not params.get("Tags"):
        raise errors.missing("Tag")
    places = [(resource, *_place(cloud, resource)) for resource in params["Resources"]]
    changes = []
    for resource, kind, member in places:
        item = cloud.get(kind, resource)
        changes.append((kind, resource, member, merged((item or {})[member], params["Tags"])))
    for kind, resource, member, labels in changes:
        cloud.change(kind, resource, **{member: labels})
    return {}


def delete_tags(cloud: Cloud, params: Item) -> Item:
    """DeleteTags: by key, or key and value; without tags, all of them; absent ones are no error."""
    if any("Key" not in wish for wish in params.get("Tags") or ()):
        raise errors.missing("Tag.Key")
    for resource in params["Resources"]:
        kind, member = _place(cloud, resource)
        present = (cloud.get(kind, resource) or {})[member]
        kept = [tag for tag in present if not _struck(tag, params.get("Tags"))]
        cloud.change(kind, resource, **{member: kept})
    return {}


def _struck(tag: Item, wishes: list[Item] | None) -> bool:
    if not wishes:
        return not tag["Key"].startswith("aws:")
    return any(
        wish["Key"] == tag["Key"] and wish.get("Value", tag["Value"]) == tag["Value"]
        for wish in wishes
    )


def describe_tags(cloud: Cloud, params: Item) -> Item:
    """DescribeTags: one row for each tag of each resource, paged."""
    rows: list[Item] = []
    for prefix, (kind, member, resource_type) in _TAGGED.items():
        for item in cloud.scan(kind, cloud.api_lag):
            identifier = item[_ID_MEMBER[prefix]]
            rows.extend(
                {
                    "Key": tag["Key"],
                    "Value": tag["Value"],
                    "ResourceId": identifier,
                    "ResourceType": resource_type,
                    "_self": [tag],
                }
                for tag in item[member]
            )
    rows.sort(key=lambda row: cloud.birth(row["ResourceId"]))
    found = filters.select(rows, params.get("Filters"), _FILTERS)
    shown, token = filters.page(cloud, found, params, None)
    for row in shown:
        del row["_self"]
    return filters.paged("Tags", shown, token)


_ID_MEMBER = {
    "eni": "NetworkInterfaceId",
    "i": "InstanceId",
    "subnet": "SubnetId",
    "vpc": "VpcId",
    "sg": "GroupId",
    "scr": "SubnetCidrReservationId",
    "eipalloc": "AllocationId",
    "trunk-assoc": "AssociationId",
}

OPERATIONS = {
    "CreateTags": create_tags,
    "DeleteTags": delete_tags,
    "DescribeTags": describe_tags,
}
