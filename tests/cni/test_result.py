"""ADD's result has in each version the fields that version knows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni import result, spec

RESULT = result.Result(
    interfaces=(
        result.Interface("eni0123456789a", mac="02:00:00:00:00:01"),
        result.Interface("eth0", mac="02:00:00:00:00:02", sandbox="/run/netns/x", mtu=9001),
    ),
    ips=(
        result.Ip("10.0.0.9/32", interface=1, gateway="169.254.1.1"),
        result.Ip("2001:db8::9/128", interface=1),
        result.Ip("10.0.0.10/32"),
    ),
    routes=(result.Route("0.0.0.0/0", gw="169.254.1.1", table=254), result.Route("::/0")),
)


def rendered(version: str) -> Any:
    return json.loads(result.render(RESULT, version))


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_what_all_versions_say(version: str) -> None:
    told = rendered(version)
    assert told["cniVersion"] == version
    assert told["interfaces"][0] == {"name": "eni0123456789a", "mac": "02:00:00:00:00:01"}
    assert told["interfaces"][1]["sandbox"] == "/run/netns/x"
    assert [ip["address"] for ip in told["ips"]] == [
        "10.0.0.9/32",
        "2001:db8::9/128",
        "10.0.0.10/32",
    ]
    assert [ip.get("interface") for ip in told["ips"]] == [1, 1, None]
    assert told["ips"][0]["gateway"] == "169.254.1.1"
    assert told["routes"][0]["gw"] == "169.254.1.1"
    assert told["dns"] == {}


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_an_address_says_its_family_up_to_0_4_0(version: str) -> None:
    families = [ip.get("version") for ip in rendered(version)["ips"]]
    old = version in {"0.3.0", "0.3.1", "0.4.0"}
    assert families == (["4", "6", "4"] if old else [None, None, None])


@pytest.mark.parametrize("version", spec.VERSIONS)
def test_mtu_and_table_are_said_from_1_1_0_on(version: str) -> None:
    told = rendered(version)
    new = version == "1.1.0"
    assert [link.get("mtu") for link in told["interfaces"]] == [None, 9001 if new else None]
    assert [route.get("table") for route in told["routes"]] == [254 if new else None, None]


def test_an_empty_result_is_still_a_result() -> None:
    assert json.loads(result.render(result.Result(), "1.0.0")) == {"cniVersion": "1.0.0", "dns": {}}
