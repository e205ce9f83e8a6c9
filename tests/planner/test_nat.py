"""The nftables table a node gets: word for word, and for each setting what it changes."""

from __future__ import annotations

import dataclasses

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, nat, ruleset
from tests.planner import rows

NODE = dataclasses.replace(rows.NODE, vpc_cidrs=("10.0.0.0/16", "100.64.0.0/10"))
SETTINGS = knobs.Settings()

PLAIN = """\
table ip vpcledger {
	chain inbound {
		type filter hook prerouting priority -150; policy accept;
		iifname "eth0" fib daddr . iif type local counter ct mark set ct mark | 0x00000080 \
comment "to a port of this node: answers leave where it came in"
	}
	chain outbound {
		type filter hook prerouting priority -90; policy accept;
		iifname "eni*" ct status ! confirmed jump off-vpc comment "where does a pod connect to?"
		iifname "eni*" ct mark & 0x00000080 == 0x00000080 meta mark set meta mark | 0x00000080 \
comment "by the primary interface"
	}
	chain off-vpc {
		fib daddr type local return
		ip daddr 10.0.0.0/16 return
		ip daddr 100.64.0.0/10 return
		counter ct mark set ct mark | 0x00000080 comment "off the VPC"
	}
	chain translate {
		type nat hook postrouting priority 110; policy accept;
		oifname "vlan*" return comment "branch interfaces have addresses of their own"
		fib saddr . oif type local return comment "an address of that interface already"
		fib daddr type local return
		ip daddr 10.0.0.0/16 return
		ip daddr 100.64.0.0/10 return
		counter snat to 10.0.0.10 fully-random
	}
}
"""


def table(**settings: object) -> ruleset.Table:
    return nat.table(NODE, "eth0", dataclasses.replace(SETTINGS, **settings))  # type: ignore[arg-type]  # fields by name


def chain(found: ruleset.Table, name: str) -> list[str]:
    (one,) = (chain for chain in found.chains if chain.name == name)
    return [rule.text for rule in one.rules]


def test_the_table_of_a_node_with_default_settings_is_this() -> None:
    assert table().text == PLAIN


@pytest.mark.parametrize(
    ("mode", "words"),
    [("prng", " fully-random"), ("hashrandom", " random"), ("none", "")],
)
def test_the_source_port_is_chosen_in_three_ways(mode: ruleset.Randomness, words: str) -> None:
    assert chain(table(random_snat=mode), "translate")[-1] == f"counter snat to 10.0.0.10{words}"


def test_an_excluded_network_is_neither_marked_nor_translated() -> None:
    found = table(exclude_snat_cidrs=("172.16.0.0/12",))
    for name in ("off-vpc", "translate"):
        assert "ip daddr 172.16.0.0/12 return" in chain(found, name)[:-1]


def test_networks_inside_each_other_are_one_rule() -> None:
    found = table(exclude_snat_cidrs=("10.0.7.0/24", "10.1.0.0/16", "10.0.0.0/16"))
    assert "ip daddr 10.0.0.0/15 return" in chain(found, "off-vpc")
    assert not any("10.0.7" in rule for rule in chain(found, "off-vpc"))


def test_excluding_everything_needs_no_address() -> None:
    assert "return" in chain(table(exclude_snat_cidrs=("0.0.0.0/0",)), "translate")


def test_with_external_snat_nothing_new_is_marked_or_translated() -> None:
    """What was marked before finds its way, and the chain of type nat stays for what it translated."""
    found = table(external_snat=True)
    assert chain(found, "off-vpc") == chain(found, "translate") == []
    assert [each.hook.kind for each in found.chains if each.hook] == ["filter", "filter", "nat"]
    assert len(chain(found, "outbound")) == 1
    assert "meta mark set" in chain(found, "outbound")[0]


def test_without_node_ports_nothing_that_comes_in_is_marked() -> None:
    found = table(node_port_support=False)
    assert chain(found, "inbound") == []
    assert chain(found, "outbound") == chain(table(), "outbound")


def test_an_earlier_mark_and_an_earlier_prefix_still_lead_by_the_primary_interface() -> None:
    settings = dataclasses.replace(SETTINGS, connmark=0x100, veth_prefix="veth")
    found = nat.table(NODE, "eth0", settings, prefixes=["eni"], earlier_marks=[0x80])
    for link in ("eni*", "veth*"):
        for bits in (0x80, 0x100):
            way = f"ct mark & {bits:#010x} == {bits:#010x} meta mark set meta mark | {bits:#010x}"
            assert any(
                rule.startswith(f'iifname "{link}" {way}') for rule in chain(found, "outbound")
            )
    assert chain(found, "off-vpc")[-1].startswith("counter ct mark set ct mark | 0x00000100")


def test_no_rule_assigns_a_whole_mark() -> None:
    """Bits of others (kube-proxy 0x4000, Calico 0xffff0000) survive: every store is an OR."""
    for rule in [
        rule.text for each in table().chains for rule in each.rules if "mark set" in rule.text
    ]:
        assert "set ct mark | " in rule or "set meta mark | " in rule


def desired(**given: object) -> model.Desired:
    return dataclasses.replace(model.Desired(NODE), **given)  # type: ignore[arg-type]  # fields by name


def planned(
    want: model.Desired, found: ruleset.Table | None, link: str = "eth0"
) -> tuple[tuple[actions.NatAction, ...], list[str]]:
    steps, notes = nat.plan(want, link, ruleset.Observed(0, found), SETTINGS)
    return steps, [note.code for note in notes]


def test_a_table_that_is_as_it_should_be_is_left_alone() -> None:
    assert planned(desired(), table()) == ((), [])


def test_a_missing_or_different_table_is_replaced_whole() -> None:
    for found in (None, table(connmark=1), dataclasses.replace(table(), strange=("flags",))):
        assert planned(desired(), found) == ((actions.ReplaceTable(table()),), [])


def test_nothing_is_planned_while_the_vpcs_networks_or_the_link_are_unknown() -> None:
    """A table that exempts nothing would translate what pods say to each other."""
    nowhere = dataclasses.replace(NODE, vpc_cidrs=())
    assert planned(desired(node=None), None) == ((), ["nat_waits"])
    assert planned(desired(node=nowhere), None) == ((), ["nat_waits"])
    assert planned(desired(), None, link="") == ((), ["nat_waits"])
    steps, notes = nat.plan(desired(), "eth0", model.Unknown("busy", 0), SETTINGS)
    assert (steps, notes[0].code) == ((), "nat_unknown")


def test_what_rows_remember_of_earlier_settings_is_in_the_table() -> None:
    """The prefix in the names of pods' links, and the mark in the host's rules."""
    lease = model.Lease(
        1, "c", "eth0", "aws-cni", "/n", "active", "10.0.0.5", host_ifname="veth0123456789a"
    )
    rule = model.Rule(1024, 254, fwmark=0x200, fwmask=0x200)
    row = model.Installed(1, "host", "", rule, "present")
    (step,), _ = planned(desired(leases=(lease,), installed=(row,)), None)
    assert isinstance(step, actions.ReplaceTable)
    assert step.table == nat.table(NODE, "eth0", SETTINGS, prefixes=["veth"], earlier_marks=[0x200])
