"""What differs between what should be there and what is: as actions, and as sentences.

Only what bears our mark, or what a row names, is ever removed. What should be there is wiring's to say; how
an object gets into the kernel does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ledger import model
from reconciler.planner import actions, wiring


def diff(
    wanted: Iterable[model.KernelObject],
    observed: model.ObservedKernel,
    named: Iterable[model.KernelObject],
) -> tuple[actions.KernelAction, ...]:
    """What to do in the node's namespace so that `wanted` is there and nothing of ours besides.

    Makes before it breaks: what replaces something is put first and the old removed after; only a
    link whose name another sandbox of ours still has must go before. Removed is what bears our mark
    or is one of `named` (what the ledger's rows say we made). Pods' namespaces are not looked into,
    so objects there are left out; of two links of one name the later wins.
    """
    need = {thing.key: thing for thing in wanted if visible(thing)}
    rows = tuple(named)
    exact = {_exactly(thing) for thing in rows if not isinstance(thing, model.Link)}
    veths = [thing for thing in rows if isinstance(thing, model.Link) and thing.kind == "veth"]

    renamed = {found.name: thing for thing, found in misnamed(need.values(), observed)}
    satisfied: set[tuple[str, ...]] = set()
    stale: list[model.KernelObject] = []
    for found in _things(observed):
        thing = need.get(found.key)
        if isinstance(found, model.Link) and found.name in renamed:
            continue
        if thing is not None and _marked_alike(thing, found) and not faults(thing, found):
            satisfied.add(found.key)
        elif isinstance(found, model.Link):
            if not (thing is not None and same_link(thing, found)) and (
                wiring.ours(found) or any(same_link(veth, found) for veth in veths)
            ):
                stale.append(found)
        elif wiring.ours(found) or _exactly(found) in exact:
            stale.append(found)

    in_the_way = [each for each in stale if isinstance(each, model.Link) and each.key in need]
    rest = sorted((each for each in stale if each not in in_the_way), key=_removal_order)
    return (
        *(actions.Remove(each) for each in in_the_way),
        *(actions.Rename(thing, name) for name, thing in renamed.items()),
        *(actions.Put(thing) for key, thing in need.items() if key not in satisfied),
        *(actions.Remove(each) for each in rest),
    )


def compare(
    wanted: Iterable[model.KernelObject], observed: model.ObservedKernel | model.Unknown
) -> tuple[str, ...]:
    """A sentence for each wanted object that is missing or different; none means all is well.

    `observed` is the namespace in which all of them belong; sysctls are passed over. A missing mark is
    no difference: packets do not mind.
    """
    if isinstance(observed, model.Unknown):
        return (f"the kernel could not be asked: {observed.why}",)
    here = _by_key(observed)
    found: list[str] = []
    for thing in wanted:
        if isinstance(thing, model.Sysctl):
            continue
        found += _sentences(thing, here.get(thing.key, ()))
        if isinstance(thing, model.Link) and observed.peers.get(thing.name) is False:
            found.append(f"{describe(thing)} has lost its other end")
    return tuple(found)


def visible(thing: model.KernelObject) -> bool:
    """Is the thing one that an observation of the node's namespace can show?"""
    if isinstance(thing, model.Sysctl | model.Neighbour):
        return False
    return getattr(thing, "where", "host") == "host"


def misnamed(
    wanted: Iterable[model.KernelObject], observed: model.ObservedKernel
) -> Iterator[tuple[model.Link, model.Link]]:
    """Pods' links that somebody has given other names: each as wanted and as found.

    Both alias and MAC must be right, and nobody may have its name meanwhile. Interfaces of EC2 may be
    called as anybody likes: they are found by MAC.
    """
    names = {link.name for link in observed.links}
    by_mark = {(x.alias, x.mac): x for x in observed.links if x.alias and not wiring.is_retired(x)}
    for thing in wanted:
        if isinstance(thing, model.Link) and thing.alias and thing.name not in names:
            found = by_mark.get((thing.alias, thing.mac))
            if found is not None:
                yield thing, found


def same_link(one: model.KernelObject, other: model.KernelObject) -> bool:
    """Are these one link and not just one name? Its alias (our lease) or its MAC tells."""
    if not (isinstance(one, model.Link) and isinstance(other, model.Link) and one.key == other.key):
        return False
    return bool((one.alias and one.alias == other.alias) or (one.mac and one.mac == other.mac))


def describe(thing: model.KernelObject) -> str:
    """The thing in the words of ip(8)."""
    match thing:
        case model.Link():
            return f"link {thing.name}"
        case model.InterfaceAddress():
            return f"address {thing.cidr} on {thing.link}"
        case model.Route():
            via = f" via {thing.via}" if thing.via else ""
            place = "in the pod" if thing.where == "pod" else f"in table {thing.table}"
            return f"route {thing.dst}{via} dev {thing.link} {place}"
        case model.Rule():
            to = f" to {thing.dst}" if thing.dst else ""
            mark = f" fwmark {thing.fwmark:#x}/{thing.fwmask:#x}" if thing.fwmark else ""
            return f"rule {thing.priority} from {thing.src or 'all'}{to}{mark} lookup {thing.table}"
        case model.Neighbour():
            return f"neighbour {thing.ip} on {thing.link}"
        case model.Sysctl():
            return f"sysctl net/{thing.path}"


def faults(wanted: model.KernelObject, found: model.KernelObject) -> tuple[str, ...]:
    """In what the object found, of the same key, does not do what the wanted one would."""
    pairs: list[tuple[str, object, object]] = []
    match wanted, found:
        case model.Link(), model.Link():
            if wanted.kind:
                pairs.append(("kind", wanted.kind, found.kind))
            if wanted.mac:
                pairs.append(("MAC", wanted.mac, found.mac))
            pairs.append(("MTU", wanted.mtu, found.mtu))
            pairs.append(("state", _state(wanted), _state(found)))
        case model.Route(), model.Route():
            pairs.append(("gateway", wanted.via or "none", found.via or "none"))
        case model.Neighbour(), model.Neighbour():
            pairs.append(("MAC", wanted.mac, found.mac))
    return tuple(f"{what} is {has}, not {want}" for what, want, has in pairs if want != has)


def _exactly(thing: model.KernelObject) -> tuple[object, ...]:
    """The key and the mark: somebody's rule that only looks like ours is not named by our row."""
    return (*thing.key, getattr(thing, "protocol", 0))


def _state(link: model.Link) -> str:
    return "up" if link.up else "down"


def _marked_alike(wanted: model.KernelObject, found: model.KernelObject) -> bool:
    if isinstance(wanted, model.Link) and isinstance(found, model.Link):
        return not wanted.alias or wanted.alias == found.alias
    if isinstance(wanted, model.Route | model.Rule) and isinstance(found, model.Route | model.Rule):
        return wanted.protocol == found.protocol
    return True


def _sentences(
    thing: model.KernelObject, candidates: Iterable[model.KernelObject]
) -> tuple[str, ...]:
    """Nothing when one candidate does, else what is wrong with the first, or that there is none."""
    wrong = [faults(thing, each) for each in candidates]
    if not wrong:
        return (f"{describe(thing)} is missing",)
    return () if () in wrong else tuple(f"{describe(thing)}: {text}" for text in wrong[0])


def _things(observed: model.ObservedKernel) -> Iterator[model.KernelObject]:
    yield from observed.links
    yield from observed.addresses
    yield from observed.routes
    yield from observed.rules
    yield from observed.neighbours


def _by_key(
    observed: model.ObservedKernel,
) -> dict[tuple[str, ...], list[model.KernelObject]]:
    found: dict[tuple[str, ...], list[model.KernelObject]] = {}
    for each in _things(observed):
        found.setdefault(each.key, []).append(each)
    return found


def _removal_order(thing: model.KernelObject) -> int:
    """Rules first, so nothing is sent to what is about to go; links last, they take routes along."""
    order = (model.Rule, model.Route, model.Neighbour, model.InterfaceAddress, model.Link)
    return order.index(type(thing))
