"""A node as the VPC CNI leaves it: interfaces in EC2, objects in the kernel, its records in files.

Laid down by hand after what v1.23 was seen to do, for a takeover needs somebody to take over from; and
what its agent does with such a node when it starts again, for the way back. What it would do besides
(a warm pool, IPv6, branch interfaces) is left out.

What does not belong here: anything of the product.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.kubelet import Kubelet, Sandbox
from tests.lab.node import Node
from tests.lab.whole import Lab

VERSION = "vpc-cni-ipam/1"
MAIN = 254
MARK = "0x80/0x80"
CONFLIST: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "name": "aws-cni",
    "disableCheck": True,
    "plugins": [
        {
            "name": "aws-cni",
            "type": "aws-cni",
            "vethPrefix": "eni",
            "mtu": "9001",
            "podSGEnforcingMode": "strict",
            "pluginLogFile": "/var/log/aws-routed-eni/plugin.log",
            "pluginLogLevel": "DEBUG",
            "capabilities": {"io.kubernetes.cri.pod-annotations": True},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ],
}


@dataclass(slots=True)
class Upstream:
    """The VPC CNI on one node of the lab; `lay_down` first."""

    lab: Lab
    node: Node
    kubelet: Kubelet
    allocations: list[dict[str, Any]] = field(default_factory=list)
    _free: list[tuple[str, int]] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """Its file of allocations."""
        return self.node.run / "ipam.json"

    # ── interfaces and the host ───────────────────────────────────────────────────────────────

    def lay_down(self, *, interfaces: int = 2, secondaries: int = 4) -> None:
        """Interfaces with their addresses, host rules, NAT, the conflist and an empty checkpoint."""
        ec2 = self.lab.ec2
        primary = self.lab.fabric.primary(self.node.instance)
        for device in range(interfaces):
            eni = primary if device == 0 else self._attach(ec2, primary, device)
            assigned = ec2.assign_private_ip_addresses(
                NetworkInterfaceId=eni["NetworkInterfaceId"],
                SecondaryPrivateIpAddressCount=secondaries,
            )["AssignedPrivateIpAddresses"]
            table = device + 1 if device else MAIN
            self._free += [(each["PrivateIpAddress"], table) for each in assigned]
            if device:
                self._route(eni, device, table)
        self._ip("link set eth0 mtu 9001", f"rule add prio 1024 fwmark {MARK} lookup main")
        self._nat(primary["PrivateIpAddress"])
        (self.node.conf / "10-aws.conflist").write_text(json.dumps(CONFLIST))
        self.write()

    def _attach(self, ec2: Any, primary: dict[str, Any], device: int) -> dict[str, Any]:
        tags = {"node.k8s.amazonaws.com/instance_id": self.node.instance}
        tags["node.k8s.amazonaws.com/createdAt"] = "2026-01-01T00:00:00Z"
        made: dict[str, Any] = ec2.create_network_interface(
            SubnetId=primary["SubnetId"],
            Groups=[group["GroupId"] for group in primary["Groups"]],
            Description=f"aws-K8S-{self.node.instance}",
            TagSpecifications=[
                {
                    "ResourceType": "network-interface",
                    "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
                }
            ],
        )["NetworkInterface"]
        eni = made["NetworkInterfaceId"]
        attachment = ec2.attach_network_interface(
            NetworkInterfaceId=eni, InstanceId=self.node.instance, DeviceIndex=device
        )["AttachmentId"]
        ec2.modify_network_interface_attribute(
            NetworkInterfaceId=eni,
            Attachment={"AttachmentId": attachment, "DeleteOnTermination": True},
        )
        self._await(f"eth{device}")
        return made

    def _await(self, link: str) -> None:
        """The instance sees a new link; it is looked for, as the VPC CNI does."""
        deadline = time.monotonic() + 10
        while not any(row["ifname"] == link for row in self._links()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.node.name} does not see {link}")
            time.sleep(0.02)

    def _links(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.node.netns.command("ip", "-j", "link"))
        return found

    def _route(self, eni: dict[str, Any], device: int, table: int) -> None:
        gateway = self.lab.fabric.gateway(eni["SubnetId"])
        link, own = f"eth{device}", eni["PrivateIpAddress"]
        self._ip(
            f"link set {link} mtu 9001 up",
            f"address add {own}/{gateway.network.prefixlen} dev {link}",
            f"route replace {gateway.ip}/32 dev {link} table {table} scope link",
            f"route replace default via {gateway.ip} dev {link} table {table}",
            f"route del {gateway.network} dev {link} src {own} scope link",
            f"rule add prio 32765 from {own}/32 lookup {table}",
        )

    def _nat(self, own: str) -> None:
        """SNAT and marks in iptables, the outbound mark in nftables, as its nft backend has them."""
        rules = f"""*mangle
