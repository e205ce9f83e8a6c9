"""One node's daemon without threads: its real parts, driven by a clock that only the story moves.

Ledger, loops, verbs, recovery and planner are the product's, composed as reconciler.daemon composes them;
lanes tick when rung or due, one after the other. A crash drops every object and opens the file again. It
can come at any commit (before it, or after it and before anything else), at any EC2 call (before it, or
when it is carried out and the reply is on its way) and between any two changes of the kernel's. What a
story tells, and what must be true of it, does not belong here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cni import wire
from ledger import database, migrate, model, reads, writes
from reconciler import call as calls
from reconciler import cloud, cloud_loop, loop, recovery, verbs
from reconciler import settings as knobs
from tests.stories import door
from tests.stories.paper import Paper

SETTLE_MS = 100
"""reconciler.daemon: how soon the cloud's lane runs when a pod came or went."""
INTERVALS_MS = {"kernel": 30_000, "cloud": 60_000, "tidy": 60_000}
OWN_NETNS = os.open("/dev/null", os.O_RDONLY)
POD_NETNS = os.open("/dev/zero", os.O_RDONLY)
"""Two different files: all that the door asks of a namespace's descriptor here."""


class Crash(BaseException):
    """The daemon dies here. Not an Exception: nothing may catch it on the way."""


