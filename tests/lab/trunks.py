"""Branch interfaces riding on a trunk by VLAN.

AWS keeps these actions to itself and to controllers it runs, so no code or text here is verified
against AWS, and the number of branches a type carries is not enforced.
Does not belong here: the VLAN links themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab import errors, filters, tags

if TYPE_CHECKING:
    from tests.lab.cloud import Cloud
    from tests.lab.store import Item

_FILTERS = {
    "tag": "Tags",
    "gre-key": "GreKey",
    "interface-protocol": "InterfaceProtocol",
}


def associate_trunk_interface(cloud: Cloud, params: Item) -> Item:
    """AssociateTrunkInterface: one branch, one VLAN of one trunk."""
    branch = cloud.need("interface", "eni", params["BranchInterfaceId"])
    trunk = cloud.need("interface", "eni", params["TrunkInterfaceId"])
    for eni, kind in ((branch, "branch"), (trunk, "trunk")):
        if eni["InterfaceType"] != kind:
            raise errors.value(f"Interface '{eni['NetworkInterfaceId']}' is not of type {kind}")
    if branch["Status"] != "available":
        raise errors.ApiError(
            "InvalidNetworkInterface.InUse", f"Interface: [{branch['NetworkInterfaceId']}] in use."
        )
    vlan = params.get("VlanId")
    if vlan is None and params.get("GreKey") is None:
        raise errors.missing("vlanId")
    if vlan is not None and not 1 <= vlan <= 4094:
        raise errors.bad_value(vlan, "vlanId", "Must be between 1 and 4094.")
    for each in cloud.scan("trunk"):
        if each["TrunkInterfaceId"] == trunk["NetworkInterfaceId"] and each.get("VlanId") == vlan:
            raise errors.value(f"VLAN {vlan} is already in use on the trunk interface")
    association_id = cloud.new_id("trunk-assoc")
    association: Item = {
        "AssociationId": association_id,
        "BranchInterfaceId": branch["NetworkInterfaceId"],
        "TrunkInterfaceId": trunk["NetworkInterfaceId"],
        "InterfaceProtocol": "VLAN" if vlan is not None else "GRE",
        "Tags": tags.wanted(params, "trunk-interface-association"),
        **({"VlanId": vlan} if vlan is not None else {"GreKey": params["GreKey"]}),
    }
    cloud.put("trunk", association_id, association)
    cloud.change("interface", branch["NetworkInterfaceId"], Status="in-use")
    token = params.get("ClientToken")
    return {"InterfaceAssociation": association, **({"ClientToken": token} if token else {})}


def disassociate_trunk_interface(cloud: Cloud, params: Item) -> Item:
    """DisassociateTrunkInterface: the branch is available again."""
    association = cloud.need("trunk", "trunk-assoc", params["AssociationId"])
    _end(cloud, association)
    token = params.get("ClientToken")
    return {"Return": True, **({"ClientToken": token} if token else {})}


def _end(cloud: Cloud, association: Item) -> None:
    cloud.drop("trunk", association["AssociationId"])
    cloud.change("interface", association["BranchInterfaceId"], Status="available")


def dissolve(cloud: Cloud, eni_id: str) -> None:
    """An interface goes: its associations, as trunk or as branch, go first."""
    for association in cloud.scan("trunk"):
        if eni_id in (association["TrunkInterfaceId"], association["BranchInterfaceId"]):
            _end(cloud, association)


def describe_trunk_interface_associations(cloud: Cloud, params: Item) -> Item:
    """DescribeTrunkInterfaceAssociations, paged."""
    ids = params.get("AssociationIds")
    seen = cloud.seen("trunk", "trunk-assoc", ids)
    found = filters.select(seen, params.get("Filters"), _FILTERS)
    shown, token = filters.page(cloud, found, params, "AssociationId", ids=ids, most=255)
    return filters.paged("InterfaceAssociations", shown, token)


OPERATIONS = {
    "AssociateTrunkInterface": associate_trunk_interface,
    "DisassociateTrunkInterface": disassociate_trunk_interface,
    "DescribeTrunkInterfaceAssociations": describe_trunk_interface_associations,
}
