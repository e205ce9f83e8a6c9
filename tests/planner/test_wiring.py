"""What a pod and an interface need, by the data plane's facts, and a difference that is safe to apply."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import wiring

SETTINGS = knobs.Settings()
PRIMARY = model.Eni("eni-0", "02:aa:00:00:00:00", "s", "10.0.0.0/24", "10.0.0.4", 0, primary=True)
SECOND = model.Eni("eni-1", "02:aa:00:00:00:01", "s", "10.0.0.0/24", "10.0.0.10", device=1)
LEASE = model.Lease(
    7, "c7", "eth0", "aws-cni", "/n", "reserved", "10.0.0.77", "eni-1", host_ifname="eni0",
    host_mac="0a:00:00:00:00:70",
)  # fmt: skip


@pytest.mark.parametrize(
    ("card", "device", "table"),
    [(0, 0, 254), (0, 1, 2), (0, 3, 4), (1, 0, 10100), (1, 1, 10101), (2, 5, 10205)],
)
def test_tables_are_numbered_as_the_vpc_cni_does(card: int, device: int, table: int) -> None:
    assert wiring.table(replace(SECOND, card=card, device=device)) == table


def test_an_interface_without_an_attachment_has_no_table() -> None:
    with pytest.raises(ValueError, match="not attached"):
        wiring.table(replace(SECOND, device=-1))


def test_the_host_link_is_named_as_tools_expect() -> None:
    """The known vector: default/web-1 is eni0761ccbeace."""
    assert wiring.host_ifname("eni", "default", "web-1") == "eni0761ccbeace"


def test_a_pod_on_a_secondary_interface_has_all_its_objects() -> None:
    wired = wiring.pod(LEASE, SECOND, SETTINGS)

    marked = wiring.PROTOCOL
    assert wired.host[1:] == (
        model.Route("10.0.0.77/32", "eni0", protocol=marked),
        model.Rule(512, 254, dst="10.0.0.77/32", protocol=marked),
        model.Rule(1536, 2, src="10.0.0.77/32", protocol=marked),
    )
    assert wired.pod == (
        model.Route("169.254.1.1/32", "eth0", where="pod", protocol=marked),
        model.Route("0.0.0.0/0", "eth0", via="169.254.1.1", where="pod", protocol=marked),
        model.InterfaceAddress("eth0", "10.0.0.77/32", "pod"),
        model.Neighbour("eth0", "169.254.1.1", "0a:00:00:00:00:70"),
    )
    assert (wired.link.alias, wired.link.mtu, wired.link.peer) == ("vpcledger:7", 9001, "eth0")
    assert [(s.path, s.value) for s in wired.sysctls] == [
        ("ipv6/conf/eni0/accept_ra", "0"),
        ("ipv6/conf/eni0/accept_redirects", "0"),
        ("ipv6/conf/eni0/forwarding", "0"),
    ]


def test_a_pod_on_the_primary_interface_needs_no_from_rule() -> None:
    wired = wiring.pod(LEASE, PRIMARY, SETTINGS)
    assert [thing.priority for thing in wired.host if isinstance(thing, model.Rule)] == [512]


def test_the_ends_of_a_pair_have_macs_of_their_own() -> None:
    link = wiring.pod(LEASE, SECOND, SETTINGS).link
    assert link.mac != link.peer_mac
    assert int(link.peer_mac[:2], 16) & 3 == 2  # locally administered, unicast


@pytest.mark.parametrize(
    "lease",
    [replace(LEASE, address=None), replace(LEASE, host_ifname=""), replace(LEASE, host_mac="")],
)
def test_a_lease_without_its_particulars_cannot_be_wired(lease: model.Lease) -> None:
    with pytest.raises(ValueError, match="lease 7"):
        wiring.pod(lease, SECOND, SETTINGS)


def test_a_secondary_interface_has_its_table_and_rule() -> None:
    marked = wiring.PROTOCOL
    assert wiring.eni(SECOND, "eth1", SETTINGS) == (
        model.Link("eth1", kind="", mac=SECOND.mac, mtu=9001),
        model.InterfaceAddress("eth1", "10.0.0.10/24"),
        model.Route("10.0.0.1/32", "eth1", table=2, protocol=marked),
        model.Route("0.0.0.0/0", "eth1", table=2, via="10.0.0.1", protocol=marked),
        model.Rule(32765, 2, src="10.0.0.10/32", protocol=marked),
    )


def test_the_primary_interface_gets_its_mtu_and_nothing_else() -> None:
    assert wiring.eni(PRIMARY, "eth0", SETTINGS) == (
        model.Link("eth0", kind="", mac=PRIMARY.mac, mtu=9001),
    )


def test_settings_choose_mtu_and_prefix() -> None:
    settings, _ = knobs.load({"POD_MTU": "1400", "AWS_VPC_ENI_MTU": "1500"})
    link = wiring.eni(SECOND, "eth1", settings)[0]

    assert wiring.pod(LEASE, SECOND, settings).link.mtu == 1400
    assert isinstance(link, model.Link)
    assert link.mtu == 1500
