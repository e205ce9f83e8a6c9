"""Who holds which address on a node that another CNI wired: records against the kernel."""

from __future__ import annotations

from dataclasses import replace

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, takeover, wiring
from reconciler.planner import plan as planner
from tests.planner import rows

SETTINGS = knobs.Settings()
PRIMARY = model.Eni(
    "eni-0", "02:00:00:00:00:01", "subnet-1", "10.0.0.0/24", "10.0.0.4", 0, primary=True
)
SECOND = model.Eni("eni-1", "02:00:00:00:00:02", "subnet-1", "10.0.0.0/24", "10.0.0.5", 1)
SEEN = (
    model.ObservedEni(PRIMARY, ("10.0.0.10", "10.0.0.11")),
    model.ObservedEni(SECOND, ("10.0.0.20",), ("10.0.0.32/28",)),
)


def link(pod: str) -> model.Link:
    name = wiring.host_ifname("eni", "default", pod)
    return model.Link(name, mac="02:00:00:00:01:01")


def route(address: str, pod: str) -> model.Route:
    return model.Route(f"{address}/32", link(pod).name, protocol=takeover.BOOT)


def record(address: str, pod: str, at: int = 1, **more: object) -> model.Allocation:
    made = model.Allocation(
        f"box-{pod}", "eth0", "aws-cni", address, "default", pod, allocated_at=at
    )
    return replace(made, **more)  # type: ignore[arg-type]  # fields by name


def kernel(**parts: tuple[object, ...]) -> model.ObservedKernel:
    return model.ObservedKernel(1, **parts)  # type: ignore[arg-type]  # fields by name


def decide(records: tuple[model.Allocation, ...], shown: model.ObservedKernel) -> takeover.Takeover:
    return takeover.decide(model.Inheritance("f", records), SEEN, shown, SETTINGS)


def test_a_record_with_its_link_and_route_is_a_pod_that_lives() -> None:
    shown = kernel(links=(link("web"),), routes=(route("10.0.0.20", "web"),))
    [heir] = decide((record("10.0.0.20", "web"),), shown).heirs
    assert (heir.eni_id, heir.link, heir.doubtful) == ("eni-1", link("web"), False)


def test_of_two_records_for_one_address_the_younger_holds_it() -> None:
    """The older one is of a sandbox that died without a DEL."""
    shown = kernel(links=(link("new"),), routes=(route("10.0.0.10", "new"),))
    records = (record("10.0.0.10", "new", at=2), record("10.0.0.10", "old", at=1))
    [heir] = decide(records, shown).heirs
    assert heir.allocation.pod_name == "new"
    assert heir.link is not None


def test_a_record_whose_address_leads_to_another_pods_link_is_not_alive() -> None:
    """What the runtime keeps may still be deleted, so it is doubtful; else it is over."""
    shown = kernel(links=(link("b"),), routes=(route("10.0.0.10", "b"),))
    [over] = decide((record("10.0.0.10", "a"),), shown).heirs
    assert (over.link, over.doubtful) == (None, False)
    [kept] = decide((record("10.0.0.10", "a", cached=True),), shown).heirs
    assert (kept.link, kept.doubtful) == (None, True)


def test_a_link_with_a_route_and_no_record_is_somebody() -> None:
    shown = kernel(links=(link("web"),), routes=(route("10.0.0.33", "web"),))
    [heir] = decide((), shown).heirs
    assert heir.allocation.container_id == f"{takeover.NAMELESS}{link('web').name}"
    assert (heir.allocation.address, heir.eni_id) == ("10.0.0.33", "eni-1")  # by its prefix


def test_a_record_that_names_an_interfaces_own_address_is_nobodys() -> None:
    """The ledger would refuse the lease, and with it the whole takeover."""
    shown = kernel(links=(link("web"),), routes=(route(SECOND.primary_ip, "web"),))
    assert decide((record(SECOND.primary_ip, "web"),), shown).heirs == ()


def test_an_address_only_a_rule_names_is_kept_from_everybody() -> None:
    """If EC2 shows it on this node; a rule for anything else is none of our business."""
    rules = tuple(
        model.Rule(wiring.TO_POD, wiring.MAIN, dst=f"{address}/32")
        for address in ("10.0.0.11", "192.0.2.1")
    )
    decided = decide((), kernel(rules=rules))
    assert decided.heirs == ()
    assert [address for address, _ in decided.strangers] == ["10.0.0.11"]


def test_an_address_ec2_does_not_show_is_its_rules_interfaces() -> None:
    """EC2's picture lags; the pod's own rule tells which table, and so which interface, it uses."""
    shown = kernel(
        links=(link("web"),),
        routes=(route("10.0.0.77", "web"),),
        rules=(model.Rule(wiring.FROM_POD, 2, src="10.0.0.77/32"),),
    )
    [heir] = decide((record("10.0.0.77", "web"),), shown).heirs
    assert heir.eni_id == "eni-1"
    without = kernel(links=shown.links, routes=shown.routes)
    [heir] = decide((record("10.0.0.77", "web"),), without).heirs
    assert heir.eni_id == "eni-0"


def test_a_strangers_link_is_no_pod() -> None:
    """A veth of Docker's, an interface of EC2's, a link whose name only begins like a pod's."""
    names = ("veth1234567", "eni-x", "enihelloworld1")
    links = tuple(model.Link(name, mac="02:00:00:00:09:09") for name in names)
    routes = tuple(model.Route(f"10.0.0.1{n}/32", name) for n, name in enumerate(names))
    shown = kernel(links=links, routes=routes)
    assert not takeover.needed(model.Inheritance("f"), shown, SETTINGS)
    assert decide((), shown) == takeover.Takeover()


def test_a_rule_that_misleads_a_pod_goes_on_a_node_that_was_taken_over_and_nowhere_else() -> None:
    """It looks up the table of the address's last interface, and being older it would win."""
    eni = rows.eni(1)
    lease = model.Lease(
        7, "c7", "eth0", "aws-cni", "/n", "active", "10.0.1.7", eni.eni_id,
        host_ifname=wiring.host_ifname("eni", "default", "web-1"), host_mac="0a:00:00:00:00:70",
    )  # fmt: skip
    host = (*wiring.host(SETTINGS, ()), *wiring.eni(eni, "eth1", SETTINGS))
    pod = wiring.pod(lease, eni, SETTINGS).host
    stale = model.Rule(1536, 3, src="10.0.1.7/32")
    others = (model.Rule(1536, 3, src="10.0.1.8/32"), model.Rule(1537, 3, src="10.0.1.7/32"))
    things = (*host, *pod, stale, *others)
    seen = model.ObservedKernel(
        0,
        links=tuple(each for each in things if isinstance(each, model.Link)),
        addresses=tuple(each for each in things if isinstance(each, model.InterfaceAddress)),
        routes=tuple(each for each in things if isinstance(each, model.Route)),
        rules=tuple(each for each in things if isinstance(each, model.Rule)),
    )
    desired = model.Desired(
        rows.NODE,
        enis=(eni,),
        leases=(lease,),
        installed=tuple(
            model.Installed(n, "lease", "7", thing, "present") for n, thing in enumerate(pod)
        ),
    )
    assert planner.kernel(desired, seen, SETTINGS).kernel == ()
    over = replace(desired, took_over=True)
    assert planner.kernel(over, seen, SETTINGS).kernel == (actions.Remove(stale),)
