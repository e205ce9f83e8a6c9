"""A lab over HTTP with one or two instances, for the tests of what talks to EC2 and metadata.

It runs in this process, so a test reaches its faults, clock and journal directly; the code under test
reaches it by URL alone. What the lab itself does right is not tested here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from reconciler import settings as knobs
from tests.lab import inproc, world
from tests.lab.clock import RealClock
from tests.lab.cloud import Cloud
from tests.lab.frontdoor import FrontDoor
from tests.lab.mounts import Loopback


@dataclass(frozen=True, slots=True)
class Ec2Lab:
    """One lab; `client` is the operator's."""

    front: FrontDoor
    mount: Loopback
    built: world.World
    client: Any

    @property
    def instance(self) -> str:
        """The first instance's id."""
        return self.built.instances[0]

    def settings(self, **more: Any) -> knobs.Settings:
        """Settings of a daemon on the first instance."""
        return knobs.Settings(
            ec2_endpoint=self.mount.endpoint, imds_endpoint=self.mount.imds(self.instance), **more
        )

    def fault(self, op: str, **rule: Any) -> None:
        """Make calls of `op` go wrong."""
        with self.front.cloud.lock:
            self.front.faults.add(op=op, **rule)

    def called(self, *actions: str) -> list[tuple[str, str]]:
        """Action and outcome of the first instance's calls, only those named if any are."""
        with self.front.cloud.lock:
            rows = self.front.journal.rows(who=self.instance)
        return [(row.action, row.outcome) for row in rows if not actions or row.action in actions]

    def interfaces(self) -> list[dict[str, Any]]:
        """All interfaces as they are, whatever the lag."""
        with self.front.cloud.lock:
            self.front.cloud.run_due()
            return self.front.cloud.scan("interface")


@contextmanager
def opened(instance_type: str = "m5.large", **dials: float) -> Iterator[Ec2Lab]:
    """A running lab. Delays are 0 unless dialled, so that what is asked is done at once."""
    cloud = Cloud(RealClock(), start_delay=0.0, **({"attach_delay": 0, "detach_delay": 0} | dials))  # type: ignore[arg-type]  # delays by name
    front = FrontDoor(cloud, throttle=None)
    client = inproc.client(front)
    built = world.build(client, instances=1, instance_type=instance_type)
    with Loopback.open(front) as mount:
        yield Ec2Lab(front, mount, built, client)


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the tester's own AWS settings: credentials are to come from the lab's metadata."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
