"""HTTP for the lab: keep-alive, a thread per connection, on any listening socket.

The same code serves the loopback mount and, in the fabric, the metadata address: what differs is
the socket and the function that answers. What is answered does not belong here.
"""

from __future__ import annotations

import http
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from tests.lab.cloud import Cloud
from tests.lab.reply import Reply

BODY_LIMIT = 1 << 20  # bytes; EC2's own requests end far below
USUAL_HOPS = 64


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; names of headers in lower case; `peer` is the address it came from."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    peer: str


# None closes the connection without a word.
Respond = Callable[[Request], Reply | None]


def loopback(port: int = 0) -> socket.socket:
    """Return a socket that listens on 127.0.0.1; port 0 lets the system pick one."""
    return socket.create_server(("127.0.0.1", port), backlog=128)


class Server(ThreadingHTTPServer):
    """Serves `respond` on a listening socket, from its own threads, until closed.

    A listening socket keeps the network namespace it was made in; so the fabric's is served from
    outside of it. Whatever `respond` raises is a bug: it is printed and answered with 500.
    """

    daemon_threads = True

    def __init__(self, listener: socket.socket, respond: Respond) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.respond = respond
        self._open: set[socket.socket] = set()
        self._accepting = threading.Thread(
            target=self.serve_forever, args=(None,), daemon=True, name="lab-http"
        )
        self._accepting.start()

    @property
    def url(self) -> str:
        """Where the server listens, without a final slash."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{host}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, then serve it in a thread of its own."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection and close it."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - inherited
        """Say nothing about callers that went away; anything else is a bug."""
        if not isinstance(sys.exception(), ConnectionError):
            traceback.print_exc()

    def close(self) -> None:
        """Stop accepting, end every open connection, close the socket."""
        # Nothing polls: a listening socket that is shut down wakes whoever waits on it.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self._accepting.join()
        self.server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its other side was quicker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one segment
    hops = USUAL_HOPS

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length[:9]) > BODY_LIMIT:
            self.close_connection = True
            self._send(Reply(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b""))
            return
        url = urlsplit(self.path)
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, url.query, headers, body, self.client_address[0])
        try:
            reply = self.server.respond(request)
        except Exception:  # noqa: BLE001 - a bug of the lab must not look like a lost reply
            traceback.print_exc()
            reply = Reply(500, traceback.format_exc().encode(), {"Content-Type": "text/plain"})
        if reply is None:
            self.close_connection = True
        else:
            self._send(reply)

    do_POST = do_PUT = do_DELETE = do_GET

    def _send(self, reply: Reply) -> None:
        hops = reply.hops or USUAL_HOPS
        if hops != self.hops:
            self._limit_hops(hops)
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply.body)

    def _limit_hops(self, hops: int) -> None:
        self.hops = hops
        if self.connection.family == socket.AF_INET6:
            self.connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
        else:
            self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)


class Timers:
    """A thread that fires the cloud's timers when they are due by the real clock.

    Every call may set a timer earlier than the one waited for: call `nudge` after it.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._wake = threading.Event()
        self._ended = False
        self._waiting_for: float | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="lab-timers")
        self._thread.start()

    def nudge(self) -> None:
        """Look again at what is due next."""
        with self._cloud.lock:
            due = self._cloud.next_due()
            sooner = due is not None and (self._waiting_for is None or due < self._waiting_for)
        if sooner:
            self._wake.set()

    def close(self) -> None:
        """End the thread; timers not yet due stay."""
        self._ended = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            with self._cloud.lock:
                try:
                    self._cloud.run_due()
                except Exception:  # noqa: BLE001 - a hook's bug must not stop the lab's time
                    traceback.print_exc()
                due = self._waiting_for = self._cloud.next_due()
            # A timer due between here and the wait has set the event, so it cannot be missed.
            now = self._cloud.clock.now()
            self._wake.wait(None if due is None else max(0.0, due - now))
            self._wake.clear()
