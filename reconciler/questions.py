"""CHECK, GC and STATUS: what the runtime asks about pods and about us.

They run on the server's engine thread like ADD and DEL, and each leaves its row. What a pod needs in
the kernel, and why there is no address, do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger import database, model, reads, writes
from reconciler import errors, jobs, refusals
from reconciler import loop as loops
from reconciler import settings as knobs
from reconciler.planner import drift, wiring
from reconciler.sweeper import DISAGREES


@dataclass(frozen=True, slots=True)
class Questions:
    """The three verbs over one ledger and one kernel."""

    ledger: database.Ledger
    loop: loops.Loop
    settings: knobs.Settings
    clock: Callable[[], int]
    ring_cloud: Callable[[bool], None]

    def check(self, job: jobs.Job) -> None:
        """The one-pod diff is empty, or an error names what is missing (section CHECK)."""
        asked = job.asked
        with self.ledger.read() as tx:
            lease = reads.open_lease(tx, asked.container_id, asked.ifname)
            job.lease = lease
            if lease is None or lease.address is None or lease.state not in {"active", "in_doubt"}:
                raise errors.Gone("unknown_container", f"{asked.container_id} {asked.ifname}")
            wired = wiring_of(tx, lease, self.settings)
        if job.pod is None:
            raise errors.BadNamespace("netns_missing", f"CNI_NETNS={asked.netns}")
        missing = drift.compare(wired.host, self.loop.kernel.observe())
        inside = (wired.end, *wired.pod)
        missing += drift.compare(inside, self.loop.kernel.observe_pod(job.pod))
        told = _addresses(asked.config.prev_result)
        if f"{lease.address}/32" not in told:
            missing += (f"prevResult has {told}, the ledger {lease.address}/32",)
        if missing:
            raise errors.TryLater("drift", "; ".join(missing))
        jobs.succeed(self.ledger, job, self.clock())

    def collect(self, job: jobs.Job) -> None:
        """End leases the runtime's list leaves out, where the kernel agrees that the sandbox is gone.

        Two sources (decision 2): the list, and the host veth, which dies with the pod's namespace. If
        the veth lives the lease stays and a finding says that the two disagree.
        """
        listed = job.asked.attachments or frozenset()
        with self.ledger.read() as tx:
            desired = reads.desired(tx, self.clock())
        unlisted = [
            lease
            for lease in desired.leases
            if lease.state in {"active", "in_doubt"}
            and lease.network == job.asked.config.name
            and (lease.container_id, lease.ifname) not in listed
        ]
        observed = self.loop.kernel.observe() if unlisted else model.Unknown("nothing to ask", 0)
        alive = [lease for lease in unlisted if _may_live(lease, observed)]
        dead = [lease for lease in unlisted if lease not in alive]
        self._tell_of_disagreement(alive)
        refused = self.loop.end_leases([(lease, "gc") for lease in dead])
        if dead:
            self.ring_cloud(False)
        if refused:  # as much as could be was removed first (section GC)
            raise errors.TryLater("kernel_error", "; ".join(refused.values()))
        jobs.succeed(self.ledger, job, self.clock())

    def _tell_of_disagreement(self, alive: Sequence[model.Lease]) -> None:
        now = self.clock()
        named = {lease.container_id for lease in alive}
        with self.ledger.write() as tx:
            for lease in alive:
                text = f"GC leaves out {lease.container_id}, but {lease.host_ifname} is alive"
                writes.open_finding(tx, DISAGREES, lease.container_id, text, now)
            for code, subject in reads.open_findings(tx):
                if code == DISAGREES and subject not in named:
                    writes.close_finding(tx, code, subject, now)

    def status(self, job: jobs.Job) -> None:
        """Can one more pod be served now? Error 50 with the reason if not (section STATUS)."""
        with self.ledger.read() as tx:
            counts = reads.free_count(tx, self.clock())
            if counts.free > 0:
                why = None
            else:
                why = refusals.no_address(tx, self.settings, self.clock())
        if why is not None:
            self.ring_cloud(False)
            raise refusals.NotReady(why.error.reason, why.error.detail)
        jobs.succeed(self.ledger, job, self.clock())


def wiring_of(tx: database.Read, lease: model.Lease, settings: knobs.Settings) -> wiring.PodWiring:
    """What a lease that has its address needs in the kernel."""
    assert lease.eni_id is not None
    eni = reads.eni(tx, lease.eni_id)
    assert eni is not None, "a lease's interface has a row (foreign key)"
    return wiring.pod(lease, eni, settings)


def _addresses(result: Mapping[str, Any] | None) -> list[object]:
    """The addresses of a result that the runtime hands back, whatever it made of it."""
    listed = (result or {}).get("ips")
    ips = listed if isinstance(listed, list) else []
    return [ip.get("address") for ip in ips if isinstance(ip, dict)]


def _may_live(lease: model.Lease, observed: model.ObservedKernel | model.Unknown) -> bool:
    return isinstance(observed, model.Unknown) or _veth_lives(lease, observed)


def _veth_lives(lease: model.Lease, observed: model.ObservedKernel) -> bool:
    """The link of that name is this lease's (a namesake's successor is another's) and has its other end."""
    return any(
        link.name == lease.host_ifname
        and link.alias in {"", wiring.alias(lease.id)}
        and observed.peers.get(link.name, True)
        for link in observed.links
    )
