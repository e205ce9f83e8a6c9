"""The answer to ADD, written the way each version of the CNI specification wants it.

Up to 0.4.0 an address says its family ("version"); from 1.1.0 an interface may say its MTU and a
route its table, scope and metric. Section 5 of the specification. Which interfaces and addresses
there are does not belong here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cni import spec


@dataclass(frozen=True, slots=True)
class Interface:
    """A link the plugin made; `sandbox` is the namespace's path, "" for one on the host."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Ip:
    """An address in CIDR form; `interface` is an index into the result's interfaces."""

    address: str
    interface: int | None = None
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the pod: destination in CIDR form, next hop, and what only 1.1.0 can say."""

    dst: str
    gw: str = ""
    mtu: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What ADD did, in no version yet."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()


def render(result: Result, cni_version: str) -> bytes:
    """The result object for standard output, at one of spec.VERSIONS."""
    at = spec.VERSIONS.index(cni_version)
    says_family = at < spec.VERSIONS.index("1.0.0")
    says_more = at >= spec.VERSIONS.index("1.1.0")
    answer: dict[str, Any] = {"cniVersion": cni_version}
    if result.interfaces:
        answer["interfaces"] = [_interface(link, says_more) for link in result.interfaces]
    if result.ips:
        answer["ips"] = [_ip(ip, says_family) for ip in result.ips]
    if result.routes:
        answer["routes"] = [_route(route, says_more) for route in result.routes]
    answer["dns"] = {}
    return json.dumps(answer).encode()


def _interface(link: Interface, says_more: bool) -> dict[str, Any]:
    told = {"name": link.name, "mac": link.mac, "sandbox": link.sandbox}
    if says_more:
        return _without_empty(told | {"mtu": link.mtu or None})
    return _without_empty(told)


def _ip(ip: Ip, says_family: bool) -> dict[str, Any]:
    family = ("6" if ":" in ip.address else "4") if says_family else ""
    return _without_empty(
        {
            "version": family,
            "interface": ip.interface,
            "address": ip.address,
            "gateway": ip.gateway,
        }
    )


def _route(route: Route, says_more: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"dst": route.dst, "gw": route.gw}
    if says_more:
        told |= {
            "mtu": route.mtu,
            "priority": route.priority,
            "table": route.table,
            "scope": route.scope,
        }
    return _without_empty(told)


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None and value != ""}
