"""An ideal world for the pool: EC2 that does at once what it is asked, pods that come and go.

It keeps the rows as the loop and the ledger would. Faults, lag and limits of EC2 do not belong here.
"""

from __future__ import annotations

import dataclasses
import itertools

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, limits, pool
from tests.planner.rows import NODE, START, eni, shown


class World:
    """One node with its primary interface, a clock, and every call that was made."""

    def __init__(
        self, settings: knobs.Settings, limit: limits.Limits, cooldown_ms: int = 30_000
    ) -> None:
        self.settings, self.limit, self.cooldown_ms = settings, limit, cooldown_ms
        self.now = START
        self.enis = {"eni-0": eni(0)}
        self.rows: dict[str, model.Address] = {}
        self.pods: dict[int, model.Lease] = {}
        self.calls: list[actions.CloudAction] = []
        self._numbers = itertools.count(1)

    @property
    def desired(self) -> model.Desired:
        """The rows as the planner gets them."""
        held = {lease.address for lease in self.pods.values()}
        return model.Desired(
            NODE,
            enis=tuple(self.enis.values()),
            addresses=tuple(
                dataclasses.replace(a, leased=a.address in held) for a in self.rows.values()
            ),
            leases=tuple(self.pods.values()),
        )

    def plan(self) -> tuple[actions.CloudStep, ...]:
        """What the planner wants now, on a fresh look."""
        desired = self.desired
        look = shown(desired, self.now)
        return pool.cloud_steps(desired, look, self.settings, self.limit, self.now)[0]

    def settle(self, most: int = 60) -> list[actions.CloudAction]:
        """Carry out the first step of one plan after another until there is none, as the loop does."""
        done: list[actions.CloudAction] = []
        while steps := self.plan():
            self._carry_out(steps[0].action)
            done.append(steps[0].action)
            assert len(done) < most, f"no end: {done[-6:]}"
            self._serve()
        self.calls += done
        return done

    def add(self) -> None:
        """One more pod; it gets the longest-rested address of the fullest interface, or waits."""
        number = next(self._numbers)
        self.pods[number] = model.Lease(number, f"c{number}", "eth0", "net", "/ns", "waiting")
        self._serve()

    def remove(self, which: int) -> None:
        """One pod less; its address cools down."""
        if not self.pods:
            return
        number = sorted(self.pods)[which % len(self.pods)]
        address = self.pods.pop(number).address
        if address:
            self.rows[address] = dataclasses.replace(
                self.rows[address],
                rested_since=self.now,
                cooling_until=self.now + self.cooldown_ms,
            )
        self._serve()

    def pass_time(self, milliseconds: int) -> None:
        """Let time go by."""
        self.now += milliseconds
        self._serve()

    def per_eni(self) -> list[int]:
        """How many addresses each interface has, by device index."""
        order = sorted(self.enis.values(), key=lambda each: each.device)
        return [sum(a.eni_id == each.eni_id for a in self.rows.values()) for each in order]

    def _serve(self) -> None:
        for number, lease in sorted(self.pods.items()):
            if lease.address is None and (address := self._free()):
                self.pods[number] = dataclasses.replace(
                    lease, state="active", address=address.address, eni_id=address.eni_id
                )

    def _free(self) -> model.Address | None:
        held = {lease.address for lease in self.pods.values()}
        free = [
            a
            for a in self.rows.values()
            if a.address not in held
            and a.cooling_until <= self.now
            and self.enis[a.eni_id].state == "usable"
        ]
        fullest = {
            e: sum(self.rows[h].eni_id == e for h in held if h is not None) for e in self.enis
        }
        return min(
            free, key=lambda a: (-fullest[a.eni_id], a.rested_since, a.address), default=None
        )

    def _carry_out(self, action: actions.CloudAction) -> None:
        match action:
            case actions.CreateEni():
                made = eni(
                    next(self._numbers) + 100,
                    device=-1,
                    state="created",
                    attachment_id=None,
                    delete_on_termination=False,
                    attached_at=None,
                )
                self.enis[made.eni_id] = made
                self._assign(made.eni_id, action.secondaries)
            case actions.AttachEni():
                self._change(
                    action.eni_id,
                    device=action.device,
                    state="usable",
                    attachment_id=f"attach-{action.eni_id}",
                    attached_at=self.now,
                )
            case actions.SetDeleteOnTermination():
                self._change(action.eni_id, delete_on_termination=True)
            case actions.AssignAddresses():
                self._assign(action.eni_id, action.count)
            case actions.UnassignAddresses():
                for address in action.addresses:
                    del self.rows[address]
            case actions.DetachEni():
                self._change(action.eni_id, state="detaching", device=-1)
            case actions.DeleteEni():
                del self.enis[action.eni_id]
                self.rows = {k: a for k, a in self.rows.items() if a.eni_id != action.eni_id}

    def _change(self, eni_id: str, **changes: object) -> None:
        self.enis[eni_id] = dataclasses.replace(self.enis[eni_id], **changes)  # type: ignore[arg-type]  # fields by name

    def _assign(self, eni_id: str, count: int) -> None:
        for _ in range(count):
            number = next(self._numbers)
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            self.rows[address] = model.Address(address, eni_id, rested_since=self.now)
