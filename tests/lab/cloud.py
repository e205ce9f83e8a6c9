"""The simulated EC2 of one region: state in wire shape, its past, its timers, its news.

Operations live beside this file, one module per noun, each with a table `OPERATIONS` from the
operation's name to a function `(cloud, params, who) -> result`.
Does not belong here: HTTP, signatures, throttling, injected faults.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.lab.errors import ApiError

if TYPE_CHECKING:
    from tests.lab.clock import Clock

__all__ = ["ApiError", "Cloud"]

Hook = Callable[[str, dict[str, Any]], None]


class Cloud:
    """One account in one region. Not thread-safe: hold `lock` around every method."""

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 0,
        region: str = "eu-west-1",
        account: str = "111122223333",
        attach_delay: float = 1.5,
        detach_delay: float = 1.5,
        start_delay: float = 1.0,
        stop_delay: float = 1.0,
        api_lag: float = 0.0,
        imds_lag: float = 0.0,
    ) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.rng = random.Random(seed)
        self.region = region
        self.account = account
        self.attach_delay = attach_delay
        self.detach_delay = detach_delay
        self.start_delay = start_delay
        self.stop_delay = stop_delay
        self.api_lag = api_lag
        self.imds_lag = imds_lag
        self.hooks: list[Hook] = []

    def call(self, operation: str, params: dict[str, Any], who: str) -> dict[str, Any]:
        """Carry out one EC2 operation for `who`; boto3's shapes in and out."""
        raise NotImplementedError

    def interfaces_of(self, instance_id: str, *, ago: float = 0.0) -> list[dict[str, Any]]:
        """The attached interfaces of an instance, by card and device index, `ago` seconds ago."""
        raise NotImplementedError

    def instance(self, instance_id: str, *, ago: float = 0.0) -> dict[str, Any] | None:
        """An instance in DescribeInstances shape as it was `ago` seconds ago."""
        raise NotImplementedError

    def owner_of_source(self, ip: str) -> str | None:
        """The id of the instance whose attached interface holds this private address now."""
        raise NotImplementedError

    def next_due(self) -> float | None:
        """When the earliest timer is due, in seconds since the epoch."""
        raise NotImplementedError

    def run_due(self) -> None:
        """Fire every timer that is due by the clock."""
        raise NotImplementedError
