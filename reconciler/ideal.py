"""One node in a world where EC2 does at once what it is asked: the real planner, a clock that stands still.

Rows are kept as the loop and the ledger keep them, so that long stories can be told in little time. EC2's
faults, lag, throttling and full subnets, and how long a call takes, do not belong here.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections import Counter
from typing import Any, Final, assert_never

from ledger import model
from reconciler import errors
from reconciler import settings as knobs
from reconciler.planner import actions, budget, limits, pool, release, stock

_NO_END: Final = 500
"""More calls than this in one go: the largest type filled from nothing takes less than 80."""

_NODE: Final = model.Node(
    instance_id="i-0",
    instance_type="",
    region="",
    availability_zone="",
    vpc_id="vpc-0",
    subnet_id="subnet-0",
    primary_mac="02:00:00:00:00:00",
    primary_ip="10.0.0.1",
    security_groups=("sg-0",),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What one interface carries for pods: single secondary addresses, and whole /28 prefixes.

    Its own primary address is not counted.
    """

    ips: int
    prefixes: int = 0

    @property
    def addresses(self) -> int:
        """What pods can have."""
        return self.ips + stock.PREFIX_SIZE * self.prefixes


class World:
    """One node with its primary interface, a clock that stands until time is passed, and all calls made.

    The rows are kept as the loop and the ledger keep them.
    """

    def __init__(self, settings: knobs.Settings, limit: limits.Limits) -> None:
        self.settings, self.limit = settings, limit
        self.now = 0
        primary = _interface(0, device=0, primary=True, state="usable", delete_on_termination=True)
        self.enis = {primary.eni_id: primary}
        self.rows: dict[str, model.Address] = {}
        self.prefixes: dict[str, model.Prefix] = {}
        self.tags: dict[str, dict[str, str]] = {primary.eni_id: {}}
        self.pods: dict[int, model.Lease] = {}
        self.calls: list[actions.CloudAction] = []
        self._given = 0

    @property
    def desired(self) -> model.Desired:
        """The rows as the planner gets them."""
        held = {lease.address for lease in self.pods.values()}
        return model.Desired(
            _NODE,
            enis=tuple(self.enis.values()),
            addresses=tuple(
                dataclasses.replace(a, leased=True) if a.address in held else a
                for a in self.rows.values()
            ),
            prefixes=tuple(self.prefixes.values()),
            leases=tuple(self.pods.values()),
        )

    def plan(self) -> tuple[actions.CloudStep, ...]:
        """What the planner wants now, on a fresh look at EC2."""
        look = self._look()
        steps, _ = pool.cloud_steps(
            self.desired, look, self.settings, self.limit, self.now, last=look
        )
        return budget.thawed(actions.Plan(cloud=steps), self.settings.freeze).cloud

    def settle(self) -> list[actions.CloudAction]:
        """Carry out the first step of one plan after another until there is none, as the loop does.

        Time stands still. Returns the calls; Bug if the planner never has enough.
        """
        done: list[actions.CloudAction] = []
        while steps := self.plan():
            self._carry_out(steps[0].action)
            done.append(steps[0].action)
            if len(done) > _NO_END:
                raise errors.Bug("internal", f"the planner comes to no rest: {done[-6:]}")
            self._serve()
        self.calls += done
        return done

    def rest(self) -> None:
        """Settle, and let time go by until no more of it would change anything."""
        longest = max(self.settings.ip_cooldown_ms, stock.REST_MS, release.MIN_AGE_MS)
        self.settle()
        self.pass_time(longest)
        while self.settle():
            self.pass_time(longest)

    def add(self) -> int:
        """One more pod; it gets an address as the ledger would choose it, or waits. Its number."""
        number = self._number()
        self.pods[number] = model.Lease(number, f"c{number}", "eth0", "net", "/ns", "waiting")
        self._serve()
        return number

    def remove(self, which: int) -> None:
        """One pod less, the n-th of those that are there; its address cools down."""
        if self.pods:
            self.end(sorted(self.pods)[which % len(self.pods)])

    def end(self, number: int) -> None:
        """That pod is deleted; its address cools down."""
        address = self.pods.pop(number).address
        if address:
            self.rows[address] = dataclasses.replace(
                self.rows[address],
                rested_since=self.now,
                cooling_until=self.now + self.settings.ip_cooldown_ms,
            )
        self._serve()

    def pass_time(self, milliseconds: int) -> None:
        """Let time go by."""
        self.now += milliseconds
        self._serve()

    def per_eni(self) -> list[int]:
        """How many addresses for pods each interface has, by network card and device index."""
        return [each.addresses for each in self.held()]

    def held(self) -> list[Held]:
        """What each interface has, by network card and device index."""
        order = sorted(self.enis.values(), key=lambda each: (each.card, each.device))
        ips = Counter(a.eni_id for a in self.rows.values() if a.prefix is None)
        blocks = Counter(p.eni_id for p in self.prefixes.values())
        return [Held(ips[each.eni_id], blocks[each.eni_id]) for each in order]

    def _look(self) -> model.ObservedCloud:
        """EC2's picture, which agrees with the rows."""
        shown: dict[str, list[str]] = {eni_id: [] for eni_id in self.enis}
        blocks: dict[str, list[str]] = {eni_id: [] for eni_id in self.enis}
        for address in self.rows.values():
            if address.prefix is None:
                shown[address.eni_id].append(address.address)
        for prefix in self.prefixes.values():
            blocks[prefix.eni_id].append(prefix.cidr)
        enis = (
            model.ObservedEni(
                each,
                tuple(shown[each.eni_id]),
                tuple(blocks[each.eni_id]),
                self.tags[each.eni_id],
                _NODE.security_groups,
            )
            for each in self.enis.values()
        )
        return model.ObservedCloud(self.now, "ec2", tuple(enis))

    def _serve(self) -> None:
        """Give waiting pods what is free, the first to come first."""
        for number, lease in sorted(self.pods.items()):
            if lease.address is None and (address := self._free()):
                self.pods[number] = dataclasses.replace(
                    lease, state="active", address=address.address, eni_id=address.eni_id
                )

    def _free(self) -> model.Address | None:
        """The address the ledger would claim: of the fullest prefix of the fullest usable interface."""
        held = {lease.address for lease in self.pods.values()}
        leased = Counter(lease.eni_id for lease in self.pods.values())
        used = Counter(a.prefix for a in self.rows.values() if a.address in held and a.prefix)
        free = (
            a
            for a in self.rows.values()
            if a.address not in held
            and a.cooling_until <= self.now
            and self.enis[a.eni_id].state == "usable"
        )

        def order(a: model.Address) -> tuple[int | bool | str, ...]:
            on = self.enis[a.eni_id]
            eni = (on.card, -leased[a.eni_id], on.device)
            other_kind = (a.prefix is None) == self.settings.prefix_delegation
            return (*eni, other_kind, -used[a.prefix or ""], a.rested_since, a.address)

        return min(free, key=order, default=None)

    def _carry_out(self, action: actions.CloudAction) -> None:
        match action:
            case actions.CreateEni():
                made = _interface(self._number(), card=action.card)
                self.enis[made.eni_id] = made
                self.tags[made.eni_id] = dict(action.tags)
                self._assign(made.eni_id, action.secondaries)
                self._delegate(made.eni_id, action.prefixes)
            case actions.AttachEni():
                self._change(
                    action.eni_id,
                    device=action.device,
                    card=action.card,
                    state="usable",
                    attachment_id=f"attach-{action.eni_id}",
                    attached_at=self.now,
                )
            case actions.SetDeleteOnTermination():
                self._change(action.eni_id, delete_on_termination=True)
            case actions.AssignAddresses():
                self._assign(action.eni_id, action.count)
            case actions.AssignPrefixes():
                self._delegate(action.eni_id, action.count)
            case actions.TagEni():
                self.tags[action.eni_id] |= dict(action.tags)
            case actions.SetSecurityGroups():
                pass  # they are as the node's in this world
            case actions.RegainAddresses() | actions.RegainPrefixes():
                raise errors.Bug("internal", f"nothing is taken away in this world: {action}")
            case _:
                self._take(action)

    def _take(
        self,
        action: actions.UnassignAddresses
        | actions.UnassignPrefixes
        | actions.DetachEni
        | actions.DeleteEni,
    ) -> None:
        match action:
            case actions.UnassignAddresses():
                for address in action.addresses:
                    del self.rows[address]
            case actions.UnassignPrefixes():
                gone = set(action.prefixes)
                self.prefixes = {k: p for k, p in self.prefixes.items() if k not in gone}
                self.rows = {k: a for k, a in self.rows.items() if a.prefix not in gone}
            case actions.DetachEni():
                self._change(action.eni_id, state="detaching", device=-1)
            case actions.DeleteEni():
                del self.enis[action.eni_id]
                self.rows = {k: a for k, a in self.rows.items() if a.eni_id != action.eni_id}
                self.prefixes = {
                    k: p for k, p in self.prefixes.items() if p.eni_id != action.eni_id
                }
            case _:
                assert_never(action)

    def _change(self, eni_id: str, **changes: Any) -> None:
        self.enis[eni_id] = dataclasses.replace(self.enis[eni_id], **changes)

    def _assign(self, eni_id: str, count: int) -> None:
        for _ in range(count):
            number = self._number()
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            self.rows[address] = model.Address(address, eni_id, rested_since=self.now)

    def _delegate(self, eni_id: str, count: int) -> None:
        for _ in range(count):
            number = self._number()
            cidr = f"100.{64 + (number >> 12)}.{number >> 4 & 255}.{(number & 15) << 4}/28"
            self.prefixes[cidr] = model.Prefix(cidr, eni_id)
            for ip in ipaddress.ip_network(cidr):
                self.rows[str(ip)] = model.Address(
                    str(ip), eni_id, prefix=cidr, rested_since=self.now
                )

    def _number(self) -> int:
        self._given += 1
        return self._given


def _interface(number: int, **changes: Any) -> model.Eni:
    """Interface `eni-<number>`, made and attached to nothing yet."""
    plain = model.Eni(
        eni_id=f"eni-{number}",
        mac=f"02:00:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}",
        subnet_id=_NODE.subnet_id,
        subnet_cidr="10.0.0.0/8",
        primary_ip=f"10.255.{number >> 8 & 255}.{number & 255}",
    )
    return dataclasses.replace(plain, **changes)
