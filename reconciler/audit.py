"""An audit: ledger, kernel, EC2 and runtime asked at one moment, their contradictions, and how these end.

A report changes nothing. Two reports that agree, not too close and not too old, are what a fix takes, and
the fix is the daemon's own: it is told to look at everything now, and does what it would have done later.
What counts as a contradiction is planner.audit's to say; how reports are shown does not belong here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ledger import database, model, reads
from reconciler import cloud as clouds
from reconciler import errors, host_loop, strangers
from reconciler import settings as knobs
from reconciler.planner import actions, audit, sweep
from reconciler.providers import cri, host, kernel, netns

APART_MS: Final = 30_000
"""Two reports closer than this may show one passing state twice: a look and a mending lie between."""
FRESH_MS: Final = 900_000
"""A report older than this tells of another time."""
LOOK_NOW: Final = signal.SIGUSR1
"""What tells a daemon to look at kernel, sandboxes, EC2 and spool now."""
AGAIN_S: Final = 2.0
"""How long after a look that still finds something the next one is."""
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Report:
    """One audit of one node: when (Unix ms), in which boot, who did not answer, and what differs."""

    at: int
    node: str
    boot: str
    silent: tuple[str, ...]
    differences: tuple[audit.Difference, ...]

    @property
    def clean(self) -> bool:
        """Everybody answered, and nobody contradicts."""
        return not self.silent and not self.differences


def report(ledger: database.Ledger, settings: knobs.Settings, clock: Callable[[], int]) -> Report:
    """Ask everybody once: outside first, the ledger second. Refused on a machine that is not the ledger's.

    A runtime of which there is no socket is nobody; links and names of namespaces have to do then.
    """
    with ledger.read() as tx:
        node, named = reads.node(tx), {lease.netns for lease in reads.open_leases(tx)}
    if node is None:
        raise errors.TryLater("starting")
    at = clock()
    with contextlib.closing(clouds.Cloud(settings, node)) as cloud:
        shown = cloud.observe("imds" if settings.imds_only else "ec2")
    with contextlib.closing(kernel.Kernel()) as hands:
        observed = hands.observe()
    runtime = cri.observe(settings.cri_socket)
    witnesses = sweep.Witnesses(observed, netns.Names().observe(named), runtime)
    with ledger.read() as tx:
        desired, macs = reads.desired(tx, clock()), reads.host_macs(tx)
    tables: Sequence[actions.NatAction] = ()
    forgotten: Sequence[tuple[model.Link, str]] = ()
    if isinstance(observed, model.ObservedKernel):
        if all(link.mac != node.primary_mac for link in observed.links):
            raise errors.Refused(
                "bad_request",
                f"no link here has the MAC of {node.instance_id}: run it on the ledger's own node",
            )
        tables, _ = host_loop.outlook(desired, observed, settings)
        forgotten = strangers.among(observed, desired.leases, macs)
    return Report(
        at,
        node.instance_id,
        host.boot_id(settings.boot_id_path),
        tuple(_silent(shown, observed, runtime, settings)),
        audit.differences(desired, shown, witnesses, tables, forgotten, settings, clock()),
    )


def _silent(
    shown: object, observed: object, runtime: object, settings: knobs.Settings
) -> Iterator[str]:
    """Who ought to have answered and did not, with the reason."""
    for who, said in (("EC2", shown), ("kernel", observed), ("runtime", runtime)):
        if isinstance(said, model.Unknown) and (
            who != "runtime" or cri.present(settings.cri_socket)
        ):
            yield f"{who}: {said.why}"


def agreed(first: Report, second: Report, now: int) -> tuple[audit.Difference, ...]:
    """The differences that two reports agree on; Refused, with what stands in the way, if they do not."""
    first, second = sorted((first, second), key=lambda each: each.at)
    apart, age = (second.at - first.at) // 1000, (now - first.at) // 1000
    if (first.node, first.boot) != (second.node, second.boot):
        why = "they are of two nodes, or of two boots: take both anew"
    elif silent := first.silent + second.silent:
        why = f"one is not complete ({silent[0]}): take it again when everybody answers"
    elif second.at - first.at < APART_MS:
        why = f"they are {apart} s apart: take the second at least {APART_MS // 1000} s after the first"
    elif not 0 <= now - first.at <= FRESH_MS:
        why = f"the first is {age} s old: take two within {FRESH_MS // 1000} s"
    elif changed := {*first.differences} ^ {*second.differences}:
        example = min(changed)
        why = (
            f"they differ in {len(changed)} points, such as {example.kind} {example.subject}:"
            " something is under way, so take two again later"
        )
    else:
        return second.differences
    raise errors.Refused("bad_request", f"the two reports do not allow a fix: {why}")


def tell_daemon(settings: knobs.Settings) -> None:
    """Have the running daemon look at everything now. Refused if there is none to be told."""
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(settings.socket_path)
            credentials = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, _, _ = _UCRED.unpack(credentials)  # who listens (unix(7)); 0 in another pid namespace
        if not pid:
            raise ProcessLookupError("it is not to be seen from here")
        os.kill(pid, LOOK_NOW)
    except OSError as failed:
        raise errors.Refused(
            "bad_request",
            f"no daemon can be told at {settings.socket_path} ({failed}): start it, for it looks at"
            " everything at its start, or run this in its container, as root",
        ) from None


def await_end(
    agreed_on: tuple[audit.Difference, ...], look: Callable[[], Report], patience_s: float
) -> tuple[audit.Difference, ...]:
    """Look until none of them is left, or for so many seconds; what is left then."""
    deadline = time.monotonic() + patience_s
    while True:
        left = {*agreed_on} & {*look().differences}
        if not left or time.monotonic() > deadline:
            return tuple(sorted(left))
        time.sleep(AGAIN_S)  # what the daemon does here gives no sign that could be waited for


def written(made: Report) -> dict[str, Any]:
    """As JSON's types."""
    rows = [{"kind": d.kind, "subject": d.subject, "text": d.text} for d in made.differences]
    return {
        "at": made.at,
        "node": made.node,
        "boot": made.boot,
        "clean": made.clean,
        "silent": list(made.silent),
        "differences": rows,
    }


def read(said: Any) -> Report:
    """The report that `written` made; ValueError for anything else."""
    try:
        rows = tuple(
            audit.Difference(d["kind"], d["subject"], d["text"]) for d in said["differences"]
        )
        return Report(
            int(said["at"]), str(said["node"]), str(said["boot"]), tuple(said["silent"]), rows
        )
    except (KeyError, TypeError) as bad:
        raise ValueError(f"it is no report of `vpcledger audit --json` ({bad!r})") from None
