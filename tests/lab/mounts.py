"""What answers at which address: EC2, each instance's metadata, the operator's controls.

How requests arrive, and what the answers are, does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from tests.lab import control
from tests.lab.frontdoor import FrontDoor
from tests.lab.imds import Imds
from tests.lab.reply import Reply
from tests.lab.server import Request, Respond, Server, Timers, loopback


def everything(front: FrontDoor, imds: Imds) -> Respond:
    """Answer EC2 at /, metadata at /imds/<instance-id>/, and the operator's controls at /lab/."""

    def respond(request: Request) -> Reply | None:
        if request.path == "/":
            # EC2 takes a query in the body of a POST or in the URL of a GET.
            form = request.body.decode(errors="replace") or request.query
            return front.answer(form, request.headers.get("authorization"))
        head, _, rest = request.path.lstrip("/").partition("/")
        if head == "imds":
            instance_id, _, rest = rest.partition("/")
            return imds.answer(instance_id, request.method, f"/{rest}", request.headers)
        if head == "lab":
            return control.answer(front, request.method, rest, request.query, request.body)
        return Reply(404, b"")

    return respond


def metadata(imds: Imds, who_is: Callable[[str], str | None]) -> Respond:
    """Answer metadata to whoever asks from an address that `who_is` can name an instance for.

    For a listening socket on 169.254.169.254:80 inside the fabric, whose source check makes the
    peer's address trustworthy; `Cloud.owner_of_source` under the cloud's lock is such a function.
    """

    def respond(request: Request) -> Reply | None:
        instance_id = who_is(request.peer)
        if instance_id is None:
            return None
        return imds.answer(instance_id, request.method, request.path, request.headers)

    return respond


@dataclass(frozen=True, slots=True)
class Loopback:
    """The lab on a port of 127.0.0.1, on the real clock, for anyone and without root."""

    server: Server
    timers: Timers

    @classmethod
    def open(cls, front: FrontDoor, port: int = 0) -> Self:
        """Start serving; port 0 lets the system pick one. Raises OSError if it is taken."""
        listener = loopback(port)
        timers = Timers(front.cloud)
        front.settled = timers.nudge
        return cls(Server(listener, everything(front, Imds(front.cloud))), timers)

    @property
    def endpoint(self) -> str:
        """The EC2 endpoint's URL."""
        return self.server.url

    def imds(self, instance_id: str) -> str:
        """Return the URL that stands for http://169.254.169.254/ of this instance."""
        return f"{self.server.url}/imds/{instance_id}/"

    def close(self) -> None:
        """Stop serving and stop the timers."""
        self.server.close()
        self.timers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
