"""What others do around a node: tenants of its subnet, controllers of its instance, and who runs the cluster.

They take the subnet's addresses, or one of every /28; attach interfaces of their own, or mark one of the
node's as theirs; change the security groups; cordon the node; and leave again. What the node makes of it does
not belong here.
"""

from __future__ import annotations

import random
from typing import Any, Final

from tests.lab import types
from tests.lab.apiserver import ApiServer
from tests.lab.cloud import Cloud
from tests.lab.errors import ApiError
from tests.stories import door

INSTANCE: Final = "node.k8s.amazonaws.com/instance_id"
NO_MANAGE: Final = "node.k8s.amazonaws.com/no_manage"
NODE_NAME: Final = "ip-10-0-0-4.eu-west-1.compute.internal"

Item = dict[str, Any]


class Neighbours:
    """Those of one instance in one subnet; no fault meets them, and no lag."""

    def __init__(self, cloud: Cloud, instance: str, subnet: str, rng: random.Random) -> None:
        self.cloud, self.instance, self.subnet, self.rng = cloud, instance, subnet, rng
        self.api = ApiServer()
        self.api.join(NODE_NAME)
        self.squatters: list[str] = []
        """Interfaces that only take the subnet's room."""
        self.strangers: set[str] = set()
        """Interfaces on the instance that were never meant for the node's pods."""
        self._parting: list[str] = []
        self._groups: list[str] = []

    def call(self, action: str, **params: Any) -> Item:
        """A call of theirs."""
        with self.cloud.lock:
            return self.cloud.call(action, params, "operator")

    def of_the_instance(self) -> list[Item]:
        """The interfaces attached to it at this moment."""
        with self.cloud.lock:
            self.cloud.run_due()
            return self.cloud.interfaces_of(self.instance)

    # ------------------------------------------------------------------ in the subnet

    def take_all_but(self, left: int) -> None:
        """Take the subnet's addresses but for so many."""
        while (room := self.cloud.occupancy[self.subnet][4].free() - left) > 0:
            secondaries = {"SecondaryPrivateIpAddressCount": min(room - 1, 49)} if room > 1 else {}
            self._squat(**secondaries)

    def break_up(self, blocks: int = 0) -> None:
        """Put somebody into every /28 that is free, but for so many."""
        for block in door.free_blocks(self.cloud, self.subnet)[blocks:]:
            self._squat(PrivateIpAddress=str(block[7]))

    def leave(self) -> None:
        """Give the subnet's room back."""
        for eni_id in self.squatters:
            self.call("DeleteNetworkInterface", NetworkInterfaceId=eni_id)
        self.squatters = []

    def _squat(self, **wish: Any) -> None:
        made = self.call("CreateNetworkInterface", SubnetId=self.subnet, **wish)
        self.squatters.append(made["NetworkInterface"]["NetworkInterfaceId"])

    # ------------------------------------------------------------------ on the instance

    def attach(self) -> str:
        """An interface of theirs, of any kind and tagged in any way; what came of it, in words."""
        kinds = ["interface"]
        with self.cloud.lock:
            instance = self.cloud.need("instance", "i", self.instance)
        if types.table()[instance["InstanceType"]].first_efa_card == 0:
            kinds += ["efa", "efa-only"]
        kind = self.rng.choice(kinds)
        ours = kind != "efa-only" and self.rng.random() < 0.25
        labels = {INSTANCE: self.instance} if ours else {}
        if not ours and self.rng.random() < 0.5:
            labels = {INSTANCE: self.instance, NO_MANAGE: "true"}
        tags = [{"Key": key, "Value": value} for key, value in labels.items()]
        wish: Item = {"SubnetId": self.subnet, "InterfaceType": kind}
        if tags:
            wish["TagSpecifications"] = [{"ResourceType": "network-interface", "Tags": tags}]
        if kind == "interface":
            del wish["InterfaceType"]
        primary = next(e for e in self.of_the_instance() if e["Attachment"]["DeviceIndex"] == 0)
        wish["Groups"] = [group["GroupId"] for group in primary["Groups"]]
        taken = {each["Attachment"]["DeviceIndex"] for each in self.of_the_instance()}
        device = next(index for index in range(1, 20) if index not in taken)
        try:
            made = self.call("CreateNetworkInterface", **wish)["NetworkInterface"]
        except ApiError as refused:
            return f"somebody has no room for an interface: {refused.code}"
        eni_id = str(made["NetworkInterfaceId"])
        if not ours:
            self.strangers.add(eni_id)
        try:
            self.call(
                "AttachNetworkInterface",
                NetworkInterfaceId=eni_id,
                InstanceId=self.instance,
                DeviceIndex=device,
            )
        except ApiError as refused:
            self.call("DeleteNetworkInterface", NetworkInterfaceId=eni_id)
            self.strangers.discard(eni_id)
            return f"somebody finds no place for an interface: {refused.code}"
        return f"somebody attaches {eni_id}, {kind}, {'for us' if ours else 'not for us'}"

    def detach(self) -> str:
        """Take an interface of theirs away."""
        there = {each["NetworkInterfaceId"]: each for each in self.of_the_instance()}
        theirs = sorted(self.strangers & set(there))
        theirs = [i for i in theirs if there[i]["Attachment"]["Status"] == "attached"]
        if not theirs:
            return "somebody has nothing to take away"
        eni_id = self.rng.choice(theirs)
        attachment = there[eni_id]["Attachment"]["AttachmentId"]
        self.call("DetachNetworkInterface", AttachmentId=attachment)
        self._parting.append(eni_id)
        return f"somebody detaches {eni_id}"

    def tidy(self) -> None:
        """Delete what has been detached."""
        for eni_id in [*self._parting]:
            with self.cloud.lock:
                self.cloud.run_due()
                eni = self.cloud.get("interface", eni_id)
            if eni is not None and eni["Status"] != "available":
                continue
            if eni is not None:
                self.call("DeleteNetworkInterface", NetworkInterfaceId=eni_id)
            self._parting.remove(eni_id)
            self.strangers.discard(eni_id)

    def mark(self) -> str:
        """Say of an interface of the node's that it is not to be managed, or take that back."""
        others = [e for e in self.of_the_instance() if e["Attachment"]["DeviceIndex"] != 0]
        others = [e for e in others if e["NetworkInterfaceId"] not in self.strangers]
        if not others:
            return "somebody finds nothing to mark"
        eni = self.rng.choice(sorted(others, key=lambda e: str(e["NetworkInterfaceId"])))
        eni_id = eni["NetworkInterfaceId"]
        if any(tag["Key"] == NO_MANAGE for tag in eni["TagSet"]):
            self.call("DeleteTags", Resources=[eni_id], Tags=[{"Key": NO_MANAGE}])
            return f"somebody leaves {eni_id} to the node"
        self.call("CreateTags", Resources=[eni_id], Tags=[{"Key": NO_MANAGE, "Value": "true"}])
        return f"somebody marks {eni_id} no_manage"

    def regroup(self) -> str:
        """Other security groups for the primary interface, which the node's others follow."""
        primary = next(e for e in self.of_the_instance() if e["Attachment"]["DeviceIndex"] == 0)
        if not self._groups:
            made = self.call(
                "CreateSecurityGroup", GroupName="g2", Description="another", VpcId=primary["VpcId"]
            )
            self._groups = [primary["Groups"][0]["GroupId"], str(made["GroupId"])]
        groups = self.rng.choice((self._groups[:1], self._groups[1:], self._groups))
        eni_id = primary["NetworkInterfaceId"]
        self.call("ModifyNetworkInterfaceAttribute", NetworkInterfaceId=eni_id, Groups=groups)
        return f"the node's security groups are {groups}"

    # ------------------------------------------------------------------ in the cluster

    def cordon(self) -> str:
        """Cordon the node, uncordon it, or let the API server be down."""
        what = self.rng.choice(("cordon", "uncordon", "taint", "down", "up"))
        if what in {"down", "up"}:
            self.api.down = what == "down"
        else:
            getattr(self.api, what)(NODE_NAME)
        return f"the cluster: {what}"

    def calm(self) -> None:
        """All of it ends but what is attached."""
        self.leave()
        self.api.down = False
        self.api.uncordon(NODE_NAME)
