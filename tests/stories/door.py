"""The lab's EC2, instance metadata and API server behind the daemon's real providers, in this process.

Real are providers.ec2, providers.imds and providers.cluster with all their classification and repetition, botocore's
serializer and parser, the lab's front door with its buckets and faults, and the JSON of the pipe. Left out
are sockets, signatures and the child as a
process. Time is the story's. What goes wrong, and when, is the story's business and does not belong here.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import random
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

import urllib3

from reconciler import cloud as clouds
from reconciler import settings as knobs
from reconciler.planner import notation
from reconciler.providers import cluster, ec2, imds
from tests.lab import accounting, apiserver, inproc, server
from tests.lab import imds as metadata
from tests.lab.cloud import Cloud
from tests.lab.errors import ApiError
from tests.lab.frontdoor import FrontDoor, _Call
from tests.lab.reply import Reply

CALL_S: Final = (0.02, 0.4)
"""How long an EC2 call takes at least and at most."""

OF_THE_WISH: Final = frozenset({"InsufficientFreeAddressesInSubnet", "IncorrectState"})
"""Codes that speak of what was asked for, not of EC2's health or of who asked."""

Item = dict[str, Any]


class Ec2Door(FrontDoor):
    """EC2's front door, with somebody who watches one node's calls.

    `arrives(action, params)` is called before a call of the node's is looked at, `leaves(action)` when it
    has been carried out and its reply is on the way; either may raise what ends the daemon.
    """

    def __init__(self, cloud: Cloud, *, seed: int) -> None:
        super().__init__(cloud, throttle=None, seed=seed)
        self.node = ""
        self.arrives: Callable[[str, Item], None] = lambda _action, _params: None
        self.leaves: Callable[[str], None] = lambda _action: None
        self.pace = CALL_S
        self._rng = random.Random(f"pace {seed}")
        self._asked: str | None = None

    def answer(self, form: str, authorization: str | None) -> Reply | None:
        """As the front door does, in the time that a call takes."""
        reply = super().answer(form, authorization)
        asked, self._asked = self._asked, None
        if asked is not None:
            self._take_time()
            self.leaves(asked)
        return reply

    def _meet_faults(self, call: _Call) -> None:
        if call.who == self.node:
            self._take_time()
            self.arrives(call.action, call.params)
            self._asked = call.action
        try:
            super()._meet_faults(call)
        except ApiError as refused:
            # No question is refused so, and what is known by its token is answered before it is looked at.
            looks = call.action.startswith("Describe")
            if refused.code not in OF_THE_WISH or not (looks or self._knows(call)):
                raise
            call.cause = "cloud"

    def _knows(self, call: _Call) -> bool:
        return (call.action, call.params.get("ClientToken")) in self.cloud._tokens

    def _take_time(self) -> None:
        self.cloud.clock.sleep(self._rng.uniform(*self.pace) / 2)


