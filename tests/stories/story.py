"""One story: a seed decides the node, its settings, what happens to it, and when it dies.

A story is events, each followed by time and the lanes' work and by the check of every invariant; at its
end faults stop, time passes, and all must agree. Equal seeds give equal stories. How the parts are made
does not belong here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from reconciler import settings as knobs
from tests.stories import door, scene, truths

TYPES: Final = ("t3.nano", "t3.small", "t3.medium", "m5.large")
"""2 interfaces of 1 secondary address, 3 of 3, 3 of 5, 3 of 9."""
STEPS: Final = (10, 32)
ERRORS: Final = (
    "InternalError", "Unavailable", "RequestLimitExceeded", "UnauthorizedOperation",
    "InsufficientFreeAddressesInSubnet", "IncorrectState",
)  # fmt: skip
CALLS: Final = (
    "CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute",
    "AssignPrivateIpAddresses", "UnassignPrivateIpAddresses", "DetachNetworkInterface",
    "DeleteNetworkInterface", "Describe*", "*",
)  # fmt: skip
EVENTS: Final = {
    "_pods_come": 30,
    "_pods_go": 22,
    "_pods_are_replaced": 6,
    "_sandboxes_die": 4,
    "_calls_are_repeated": 4,
    "_time_passes": 12,
    "_lag": 8,
    "_replies_are_lost": 8,
    "_calls_are_refused": 6,
    "_calls_are_throttled": 4,
    "_faults_end": 8,
    "_the_child_is_lost": 2,
    "_the_daemon_dies": 12,
    "_the_daemon_will_die": 12,
    "_the_machine_reboots": 2,
    "_the_clock_jumps": 2,
    "_metadata_differ": 5,
    "_somebody_takes_the_subnet": 3,
}
"""What may happen, and how often compared with the rest."""


class Story(scene.Scene):
    """Everything of one story. `told` are its events so far, for whoever reads of its failure."""

    def __init__(self, seed: int, folder: Path, *, aloud: bool = False) -> None:
        rng = random.Random(f"node {seed}")
        super().__init__(
            seed,
            folder,
            instance_type=rng.choice(TYPES),
            settings=_settings(rng),
            delay=rng.choice((0, 1.5, 8)),
        )
        self.aloud = aloud
        self.runtime.forgetful = rng.choice((0, 0, 0.5))
        self.intrusive = rng.choice((0, 0.05, 0.2))
        self.counts: dict[str, int] = {}
        self.jumps = 0
        self.squatters: list[str] = []
        self._intruding = False

    def _happened(self) -> dict[str, int]:
        """How much of what there was in this story."""
        rows = self.ec2.journal.rows(who=self.ec2.node)
        return {
            "stories": 1,
            "events": len(self.told),
            "deaths": self.machine.crashes,
            "EC2 calls": len(rows),
            "lost replies": sum(row.lost for row in rows),
            "refused EC2 calls": sum(row.outcome != "ok" for row in rows),
            "pods served": len(self.machine.rows("SELECT id FROM v_leases WHERE address <> ''")),
            "refused pods": len(self.runtime.refusals),
        }

    # ------------------------------------------------------------------ telling

    def tell(self) -> None:
        """All of it. Broken if an invariant does not hold; any other exception is a bug as well."""
        with self.opened():
            self.say(_briefly(self.machine.settings))
            self.start()
            self.check()
            for _ in range(self.rng.randint(*STEPS)):
                self._step(self._event())
            self.say("faults stop")
            self._calm()
            if self.machine.running and self.rng.random() < 0.3:
                self.machine.fuse = self.rng.randrange(40)
            self.settle()
            truths.budget_kept(self.machine, slack=self.machine.crashes + 24 * self.jumps)
            self.counts = self._happened()

    def _step(self, event: Callable[[], str]) -> None:
        self.say(event())
        self.work()
        self.check()
        self.pass_(self.rng.choice((0, 0.2, 1, 5, 20, 61)))
        if self.rng.random() < 0.7:
            self.start()
        self.runtime.reconcile()
        self.work()
        self.check()

    def _calm(self) -> None:
        self._end_faults()
        self.cloud.api_lag = self.cloud.imds_lag = 0
        self.intrusive, self.machine.fuse, self.runtime.forgetful = 0, None, 0

    def _end_faults(self) -> None:
        self.ec2.faults.clear()
        self.ec2.buckets.scale = None
        self.lossy, self.metadata.down = 0, False
        self.metadata.hides, self.metadata.invents = set(), []
        for eni_id in self.squatters:
            self.operator("DeleteNetworkInterface", NetworkInterfaceId=eni_id)
        self.squatters = []

    # ------------------------------------------------------------------ events

    def _event(self) -> Callable[[], str]:
        name = self.rng.choices([*EVENTS], [*EVENTS.values()])[0]
        event: Callable[[], str] = getattr(self, name)
        return event

    def _pods_come(self) -> str:
        count = self.rng.choice((1, 1, 1, 2, 3, 5, 9))
        self.runtime.want(count)
        return f"{count} pods come"

    def _pods_go(self) -> str:
        count = self.rng.choice((1, 1, 2, 3, 5, 30))
        self.runtime.drop(count)
        return f"{count} pods go"

    def _pods_are_replaced(self) -> str:
        self.runtime.replace(2)
        return "2 pods are replaced"

    def _sandboxes_die(self) -> str:
        self.runtime.lose(self.rng.choice((1, 3)))
        return "sandboxes die"

    def _calls_are_repeated(self) -> str:
        self.runtime.ask_again()
        self.runtime.delete_twice()
        return "calls are repeated"

    def _time_passes(self) -> str:
        seconds = self.rng.choice((61, 125, 301))
        self.pass_(seconds)
        return f"{seconds} s pass"

    def _lag(self) -> str:
        lags = (0, 0, 0.5, 3, 20, 120, 300)
        self.cloud.api_lag, self.cloud.imds_lag = self.rng.choice(lags), self.rng.choice(lags)
        return f"EC2 lags {self.cloud.api_lag} s, metadata {self.cloud.imds_lag} s"

    def _replies_are_lost(self) -> str:
        op, times = self.rng.choice(CALLS), self.rng.choice((1, 1, 2, 5))
        self.ec2.faults.add(
            op=op, who=self.ec2.node, drop=True, times=times, prob=self.rng.choice((0.5, 1))
        )
        return f"{times} replies to {op} are lost"

    def _calls_are_refused(self) -> str:
        op, error = self.rng.choice(CALLS), self.rng.choice(ERRORS)
        times = self.rng.choice((1, 3, None))
        self.ec2.faults.add(op=op, who=self.ec2.node, error=error, times=times)
        return f"{times} calls of {op} are refused with {error}"

    def _calls_are_throttled(self) -> str:
        self.ec2.buckets.scale = self.rng.choice((0, 0.02, 0.1))
        return f"EC2 throttles to {self.ec2.buckets.scale}"

    def _faults_end(self) -> str:
        self._end_faults()
        return "faults end"

    def _the_child_is_lost(self) -> str:
        self.lossy = 0.2
        return "the child is lost now and then"

    def _the_daemon_dies(self) -> str:
        self.kill()
        if self.rng.random() < 0.2:
            self.machine.settings = _settings(self.rng)
            self.say(_briefly(self.machine.settings))
        if self.rng.random() < 0.6:
            self.start()
        return "the daemon dies"

    def _the_daemon_will_die(self) -> str:
        self.machine.fuse = self.rng.randrange(25)
        return f"the daemon will die in {self.machine.fuse} instants"

    def _the_machine_reboots(self) -> str:
        self.machine.reboot()
        self.notice_death()
        self.runtime.machine_rebooted()
        self.start()
        return "the machine reboots"

    def _the_clock_jumps(self) -> str:
        jump = self.rng.choice((-3_600_000, -120_000, -5_000, 5_000, 120_000, 3_600_000))
        self.time.skew_ms += jump
        self.jumps += 1
        return f"the node's clock jumps by {jump / 1000:+} s"

    def _metadata_differ(self) -> str:
        """A subset, a superset, or nothing at all."""
        held = door.truth(self.cloud, self.ec2.node)
        names = [*held, *(a for eni in held.values() for a in door.secondaries(eni))]
        self.metadata.hides = {name for name in names if self.rng.random() < 0.3}
        self.metadata.hides -= {
            i for i, e in held.items() if e.get("Attachment", {}).get("DeviceIndex") == 0
        }
        self.metadata.down = self.rng.random() < 0.2
        self.metadata.invents = []
        if self.rng.random() < 0.5 and held:
            self.metadata.invents = [self._invented(next(iter(held.values())))]
        return f"metadata hide {len(self.metadata.hides)}, down {self.metadata.down}"

    def _somebody_takes_the_subnet(self) -> str:
        """Other tenants of the subnet leave a handful of addresses."""
        subnet = self.world.subnets[0]
        left = self.rng.choice((0, 1, 3))
        while (free := self.cloud.occupancy[subnet][4].free()) > left:
            wish: dict[str, Any] = {"SubnetId": subnet}
            if free - left > 1:
                wish["SecondaryPrivateIpAddressCount"] = min(free - left - 1, 49)
            made = self.operator("CreateNetworkInterface", **wish)
            self.squatters.append(made["NetworkInterface"]["NetworkInterfaceId"])
        return f"the subnet has {left} addresses left"

    # ------------------------------------------------------------------ particulars

    def arrives(self, action: str, params: dict[str, Any]) -> None:
        """Watched, and perhaps with a pod that comes or goes meanwhile."""
        super().arrives(action, params)
        self._intrude()

    def leaves(self, action: str) -> None:
        """Likewise."""
        self._intrude()
        super().leaves(action)

    def _intrude(self) -> None:
        """A pod comes or goes while a call is under way."""
        if self._intruding or self.rng.random() >= self.intrusive:
            return
        self._intruding = True
        try:
            if self.rng.random() < 0.5:
                self.runtime.want(1)
            else:
                self.runtime.drop(1)
        finally:
            self._intruding = False

    def _invented(self, eni: dict[str, Any]) -> dict[str, Any]:
        number = self.rng.randrange(256)
        return {
            **eni,
            "NetworkInterfaceId": f"eni-0{self.rng.getrandbits(64):016x}",
            "MacAddress": f"02:ff:00:00:00:{number:02x}",
            "PrivateIpAddresses": [
                {"PrivateIpAddress": f"10.0.0.{number}", "Primary": True},
                {"PrivateIpAddress": f"10.0.0.{number ^ 1}", "Primary": False},
            ],
            "Attachment": {"DeviceIndex": 9, "AttachmentId": "eni-attach-0", "Status": "attached"},
        }


def _settings(rng: random.Random) -> knobs.Settings:
    pick = rng.choice
    by_address = pick((True, False))
    return knobs.Settings(
        warm_eni_target=pick((0, 1, 1, 2)),
        warm_ip_target=pick((0, 1, 2, 5)) if by_address else 0,
        minimum_ip_target=pick((0, 0, 3, 8)) if by_address else 0,
        max_eni=pick((None, None, 1, 2)),
        ip_cooldown_ms=pick((0, 5_000, 30_000)),
        add_wait_ms=pick((0, 5_000)),
    )


def _briefly(settings: knobs.Settings) -> str:
    """What differs from the defaults."""
    plain = knobs.Settings()
    fields = [field.name for field in knobs.knobs()]
    changed = {f: getattr(settings, f) for f in fields if getattr(settings, f) != getattr(plain, f)}
    return f"settings {changed}"


def tell(seed: int) -> dict[str, int]:
    """What happened in the story of this seed, told to its end in a folder of its own."""
    with scene.folder() as folder:
        story = Story(seed, folder)
        try:
            story.tell()
        except Exception as error:
            error.add_note("\n".join(story.told))
            raise
        return story.counts
