"""What differs between what should be there and what is: made before broken, nobody else's touched."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ledger import model
from reconciler.planner import actions, drift, wiring
from tests.planner.test_wiring import LEASE, SECOND, SETTINGS

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
        return not drift.same_link(one, removed)
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

    plan = drift.diff(WANTED, picture(before), ())
    after = carried_out(before, plan)

    assert drift.diff(WANTED, picture(after), ()) == ()
    assert drift.compare(WANTED, picture(after)) == ()
    assert set(foreign) <= set(after)
    assert not set(stale) & set(after)
    touched = {step.thing.key for step in plan if isinstance(step, actions.Remove)}
    assert touched == {thing.key for thing in stale}


def test_nothing_differs_nothing_is_done() -> None:
    assert drift.diff(WANTED, picture(WANTED), ()) == ()


def test_an_unmarked_object_is_removed_only_if_a_row_names_it() -> None:
    """Upstream's objects bear no mark; an adoption names them in the installed rows."""
    upstream = model.Rule(512, 254, dst="10.0.0.99/32")
    seen = picture((upstream,))

    assert drift.diff((), seen, ()) == ()
    assert drift.diff((), seen, (upstream,)) == (actions.Remove(upstream),)


def test_somebodys_twin_of_a_rule_of_ours_stays() -> None:
    """The same selectors without our mark: the row means the one we made."""
    mine = model.Rule(512, 254, dst="10.0.0.99/32", protocol=wiring.PROTOCOL)
    twin = replace(mine, protocol=0)

    assert drift.diff((mine,), picture((mine, twin)), (mine,)) == ()
    assert drift.diff((), picture((mine, twin)), (mine,)) == (actions.Remove(mine),)


def test_what_replaces_something_is_made_before_the_old_is_broken() -> None:
    moved = replace(HOST[3], table=3) if isinstance(HOST[3], model.Rule) else HOST[3]

    plan = drift.diff((moved,), picture((HOST[3],)), ())

    assert plan == (actions.Put(moved), actions.Remove(HOST[3]))


def test_a_namesakes_link_goes_before_the_new_one_comes() -> None:
    """Two links cannot have one name: a pod that was replaced leaves first."""
    link = wiring.pod(LEASE, SECOND, SETTINGS).link
    old = replace(link, alias="vpcledger:6", mac="0a:00:00:00:00:60")

    plan = drift.diff((HOST[0],), picture((old,)), ())

    assert [type(step) for step in plan] == [actions.Remove, actions.Put]


def test_an_unknown_kernel_is_said_and_nothing_else() -> None:
    said = drift.compare(WANTED, model.Unknown("netlink: no buffer", 0))
    assert said == ("the kernel could not be asked: netlink: no buffer",)