class Metadata(metadata.Imds):
    """Instance metadata whose list of interfaces may leave some out or show what is not so.

    `hides` are interface ids, addresses and prefixes, `invents` items as EC2 would show them; `down` answers 500.
    """

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(cloud)
        self.hides: set[str] = set()
        self.invents: list[Item] = []
        self.down = False
        self._moment: object = None
        self._shown: object = None
        self._kept: dict[str, Reply] = {}

    def answer(self, instance_id: str, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """As the service does, or 500."""
        if self.down:
            return Reply(500, b"")
        kept = self._replies(instance_id) if method == "GET" else {}
        if path not in kept:
            reply = super().answer(instance_id, method, path, headers)
            if reply.status not in (200, 404):
                return reply
            kept[path] = reply
        return kept[path]

    def _replies(self, instance_id: str) -> dict[str, Reply]:
        """What was answered since the interfaces last changed: most looks find nothing new."""
        names = frozenset(self.hides), tuple(eni["NetworkInterfaceId"] for eni in self.invents)
        moment = (self._cloud.clock.now(), self._cloud.imds_lag, instance_id, *names)
        if self._moment != moment:
            with self._cloud.lock:
                self._cloud.run_due()
                shown = (instance_id, repr(self._interfaces({"InstanceId": instance_id})))
            if self._shown != shown:
                self._kept.clear()
            self._moment, self._shown = moment, shown
        return self._kept

    def _interfaces(self, instance: Item) -> list[Item]:
        shown = []
        for eni in (*super()._interfaces(instance), *self.invents):
            if eni["NetworkInterfaceId"] in self.hides:
                continue
            private = eni.get("PrivateIpAddresses", [])
            kept = [a for a in private if a["Primary"] or a["PrivateIpAddress"] not in self.hides]
            blocks = [p for p in eni.get("Ipv4Prefixes", ()) if p["Ipv4Prefix"] not in self.hides]
            shown.append({**eni, "PrivateIpAddresses": kept, "Ipv4Prefixes": blocks})
        return shown


class _Connection:
    """The part of http.client's connection that the imds provider uses."""

    def __init__(self, service: Metadata, instance_id: str) -> None:
        self._service, self._instance_id = service, instance_id
        self._reply = Reply(500, b"")

    def request(self, method: str, path: str, headers: dict[str, str]) -> None:
        lower = {name.lower(): value for name, value in headers.items()}
        self._reply = self._service.answer(self._instance_id, method, path, lower)

    def getresponse(self) -> SimpleNamespace:
        return SimpleNamespace(status=self._reply.status, read=lambda: self._reply.body)

    def close(self) -> None:
        pass


class _ToTheCluster:
    """The part of the Kubernetes client's connection, and of its configuration, that the provider uses."""

    host = "https://api"

    def __init__(self, api: apiserver.ApiServer) -> None:
        self._api = api

    def auth_settings(self) -> dict[str, dict[str, str]]:
        return {"BearerToken": {"value": f"Bearer {apiserver.TOKEN}"}}

    def request(self, method: str, url: str, headers: dict[str, str], **_: Any) -> SimpleNamespace:
        asked = server.Request(method, url.removeprefix(self.host), "", headers, b"", "")
        reply = self._api.answer(asked)
        if reply is None:
            raise urllib3.exceptions.ProtocolError("the connection was closed without a word")
        return SimpleNamespace(status=reply.status, read=lambda: reply.body)


class Time:
    """The time module as the providers use it, on the story's clock; `skew_ms` is the node's error."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.skew_ms = 0

    def time_ns(self) -> int:
        return self.now_ms() * 1_000_000

    def now_ms(self) -> int:
        """What the node's clock shows, in ms since the epoch."""
        return int(self._cloud.clock.now() * 1000) + self.skew_ms

    def elapsed_ms(self) -> int:
        """A clock that nobody sets, in ms."""
        return int(self._cloud.clock.now() * 1000)

    def monotonic(self) -> float:
        return self._cloud.clock.now()

    def sleep(self, seconds: float) -> None:
        self._cloud.clock.sleep(seconds)
        with self._cloud.lock:
            self._cloud.run_due()


class _Child:
    """The child that holds the providers, without a process: the same answers through the same JSON."""

    process = SimpleNamespace(pid=0)

    def __init__(self, hands: clouds._Hands, lost: Callable[[], bool]) -> None:
        self._hands, self._lost = hands, lost

    def ask(self, question: dict[str, object], _patience_s: float) -> dict[str, Any]:
        asked = notation.read(json.loads(json.dumps(notation.written(question))))
        if self._lost():
            raise clouds._LostError("the child ended", sent=True, code="ConnectionClosed")
        answer = self._hands.answer(asked["do"], asked["node"], asked)
        made = [vars_of(call) for call in self._hands.calls]
        self._hands.calls.clear()
        reply: dict[str, Any] = json.loads(
            json.dumps(notation.written({"answer": answer, "calls": made}))
        )
        return reply

    def end(self) -> None:
        pass

    def kill(self) -> None:
        pass


def vars_of(call: ec2.Call) -> dict[str, object]:
    """A call's fields, as the child writes them."""
    return {name: getattr(call, name) for name in ec2.Call.__slots__}


@contextlib.contextmanager
def opened(
    door: Ec2Door,
    service: Metadata,
    api: apiserver.ApiServer,
    time: Time,
    rng: random.Random,
    lost: Callable[[], bool],
) -> Iterator[None]:
    """Have every cloud.Cloud made meanwhile talk to `door`, `service` and `api`, on the story's clock."""

    def child(settings: knobs.Settings) -> _Child:
        hands = clouds._Hands(settings)
        hands._imds._connection = _Connection(service, door.node)  # type: ignore[assignment]  # answers as http.client's does
        to_the_cluster: Any = _ToTheCluster(api)
        hands._cluster._found = (to_the_cluster, to_the_cluster)
        return _Child(hands, lost)

    def client(_region: str, _settings: knobs.Settings) -> Any:
        return _client().of(door, accounting.access_key(door.node))

    with (
        mock.patch.object(clouds, "_Child", child),
        mock.patch.object(clouds, "time", time),
        mock.patch.object(ec2, "_client", client),
        mock.patch.object(ec2, "time", time),
        mock.patch.object(ec2, "random", rng),
        mock.patch.object(imds, "time", time),
        mock.patch.object(cluster, "time", time),
    ):
        yield


def operator(door: Ec2Door) -> Any:
    """A client of EC2's for whoever sets the scene."""
    return _client().of(door, "AKIAOPERATOR")


class _Client:
    """One boto3 client for all stories of this process (each costs 12 ms), with whose name it signs."""

    def __init__(self) -> None:
        self.door: FrontDoor | None = None
        self.key = ""
        self.cloud = SimpleNamespace(region="eu-west-1")
        switch: Any = self
        self.boto = inproc.client(switch)

    def of(self, door: Ec2Door, key: str) -> Any:
        self.door, self.key = door, key
        return self.boto

    def answer(self, form: str, _authorization: str | None) -> Reply | None:
        assert self.door is not None
        signed = f"AWS4-HMAC-SHA256 Credential={self.key}/20260101/eu-west-1/ec2/aws4_request"
        return self.door.answer(form, signed)


def speak_as(door: Ec2Door, instance_id: str) -> None:
    """The next calls of a daemon's are this instance's: for more than one node at one door."""
    door.node = instance_id
    _client().of(door, accounting.access_key(instance_id))


@functools.cache
def _client() -> _Client:
    return _Client()


def truth(cloud: Cloud, instance_id: str) -> dict[str, Item]:
    """The instance's interfaces as they are at this moment, whatever anybody is shown, by id.

    Attached ones and those that carry the instance's tag.
    """
    with cloud.lock:
        cloud.run_due()
        return {
            eni["NetworkInterfaceId"]: eni
            for eni in cloud.scan("interface")
            if eni.get("Attachment", {}).get("InstanceId") == instance_id
            or any(tag["Value"] == instance_id for tag in eni.get("TagSet", ()))
        }


def secondaries(eni: Item) -> set[str]:
    """The addresses of an interface but for its primary one, those of delegated prefixes included."""
    single = {a["PrivateIpAddress"] for a in eni["PrivateIpAddresses"] if not a["Primary"]}
    blocks = [ipaddress.ip_network(each["Ipv4Prefix"]) for each in eni.get("Ipv4Prefixes", ())]
    return single | {str(address) for block in blocks for address in block}


def free_blocks(cloud: Cloud, subnet: str) -> list[ipaddress.IPv4Network]:
    """The /28s of the subnet that EC2 could delegate at this moment."""
    with cloud.lock:
        cloud.run_due()
        network = ipaddress.IPv4Network(cloud.need("subnet", "subnet", subnet)["CidrBlock"])
        whole = cloud.occupancy[subnet][4].block_is_free
        every = network.subnets(new_prefix=28)
        return [block for block in every if whole(int(block.network_address))]
