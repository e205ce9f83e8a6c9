"""The runbook's sections as they are run, and the ways to bring about what they are for.

Each way is a generator named after its finding: it breaks something, yields the finding's subject, and does
what the section says an operator does. What a test expects of them does not belong here.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.providers import rtnetlink
from tests.lab.apiserver import ApiServer
from tests.lab.kubelet import Kubelet
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.providers import test_cri
from tests.reconciler import live

PAGE = Path(__file__).parents[2] / "deploy" / "docs" / "runbook.md"
FAULTY = """
import os, sys
from reconciler import cli
from reconciler.providers import channel, rtnetlink
real = channel.Channel._send
def send(self, messages, drop=0):
    broken = {int(name) for name in os.listdir(sys.argv[1])}
    if broken & {rtnetlink.GETRULE} & {each.kind for each in messages}:
        raise OSError(105, "No buffer space available")
    cut = [each._replace(body=each.body[:4]) if each.kind in broken else each for each in messages]
    return real(self, cut, drop)
channel.Channel._send = send
sys.exit(cli.main(["daemon"]))
"""
"""The daemon, whose netlink requests of the kinds named in a folder are cut short: the kernel refuses them."""

Way = Callable[["Town"], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """The commands of one section: those before `Do:`, and those after."""

    look: tuple[str, ...]
    do: tuple[str, ...]


def sections() -> dict[str, Section]:
    """Every section by its finding's code."""
    parts = re.split(r"^## `([a-z0-9_]+)`$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for code, text in zip(parts[::2], parts[1::2], strict=True):
        before, do, after = text.partition("\nDo: ")
        assert "\nLook: " in before, f"{code} does not say where to look"
        assert do, f"{code} does not say what to do"
        found[code] = Section(_commands(before), _commands(after.split("\n# ")[0]))
    return found


def _commands(text: str) -> tuple[str, ...]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return tuple(line for block in blocks for line in block.splitlines())


@dataclass(slots=True)
class Town:
    """A node whose daemon can be made to meet any of it."""

    lab: Lab
    api: ApiServer
    node: Node
    kubelet: Kubelet
    faults: Path = field(init=False)

    def __post_init__(self) -> None:
        """Faults are files."""
        self.faults = self.node.root / "faults"
        self.faults.mkdir()

    def start(self, before: tuple[str, ...] = (), **settings: str) -> None:
        self.begin(before, **settings)
        self.node.await_ready()

    def begin(self, before: tuple[str, ...] = (), **settings: str) -> None:
        self.node.environment.update(settings)
        self.node.begin_daemon((*before, sys.executable, "-c", FAULTY, str(self.faults)))

    def restart(self, before: tuple[str, ...] = (), **settings: str) -> None:
        self.node.stop_daemon()
        self.start(before, **settings)

    def look(self) -> None:
        """Have the daemon look at everything now instead of within minutes."""
        assert self.node.daemon is not None
        os.kill(self.node.daemon.pid, signal.SIGUSR1)

    def is_open(self, code: str, subject: str) -> bool:
        self.look()
        where = f"code = '{code}' AND subject GLOB '{subject}' AND closed IS NULL"
        return bool(live.rows(self.node, f"SELECT 1 FROM v_findings WHERE {where}"))

    def run(self, command: str, subject: str) -> subprocess.CompletedProcess[str]:
        """A command of the page, as root on the node."""
        for word, means in (
            ("STATE", str(self.node.state)),
            ("RUN", str(self.node.run)),
            ("SUBJECT", subject),
        ):
            command = re.sub(rf"\b{word}\b", means, command)
        if command.startswith("vpcledger "):
            return self.node.product(*shlex.split(command)[1:])
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    def refusing(self, **rule: Any) -> Any:
        with self.lab.cloud.lock:
            return self.lab.front.faults.add(who=self.node.instance, **rule)

    def willing(self, rule: Any) -> None:
        with self.lab.cloud.lock:
            self.lab.front.faults.rules.remove(rule)


# ── the ways ──────────────────────────────────────────────────────────────────────────────────


def ec2_down(town: Town) -> Iterator[str]:
    rule = town.refusing(error="InternalError")
    yield ""
    town.willing(rule)


def _refused(error: str) -> Way:
    """EC2 says no to what the pool asks for when a pod has come; later it does not."""

    def way(town: Town) -> Iterator[str]:
        rule = town.refusing(op="[AC]*", error=error)  # assigning, or else another interface
        town.kubelet.start("one-more")
        yield "*"
        town.willing(rule)

    return way


throttled = _refused("RequestLimitExceeded")
ec2_denied = _refused("UnauthorizedOperation")
ec2_error = _refused("InvalidParameterValue")
subnet_full = _refused("InsufficientFreeAddressesInSubnet")
node_full = _refused("PrivateIpAddressLimitExceeded")


def address_lost(town: Town) -> Iterator[str]:
    """Time passes, or else EC2's picture would be taken for one that is older than our own answer."""
    pod = town.kubelet.start("robbed")
    live.settle(town.node)
    [row] = live.rows(
        town.node, f"SELECT eni_id, subnet_id FROM v_enis JOIN v_pods USING (eni_id)"
        f" WHERE v_pods.address = '{pod.address}'",
    )  # fmt: skip
    town.node.stop_daemon()
    with sqlite3.connect(town.node.ledger) as book:
        book.execute("UPDATE addresses SET assigned_at = assigned_at - 900000")
    book.close()
    town.lab.ec2.unassign_private_ip_addresses(
        NetworkInterfaceId=row["eni_id"], PrivateIpAddresses=[pod.address]
    )
    network = pod.address.rpartition(".")[0]
    town.lab.ec2.create_network_interface(
        SubnetId=row["subnet_id"],
        PrivateIpAddresses=[
            {"PrivateIpAddress": f"{network}.250", "Primary": True},
            {"PrivateIpAddress": pod.address, "Primary": False},
        ],
    )
    town.start()
    yield pod.address
    town.kubelet.stop(pod)


def frozen(town: Town) -> Iterator[str]:
    town.restart(VPCLEDGER_FREEZE="release")
    yield ""
    town.restart(VPCLEDGER_FREEZE="none")


def imds_down(town: Town) -> Iterator[str]:
    town.node.netns.command("ip", "route", "add", "blackhole", "169.254.169.254/32")
    yield ""
    town.node.netns.command("ip", "route", "del", "blackhole", "169.254.169.254/32")


def api_server_down(town: Town) -> Iterator[str]:
    town.api.down = True
    time.sleep(1.5)  # an answer of the last second is still believed; nothing tells when it is not
    pods = [town.kubelet.start("grows")]
    yield ""
    town.api.down = False
    pods.append(town.kubelet.start("grows-again"))


def sandbox_doubtful(town: Town) -> Iterator[str]:
    pod = town.kubelet.start("broken")
    pod.execute("ip", "link", "del", "eth0")
    yield pod.container
    town.kubelet.stop(pod)


def runtime_silent(town: Town) -> Iterator[str]:
    path = town.node.run / "cri.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        yield ""
        listener.listen()
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        yield ""
        path.unlink()
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket) -> None:
    """Answer as a runtime that has one sandbox, until the listener is shut down."""
    said = test_cri.body(test_cri.sandbox("web"))
    said = test_cri.frame(0, 0, 1, said)
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer:
            peer.recv(1 << 16)
            peer.sendall(test_cri.SETTINGS + test_cri.HEADERS + said + test_cri.TRAILERS)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(1 << 16):
                pass


