"""A pod that lives, whose lease was made up from what the kernel shows, and a deletion that says whose it is.

After a lost ledger without records the address is known, and the sandbox is not. The pod's name alone is no
key (a successor under the same name has it as well), so the kernel has to agree: the namespace that came with the
deletion shows the address, or nothing on the host speaks for the pod any more. How such leases come about does not
belong here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger import database, model, reads, writes
from reconciler import jobs
from reconciler import loop as loops
from reconciler.planner import takeover


def lease_of(tx: database.Read, host_ifname: str) -> model.Lease | None:
    """The open lease without a sandbox's name whose pod has this host link."""
    return reads.open_lease(tx, f"{takeover.NAMELESS}{host_ifname}", "eth0")


def name(
    ledger: database.Ledger,
    loop: loops.Loop,
    asked: Sequence[tuple[jobs.Job, model.Lease]],
    now: int,
) -> None:
    """Give each lease the sandbox that is being deleted, where that is shown to be the one."""
    for job, lease in asked:
        if not _is_of(loop, job, lease):
            continue
        namespace, pod = job.asked.pod
        sandbox = model.Sandbox(job.asked.container_id, namespace, pod, job.asked.pod_uid)
        with ledger.write() as tx:
            writes.identify(tx, lease.id, sandbox, now)


def _is_of(loop: loops.Loop, job: jobs.Job, lease: model.Lease) -> bool:
    if job.pod is not None:
        inside = loop.kernel.observe_pod(job.pod)
        return isinstance(inside, model.ObservedKernel) and any(
            address.cidr == f"{lease.address}/32" for address in inside.addresses
        )
    host = loop.kernel.observe()
    return isinstance(host, model.ObservedKernel) and not any(
        link.name == lease.host_ifname and host.peers.get(link.name, True) for link in host.links
    )
