"""The simulated EC2 of one region: one door for every operation, and the news of what changed.

Operations live beside this file, one module per noun, each with a table `OPERATIONS` from the
operation's name to a function `(cloud, params) -> result`.
Does not belong here: HTTP, signatures, throttling, injected faults.
"""

from __future__ import annotations

import datetime
import random
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.lab import (
    addresses,
    attachments,
    elastic,
    errors,
    groups,
    instances,
    interfaces,
    launches,
    permissions,
    store,
    subnets,
    tags,
    trunks,
    types,
    vpcs,
)
from tests.lab.errors import ApiError

if TYPE_CHECKING:
    from tests.lab.clock import Clock
    from tests.lab.occupancy import Occupancy

__all__ = ["ApiError", "Cloud"]

Item = store.Item
Operation = Callable[["Cloud", Item], Item]

OPERATIONS: dict[str, Operation] = {
    **vpcs.OPERATIONS,
    **subnets.OPERATIONS,
    **groups.OPERATIONS,
    **permissions.OPERATIONS,
    **types.OPERATIONS,
    **launches.OPERATIONS,
    **instances.OPERATIONS,
    **interfaces.OPERATIONS,
    **attachments.OPERATIONS,
    **addresses.OPERATIONS,
    **trunks.OPERATIONS,
    **elastic.OPERATIONS,
    **tags.OPERATIONS,
}

_IDEMPOTENT = {"CreateNetworkInterface", "RunInstances", "AssociateTrunkInterface"}


class Cloud(store.Store):
    """One account in one region. Not thread-safe: hold `lock` around every method.

    Delays and lags are seconds and may be changed at any time. `hooks` are called with the lock
    held, after the state changed, as `hook(event, news)`:

    - "instance-running" {instance}, then "attached" {eni} for each of its first interfaces
    - "attached" {eni}; "detached" {eni, instance_id}; "deleted" {eni_id}
    - "addresses", "source-check", "groups" {eni}; "rules" {group}
    - "instance-terminated" {instance_id}
    """

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
        super().__init__(clock)
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
        self.hooks: list[Callable[[str, Item], None]] = []
        self.caller = "operator"
        self.occupancy: dict[str, dict[int, Occupancy]] = {}
        """Subnet id -> family (4, 6) -> which of its addresses are taken, at present."""
        self.companions: dict[str, set[str]] = {}
        """Instance id -> every interface ever attached to it (readers check the attachment)."""
        self.reservations: dict[str, str] = {}
        """Instance id -> the launch it came from."""
        self.macs: set[str] = set()
        self._tokens: dict[tuple[str, str], tuple[Item, Item]] = {}

    def call(self, operation: str, params: Item, who: str) -> Item:
        """Carry out one EC2 operation for `who`; boto3's shapes in and out, or ApiError."""
        self.run_due()
        act = OPERATIONS.get(operation)
        if act is None:
            raise ApiError(
                "InvalidAction", f"The action {operation} is not valid for this web service."
            )
        if params.get("DryRun"):
            raise ApiError(
                "DryRunOperation",
                "Request would have succeeded, but DryRun flag is set.",
                status=412,
            )
        self.caller = who
        token = params.get("ClientToken") if operation in _IDEMPOTENT else None
        if token is None:
            result = act(self, params)
        else:
            result = self._once(operation, token, act, params)
        answer: Item = store.copied(result)  # a caller may keep and change what it got
        self.run_due()  # with a delay of 0 the consequence is there when the call returns
        return answer

    def _once(self, operation: str, token: str, act: Operation, params: Item) -> Item:
        """EC2's idempotency: the same token and request give the first answer again."""
        request = {key: part for key, part in params.items() if key != "ClientToken"}
        before = self._tokens.get((operation, token))
        if before is not None:
            if before[0] != request:
                raise ApiError(
                    "IdempotentParameterMismatch",
                    "Arguments on this idempotent request are inconsistent with arguments used "
                    "in previous request(s).",
                )
            return before[1]
        result = act(self, params)
        self._tokens[operation, token] = (store.copied(request), result)
        return result

    # What operations share.

    def new_id(self, prefix: str) -> str:
        """A fresh identifier in EC2's long form."""
        return f"{prefix}-0{self.rng.getrandbits(64):016x}"

    def stamp(self) -> datetime.datetime:
        """The present moment as EC2 shows times: UTC, whole seconds."""
        return datetime.datetime.fromtimestamp(int(self.moment()), datetime.UTC)

    def need(self, kind: str, prefix: str, identifier: str) -> Item:
        """The present item, or EC2's Malformed or NotFound."""
        check_id(prefix, identifier)
        item = self.get(kind, identifier)
        if item is None:
            raise errors.not_found(prefix, [identifier])
        return item

    def seen(self, kind: str, prefix: str, ids: list[str] | None) -> list[Item]:
        """What a Describe sees: the ids asked for (all must exist), or everything; lag applies."""
        if not ids:
            return self.scan(kind, self.api_lag)
        for identifier in ids:
            check_id(prefix, identifier)
        found = {identifier: self.get(kind, identifier, self.api_lag) for identifier in ids}
        absent = [identifier for identifier, item in found.items() if item is None]
        if absent:
            raise errors.not_found(prefix, absent)
        return [item for item in found.values() if item is not None]

    def emit(self, event: str, **news: Any) -> None:
        """Tell the hooks; they get copies."""
        for hook in self.hooks:
            hook(event, store.copied(news))

    # What the metadata service and the fabric ask.

    def interfaces_of(self, instance_id: str, *, ago: float = 0.0) -> list[Item]:
        """The attached interfaces of an instance, by card and device index, `ago` seconds ago."""
        found = attachments.held_by(self, instance_id, ago)
        return [store.copied(eni) for eni in found if eni["Attachment"]["Status"] == "attached"]

    def instance(self, instance_id: str, *, ago: float = 0.0) -> Item | None:
        """An instance in DescribeInstances shape as it was `ago` seconds ago."""
        item = self.get("instance", instance_id, ago)
        if item is None:
            return None
        shown: Item = store.copied(instances.shown(self, item, ago))
        return shown

    def owner_of_source(self, ip: str) -> str | None:
        """The id of the instance whose attached interface holds this private address now."""
        return attachments.instance_behind(self, ip)


def check_id(prefix: str, identifier: str) -> None:
    """EC2's Malformed unless the id has the prefix and 8 or 17 hex digits."""
    if not re.fullmatch(rf"{prefix}-(?:[0-9a-f]{{8}}|[0-9a-f]{{17}})", identifier):
        raise errors.malformed(prefix, identifier)
