"""The composition root: builds the parts, opens the door, drives the lanes, and ends them in order.

The order is decision 8: privileges, ledger, recovery, socket; only then the lanes that need EC2,
instance metadata or anything else that may be down. The only file with APScheduler, which rings the
lanes' bells at their intervals. What any part does does not belong here.
"""

from __future__ import annotations

import datetime as dt
import gc
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from apscheduler.schedulers import background

from cni import spool
from ledger import database, integrity, migrate, model, reads, writes
from reconciler import clock as clocks
from reconciler import (
    cloud,
    cloud_loop,
    disk,
    host_loop,
    lanes,
    logs,
    loop,
    privileges,
    process,
    recovery,
    runtime,
    server,
    sweeper,
    takeover,
    verbs,
)
from reconciler import settings as knobs
from reconciler.planner import actions
from reconciler.providers import conflist, cri, host, kernel, upstream

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long calls and lanes may take to end after SIGTERM; intents make a harder end harmless."""
TIDY_INTERVAL_S = 60
UNFINISHED_MS = 600_000
"""A spooled deletion is written in a moment: what is unfinished after so long was its launcher's death."""
FIRST_SWEEP_S = 300
"""Leaked interfaces are first looked for within this time after a start."""
SWITCH_S = 0.0001
"""How long another thread may keep the interpreter from the door: the usual 5 ms are three additions."""
REPAIR_MS = 500
"""What somebody undid in the kernel is looked for within this, however many pods come and go: it is to be
back within a second."""
CHECKPOINT_MS = 1_000
"""How long the VPC CNI's checkpoint may be behind the leases: it is written whole."""


def clock() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def run(settings: knobs.Settings, readings: Sequence[knobs.Reading]) -> int:
    """Serve until SIGTERM or SIGINT; the exit status of the process.

    Started as root, it becomes the user of VPCLEDGER_UID with CAP_NET_ADMIN alone before it opens
    anything. Refused if a setting or the ledger forbids the start; the sentence says what to do.
    """
    end = process.End()
    sys.setswitchinterval(SWITCH_S)
    process.prepare_folders(settings)
    asking = runtime.Runtime(lambda: cri.observe(settings.cri_socket))
    publisher = privileges.Publisher(lambda text: host.publish(settings, text))
    inheritance = upstream.observe(settings.checkpoint, settings.cni_cache_dir)  # root's files
    privileges.become(settings.uid)
    logs.start(settings.log_level, settings.log_file)
    try:
        book = disk.until_it_takes(lambda: _open(settings, readings), end.within)
        if book is not None:
            with book:
                _serve(Daemon(book, settings, publisher, inheritance, asking.observe), end)
    finally:
        publisher.close()
        asking.close()
    return 1 if end.broken else 0


def _open(settings: knobs.Settings, readings: Sequence[knobs.Reading]) -> database.Ledger:
    """The ledger, sound and at head, with the settings of this start in it."""
    path = Path(settings.ledger_path)
    aside = integrity.make_sound(path)
    if aside is not None:
        log.error("the ledger was damaged and lies at %s now; a new one begins", aside)
    migrate.bring_to_head(path)
    book = database.Ledger.open(path)
    try:
        with book.write() as tx:
            writes.record_settings(
                tx, [(r.name, r.value, r.raw, r.source) for r in readings], clock()
            )
    except BaseException:
        book.close()
        raise
    return book


def _serve(daemon: Daemon, end: process.End) -> None:
    if not disk.until_it_takes(daemon.recover, end.within):
        return
    daemon.start()  # what stops it says why; there is nothing to stop then
    try:
        end.wait(daemon.look_now)
    finally:
        daemon.stop()


