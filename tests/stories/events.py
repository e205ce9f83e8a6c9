"""What may happen to a node, and how often: pods, deaths, faults of EC2 and of metadata, settings, neighbours.

Each event does it at once and says so in a few words. When they come, and what must be true after each, does
not belong here.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Final

from reconciler import settings as knobs
from reconciler.planner import budget
from tests.stories import door, neighbours, scene

ERRORS: Final = (
    "InternalError", "Unavailable", "RequestLimitExceeded", "UnauthorizedOperation",
    "InsufficientFreeAddressesInSubnet", "InsufficientCidrBlocks", "IncorrectState",
)  # fmt: skip
TURNED_AWAY: Final = "The lab was asked to refuse this call."
NO_BLOCKS: Final = "The specified subnet does not have enough free cidr blocks"
CALLS: Final = (
    "CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute",
    "AssignPrivateIpAddresses", "UnassignPrivateIpAddresses", "DetachNetworkInterface",
    "DeleteNetworkInterface", "CreateTags", "Describe*", "*",
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
    "_the_settings_change": 3,
    "_prefixes_are_switched": 5,
    "_ec2_is_frozen": 2,
    "_the_machine_reboots": 2,
    "_the_clock_jumps": 2,
    "_metadata_differ": 5,
    "_somebody_takes_the_subnet": 4,
    "_somebody_is_at_the_instance": 5,
    "_the_groups_change": 2,
    "_the_cluster_speaks": 3,
}
"""What may happen, and how often compared with the rest."""


class Events(scene.Scene):
    """A scene to which things happen."""

    jumps = 0
    """How often the node's clock was set."""
    news = False
    """Somebody was at the instance, of which the node hears at its next look, within an hour."""

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
        message = NO_BLOCKS if error == "InsufficientCidrBlocks" else TURNED_AWAY
        self.ec2.faults.add(op=op, who=self.ec2.node, error=error, message=message, times=times)
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
        if self.rng.random() < 0.1:
            self._set_anew()
        if self.rng.random() < 0.6:
            self.start()
        return "the daemon dies"

    def _the_settings_change(self) -> str:
        """An operator changes one or all of them; that is a restart, as every change of a DaemonSet's."""
        self.kill()
        self._set_anew()
        self.start()
        return "the daemon starts with other settings"

    def _prefixes_are_switched(self) -> str:
        """ENABLE_PREFIX_DELEGATION, on or off, under whatever pods there are."""
        now = self.machine.settings
        self.kill()
        self._set(dataclasses.replace(now, prefix_delegation=not now.prefix_delegation))
        self.start()
        return "prefix delegation is switched"

    def _ec2_is_frozen(self) -> str:
        """VPCLEDGER_FREEZE, or somebody else provides addresses from now on; or neither any more."""
        self.kill()
        kinds: tuple[budget.Freeze, ...] = ("none", "none", "release", "cloud")
        freeze, others = self.rng.choice(kinds), self.rng.random() < 0.2
        now = self.machine.settings
        self._set(dataclasses.replace(now, freeze=freeze, no_provisioning=others))
        self.start()
        return "the daemon starts with EC2 frozen, or thawed"

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
        self.runtime.clock_jumped()
        return f"the node's clock jumps by {jump / 1000:+} s"

    def _metadata_differ(self) -> str:
        """A subset, a superset, or nothing at all."""
        held = door.truth(self.cloud, self.ec2.node)
        names = [*held]
        for eni in held.values():
            names += [each["PrivateIpAddress"] for each in eni["PrivateIpAddresses"]]
            names += [each["Ipv4Prefix"] for each in eni.get("Ipv4Prefixes", ())]
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
        """Other tenants leave a handful of addresses, or of blocks, or one address in each of them."""
        left = self.rng.choice((0, 1, 3))
        if self.rng.random() < 0.5:
            self.neighbours.take_all_but(left)
            return f"the subnet has {left} addresses left"
        self.neighbours.break_up(left)
        return f"the subnet has {left} free blocks left"

    def _somebody_is_at_the_instance(self) -> str:
        theirs, self.news = self.neighbours, True
        return self.rng.choice((theirs.attach, theirs.attach, theirs.detach, theirs.mark))()

    def _the_groups_change(self) -> str:
        return self.neighbours.regroup()

    def _the_cluster_speaks(self) -> str:
        return self.neighbours.cordon()

    # ------------------------------------------------------------------ particulars

    def _set_anew(self) -> None:
        self._set(settings(self.rng))

    def _set(self, wanted: knobs.Settings) -> None:
        self.machine.settings = wanted
        self.say(briefly(wanted))

    def _end_faults(self) -> None:
        self.ec2.faults.clear()
        self.ec2.buckets.scale = None
        self.lossy, self.metadata.down = 0, False
        self.metadata.hides, self.metadata.invents = set(), []
        self.neighbours.calm()

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


def settings(rng: random.Random) -> knobs.Settings:
    """Any that an operator may have."""
    pick = rng.choice
    by_address = pick((True, False))
    asks_the_cluster = rng.random() < 0.3
    return knobs.Settings(
        warm_eni_target=pick((0, 1, 1, 2)),
        warm_ip_target=pick((0, 1, 2, 5)) if by_address else 0,
        minimum_ip_target=pick((0, 0, 3, 8)) if by_address else 0,
        prefix_delegation=rng.random() < 0.4,
        warm_prefix_target=pick((0, 1, 1, 2)),
        max_pods=pick((None, None, None, 6)),
        max_eni=pick((None, None, 1, 2)),
        ip_cooldown_ms=pick((0, 5_000, 30_000)),
        add_wait_ms=pick((0, 5_000)),
        node_name=neighbours.NODE_NAME if asks_the_cluster else "",
        kubernetes_host="api" if asks_the_cluster else "",
        manage_unschedulable=asks_the_cluster and rng.random() < 0.2,
    )


def briefly(wanted: knobs.Settings) -> str:
    """What differs from the defaults."""
    plain = knobs.Settings()
    fields = [field.name for field in knobs.knobs()]
    changed = {f: getattr(wanted, f) for f in fields if getattr(wanted, f) != getattr(plain, f)}
    return f"settings {changed}"