def gc_disagrees(town: Town) -> Iterator[str]:
    pod = town.kubelet.start("left-out")
    others = [box for box in town.kubelet.sandboxes.values() if box is not pod]
    town.kubelet.collect_garbage(others)
    yield pod.container
    town.kubelet.collect_garbage()


def spool_unreadable(town: Town) -> Iterator[str]:
    (town.node.state / "spool" / "1-1-1.del").write_bytes(b"rubbish")
    yield "1-1-1.del"


def kernel_error(town: Town) -> Iterator[str]:
    pod = town.kubelet.start("ruled")
    live.settle(town.node)
    fault = town.faults / str(rtnetlink.NEWRULE)
    fault.touch()
    town.node.netns.command("ip", "rule", "del", "to", pod.address)
    yield ""
    fault.unlink()


def kernel_unreadable(town: Town) -> Iterator[str]:
    fault = town.faults / str(rtnetlink.GETRULE)
    fault.touch()
    yield ""
    fault.unlink()


def lane_failed(town: Town) -> Iterator[str]:
    pod = town.kubelet.start("short-lived")
    fault = town.faults / str(rtnetlink.DELLINK)
    fault.touch()
    town.kubelet.delete(pod)
    yield "reap"
    fault.unlink()
    town.kubelet.remove(pod)


def nat_failed(town: Town) -> Iterator[str]:
    with live.table_owned(town.node):
        yield ""


def sysctl_unwritable(town: Town) -> Iterator[str]:
    town.node.stop_daemon()
    town.node.netns.sysctl("ipv4/conf/eth0/rp_filter", 1)
    covered = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"
    town.start(("unshare", "--mount", "sh", "-c", f'{covered} && exec "$@"', "sh"))
    yield ""
    town.restart()


def conflist_unwritable(town: Town) -> Iterator[str]:
    town.node.stop_daemon()
    for each in town.node.conf.iterdir():
        each.unlink()
    plugin = town.node.bin / "portmap"
    aside = plugin.rename(plugin.with_name("portmap.aside"))
    town.begin()
    live.until(lambda: _serving(town), "the door")
    yield ""
    aside.rename(plugin)
    town.look()
    town.node.await_ready()


def _serving(town: Town) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(town.node.run / "vpcledger.sock"))
        except OSError:
            return False
    return True


def checkpoint_unwritable(town: Town) -> Iterator[str]:
    path = town.node.run / "ipam.json"
    path.unlink()
    path.mkdir()
    pod = town.kubelet.start("recorded")
    yield ""
    path.rmdir()
    town.kubelet.stop(pod)


def takeover_unreadable(town: Town) -> Iterator[str]:
    town.node.stop_daemon()
    for each in town.node.state.glob("ledger.db*"):
        each.unlink()
    (town.node.run / "ipam.json").write_text('{"version": "vpc-cni-ipam')
    town.start()
    yield ""
    town.restart()  # it has written the record anew


def ledger_damaged(town: Town) -> Iterator[str]:
    town.node.stop_daemon()
    with town.node.ledger.open("r+b") as raw:
        raw.seek(4096 * 2)
        raw.write(b"\xa5" * 4096 * 20)
    town.start()
    [aside] = town.node.state.glob("*.damaged")
    yield aside.name


def ledger_lost(town: Town) -> Iterator[str]:
    copy = town.node.root / "copy.db"
    assert town.node.product("backup", str(copy)).returncode == 0
    rule = town.refusing(error="InternalError")
    town.node.stop_daemon()
    for each in town.node.state.glob("ledger.db*"):
        each.unlink()
    town.start()
    yield ""
    town.node.stop_daemon()
    town.willing(rule)
    for each in town.node.state.glob("ledger.db*"):
        each.unlink()
    copy.rename(town.node.ledger)
    town.start()
