"""The lab in process: a boto3 client whose HTTP goes straight to the front door, no sockets.

Together with a virtual clock a story of hours takes milliseconds and repeats exactly. What a
socket would add (timeouts, keep-alive, IMDS) does not belong here.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError

from tests.lab import accounting
from tests.lab.clock import VirtualClock
from tests.lab.cloud import Cloud
from tests.lab.frontdoor import FrontDoor

URL = "http://ec2.lab/"


class InProcess:
    """A cloud on a virtual clock, its front door, and clients of it.

    `options` are the cloud's. Throttling is real unless `throttle` scales it or is None.
    """

    def __init__(self, *, throttle: float | None = 1.0, seed: int = 0, **options: Any) -> None:
        self.clock = VirtualClock()
        self.cloud = Cloud(self.clock, seed=seed, **options)
        self.front = FrontDoor(self.cloud, throttle=throttle, seed=seed)

    def client(self, who: str = accounting.OPERATOR, **config: Any) -> Any:
        """Return a boto3 EC2 client that signs as `who`: the operator or an instance id.

        botocore's own retries are off, since it would really sleep between them; `config` goes to
        botocore's Config and can switch them on.
        """
        return client(self.front, who, **config)

    def advance(self, seconds: float) -> None:
        """Let time pass; whatever falls due on the way happens at its own moment."""
        with self.cloud.lock:
            self.clock.advance(seconds)
            self.cloud.run_due()


def client(front: FrontDoor, who: str = accounting.OPERATOR, **config: Any) -> Any:
    """Return a boto3 EC2 client that talks to `front` without a socket, signing as `who`."""
    key = "AKIAOPERATOR" if who == accounting.OPERATOR else accounting.access_key(who)
    made = _session().client(
        "ec2",
        region_name=front.cloud.region,
        endpoint_url=URL,
        aws_access_key_id=key,
        aws_secret_access_key="secret",
        config=Config(**{"retries": {"total_max_attempts": 1}, **config}),
    )

    def send(request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        body = request.body
        form = body.decode() if isinstance(body, bytes) else body or ""
        authorization = request.headers["Authorization"]
        if isinstance(authorization, bytes):
            authorization = authorization.decode()
        reply = front.answer(form, authorization)
        if reply is None:
            raise ConnectionClosedError(endpoint_url=request.url)
        return AWSResponse(request.url, reply.status, reply.headers, _Raw(reply.body))

    made.meta.events.register("before-send.ec2", send)
    return made


class _Raw(io.BytesIO):
    """The part of urllib3's response that botocore reads."""

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()


@functools.cache
def _session() -> Any:
    # One for all clients: each session would parse EC2's model again (0.1 s and 23 MB).
    return boto3.Session()