class Daemon:
    """The parts of one running daemon."""

    def __init__(
        self,
        book: database.Ledger,
        settings: knobs.Settings,
        publisher: privileges.Publisher,
        inheritance: model.Inheritance,
        ask_runtime: Callable[[], runtime.Seen],
    ) -> None:
        self.ledger, self.settings, self.publisher = book, settings, publisher
        self.inheritance = inheritance
        self.boot_id = host.boot_id(settings.boot_id_path)
        self.spools = tuple(map(Path, settings.spool_dirs))
        self.kernel = kernel.Kernel()
        self.nftables = host_loop.hands()
        self.cloud = cloud.Cloud(settings)
        self.loop = loop.Loop(book, self.kernel, settings, clock)
        self.cloud_loop = cloud_loop.CloudLoop(book, self.cloud, settings, clock)
        self.host_loop = host_loop.HostLoop(book, self.nftables, settings, clock)
        self.loop.beside = self.host_loop.tick
        self.loop.records = inheritance.allocations
        self.loop.left_to_launcher = lambda: self.host_loop.left_to_launcher
        self.nat_lane = self._lane("nat", self._tick_nat, REPAIR_MS)
        self.cloud_lane = self._lane("cloud", self._tick_cloud)
        self.kernel_lane = self._lane("kernel", self._tick_kernel, REPAIR_MS)
        self.tidy_lane = self._lane("tidy", self._tick_tidy)
        self.wait_lane = self._lane("waits", self._tick_waits)
        self.checkpoint_lane = self._lane("checkpoint", self._tick_checkpoint)
        self.reap_lane = self._lane("reap", self._tick_reap)
        self.sandbox_lane = self._lane("sandboxes", self._tick_sandboxes)
        self.verbs = verbs.Verbs(
            ledger=book,
            loop=self.loop,
            settings=settings,
            boot_id=self.boot_id,
            clock=clock,
            ring_cloud=self._ring_cloud,
            wake_at=self.wait_lane.ring_at,
            own_netns=os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC),
            drain=self._take_spool_in,
        )
        self.sweeper = sweeper.Sweeper(
            ledger=book,
            loop=self.loop,
            runtime=ask_runtime,
            has_runtime=lambda: cri.present(settings.cri_socket),
            held=lambda: frozenset(self.verbs.waiting),
            clock=clock,
            ended=lambda: self._ring_cloud(urgent=False),
        )
        self.server = server.Server(Path(settings.socket_path), self.verbs.handle)
        self.loop.engine = self.server.run
        self.loop.capacity_changed = self.cloud_loop.capacity_changed = self._capacity_changed
        self.loop.eni_lost = self._eni_lost
        self.loop.reap_soon = self.reap_lane.ring
        self.cloud_loop.heritage = self._heritage
        self.cloud_loop.in_use = self.loop.in_use
        self._publishing = threading.Lock()
        self._published = False
        self._said: dict[str, Sequence[actions.Note]] = {}
        self._watching = [
            threading.Thread(target=self._watch_kernel, name="watch", daemon=True),
            threading.Thread(target=self._watch_nftables, name="watch nftables", daemon=True),
        ]
        self._scheduler = background.BackgroundScheduler(timezone="UTC", daemon=True)
        self._hang_bells()
        self.cloud_loop.clock_was_set = self._hang_bells
        self.cloud_loop.boot_id, self.cloud_loop.uptime = self.boot_id, clocks.uptime

    def _hang_bells(self) -> None:
        """Have each lane rung every so often; again when the clock was set, for APScheduler goes by it."""
        self._scheduler.remove_all_jobs()
        for lane, seconds in (
            (self.kernel_lane, self.settings.kernel_interval_s),
            (self.cloud_lane, self.settings.cloud_interval_s),
            (self.tidy_lane, TIDY_INTERVAL_S),
            (self.sandbox_lane, self.settings.sandbox_interval_s),
        ):
            self._scheduler.add_job(lane.ring, "interval", seconds=seconds, coalesce=True)
        _now_and_then(self._scheduler, self._sweep, self.settings.sweep_interval_s)

    def recover(self) -> bool:
        """What the last run left is seen to, from ledger and kernel alone. May be tried again."""
        recovery.tell_of_damage(self.ledger, clock)
        recovery.tell_of_spools(self.ledger, self.spools, clock)
        takeover.tell_of_records(self.ledger, self.inheritance, clock)
        recovery.first_minute(
            self.ledger, self.loop, self.boot_id, self.spools, clock, clocks.uptime
        )
        return True

    def start(self) -> None:
        """Open the door, then start everything that may be slow or down."""
        self.server.start()
        log.info("serving on %s", self.settings.socket_path)
        for lane in self._lanes():
            lane.start()
        self.cloud_lane.ring()
        self.checkpoint_lane.ring()
        self.reap_lane.ring()
        for thread in self._watching:
            thread.start()
        self._scheduler.start()
        gc.collect()
        gc.freeze()  # what was imported stays, and no collection looks at it again

    def stop(self) -> None:
        """Take no more calls, end the lanes, end the child; what was cut short is in the ledger."""
        log.info("stopping")
        self._scheduler.shutdown(wait=False)
        self.server.run(self.verbs.release_waiting)
        self.server.stop(STOP_SECONDS)
        self.cloud.close()
        for lane in self._lanes():
            if not lane.stop(STOP_SECONDS):
                log.warning("a lane did not end in %s s; its intent is in the ledger", STOP_SECONDS)
        try:
            self._tick_checkpoint()
        except database.Failure:
            log.exception("the last checkpoint was not made; the next start does without")

    def look_now(self) -> None:
        """Have every lane do now what it would do at its next time: somebody has found a difference."""
        log.info("a look at everything was asked for")
        self.cloud_loop.ask_everybody()
        for lane in (
            self.kernel_lane,
            self.nat_lane,
            self.cloud_lane,
            self.sandbox_lane,
            self.tidy_lane,
        ):
            lane.ring()

    def _lanes(self) -> tuple[lanes.Lane, ...]:
        return (
            self.kernel_lane,
            self.nat_lane,
            self.cloud_lane,
            self.tidy_lane,
            self.wait_lane,
            self.checkpoint_lane,
            self.reap_lane,
            self.sandbox_lane,
        )

    def _lane(
        self, name: str, tick: lanes.Tick, pace_most_ms: int = lanes.PACE_MOST_MS
    ) -> lanes.Lane:
        def failed(text: str) -> None:
            with self.ledger.write() as tx:
                writes.open_finding(tx, "lane_failed", name, text, clock())

        def worked() -> None:
            with self.ledger.write() as tx:
                writes.close_finding(tx, "lane_failed", name, clock())

        return lanes.Lane(name, tick, failed, worked, clock, pace_most_ms)

    # ------------------------------------------------------------------ ticks

    def _tick_kernel(self) -> int | None:
        self._say("kernel", self.loop.tick())
        return None

    def _tick_nat(self) -> int | None:
        self.host_loop.look()
        return None

    def _tick_cloud(self) -> int | None:
        self._say("cloud", self.cloud_loop.tick())
        self._publish()
        return self.cloud_loop.next_at()

    def _tick_sandboxes(self) -> int | None:
        self.sweeper.tick()
        return None

    def _tick_tidy(self) -> int | None:
        self.server.run(self.verbs.take_spool_in)
        self.server.run(self.verbs.forget_waiting)
        recovery.tell_of_damage(self.ledger, clock)
        recovery.tell_of_spools(self.ledger, self.spools, clock)
        for folder in self.spools:
            spool.forget_unfinished(folder, clock() - UNFINISHED_MS)
        with self.ledger.write() as tx:
            writes.prune(tx, clock())
        self.ledger.checkpoint()
        return None

    def _take_spool_in(self) -> frozenset[tuple[str, str]]:
        """Between two calls, for a deletion must not overtake an addition that is at work."""
        if not any(map(spool.may_wait, self.spools)):
            return frozenset()
        return recovery.take_spools_in(self.ledger, self.loop, self.spools, clock)

    def _tick_waits(self) -> int | None:
        self.server.run(self.verbs.retry_waiting)
        return None

    def _heritage(self) -> takeover.Heritage | None:
        return takeover.heritage(
            self.ledger, self.loop, self.settings, self.boot_id, self.inheritance, clock
        )

    def _tick_checkpoint(self) -> int | None:
        takeover.leave_checkpoint(self.ledger, self.inheritance, clock)
        self.ledger.checkpoint()
        return None

    def _tick_reap(self) -> int | None:
        self.loop.reap()
        return None

    def _sweep(self) -> None:
        self.cloud_loop.sweep_again()
        self.cloud_lane.ring()

    def _eni_lost(self) -> None:
        self.cloud_loop.look_again()
        self.cloud_lane.ring()

    def _ring_cloud(self, urgent: bool) -> None:
        """A pod that waits has the pool looked at now; one that came or went, together with others.

        What the kernel tells meanwhile is mostly our own work: its lane looks when the door has rested.
        """
        if urgent:
            self.cloud_lane.ring()
        else:
            self.cloud_lane.ring_soon()
            self.kernel_lane.put_off()
            self.checkpoint_lane.ring_at(clock() + CHECKPOINT_MS)

    def _capacity_changed(self) -> None:
        self.wait_lane.ring()
        self.kernel_lane.ring()
        self._publish()

    def _say(self, lane: str, notes: Sequence[actions.Note]) -> None:
        """A tick's notes, where they differ from the lane's last ones."""
        for note in notes:
            if note not in self._said.get(lane, ()):
                log.info("%s: %s: %s", lane, note.code, note.text)
        self._said[lane] = notes

    def _publish(self) -> None:
        """The conflist appears once a pod can be served, and is never withdrawn."""
        with self._publishing:
            if self._published:
                return
            with self.ledger.read() as tx:
                if reads.free_count(tx, clock()).free == 0:
                    return
            trouble = self.publisher.publish(conflist.render(self.settings))
            self._published = not trouble
            with self.ledger.write() as tx:
                if trouble:
                    writes.open_finding(tx, "conflist_unwritable", "", trouble, clock())
                else:
                    writes.close_finding(tx, "conflist_unwritable", "", clock())

    def _watch_kernel(self) -> None:
        """Have the kernel's lane look soon after the kernel said that something changed.

        Soon and not at once: the news of one pod's wiring come in a burst, and one look serves all. Until
        it begins there is nothing to be learnt from more of them, and the door has the processor. The first
        look waits until we listen: of what changed between the two nobody would tell.
        """
        news = self.kernel.watch()
        self.kernel_lane.ring()
        for _ in news:
            self.kernel_lane.await_tick(self.kernel_lane.ring_soon())

    def _watch_nftables(self) -> None:
        """Have our table looked at soon after a transaction of anybody's; without news, at the interval."""
        try:
            news = self.nftables.watch()
        except OSError as failed:
            log.warning("no news of nftables: %s", failed)
            return
        self.nat_lane.ring()
        for _ in news:
            self.nat_lane.ring_soon()


def _now_and_then(
    scheduler: background.BackgroundScheduler, job: Callable[[], None], seconds: int
) -> None:
    """A job every so many seconds, at another moment on every node: they share EC2's buckets."""
    first = time.time() + random.uniform(0, min(seconds, FIRST_SWEEP_S))  # noqa: S311  (no secret)
    scheduler.add_job(
        job,
        "interval",
        seconds=seconds,
        jitter=seconds // 10,
        coalesce=True,
        next_run_time=dt.datetime.fromtimestamp(first, dt.UTC),
    )
