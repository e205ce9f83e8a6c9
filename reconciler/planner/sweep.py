"""Which leases outlived their sandbox though no deletion came: `judge`, from what three witnesses say.

The kernel's witness is the pod's host link, which dies with the namespace; the second is the namespace's
name; the third is the runtime's list. A lease is over once two of them say so in two passes and none
contradicts (decision 2). A runtime that leaves out a sandbox whose link and name are both alive is not
believed about any. Looking, and ending a lease, do not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ledger import model
from reconciler.planner import wiring

YOUNG_MS: Final = 10_000
"""Age below which a lease is left alone: its sandbox is still being set up."""
LISTED_AFTER_MS: Final = 60_000
"""Age by which a runtime lists a sandbox that lives; containerd lists none before its network is there."""
BETWEEN_MS: Final = 5_000
"""Least time between two passes that count as two."""
WAITED_MS: Final = 300_000
"""Age at which a lease that waits for nobody's call is forgotten: it holds no address."""


@dataclass(frozen=True, slots=True)
class Witnesses:
    """One look: the kernel, namespaces by path (None: cannot be said), the runtime."""

    kernel: model.ObservedKernel | model.Unknown
    names: Mapping[str, bool | None]
    runtime: model.ObservedRuntime | model.Unknown


@dataclass(frozen=True, slots=True)
class Judgement:
    """`over` and why; `suspects` (since when) for the next pass; `doubts` and `fine` with a sentence each.

    A doubtful lease has one witness against it and not two: it keeps its address and is looked at again.
    """

    over: tuple[tuple[model.Lease, str], ...] = ()
    suspects: Mapping[int, int] = field(default_factory=dict)
    doubts: tuple[tuple[model.Lease, str], ...] = ()
    fine: tuple[model.Lease, ...] = ()
    named: tuple[tuple[model.Lease, model.Sandbox], ...] = ()


def judge(
    leases: Iterable[model.Lease],
    seen: Witnesses,
    suspects: Mapping[int, int],
    nameless: str,
    now: int,
) -> Judgement:
    """Who is over. `suspects` is the last pass's; whether a call is held for a waiting one is not asked.

    Container ids that start with `nameless` were made up: the runtime cannot know them.
    """
    old = [each for each in leases if each.created_at <= now - YOUNG_MS]
    living = _living_links(seen.kernel)
    believed = _believed(old, seen, living, nameless, now)
    over: list[tuple[model.Lease, str]] = []
    doubts: list[tuple[model.Lease, str]] = []
    fine: list[model.Lease] = []
    since: dict[int, int] = {}
    for lease in old:
        if lease.state == "waiting":
            if lease.created_at <= now - WAITED_MS:
                over.append((lease, "gave_up_waiting"))
            continue
        if lease.state not in {"active", "in_doubt"}:
            continue
        said = _said(lease, seen, living, believed, nameless)
        gone = [who for who, there in said.items() if there is False]
        if not gone:
            if True in said.values():
                fine.append(lease)
            continue
        since[lease.id] = suspects.get(lease.id, now)
        if since[lease.id] > now - BETWEEN_MS:
            continue
        alive = [who for who, there in said.items() if there]
        if len(gone) > 1 and not alive:
            over.append((lease, "swept"))
        else:
            other = f"{' and '.join(alive)} alive" if alive else "nobody else can tell"
            doubts.append((lease, f"{' and '.join(gone)} gone, {other}"))
    return Judgement(
        tuple(over), since, tuple(doubts), tuple(fine), tuple(_named(old, seen, living, nameless))
    )


def _said(
    lease: model.Lease,
    seen: Witnesses,
    living: _Links | None,
    believed: Mapping[str, model.Sandbox] | None,
    nameless: str,
) -> dict[str, bool | None]:
    """What each witness says of a sandbox: there, gone, or nothing."""
    listed = None
    if believed is not None and not lease.container_id.startswith(nameless):
        sandbox = believed.get(lease.container_id)
        # One that is not ready has ended and waits to be deleted: its deletion may still come.
        listed = False if sandbox is None else True if sandbox.ready else None
    return {
        "link": _link_lives(lease, living),
        "namespace": seen.names.get(lease.netns),
        "sandbox": listed,
    }


_Links = Mapping[str, model.Link]


def _living_links(kernel: model.ObservedKernel | model.Unknown) -> _Links | None:
    """Links by name whose other end is there; None if the kernel could not be asked."""
    if isinstance(kernel, model.Unknown):
        return None
    return {x.name: x for x in kernel.links if kernel.peers.get(x.name) is not False}


def _link_lives(lease: model.Lease, living: _Links | None) -> bool | None:
    """Is the link of that name there, and this lease's? A namesake's successor has another's."""
    if living is None:
        return None
    link = living.get(lease.host_ifname)
    return link is not None and (link.mac == lease.host_mac or link.alias == wiring.alias(lease.id))


def _believed(
    leases: Iterable[model.Lease], seen: Witnesses, living: _Links | None, nameless: str, now: int
) -> dict[str, model.Sandbox] | None:
    """The runtime's list by id, or None if it is not there or contradicts what is plainly alive."""
    if isinstance(seen.runtime, model.Unknown):
        return None
    listed = {sandbox.id: sandbox for sandbox in seen.runtime.sandboxes}
    for lease in leases:
        if (
            lease.container_id not in listed
            and not lease.container_id.startswith(nameless)
            and lease.created_at <= now - LISTED_AFTER_MS
            and _link_lives(lease, living)
            and seen.names.get(lease.netns)
        ):
            return None
    return listed


def _named(
    leases: Iterable[model.Lease], seen: Witnesses, living: _Links | None, nameless: str
) -> Iterable[tuple[model.Lease, model.Sandbox]]:
    """Leases whose sandbox nobody could name, and the one ready sandbox whose pod has this link's name."""
    if isinstance(seen.runtime, model.Unknown):
        return
    for lease in leases:
        if lease.container_id.startswith(nameless) and _link_lives(lease, living):
            fits = [
                sandbox
                for sandbox in seen.runtime.sandboxes
                if sandbox.ready
                and lease.host_ifname.endswith(
                    wiring.host_ifname("", sandbox.pod_namespace, sandbox.pod_name)
                )
            ]
            if len(fits) == 1:
                yield lease, fits[0]
