"""What a pod and an interface need, by the data plane's facts, and a difference that is safe to apply."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, wiring

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
        ("ipv6/conf/eni0/accept_redirects", "1"),
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


# --------------------------------------------------------------------- the difference

HOST = wiring.pod(LEASE, SECOND, SETTINGS).host
WANTED = (*wiring.eni(SECOND, "eth1", SETTINGS), *HOST)
FOREIGN: tuple[model.KernelObject, ...] = (
    model.Link("docker0", kind="bridge", mac="02:42:00:00:00:01"),
    model.Link("veth1", mac="02:42:00:00:00:02", alias="somebody's"),
    model.Route("10.9.0.0/16", "docker0", protocol=2),
    model.Rule(512, 254, dst="10.0.0.99/32"),
    model.Rule(1536, 7, src="10.0.0.99/32", protocol=3),
    model.InterfaceAddress("docker0", "172.17.0.1/16"),
)
STALE: tuple[model.KernelObject, ...] = (
    model.Link("eni9", mac="0a:00:00:00:00:90", alias="vpcledger:9"),
    model.Route("10.0.0.99/32", "eni9", protocol=wiring.PROTOCOL),
    model.Rule(1536, 3, src="10.0.0.98/32", protocol=wiring.PROTOCOL),
)


def picture(things: tuple[model.KernelObject, ...]) -> model.ObservedKernel:
    """An observation that shows these; a link shows its index, a peer's name it does not."""

    def of(kind: type) -> tuple[model.KernelObject, ...]:
        return tuple(thing for thing in things if isinstance(thing, kind))

    links = tuple(
        replace(link, kind=link.kind or "veth", peer="", peer_mac="")
        for link in of(model.Link)
        if isinstance(link, model.Link)
    )
    return model.ObservedKernel(
        0,
        links,
        of(model.InterfaceAddress),  # type: ignore[arg-type] # filtered by class
        of(model.Route),  # type: ignore[arg-type]  # filtered by class
        of(model.Rule),  # type: ignore[arg-type]  # filtered by class
    )


def carried_out(
    things: tuple[model.KernelObject, ...], plan: tuple[actions.KernelAction, ...]
) -> tuple[model.KernelObject, ...]:
    """A kernel that does what it is told, in order."""
    here = list(things)
    for step in plan:
        if isinstance(step, actions.Put):
            here = [t for t in here if t.key != step.thing.key] + [step.thing]
        else:
            assert step.thing in picture(tuple(here)).links or step.thing in here
            here = [t for t in here if t.key != step.thing.key or _other(t, step.thing)]
    return tuple(here)


def _other(one: model.KernelObject, removed: model.KernelObject) -> bool:
    """Do these share a key and differ in what a removal states exactly?"""
    if isinstance(one, model.Link) and isinstance(removed, model.Link):
        return not wiring.same_link(one, removed)
    return getattr(one, "protocol", 0) != getattr(removed, "protocol", 0)


some = st.sampled_from
subsets = st.frozensets(some(range(len(WANTED)))), st.frozensets(some(range(len(FOREIGN))))


@given(
    here=st.frozensets(some(WANTED)),
    foreign=st.frozensets(some(FOREIGN)),
    stale=st.frozensets(some(STALE)),
)
def test_carrying_out_the_difference_leads_there_and_stays(
    here: frozenset[model.KernelObject],
    foreign: frozenset[model.KernelObject],
    stale: frozenset[model.KernelObject],
) -> None:
    """Whatever subset is there: afterwards all that is wanted is, ours besides is not, foreign is."""
    before = (*here, *foreign, *stale)

    plan = wiring.diff(WANTED, picture(before), ())
    after = carried_out(before, plan)

    assert wiring.diff(WANTED, picture(after), ()) == ()
    assert wiring.compare(WANTED, picture(after)) == ()
    assert set(foreign) <= set(after)
    assert not set(stale) & set(after)
    touched = {step.thing.key for step in plan if isinstance(step, actions.Remove)}
    assert touched == {thing.key for thing in stale}


def test_nothing_differs_nothing_is_done() -> None:
    assert wiring.diff(WANTED, picture(WANTED), ()) == ()


def test_an_unmarked_object_is_removed_only_if_a_row_names_it() -> None:
    """Upstream's objects bear no mark; an adoption names them in the installed rows."""
    upstream = model.Rule(512, 254, dst="10.0.0.99/32")
    seen = picture((upstream,))

    assert wiring.diff((), seen, ()) == ()
    assert wiring.diff((), seen, (upstream,)) == (actions.Remove(upstream),)


def test_somebodys_twin_of_a_rule_of_ours_stays() -> None:
    """The same selectors without our mark: the row means the one we made."""
    mine = model.Rule(512, 254, dst="10.0.0.99/32", protocol=wiring.PROTOCOL)
    twin = replace(mine, protocol=0)

    assert wiring.diff((mine,), picture((mine, twin)), (mine,)) == ()
    assert wiring.diff((), picture((mine, twin)), (mine,)) == (actions.Remove(mine),)


def test_what_replaces_something_is_made_before_the_old_is_broken() -> None:
    moved = replace(HOST[3], table=3) if isinstance(HOST[3], model.Rule) else HOST[3]

    plan = wiring.diff((moved,), picture((HOST[3],)), ())

    assert plan == (actions.Put(moved), actions.Remove(HOST[3]))


def test_a_namesakes_link_goes_before_the_new_one_comes() -> None:
    """Two links cannot have one name: a pod that was replaced leaves first."""
    link = wiring.pod(LEASE, SECOND, SETTINGS).link
    old = replace(link, alias="vpcledger:6", mac="0a:00:00:00:00:60")

    plan = wiring.diff((HOST[0],), picture((old,)), ())

    assert [type(step) for step in plan] == [actions.Remove, actions.Put]


def test_an_unknown_kernel_is_said_and_nothing_else() -> None:
    said = wiring.compare(WANTED, model.Unknown("netlink: no buffer", 0))
    assert said == ("the kernel could not be asked: netlink: no buffer",)


def test_settings_choose_mtu_and_prefix() -> None:
    settings, _ = knobs.load({"POD_MTU": "1400", "AWS_VPC_ENI_MTU": "1500"})
    link = wiring.eni(SECOND, "eth1", settings)[0]

    assert wiring.pod(LEASE, SECOND, settings).link.mtu == 1400
    assert isinstance(link, model.Link)
    assert link.mtu == 1500
