"""Is a pod wired on its host as tools and the VPC CNI's own tests expect? Thirteen checks, each a sentence.

`standing` judges a pod that runs, `gone` one that was deleted, `refutable` that the checks can fail: that
they do for a wrong address, a wrong namespace, and a pod that still runs. They look at the host alone and
know no ledger, so they hold for a pod that any CNI of this shape has wired. What a node should do about a
check that fails does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ledger import model
from reconciler.planner import drift, wiring

NOBODY = "1.1.1.1"
"""An address that is no pod's."""


@dataclass(frozen=True, slots=True)
class Pod:
    """Whom to look for. `mtu` 0 is not asked about; `secondary` None: it is not known where it lives."""

    namespace: str
    name: str
    address: str
    prefix: str = "eni"
    mtu: int = 0
    secondary: bool | None = None

    @property
    def link(self) -> str:
        """The host link's name, by the rule that tools know."""
        return wiring.host_ifname(self.prefix, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Check:
    """One check by its number in the acceptance catalogue: did it hold, and what was seen."""

    id: str
    ok: bool
    text: str


def standing(pod: Pod, seen: model.ObservedKernel) -> tuple[Check, ...]:
    """A020 to A026: link, MTU, rules and routes of a pod that runs."""
    link = next((each for each in seen.links if each.name == pod.link), None)
    in_main = [rule for rule in _rules(pod, seen) if rule.table == wiring.MAIN]
    elsewhere = [rule for rule in _rules(pod, seen) if rule.table != wiring.MAIN]
    return (
        Check("A020", link is not None, f"link {pod.link} is {'there' if link else 'missing'}"),
        Check("A021", link is not None and link.up, f"link {pod.link} is {_state(link)}"),
        _mtu(pod, link),
        Check("A023", len(in_main) == 1, f"main is looked up by {_said(in_main)}"),
        _route(pod, seen),
        _by_its_interface(pod, elsewhere),
        _tables(elsewhere, seen),
    )


def gone(pod: Pod, seen: model.ObservedKernel) -> tuple[Check, ...]:
    """A027 to A029: nothing is left of a pod that was deleted."""
    links = [each.name for each in seen.links if each.name == pod.link]
    rules = _rules(pod, seen)
    routes = [route for route in seen.routes if route.dst == _host(pod)]
    return (
        Check("A027", not links, f"link {pod.link} is {'there' if links else 'gone'}"),
        Check("A028", not rules, f"the address is in {_said(rules)}"),
        Check("A029", not routes, f"the address is in {_said(routes)}"),
    )


def refutable(pod: Pod, seen: model.ObservedKernel) -> tuple[Check, ...]:
    """A030 to A032: on this very host the checks fail for what is not so."""
    elsewhere = replace(pod, namespace=f"not-{pod.namespace}")
    nobody = replace(pod, address=NOBODY)
    cases: tuple[tuple[str, str, Callable[[], tuple[Check, ...]]], ...] = (
        ("A030", f"a pod of address {NOBODY}", lambda: standing(nobody, seen)),
        ("A031", f"this pod in namespace {elsewhere.namespace}", lambda: standing(elsewhere, seen)),
        ("A032", "this pod as deleted", lambda: gone(pod, seen)),
    )
    found = []
    for number, what, checks in cases:
        failed = [check.id for check in checks() if not check.ok]
        text = f"{what} fails {', '.join(failed)}" if failed else f"{what} would pass"
        found.append(Check(number, bool(failed), text))
    return tuple(found)


def _mtu(pod: Pod, link: model.Link | None) -> Check:
    found = f"MTU of {pod.link} is {link.mtu if link else 'unknown'}"
    if not pod.mtu:
        return Check("A022", True, f"{found}; none was asked for")
    return Check("A022", link is not None and link.mtu == pod.mtu, f"{found}, wanted {pod.mtu}")


def _route(pod: Pod, seen: model.ObservedKernel) -> Check:
    routes = [each for each in seen.routes if each.dst == _host(pod) and each.table == wiring.MAIN]
    good = len(routes) == 1 and routes[0].link == pod.link
    return Check("A024", good, f"the address is reached by {_said(routes)}")


def _by_its_interface(pod: Pod, rules: list[model.Rule]) -> Check:
    """One rule to the interface's own table; a pod of the primary interface needs none."""
    allowed = {None: {0, 1}, True: {1}, False: {0}}[pod.secondary]
    return Check("A025", len(rules) in allowed, f"other tables are looked up by {_said(rules)}")


def _tables(rules: list[model.Rule], seen: model.ObservedKernel) -> Check:
    """In the order in which the kernel lists them: a default by a router, then the way to that router."""
    for table in {rule.table for rule in rules}:
        routes = [each for each in seen.routes if each.table == table]
        if len(routes) < 2 or not _default_then_router(routes[0], routes[1]):
            return Check("A026", False, f"table {table} begins with {_said(routes[:2])}")
    tables = ", ".join(str(rule.table) for rule in rules) or "none"
    return Check("A026", True, f"tables with a default and its router: {tables}")


def _default_then_router(first: model.Route, second: model.Route) -> bool:
    return first.via is not None and (second.dst, second.link) == (f"{first.via}/32", first.link)


def _rules(pod: Pod, seen: model.ObservedKernel) -> list[model.Rule]:
    return [rule for rule in seen.rules if _host(pod) in {rule.src, rule.dst}]


def _host(pod: Pod) -> str:
    return f"{pod.address}/32"


def _state(link: model.Link | None) -> str:
    return "missing" if link is None else "up" if link.up else "down"


def _said(things: list[model.Rule] | list[model.Route]) -> str:
    return "; ".join(map(drift.describe, things)) or "nothing"
