"""Live pods that the ledger has forgotten: an older copy of it was put back, or its latest commits are gone.

Their links bear our mark and carry an address's route, but no lease, open or ended, ever had their MAC
address. What was planned without them would be their removal, so they are entered again before anything is
planned. A ledger that never had a lease is takeover's; why commits were lost does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ledger import database, model, reads, writes
from reconciler import settings as knobs
from reconciler.planner import takeover, wiring


def among(
    observed: model.ObservedKernel, open_leases: Iterable[model.Lease], macs: Iterable[str]
) -> tuple[tuple[model.Link, str], ...]:
    """The links of pods, each with its address, that are of no open lease and have none of these MACs."""
    known = set(macs)
    named = {(lease.host_ifname, wiring.alias(lease.id)) for lease in open_leases}
    links = {
        link.name: link
        for link in observed.links
        if wiring.ours(link)
        and not wiring.is_retired(link)
        and (link.name, link.alias) not in named
        and link.mac not in known
    }
    return tuple(
        (links[route.link], route.dst.removesuffix("/32"))
        for route in observed.routes
        if route.link in links
        and route.dst.endswith("/32")
        and route.table == wiring.MAIN
        and route.protocol == wiring.PROTOCOL
    )


def enter(
    ledger: database.Ledger,
    observed: model.ObservedKernel,
    records: Iterable[model.Allocation],
    settings: knobs.Settings,
    clock: Callable[[], int],
) -> tuple[str, ...]:
    """Give the forgotten pods their leases back; the names of the links for which that cannot be done.

    `records` is the checkpoint, which knows the sandboxes; whom it does not know the runtime may name
    later. An address that EC2 has not shown yet, or that another lease has, cannot be given back.
    """
    with ledger.read() as tx:
        if not among(observed, reads.open_leases(tx), ()):
            return ()
        desired = reads.desired(tx, clock())
        forgotten = among(observed, desired.leases, reads.host_macs(tx))
        boot_id = reads.boot_id(tx)
    free = {a.address: a for a in desired.addresses if a.state == "assigned" and not a.leased}
    enis = {eni.eni_id: eni for eni in desired.enis}
    recorded = {each.address: each for each in records}
    left: list[str] = []
    for link, address in forgotten:
        if address not in free:
            left.append(link.name)
            continue
        eni = enis[free[address].eni_id]
        allocation = _record(recorded.get(address), link, address)
        with ledger.write() as tx:
            lease = writes.adopt_lease(
                tx,
                allocation,
                eni_id=eni.eni_id,
                host_ifname=link.name,
                host_mac=link.mac,
                boot_id=boot_id,
                in_doubt=False,
                now=clock(),
            )
            things = wiring.pod(lease, eni, settings).host
            writes.plan_installed(tx, "lease", str(lease.id), things, clock())
    return tuple(left)


def _record(found: model.Allocation | None, link: model.Link, address: str) -> model.Allocation:
    """The checkpoint's word, if it speaks of the pod that has this link."""
    if found is not None and link.name.endswith(
        wiring.host_ifname("", found.pod_namespace, found.pod_name)
    ):
        return found
    return model.Allocation(f"{takeover.NAMELESS}{link.name}", "eth0", "aws-cni", address)
