"""A subnet without room, by a daemon on the lab: who is told what and when, and what EC2 is asked meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab import spaces
from tests.lab.kubelet import CniError
from tests.lab.whole import Lab
from tests.reconciler import live

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


def fill(lab: Lab, leave: int) -> list[str]:
    """Take the first node's subnet but for `leave` addresses; the interfaces that took it."""
    subnet = lab.fabric.primary(lab.nodes[0].instance)["SubnetId"]
    taken: list[str] = []

    def free() -> int:
        [found] = lab.ec2.describe_subnets(SubnetIds=[subnet])["Subnets"]
        return int(found["AvailableIpAddressCount"])

    while (room := free() - leave) > 0:
        more: dict[str, Any] = {}
        if room > 1:
            more["SecondaryPrivateIpAddressCount"] = min(room - 1, 40)
        made = lab.ec2.create_network_interface(SubnetId=subnet, **more)
        taken.append(made["NetworkInterface"]["NetworkInterfaceId"])
    return taken


@pytest.mark.parametrize("prefixes", ["false", "true"])
def test_status_says_so_before_the_third_refusal_and_a_restart_keeps_the_pause(
    lab: Lab, prefixes: str
) -> None:
    """Two addresses are left for pods; EC2 is not asked again while the pause lasts, whoever asks us.

    With prefixes too: no /28 is left, and the single addresses in their place are used up.
    """
    node, kubelet = lab.nodes[0], lab.kubelets[0]
    fill(lab, leave=2)
    with pytest.raises(lab.ec2.exceptions.ClientError, match="InsufficientFreeAddressesInSubnet"):
        lab.ec2.create_network_interface(
            SubnetId=lab.fabric.primary(node.instance)["SubnetId"], SecondaryPrivateIpAddressCount=2
        )
    node.start_daemon(WARM_IP_TARGET="1", VPCLEDGER_ADD_WAIT="2", ENABLE_PREFIX_DELEGATION=prefixes)
    pods = [kubelet.start(f"web-{n}") for n in range(2)]
    assert pods[0].ping(pods[1].address)
    first = live.refused(kubelet, "third")
    with pytest.raises(CniError, match="subnet_full") as status:
        kubelet.status()
    second = live.refused(kubelet, "fourth")
    assert {first.code, second.code, status.value.code} == {11, 50}
    assert first.message.startswith("subnet_full: ")
    assert "subnet_full" in live.findings(node)
    asked = live.changes(lab)
    node.kill_daemon()
    node.start_daemon()
    third = live.refused(kubelet, "fifth")
    assert third.message.startswith("subnet_full: ")
    assert live.changes(lab) == asked
