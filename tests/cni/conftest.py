"""The launcher as a node has it: built, installed with its configuration, called as a runtime does.

What a test expects of it does not belong here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni import build
from reconciler import server
from reconciler.call import Call
from tests.lab import spaces

Handler = Callable[[list[Call]], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the runtime sees of one call, and how long it took (seconds)."""

    status: int
    stdout: bytes
    seconds: float

    @property
    def told(self) -> Any:
        """Standard output as the JSON it must be."""
        return json.loads(self.stdout)

    @property
    def error(self) -> tuple[int, str]:
        """(code, msg) of the error object; the call failed and its details say what to do."""
        assert self.status == 1
        assert self.told["details"].endswith((".", "runs."))
        assert self.told["cniVersion"]
        return self.told["code"], self.told["msg"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed launcher: its folder, the daemon's socket and both spools in it."""

    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "s"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def beside(self) -> Path:
        """The spool in memory, by the socket."""
        return self.socket.parent / "spool"

    def start(
        self, verb: str, *, host: spaces.Netns | None = None, without: str = "", **env: str
    ) -> subprocess.Popen[bytes]:
        """The started process; `env` completes and overrides the variables of a good call."""
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "0a1b2c",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        } | env
        variables.pop(without, None)

        def spawn() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [self.folder / "aws-cni"],
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )

        return host.run(spawn) if host else spawn()

    def call(
        self,
        verb: str,
        stdin: bytes = b"{}",
        *,
        host: spaces.Netns | None = None,
        without: str = "",
        **env: str,
    ) -> Outcome:
        """One whole call, in the namespace `host`, without the one variable."""
        start = time.monotonic()
        with self.start(verb, host=host, without=without, **env) as process:
            stdout, _ = process.communicate(stdin, timeout=30)
        return Outcome(process.returncode, stdout, time.monotonic() - start)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable, built from the source at hand."""
    return build.build(tmp_path_factory.mktemp("launcher") / "aws-cni")


@pytest.fixture
def plugin(launcher: Path, tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    """The launcher in a folder of its own, set to the socket `run/s` and the folder `spool` there."""
    folder = tmp_path_factory.mktemp("p")
    shutil.copy(launcher, folder)
    (folder / "run").mkdir()
    (folder / "aws-cni.conf").write_text("# where the daemon is\nsocket=run/s\nspool=spool\n")
    return Plugin(folder)


@pytest.fixture
def serve(plugin: Plugin) -> Iterator[Callable[[Handler], server.Server]]:
    """Start the real server at the plugin's socket, with a handler of the test's."""
    started: list[server.Server] = []

    def start(handler: Handler) -> server.Server:
        made = server.Server(plugin.socket, handler)
        started.append(made)
        made.start()
        return made

    yield start
    for made in started:
        made.stop(timeout=1)


@pytest.fixture
def pod() -> Iterator[spaces.Netns]:
    """A pod's network namespace."""
    if why := spaces.missing():
        pytest.skip(why)
    with spaces.Netns(f"pod-{os.urandom(4).hex()}") as ns:
        yield ns


@pytest.fixture
def host() -> Iterator[spaces.Netns]:
    """A node's network namespace."""
    if why := spaces.missing():
        pytest.skip(why)
    with spaces.Netns() as ns:
        yield ns
