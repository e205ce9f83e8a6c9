"""ADD and DEL as transactions plus a one-pod plan, and the way to the other verbs.

Everything here runs on the server's engine thread, one call after the other, so no two calls race for
an address; the schema's unique indexes would refuse them if they did. Each call leaves a row in
cni_requests with its reason code. An ADD that finds no address keeps its row `waiting`, rings the
cloud's lane and is answered when an address came or its time is up. How frames travel and how many
addresses the node should hold do not belong here.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from cni import result, spec, wire
from ledger import database, model, reads, writes
from reconciler import call as calls
from reconciler import errors, jobs, nameless, questions, refusals
from reconciler import loop as loops
from reconciler import settings as knobs
from reconciler.planner import actions, wiring

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a transaction made of an ADD: its wiring if it has an address, and whose link goes for it."""

    wiring: wiring.PodWiring | None
    unplugged: tuple[model.Installed, ...]


FORGOTTEN_MS = 600_000
"""A refused sandbox is deleted at once and a new one made; one that waits for longer than this was forgotten."""


@dataclass(slots=True)
class Verbs:
    """The runtime's five verbs over one ledger and one kernel."""

    ledger: database.Ledger
    loop: loops.Loop
    settings: knobs.Settings
    boot_id: str
    clock: Callable[[], int]
    ring_cloud: Callable[[bool], None]
    """Have the warm pool looked at; True if a pod waits for it."""
    wake_at: Callable[[int], None]
    """Have `retry_waiting` run at this time (ms)."""
    own_netns: int
    """A descriptor of the node's own network namespace, into which no pod is put."""
    drain: Callable[[], frozenset[tuple[str, str]]] = frozenset
    """Carry out the deletions that wait in the spool; the sandboxes for which that cannot be done now."""
    waiting: dict[int, jobs.Job] = field(default_factory=dict)
    _half_deleted: frozenset[tuple[str, str]] = frozenset()
    questions: questions.Questions = field(init=False)

    def __post_init__(self) -> None:
        """The verbs that change nothing of a pod's stand in a file of their own."""
        self.questions = questions.Questions(
            self.ledger, self.loop, self.settings, self.clock, self.ring_cloud
        )

    def handle(self, batch: list[calls.Call]) -> None:
        """Serve whatever is ready, in order of arrival; equal verbs that follow each other together."""
        if any(_verb_of(call) == "ADD" for call in batch):
            self.take_spool_in()
        for verb, run in itertools.groupby(batch, key=_verb_of):
            read = [job for call in run if (job := self._read(call)) is not None]
            if verb == "DEL":
                self._delete_all(read)
            elif verb == "ADD":
                self.add(read)
            else:
                for job in read:
                    self._guarded(job, self._verb(job.asked.verb))

    def take_spool_in(self) -> None:
        """Deletions that were reported as done come before whatever is asked now."""
        self._half_deleted = self.drain()

    def _read(self, call: calls.Call) -> jobs.Job | None:
        try:
            asked = spec.parse(call.request.env, call.request.stdin)
        except spec.CniError as refused:
            jobs.refuse_unread(self.ledger, call, refused, self.clock())
            return None
        return jobs.Job(call, asked, self.clock())

    def _verb(self, name: str) -> Callable[[jobs.Job], None]:
        return {
            "CHECK": self.questions.check,
            "GC": self.questions.collect,
            "STATUS": self.questions.status,
        }[name]

    def _guarded(self, job: jobs.Job, verb: Callable[[jobs.Job], None]) -> bool:
        """Whatever goes wrong with one call is that call's refusal, and harms none beside it.

        True if nothing did.
        """
        try:
            verb(job)
        except errors.VpcledgerError as refused:
            self._refuse(job, refused)
        except database.Failure as failed:
            self._refuse(job, errors.TryLater("ledger_error", str(failed)))
        except Exception as unforeseen:
            log.exception("%s of %s", job.asked.verb, job.asked.container_id)
            self._refuse(job, errors.Bug("internal", f"{type(unforeseen).__name__}: {unforeseen}"))
        else:
            return True
        return False

    def _refuse(self, job: jobs.Job, why: errors.VpcledgerError) -> None:
        jobs.refuse(self.ledger, job, why, self.clock())

    # ------------------------------------------------------------------ ADD

    def add(self, batch: list[jobs.Job]) -> None:
        """Claim addresses, write what the kernel shall hold, make it so, say so: two commits for all."""
        claimed: list[tuple[jobs.Job, Claim]] = []
        welcome = [job for job in batch if self._guarded(job, self._examine)]
        try:
            with self.ledger.write() as tx:
                claimed = [(job, self._claim(tx, job, self.clock())) for job in welcome]
        except Exception as failed:  # noqa: BLE001 - it is some call's refusal, see below
            if len(welcome) == 1:
                self._guarded(welcome[0], partial(_raise, failed))
            else:  # one of them may be to blame: each for itself
                for job in welcome:
                    self.add([job])
            return
        wired = []
        for job, claim in claimed:
            served = self._guarded(job, partial(self._serve, claim))
            if served and claim.wiring is not None:
                wired.append((job, claim.wiring))
        self._answer(wired)

    def _examine(self, job: jobs.Job) -> None:
        """Is there a namespace to be wired, and not the node's own?"""
        if job.pod is None:
            code = job.call.request.netns_errno
            why = os.strerror(code) if code else "the launcher handed over no namespace"
            raise errors.BadNamespace("netns_missing", f"CNI_NETNS={job.asked.netns}: {why}")
        if os.path.sameopenfile(job.pod.netns_fd, self.own_netns):
            raise errors.BadNamespace("netns_is_host", f"CNI_NETNS={job.asked.netns}")
        if (job.asked.container_id, job.asked.ifname) in self._half_deleted:
            raise errors.TryLater("kernel_error", "its earlier deletion is not carried out yet")

    def _claim(self, tx: database.Write, job: jobs.Job, now: int) -> Claim:
        asked = job.asked
        namespace, name = asked.pod
        lease = writes.claim(
            tx,
            container_id=asked.container_id,
            ifname=asked.ifname,
            network=asked.config.name,
            netns=asked.netns,
            pod_namespace=namespace,
            pod_name=name,
            pod_uid=asked.pod_uid,
            boot_id=self.boot_id,
            host_ifname=self._host_ifname(asked),
            host_mac=random_mac(),
            prefixes=self.settings.prefix_delegation,
            now=now,
        )
        job.lease = lease
        if lease.address is None:
            return Claim(None, ())
        unplugged: list[model.Installed] = []
        for namesake in reads.namesakes(tx, lease.host_ifname, lease.id):
            unplugged += self._unplug(tx, namesake, now)
        wired = questions.wiring_of(tx, lease, self.settings)
        writes.plan_installed(tx, "lease", str(lease.id), wired.host, now)
        return Claim(wired, tuple(unplugged))

    def _serve(self, claim: Claim, job: jobs.Job) -> None:
        """What follows the claim: the kernel's part, or the wait for an address."""
        if claim.wiring is None:
            self._wait(job)
            return
        self._take_away(claim.unplugged)
        self._wire(job, claim.wiring)

    def _unplug(self, tx: database.Write, lease_id: int, now: int) -> tuple[model.Installed, ...]:
        """Give the link's name of a pod's last sandbox to the one that has it now.

        The old sandbox keeps its lease until it is deleted: the runtime deletes late, and nobody else
        may have its address before.
        """
        rows = reads.installed_for(tx, "lease", str(lease_id))
        writes.mark_owner_removing(tx, "lease", str(lease_id), now)
        return rows

    def _take_away(self, rows: Sequence[model.Installed]) -> None:
        owned: dict[int, list[model.KernelObject]] = {}
        for row in rows:
            owned.setdefault(int(row.owner), []).append(row.thing)
        for lease_id, things in owned.items():
            self._retire(lease_id, things)

    def _retire(self, lease_id: int, things: list[model.KernelObject]) -> None:
        outcomes = self.loop.carry_out(loops.unmaking(lease_id, things))
        failed = [outcome for outcome in outcomes if outcome.error]
        if failed:
            raise errors.TryLater("kernel_error", f"{failed[0].error}: {failed[0].text}")
        with self.ledger.write() as tx:
            writes.retire(tx, lease_id, loops.retired(lease_id, outcomes), self.clock())
        self.loop.reap_soon()

    def _wire(self, job: jobs.Job, wired: wiring.PodWiring) -> None:
        lease = job.lease
        assert lease is not None
        steps = [actions.Put(thing) for thing in (*wired.host, *wired.pod)]
        outcomes = self.loop.carry_out(steps, job.pod)
        failed = [outcome for outcome in outcomes if outcome.error]
        if failed and failed[0].result.get("where") == "pod":
            # The last sandbox interface in this namespace was deleted a moment ago, and its pair is still
            # to be removed. If not by the lane by now, then by us.
            self.loop.reap()
            outcomes = self.loop.carry_out(steps, job.pod)
            failed = [outcome for outcome in outcomes if outcome.error]
        now = self.clock()
        if failed:
            # All of it goes, not only what was made now: the lease may have been wired before, and its
            # address is free only when nothing shows it any more.
            with self.ledger.write() as tx:
                writes.mark_owner_removing(tx, "lease", str(lease.id), now)
            self.loop.end_leases([(lease, "setup_failed")])
            first = failed[0]
            reason = "ifname_taken" if first.result.get("where") == "pod" else "kernel_error"
            raise errors.TryLater(reason, f"{first.error}: {first.text}")

    def _answer(self, wired: list[tuple[jobs.Job, wiring.PodWiring]]) -> None:
        """Their leases are active from the commit on, and then they are told."""
        if not wired:
            return
        try:
            with self.ledger.write() as tx:
                for job, _ in wired:
                    assert job.lease is not None
                    writes.activate(tx, job.lease.id, self.clock())
                    writes.mark_owner_installed(tx, "lease", str(job.lease.id), self.clock())
                    jobs.record(tx, job, self.clock())
        except database.Failure as failed:
            for job, _ in wired:
                self._refuse(job, errors.TryLater("ledger_error", str(failed)))
            return
        left = self.loop.left_to_launcher()
        for job, made in wired:
            assert job.lease is not None
            answer = result.render(pod_result(job.lease, made), job.asked.config.cni_version)
            sysctls = tuple(wire.Sysctl(s.where, s.path, s.value) for s in (*made.sysctls, *left))
            job.call.answer(wire.Reply(0, answer, sysctls))
        self.ring_cloud(False)

    def _wait(self, job: jobs.Job) -> None:
        """No address: say why, ask for more, and hold the call for a while."""
        with self.ledger.read() as tx:
            why = refusals.no_address(tx, self.settings, self.clock())
        self.ring_cloud(True)
        job.waits_for, job.eta_at = why.intent_id, why.eta_at
        if job.waits_until == 0:
            job.waits_until = job.began_at + self.settings.add_wait_ms
        if not why.may_come or self.clock() >= job.waits_until:
            raise why.error
        assert job.lease is not None
        self.waiting[job.lease.id] = job
        self.wake_at(job.waits_until)

    def retry_waiting(self) -> None:
        """Serve the held calls again, oldest first: capacity changed or somebody's time is up."""
        self.take_spool_in()
        held, self.waiting = self.waiting, {}
        for job in held.values():
            if self._guarded(job, self._still_open):
                self.add([job])

    def forget_waiting(self) -> None:
        """End what has waited long enough for an ADD or a DEL that does not come: it keeps room for nobody."""
        now = self.clock()
        with self.ledger.write() as tx:
            for lease in reads.waiting(tx):
                if lease.id not in self.waiting and lease.created_at < now - FORGOTTEN_MS:
                    writes.end(tx, lease.id, "gave_up_waiting", now, cooling_ms=0)

    def release_waiting(self) -> None:
        """Refuse the held calls: the daemon is being stopped."""
        held, self.waiting = self.waiting, {}
        for job in held.values():
            self._refuse(job, errors.TryLater("stopping"))

    def _still_open(self, job: jobs.Job) -> None:
        with self.ledger.read() as tx:
            lease = reads.open_lease(tx, job.asked.container_id, job.asked.ifname)
        if lease is None:
            raise errors.TryLater("gave_up_waiting")

    # ------------------------------------------------------------------ DEL

    def _delete_all(self, batch: list[jobs.Job]) -> None:
        try:
            ended = self.delete(batch)
        except database.Failure:
            log.exception("deletions that cannot be written down go to the spool")
            for job in batch:
                job.call.give_back()
            return
        if ended:
            self.retry_waiting()
            self.ring_cloud(False)

    def delete(self, batch: list[jobs.Job], *, look: bool = True) -> bool:
        """Unmake, then forget; what nobody knows is success (CNI, section DEL). True if any was known.

        `look`: it may be the sandbox of a lease that was made up without one.
        """
        now = self.clock()
        known: dict[int, list[jobs.Job]] = {}
        here: list[jobs.Job] = []
        perhaps: list[tuple[jobs.Job, model.Lease]] = []
        with self.ledger.write() as tx:
            for job in batch:
                asked = job.asked
                job.lease = reads.open_lease(tx, asked.container_id, asked.ifname)
                if job.lease is not None:
                    writes.mark_owner_removing(tx, "lease", str(job.lease.id), now)
                    known.setdefault(job.lease.id, []).append(job)
                elif look and (made_up := nameless.lease_of(tx, self._host_ifname(asked))):
                    perhaps.append((job, made_up))
                    continue
                else:
                    writes.note_late_delete(tx, asked.container_id, asked.ifname, now)
                    jobs.record(tx, job, now, reason="unknown_container")
                here.append(job)
        ended = bool(known)
        if perhaps:
            nameless.name(self.ledger, self.loop, perhaps, now)
            ended = self.delete([job for job, _ in perhaps], look=False) or ended
        refused: dict[int, str] = {}
        if known:
            leases = [asking[0].lease for asking in known.values()]
            refused = self.loop.end_leases(
                [(lease, _why_deleted(lease)) for lease in leases if lease is not None],
                lambda tx, lease: self._record_deletions(tx, known[lease.id], lease),
            )
        for job in here:
            if job.lease is not None and job.lease.id in refused:
                self._refuse(job, errors.TryLater("kernel_error", refused[job.lease.id]))
            else:
                job.call.answer(wire.Reply())
        return ended

    def _record_deletions(
        self, tx: database.Write, asking: list[jobs.Job], lease: model.Lease
    ) -> None:
        for job in asking:
            jobs.record(tx, job, self.clock(), reason=_why_deleted(lease))

    # ------------------------------------------------------------------ particulars

    def _host_ifname(self, asked: spec.Invocation) -> str:
        """Upstream's name; a sandbox that is no Kubernetes pod is named after its container."""
        namespace, name = asked.pod
        if not name:
            namespace, name = asked.container_id, asked.ifname
        elif asked.ifname != "eth0":
            name = f"{name}.{asked.ifname}"
        return wiring.host_ifname(self.settings.veth_prefix, namespace, name)


def _raise(failed: Exception, _: jobs.Job) -> None:
    raise failed


def _verb_of(call: calls.Call) -> str:
    return call.request.env.get("CNI_COMMAND", "")


def _why_deleted(lease: model.Lease) -> str:
    return "deleted" if lease.address else "gave_up_waiting"


def random_mac() -> str:
    """A locally administered unicast MAC (IEEE 802, bit 1 set and bit 0 clear of the first octet)."""
    octets = bytearray(secrets.token_bytes(6))
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")


def pod_result(lease: model.Lease, wired: wiring.PodWiring) -> result.Result:
    """The host end, the pod's end with its namespace, and the address on the latter."""
    link = wired.link
    return result.Result(
        interfaces=(
            result.Interface(link.name, link.mac, "", link.mtu),
            result.Interface(lease.ifname, link.peer_mac, lease.netns, link.mtu),
        ),
        ips=(result.Ip(f"{lease.address}/32", 1),),
    )
