"""Who holds which address on a node that another CNI wired: records against the kernel."""

from __future__ import annotations

from dataclasses import replace

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import takeover, wiring

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