-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL \
--limit-iface-in -j CONNMARK --set-xmark {MARK}
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask \
0x80 --ctmask 0x80
COMMIT
*nat
:AWS-SNAT-CHAIN-0 - [0:0]
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL \
-j SNAT --to-source {own} --random-fully
COMMIT
"""
        self.node.netns.command("iptables-nft-restore", "--noflush", stdin=rules)
        table = """table ip aws-cni {
  chain snat-mark {
    counter ip daddr 10.0.0.0/16 return
    counter ct mark set ct mark or 0x80
  }
  chain nat-prerouting {
    type nat hook prerouting priority -90; policy accept;
    fib daddr type local return
    iifname "eni*" counter jump snat-mark
    counter meta mark set ct mark and 0x80
  }
}
"""
        self.node.netns.command("nft", "-f", "-", stdin=table)

    # ── pods ──────────────────────────────────────────────────────────────────────────────────

    def start(self, pod: str, namespace: str = "default") -> Sandbox:
        """A pod with its sandbox, wired, in the checkpoint and in the runtime's cache."""
        sandbox = self.kubelet.sandbox(pod, namespace)
        address, table = self._free.pop(0)
        link = host_link(namespace, pod)
        mac = f"02:{':'.join(hashlib.sha1(sandbox.container.encode()).hexdigest()[i : i + 2] for i in range(0, 10, 2))}"  # noqa: S324 - any five bytes
        self._ip(
            f"link add {link} address {mac} mtu 9001 type veth "
            f"peer name eth0 mtu 9001 netns {sandbox.netns.path}",
            f"link set {link} up",
            f"route replace {address}/32 dev {link} scope link",
            f"rule add prio 512 to {address}/32 lookup main",
            *([] if table == MAIN else [f"rule add prio 1536 from {address}/32 lookup {table}"]),
        )
        inside = (
            "link set eth0 up",
            "route add 169.254.1.1/32 dev eth0 scope link",
            "route add default via 169.254.1.1 dev eth0",
            f"address add {address}/32 dev eth0",
            f"neighbor add 169.254.1.1 lladdr {mac} dev eth0 nud permanent",
        )
        sandbox.netns.command("ip", "-batch", "-", stdin="\n".join(inside))
        sandbox.result = {
            "cniVersion": "0.4.0",
            "interfaces": [
                {"name": link},
                {"name": "eth0", "sandbox": sandbox.netns.path, "mac": str(table)},
                {"name": "dummy" + link[3:], "mac": "0", "sandbox": str(max(table - 1, 0) % 253)},
            ],
            "ips": [{"version": "4", "address": f"{address}/32", "interface": 1}],
            "dns": {},
        }
        self.kubelet.keep(CONFLIST, sandbox, sandbox.result)
        self.allocations.append(allocation(sandbox, address))
        self.write()
        return sandbox

    def write(self) -> None:
        """Its checkpoint, whole, as its agent does with every change."""
        content = {"version": VERSION, "allocations": self.allocations}
        self.checkpoint.write_text(json.dumps(content, separators=(",", ":")) + "\n")
        self.checkpoint.chmod(0o600)

    # ── its agent starts again ────────────────────────────────────────────────────────────────

    def take_back(self) -> list[str]:
        """What its agent does with a node it finds: read, prune, rewrite the pods' rules.

        Returns the addresses it believes to be in use. ValueError where it would refuse to start.
        """
        content = json.loads(self.checkpoint.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"checkpoint version {content['version']}")
        addresses = [row["ipv4"] for row in content["allocations"]]
        if len(set(addresses)) != len(addresses):
            raise ValueError("two allocations of one address")
        links = {row["ifname"] for row in self._links()}
        self.allocations = []
        for row in content["allocations"]:
            meta = row["metadata"]
            if host_link(meta["k8sPodNamespace"], meta["k8sPodName"]) in links:
                self.allocations.append(row)
                self._rewrite(row["ipv4"])
        self.write()
        return [row["ipv4"] for row in self.allocations]

    def _rewrite(self, address: str) -> None:
        """All rules with this source go, then one comes, with the table of the last one seen."""
        listed = json.loads(self.node.netns.command("ip", "-j", "rule"))
        tables = [row["table"] for row in listed if row.get("src") == address]
        self._ip(*(f"rule del from {address}/32" for _ in tables))
        if tables:
            self._ip(f"rule add prio 1536 from {address}/32 lookup {tables[-1]}")

    def delete(self, sandbox: Sandbox) -> None:
        """Its plugin's DEL, of any pod in the checkpoint; the link goes with the sandbox."""
        row = next(r for r in self.allocations if r["containerID"] == sandbox.container)
        self.allocations.remove(row)
        self.write()
        self._ip(
            f"rule del prio 512 to {row['ipv4']}/32 lookup main",
            f"route del {row['ipv4']}/32 scope link",
        )
        listed = json.loads(self.node.netns.command("ip", "-j", "rule"))
        gone = [r for r in listed if r.get("src") == row["ipv4"]]
        self._ip(*(f"rule del prio 1536 from {row['ipv4']}/32" for _ in gone))
        sandbox.netns.close()

    def _ip(self, *lines: str) -> None:
        if lines:
            self.node.netns.command("ip", "-batch", "-", stdin="\n".join(lines))


def host_link(namespace: str, pod: str) -> str:
    """The host link's name: eni and 11 hex digits of SHA-1("namespace.pod")."""
    return "eni" + hashlib.sha1(f"{namespace}.{pod}".encode()).hexdigest()[:11]  # noqa: S324 - a name


def allocation(sandbox: Sandbox, address: str) -> dict[str, Any]:
    """A row of the checkpoint."""
    ipaddress.IPv4Address(address)
    return {
        "networkName": "aws-cni",
        "containerID": sandbox.container,
        "ifName": sandbox.ifname,
        "ipv4": address,
        "allocationTimestamp": time.time_ns(),
        "metadata": {
            "k8sPodNamespace": sandbox.namespace,
            "k8sPodName": sandbox.pod,
            "interfacesCount": 1,
        },
    }