class Machine:
    """A node and, between `start` and `crash`, its daemon."""

    def __init__(
        self, folder: Path, ec2: door.Ec2Door, time: door.Time, rng: random.Random
    ) -> None:
        self.folder, self.ec2, self.time, self.rng = folder, ec2, time, rng
        self.kernel = Paper(time.now_ms)
        self.kernel.step = self.instant
        self.settings = knobs.Settings()
        self.boot_id = str(uuid.UUID(int=rng.getrandbits(128)))
        self._booted_ms = time.elapsed_ms()
        self.running = False
        self.fuse: int | None = None
        """Instants until the daemon dies; None: it lives."""
        self.crashes = 0
        self._depth = 0
        self.due: dict[str, int] = {}
        self.rung: set[str] = set()
        ec2.cloud.hooks.append(self._heard)

    @property
    def spool(self) -> Path:
        """Where the launcher leaves deletions while the daemon is away."""
        return self.folder / "spool"

    @property
    def path(self) -> Path:
        """The ledger's file."""
        return self.folder / "ledger.db"

    @property
    def instance_type(self) -> str:
        """What EC2 says it is."""
        with self.ec2.cloud.lock:
            return str(self.ec2.cloud.need("instance", "i", self.ec2.node)["InstanceType"])

    # ------------------------------------------------------------------ life and death

    def start(self) -> None:
        """As daemon.run and Daemon.start do, up to the lanes' first rings."""
        now = self.time.now_ms
        if not self.path.exists():
            shutil.copyfile(_template(), self.path)
        self.spool.mkdir(exist_ok=True)
        self.ledger = database.Ledger.open(self.path)
        self._fuse_commits(self.ledger)
        self.cloud = cloud.Cloud(self.settings)
        kernel: Any = self.kernel
        self.loop = loop.Loop(self.ledger, kernel, self.settings, now)
        self.cloud_loop = cloud_loop.CloudLoop(self.ledger, self.cloud, self.settings, now)
        self.verbs = verbs.Verbs(
            self.ledger, self.loop, self.settings, self.boot_id, now,
            self._ring_cloud, lambda at: self._ring_at("waits", at), OWN_NETNS, self._drain,
        )  # fmt: skip
        self.loop.capacity_changed = self.cloud_loop.capacity_changed = self._capacity_changed
        self.cloud_loop.in_use = self.loop.in_use
        self.cloud_loop.boot_id, self.cloud_loop.uptime = self.boot_id, self.uptime
        self.loop.eni_lost = self._eni_lost
        self.loop.reap_soon = lambda: self.rung.add("reap")
        self.running = True
        self.due = {lane: self.time.elapsed_ms() + every for lane, every in INTERVALS_MS.items()}
        self.rung = set()
        with self._deadly():
            recovery.first_minute(
                self.ledger, self.loop, self.boot_id, [self.spool], now, self.uptime
            )
            self.rung = {"kernel", "cloud", "reap"}

    def crash(self) -> None:
        """All that is not in the file is gone."""
        self.crashes += 1
        self.running, self.fuse = False, None
        self.ledger.close()
        del self.verbs, self.loop, self.cloud_loop, self.cloud

    def close(self) -> None:
        """The story is over."""
        if self.running:
            self.ledger.close()
            self.running = False

    def reboot(self) -> None:
        """Power off and on; the daemon is not started."""
        if self.running:
            self.crash()
        self.boot_id = str(uuid.UUID(int=self.rng.getrandbits(128)))
        self._booted_ms = self.time.elapsed_ms()
        self.kernel.boot()
        for eni in self.ec2.cloud.interfaces_of(self.ec2.node):
            self.plug(eni)

    def uptime(self) -> int:
        """How long this boot lasts, in ms."""
        return self.time.elapsed_ms() - self._booted_ms

    # ------------------------------------------------------------------ the runtime's calls

    def call(self, env: dict[str, str], stdin: bytes, pod: int | None, told: Told) -> None:
        """One call of the runtime's; `told` hears the reply, at once or later, or never if we die."""
        fds = [] if pod is None else [POD_NETNS, pod]
        flags = 0 if pod is None else wire.HAS_NETNS | wire.HAS_NETLINK
        request = wire.Request(env, stdin, flags)

        def end(_: calls.Call, frame: bytes) -> None:
            told(wire.decode_reply(frame[4:]))

        with self._deadly():
            self.verbs.handle([calls.Call(request, fds, lambda: False, end)])

    # ------------------------------------------------------------------ time

    def work(self) -> None:
        """Let every lane run that is rung or due, until none is."""
        ready: set[str] = set()
        for _ in range(200):
            now = self.time.elapsed_ms()
            ready = self.rung | {lane for lane, at in self.due.items() if at <= now}
            if not self.running or not ready:
                return
            lane = self.rng.choice(sorted(ready))
            self.rung.discard(lane)
            self.due.pop(lane, None)
            if lane in INTERVALS_MS:
                self.due[lane] = now + INTERVALS_MS[lane]
            with self._deadly():
                again = self._tick(lane)
                if again is not None:
                    self._ring_at(lane, again)
        raise AssertionError(f"the lanes come to no rest: {sorted(ready)}")

    def next_due(self) -> int | None:
        """When (ms, by a clock that nobody sets) a lane is due next; None while the daemon is away."""
        return min(self.due.values()) if self.running and self.due else None

    def _tick(self, lane: str) -> int | None:
        match lane:
            case "kernel":
                self.loop.tick()
            case "cloud":
                self.cloud_loop.tick()
                return self.cloud_loop.next_at()
            case "reap":
                self.loop.reap()
            case "waits":
                self.verbs.retry_waiting()
            case "tidy":
                self.verbs.forget_waiting()
                self.verbs.take_spool_in()
                with self.ledger.write() as tx:
                    writes.prune(tx, self.time.now_ms())
        return None

    def _drain(self) -> frozenset[tuple[str, str]]:
        return recovery.take_spools_in(self.ledger, self.loop, [self.spool], self.time.now_ms)

    def _ring_at(self, lane: str, at: int) -> None:
        due = self.time.elapsed_ms() + at - self.time.now_ms()  # as reconciler.lanes does
        self.due[lane] = min(due, self.due.get(lane, due))

    def _ring_cloud(self, urgent: bool) -> None:
        if urgent:
            self.rung.add("cloud")
        else:
            self._ring_at("cloud", self.time.now_ms() + SETTLE_MS)

    def _capacity_changed(self) -> None:
        self.rung |= {"waits", "kernel"}

    def _eni_lost(self) -> None:
        self.cloud_loop.look_again()
        self.rung.add("cloud")

    # ------------------------------------------------------------------ what the machine sees

    def desired(self) -> model.Desired:
        """The ledger's open rows."""
        with self.reader() as book, book.read() as tx:
            return reads.desired(tx, self.time.now_ms())

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The answer to a question in SQL."""
        with self.reader() as book, book.read() as tx:
            return reads.query(tx, sql, 100_000)

    @contextlib.contextmanager
    def reader(self) -> Iterator[database.Ledger]:
        """The open ledger, or the file while the daemon is away."""
        if self.running:
            yield self.ledger
            return
        with database.Ledger.open(self.path, read_only=True) as book:
            yield book

    def _heard(self, event: str, news: dict[str, Any]) -> None:
        """EC2 plugs and unplugs interfaces; the kernel says so and its lane looks."""
        if event == "attached" and news["eni"]["Attachment"]["InstanceId"] == self.ec2.node:
            self.plug(news["eni"])
        elif event == "detached" and news["instance_id"] == self.ec2.node:
            self.kernel.unplug(news["eni"]["MacAddress"])
        else:
            return
        if self.running:
            self._ring_at("kernel", self.time.now_ms() + SETTLE_MS)

    def plug(self, eni: dict[str, Any]) -> None:
        """EC2 attaches this interface (in its own shape): a link appears."""
        card, device = (eni["Attachment"][key] for key in ("NetworkCardIndex", "DeviceIndex"))
        self.kernel.plug(100 * card + device, eni["MacAddress"], up=(card, device) == (0, 0))

    # ------------------------------------------------------------------ the fuse

    def instant(self) -> None:
        """One more moment at which the daemon may die."""
        if self.fuse is None or not self.running:
            return
        self.fuse -= 1
        if self.fuse < 0:
            raise Crash

    @contextlib.contextmanager
    def _deadly(self) -> Iterator[None]:
        """Within the block the daemon may die; afterwards it is dead, not the story.

        A call that came in the middle of another dies with that one.
        """
        self._depth += 1
        try:
            yield
        except Crash:
            if self._depth > 1:
                raise
            self.crash()
        finally:
            self._depth -= 1

    def _fuse_commits(self, book: database.Ledger) -> None:
        plain = book.write

        @contextlib.contextmanager
        def write(durable: bool = False) -> Iterator[database.Write]:
            with plain(durable) as tx:
                yield tx
                self.instant()
            self.instant()

        book.write = write  # type: ignore[method-assign]  # dies at a commit


Told = Callable[[wire.Reply], None]


@functools.cache
def _template() -> Path:
    """A new ledger, made once in each process."""
    path = Path(tempfile.mkdtemp(prefix="ledger-story-")) / "ledger.db"
    atexit.register(shutil.rmtree, path.parent)
    migrate.bring_to_head(path)
    return path
