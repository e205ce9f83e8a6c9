"""The first minute after a start: which boot is this, what was cut short, which deletions wait.

Runs before the socket opens, from the ledger, the kernel and the spool alone: no API server, no EC2,
no instance metadata. A call that was never answered is undone or finished; the runtime repeats it or
deletes. What a lease needs in the kernel and how EC2 is asked do not belong here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cni import spool
from ledger import database, integrity, model, reads, writes
from reconciler import clock as clocks
from reconciler import loop as loops

log = logging.getLogger(__name__)

AT_ONCE = 250
"""Deletions of the spool that share a transaction: a thousand are to hold up the door for less than a second."""


def first_minute(
    ledger: database.Ledger,
    loop: loops.Loop,
    boot_id: str,
    spools: Iterable[Path],
    clock: Callable[[], int],
    up: clocks.Uptime | None = None,
) -> None:
    """Bring leases in line with this boot, take the spooled deletions in, then look at the kernel once.

    `up` is how long this boot lasts, None if nobody can tell.
    """
    clocks.heed(ledger, clock)
    with ledger.write(durable=True) as tx:
        new_boot = clocks.boots(tx, clock, boot_id, up)
        if new_boot:
            log.info("new boot %s", boot_id)
            _unwire_enis(tx, clock())
            writes.forget_owner_installed(tx, "host", "", clock())  # and marks of earlier settings
    clocks.heed(ledger, clock, boot_id, up)
    _finish_interrupted(ledger, loop, boot_id, clock)
    take_spools_in(ledger, loop, spools, clock)
    loop.tick()


def tell_of_damage(ledger: database.Ledger, clock: Callable[[], int]) -> None:
    """A finding for each damaged ledger that was set aside, until somebody has taken it away."""
    there = {path.name: path for path in integrity.lying_aside(ledger.path)}
    with ledger.write() as tx:
        for name, path in there.items():
            text = f"it lies at {path}; what it knew came from kernel, EC2 and the checkpoint"
            writes.open_finding(tx, "ledger_damaged", name, text, clock())
        for code, subject in reads.open_findings(tx):
            if code == "ledger_damaged" and subject not in there:
                writes.close_finding(tx, code, subject, clock())


def tell_of_spools(
    ledger: database.Ledger, spools: Iterable[Path], clock: Callable[[], int]
) -> None:
    """Close the finding of what could not be read in a spool, once somebody has taken it away."""
    with ledger.read() as tx:
        told = {subject for code, subject in reads.open_findings(tx) if code == "spool_unreadable"}
    if not told:
        return
    there: set[str] = set()
    for folder in spools:
        try:
            there |= {path.name for path in (*spool.set_aside_in(folder), *spool.pending(folder))}
        except OSError:
            there.add("")
    with ledger.write() as tx:
        for subject in told - there:
            writes.close_finding(tx, "spool_unreadable", subject, clock())


def _unwire_enis(tx: database.Write, now: int) -> None:
    """The kernel has forgotten the interfaces' routes: no pods on them before they are wired again."""
    for eni in reads.enis(tx):
        if eni.state == "usable":
            writes.eni_state(tx, eni.eni_id, "attached", now)


def _finish_interrupted(
    ledger: database.Ledger, loop: loops.Loop, boot_id: str, clock: Callable[[], int]
) -> None:
    with ledger.read() as tx:
        desired = reads.desired(tx, clock())
    alive = _links(loop) if any(each.boot_id != boot_id for each in desired.leases) else frozenset()
    going = {row.owner for row in desired.installed if row.state == "removing"}
    reasons = [(lease, _why_over(lease, boot_id, going, alive)) for lease in desired.leases]
    loop.end_unasked([(lease, reason) for lease, reason in reasons if reason])


def _why_over(
    lease: model.Lease, boot_id: str, going: set[str], alive: frozenset[str] | None
) -> str:
    """The reason that a lease of the last run is over, or nothing if its sandbox may live.

    Nobody waits for an answer any more: a waiting ADD is forgotten, a reserved one undone (its answer
    follows the commit that makes it active), a deletion that began is finished. That the machine was
    rebooted takes two witnesses as well: the boot id, and the kernel, which shows no link of before.
    """
    if lease.boot_id != boot_id and alive is not None and lease.host_mac not in alive:
        return "reboot"
    if lease.state == "waiting":
        return "gave_up_waiting"
    if lease.state == "reserved":
        return "setup_failed"
    return "deleted" if str(lease.id) in going else ""


