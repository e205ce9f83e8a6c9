"""One call, read and on its way: what was asked, what it led to, its row and its answer.

Every call leaves exactly one row in cni_requests and is answered exactly once, also when the ledger
cannot be written. What a verb does does not belong here.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from cni import spec, wire
from ledger import database, model, writes
from reconciler import call as calls
from reconciler import errors
from reconciler.providers import kernel

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """One call on its way. A held one knows until when it waits, for which intent, and the estimate."""

    call: calls.Call
    asked: spec.Invocation
    began_at: int
    lease: model.Lease | None = None
    waits_until: int = 0
    waits_for: int | None = None
    eta_at: int | None = None

    @property
    def pod(self) -> kernel.PodHandle | None:
        """The pod's namespace and netlink socket, if the launcher could hand them over."""
        if self.call.netns is None or self.call.netlink is None:
            return None
        return kernel.PodHandle(self.call.netns, self.call.netlink)


def record(
    tx: database.Write, job: Job, now: int, code: int = 0, reason: str = "", detail: str = ""
) -> None:
    """The call's row; code 0 is success, and then `reason` may say what was remarkable."""
    namespace, name = job.asked.pod
    writes.record_request(
        tx,
        command=job.asked.verb,
        container_id=job.asked.container_id,
        ifname=job.asked.ifname,
        netns=job.asked.netns,
        pod_namespace=namespace,
        pod_name=name,
        lease_id=job.lease.id if job.lease else None,
        code=code,
        reason=reason,
        detail=detail,
        waits_for=job.waits_for if code else None,
        eta_at=job.eta_at if code else None,
        duration_us=_since(job.call),
        now=now,
    )


def succeed(ledger: database.Ledger, job: Job, now: int) -> None:
    """A verb that has nothing to say but that all is well."""
    with ledger.write() as tx:
        record(tx, job, now)
    job.call.answer(wire.Reply())


def refuse(ledger: database.Ledger, job: Job, why: errors.VpcledgerError, now: int) -> None:
    """Tell the runtime why not, in the words the ledger keeps; it is told even if those cannot be kept."""
    told = spec.CniError(why.cni_code, str(why), errors.REASONS[why.reason])
    try:
        with ledger.write() as tx:
            record(tx, job, now, why.cni_code, why.reason, why.detail)
    except database.Failure:
        log.exception("a refusal could not be recorded: %s", why)
    job.call.answer(wire.refusal(told, job.asked.config.cni_version))


def refuse_unread(
    ledger: database.Ledger, call: calls.Call, refused: spec.CniError, now: int
) -> None:
    """A call that broke the specification: what can be made out of it is its row."""
    env = call.request.env
    try:
        with ledger.write() as tx:
            writes.record_request(
                tx,
                command=env.get("CNI_COMMAND", "")[:16],
                container_id=env.get("CNI_CONTAINERID", "")[:256],
                ifname=env.get("CNI_IFNAME", "")[:64],
                code=refused.code,
                reason="bad_request",
                detail=f"{refused.msg} {refused.details}"[:500],
                duration_us=_since(call),
                now=now,
            )
    except database.Failure:
        log.exception("a refusal could not be recorded: %s", refused)
    call.answer(wire.refusal(refused, spec.version_of(call.request.stdin)))


def _since(call: calls.Call) -> int:
    """Microseconds since the call arrived."""
    return int((time.monotonic() - call.arrived) * 1_000_000)
