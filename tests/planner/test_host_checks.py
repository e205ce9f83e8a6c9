"""Each of the thirteen checks holds for a pod as the planner wires it, and fails for the one thing it is about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import host_checks, wiring
from tests.planner import rows

SETTINGS = knobs.Settings()
NAME = wiring.host_ifname("eni", "default", "web-1")
LEASE = model.Lease(
    7, "c7", "eth0", "aws-cni", "/n", "active", "10.0.0.77", "eni-1", host_ifname=NAME,
    host_mac="0a:00:00:00:00:70",
)  # fmt: skip
POD = host_checks.Pod("default", "web-1", "10.0.0.77", mtu=9001, secondary=True)


def seen(number: int) -> model.ObservedKernel:
    """The host with the pod on that interface; routes in the order in which the kernel lists them."""
    eni = rows.eni(number)
    things = (*wiring.eni(eni, f"eth{number}", SETTINGS), *wiring.pod(LEASE, eni, SETTINGS).host)
    routes = [each for each in things if isinstance(each, model.Route)]
    return model.ObservedKernel(
        0,
        links=tuple(each for each in things if isinstance(each, model.Link)),
        routes=tuple(sorted(routes, key=lambda each: (each.table, each.dst))),
        rules=tuple(each for each in things if isinstance(each, model.Rule)),
    )


EMPTY = model.ObservedKernel(0)


def failed(checks: tuple[host_checks.Check, ...]) -> list[str]:
    return [check.id for check in checks if not check.ok]


@pytest.mark.parametrize(("number", "secondary"), [(0, False), (1, True), (1, None), (0, None)])
def test_a_pod_as_we_wire_it_passes_them_all(number: int, secondary: bool | None) -> None:
    pod = dataclasses.replace(POD, secondary=secondary)
    assert failed(host_checks.standing(pod, seen(number))) == []
    assert failed(host_checks.refutable(pod, seen(number))) == []
    ids = [c.id for c in host_checks.standing(pod, EMPTY) + host_checks.gone(pod, EMPTY)]
    ids += [c.id for c in host_checks.refutable(pod, EMPTY)]
    assert ids == [f"A{number:03}" for number in range(20, 33)]


def test_of_a_pod_that_is_gone_nothing_is_left() -> None:
    assert failed(host_checks.gone(POD, EMPTY)) == []
    assert failed(host_checks.gone(POD, seen(1))) == ["A027", "A028", "A029"]
    assert failed(host_checks.refutable(POD, EMPTY)) == ["A032"]


Change = Callable[[model.ObservedKernel], model.ObservedKernel]


def link(**changes: object) -> Change:
    def change(of: model.ObservedKernel) -> model.ObservedKernel:
        links = tuple(
            dataclasses.replace(each, **changes) if each.name == NAME else each  # type: ignore[arg-type]  # fields by name
            for each in of.links
        )
        return dataclasses.replace(of, links=links)

    return change


def without(priority: int) -> Change:
    return lambda of: dataclasses.replace(
        of, rules=tuple(each for each in of.rules if each.priority != priority)
    )


def with_rule(rule: model.Rule) -> Change:
    return lambda of: dataclasses.replace(of, rules=(*of.rules, rule))


def routes(change: Callable[[list[model.Route]], list[model.Route]]) -> Change:
    return lambda of: dataclasses.replace(of, routes=tuple(change(list(of.routes))))


BROKEN: dict[str, tuple[Change, list[str]]] = {
    "renamed": (link(name="eni0123456789a"), ["A020", "A021", "A022"]),
    "down": (link(up=False), ["A021"]),
    "another MTU": (link(mtu=1500), ["A022"]),
    "no way in": (without(512), ["A023"]),
    "two ways in": (with_rule(model.Rule(600, 254, dst="10.0.0.77/32")), ["A023"]),
    "out by main": (with_rule(model.Rule(600, 254, src="10.0.0.77/32")), ["A023"]),
    "no route": (routes(lambda all_: [r for r in all_ if r.dst != "10.0.0.77/32"]), ["A024"]),
    "another link's route": (
        routes(
            lambda all_: [
                dataclasses.replace(r, link="eni9") if r.dst == "10.0.0.77/32" else r for r in all_
            ]
        ),
        ["A024"],
    ),
    "no way out": (without(1536), ["A025"]),
    "two ways out": (with_rule(model.Rule(1536, 3, src="10.0.0.77/32")), ["A025", "A026"]),
    "an empty table": (routes(lambda all_: [r for r in all_ if r.table != 2]), ["A026"]),
    "no default": (routes(lambda all_: [r for r in all_ if not r.via]), ["A026"]),
    "the router by another link": (
        routes(
            lambda all_: [
                dataclasses.replace(r, link="eth9") if r.table == 2 and not r.via else r
                for r in all_
            ]
        ),
        ["A026"],
    ),
    "the router first": (
        routes(lambda all_: sorted(all_, key=lambda r: (r.table, r.via is not None))),
        ["A026"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_fails_its_check(name: str) -> None:
    change, expected = BROKEN[name]
    assert failed(host_checks.standing(POD, change(seen(1)))) == expected