def _links(loop: loops.Loop) -> frozenset[str] | None:
    """MAC addresses of the node's links, None if the kernel could not be asked."""
    observed = loop.kernel.observe()
    if isinstance(observed, model.Unknown):
        return None
    return frozenset(link.mac for link in observed.links)


def take_spools_in(
    ledger: database.Ledger, loop: loops.Loop, spools: Iterable[Path], clock: Callable[[], int]
) -> frozenset[tuple[str, str]]:
    """Carry out the deletions the launcher wrote down while we were away; the sandboxes whose file stays.

    Whatever waits is taken in before any ADD is served (see Verbs.handle), so a lease that a file names
    is the one it means, whatever the clock said when either was written. Idempotent: a file is removed
    after its lease has ended, and one for an unknown sandbox is success. It stays while kernel or disk
    refuse, which holds up nothing else; a ledger that cannot be written is not tried again for the rest.
    """
    waiting = list(_readable(ledger, spools, clock))
    left: set[tuple[str, str]] = set()
    while waiting:
        batch, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        try:
            refused = _carry_out(ledger, loop, [each for _, each in batch], clock)
            done = [(folder, each.path) for folder, each in batch if each.sandbox not in refused]
            for folder in {folder for folder, _ in done}:
                spool.remove(folder, [path for place, path in done if place == folder])
            left |= refused
        except (OSError, database.Failure):
            log.exception("%d deletions stay in the spool", len(batch) + len(waiting))
            left |= {each.sandbox for _, each in (*batch, *waiting)}
            break
    return frozenset(left)


def _readable(
    ledger: database.Ledger, spools: Iterable[Path], clock: Callable[[], int]
) -> Iterator[tuple[Path, spool.Deletion]]:
    """The deletions that wait, each with its folder; what is none is told of and set aside."""
    for folder in spools:
        try:
            waiting = spool.pending(folder)
        except OSError as unreadable:
            _tell_of_spool(ledger, "", str(unreadable), clock)
            continue
        for path in waiting:
            try:
                yield folder, spool.read(path)
            except spool.UnreadableError as unreadable:
                _set_aside(ledger, folder, unreadable, clock)


def _set_aside(
    ledger: database.Ledger,
    spool_dir: Path,
    unreadable: spool.UnreadableError,
    clock: Callable[[], int],
) -> None:
    """Out of the way with it; if even that fails it is met again, and nothing else has to wait for it."""
    text = str(unreadable)
    try:
        spool.set_aside(spool_dir, unreadable)
    except OSError as stays:
        text = f"{text}; it stays in the spool: {stays}"
    _tell_of_spool(ledger, unreadable.path.name, text, clock)


def _tell_of_spool(
    ledger: database.Ledger, subject: str, text: str, clock: Callable[[], int]
) -> None:
    try:
        with ledger.write() as tx:
            writes.open_finding(tx, "spool_unreadable", subject, text, clock())
    except database.Failure:
        log.exception("spool_unreadable: %s", text)


def _carry_out(
    ledger: database.Ledger,
    loop: loops.Loop,
    deletions: Sequence[spool.Deletion],
    clock: Callable[[], int],
) -> set[tuple[str, str]]:
    """End the leases that spooled deletions mean; the sandboxes of which something is left to do."""
    meant: dict[tuple[str, str], model.Lease] = {}
    with ledger.write() as tx:
        for deletion in deletions:
            lease = reads.open_lease(tx, *deletion.sandbox)
            if lease is not None:
                writes.mark_owner_removing(tx, "lease", str(lease.id), clock())
                meant[deletion.sandbox] = lease
            writes.record_request(
                tx,
                command="DEL",
                container_id=deletion.container_id,
                ifname=deletion.ifname,
                via="spool",
                lease_id=lease.id if lease is not None else None,
                reason="deleted_late" if lease is not None else "unknown_container",
                now=clock(),
            )
    refused = loop.end_unasked([(lease, "deleted_late") for lease in meant.values()])
    return {sandbox for sandbox, lease in meant.items() if lease.id in refused}
