"""A Kubernetes API server with nodes alone: GET /api/v1/nodes/NAME over TLS, for holders of its token.

Objects, refusals (a Status object) and the cordon's taint are as the API reference has them; a node is
cordoned as `kubectl cordon` and the node controller do it together. Watches and everything else of the
API do not belong here.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.lab.reply import Reply
from tests.lab.server import Request, Server

TOKEN = "a-service-account-of-the-lab"
PORT = 6443
_NODES = "/api/v1/nodes/"
_TAINT = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


@dataclass(slots=True)
class ApiServer:
    """Nodes by name; `asked` counts requests, `down` closes connections without a word."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    down: bool = False
    asked: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def join(self, name: str, max_pods: int = 29) -> None:
        """A kubelet registers its node."""
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {},
            "status": {"capacity": {"cpu": "2", "pods": str(max_pods)}},
        }
        with self._lock:
            self.nodes[name] = node

    def cordon(self, name: str) -> None:
        """`kubectl cordon NAME`, and what the node controller makes of it."""
        with self._lock:
            self.nodes[name]["spec"] = {"unschedulable": True, "taints": [_TAINT]}

    def taint(self, name: str) -> None:
        """The taint alone, as an autoscaler or a person may put it on a node."""
        with self._lock:
            self.nodes[name]["spec"] = {"taints": [_TAINT, {"key": "team", "effect": "NoExecute"}]}

    def uncordon(self, name: str) -> None:
        """`kubectl uncordon NAME`."""
        with self._lock:
            self.nodes[name]["spec"] = {}

    def answer(self, request: Request) -> Reply | None:
        """For a server; None, a lost connection, while it is down."""
        with self._lock:
            self.asked += 1
            if self.down:
                return None
            if request.headers.get("authorization", "").lower() != f"bearer {TOKEN}":
                return _status(401, "Unauthorized", "Unauthorized")
            if request.method != "GET" or not request.path.startswith(_NODES):
                return _status(404, "NotFound", "the server could not find the requested resource")
            name = request.path.removeprefix(_NODES)
            node = self.nodes.get(name)
            if node is None:
                return _status(404, "NotFound", f'nodes "{name}" not found')
            return _json(200, node)


def _status(code: int, reason: str, message: str) -> Reply:
    what = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return _json(code, what | {"message": message, "reason": reason, "code": code})


def _json(code: int, what: dict[str, Any]) -> Reply:
    return Reply(code, json.dumps(what).encode(), {"Content-Type": "application/json"})


class Secured:
    """An API server behind TLS on a listening socket, with what a client needs to reach it."""

    def __init__(self, api: ApiServer, listener: Any, directory: Path) -> None:
        """Make a certificate for the listener's address in `directory` and serve until closed."""
        self.address, self.port = listener.getsockname()[:2]
        self.certificate, key = directory / "ca.crt", directory / "api.key"
        _certify(self.address, self.certificate, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        # The handshake is the connection's own thread's, with its first read.
        secured = context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)
        self._server = Server(secured, api.answer)
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(self._described()))  # JSON is YAML

    def _described(self) -> dict[str, Any]:
        authority = base64.b64encode(self.certificate.read_bytes()).decode()
        url = f"https://{self.address}:{self.port}"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "lab", "cluster": {"server": url, "certificate-authority-data": authority}}
            ],
            "users": [{"name": "node", "user": {"token": TOKEN}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "node"}}],
            "current-context": "lab",
        }

    def close(self) -> None:
        """Serve nobody any more."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _certify(address: str, certificate: Path, key: Path) -> None:
    """A certificate that signs itself, good for a day."""
    argv = ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=kubernetes"]
    argv += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-addext", f"subjectAltName=IP:{address}"]
    argv += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True)
