"""Compose one plan from what should be and what is: `plan(desired, observed, ...)`, and nothing else.

Kernel objects that should be there come from the interfaces' rows (wiring.eni) and from the installed
rows of open leases; the cloud's part comes from pool. A side that is Unknown is never removed from.
How a route looks or how many addresses a node wants does not belong here.
"""

from __future__ import annotations

import dataclasses

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, cordon, drift, limits, pool, stock, takeover, wiring

WIRED = frozenset({"attaching", "attached", "usable"})


def plan(
    desired: model.Desired,
    observed: model.Observed,
    settings: knobs.Settings,
    now: int,
) -> actions.Plan:
    """What to do now, in order, and why; equal arguments give equal plans."""
    network = kernel(desired, observed.kernel, settings)
    pool_ = cloud(desired, observed.cloud, settings, now)
    return actions.Plan(network.kernel, pool_.cloud, network.notes + pool_.notes)


def primary_link(desired: model.Desired, observed: model.ObservedKernel) -> str:
    """The name of the primary interface's link, found by MAC; empty if there is none."""
    if desired.node is None:
        return ""
    mac = desired.node.primary_mac.lower()
    return next((x.name for x in observed.links if x.mac == mac and not wiring.ours(x)), "")


def eni_links(desired: model.Desired, observed: model.ObservedKernel) -> dict[str, model.Link]:
    """The link of each interface that should be wired, found by MAC (by interface id)."""
    by_mac = {link.mac: link for link in observed.links if link.mac and not wiring.ours(link)}
    return {eni.eni_id: by_mac[eni.mac] for eni in _wired(desired) if eni.mac in by_mac}


def _wired(desired: model.Desired) -> list[model.Eni]:
    """Those whose links we set up: that carry pods, or did and became somebody else's with pods alive."""
    used = {lease.eni_id for lease in desired.leases}
    return [
        eni
        for eni in desired.enis
        if (eni.managed or eni.eni_id in used) and eni.state in WIRED and eni.kind in stock.CARRYING
    ]


def kernel(
    desired: model.Desired, observed: model.ObservedKernel | model.Unknown, settings: knobs.Settings
) -> actions.Plan:
    """The kernel's part alone, for its own lane."""
    if isinstance(observed, model.Unknown):
        return actions.Plan(notes=(actions.Note("kernel_unknown", observed.why),))
    notes: list[actions.Note] = []
    wanted: list[model.KernelObject] = [*wiring.host(settings, desired.installed)]
    links = eni_links(desired, observed)
    for eni in _wired(desired):
        if eni.eni_id in links:
            wanted += wiring.eni(eni, links[eni.eni_id].name, settings)
        else:
            notes.append(actions.Note("eni_not_seen", f"{eni.eni_id} has no link with {eni.mac}"))
    rows = [row.thing for row in desired.installed if row.owner_kind == "lease"]
    present = {link.name for link in observed.links}
    present |= {thing.name for thing, _ in drift.misnamed(rows, observed)}
    for row in desired.installed:
        if row.owner_kind != "lease" or row.state == "removing":
            continue
        name = _link_of(row.thing)
        if name is None or name in present:
            wanted.append(row.thing)
        elif isinstance(row.thing, model.Link):
            notes.append(
                actions.Note("pod_link_gone", f"{name}, lease {row.owner}: sandbox is gone")
            )
    named = tuple(row.thing for row in desired.installed)
    if desired.took_over:
        named += takeover.twins(wanted) + takeover.misleading(desired, observed)
    shadowing = wiring.connected(desired.enis, links, observed)
    steps = (*drift.diff(wanted, observed, named), *map(actions.Remove, shadowing))
    return actions.Plan(steps, notes=tuple(notes))


def _link_of(thing: model.KernelObject) -> str | None:
    """The host link a thing cannot be without (only the launcher's call can make a pod's link)."""
    if isinstance(thing, model.Link):
        return thing.name
    if isinstance(thing, model.Route | model.InterfaceAddress | model.Neighbour):
        return thing.link
    return None


def cloud(
    desired: model.Desired,
    observed: model.ObservedCloud | model.Unknown,
    settings: knobs.Settings,
    now: int,
    last: model.ObservedCloud | None = None,
) -> actions.Plan:
    """The cloud's part alone, for its own lane; `last` as for pool.cloud_steps."""
    if desired.node is None:
        return _nothing("starting", "the node has not been described yet")
    limit = limits.lookup(desired.node.instance_type)
    if limit is None:
        text = f"{desired.node.instance_type} is not in the table of instance types"
        return _nothing("type_unknown", text)
    if settings.imds_only:
        return _nothing("provisioned", "EC2 is not to be called")
    if settings.no_provisioning:
        steps, notes = pool.unfinished(desired, observed, now)
        told = actions.Note("provisioned", "somebody else provides interfaces and addresses")
        return actions.Plan(cloud=steps, notes=(told, *notes))
    if settings.max_pods is None:
        settings = dataclasses.replace(settings, max_pods=cordon.most_pods(desired))
    keeps = cordon.cordoned(desired, settings, now) is not False
    steps, notes = pool.cloud_steps(
        desired, observed, settings, limit, now, last=last, keeps_enis=keeps
    )
    return cordon.held_back(actions.Plan(cloud=steps, notes=notes), desired, settings, now)


def _nothing(code: str, text: str) -> actions.Plan:
    return actions.Plan(notes=(actions.Note(code, text),))
