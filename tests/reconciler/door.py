"""A door in this process: a real ledger, the real kernel in a node's namespace, pods' namespaces.

Nothing runs beside it (no lane, no server), so what a test sees is what the call did. EC2 is not asked:
what it would have shown is adopted from a picture. Assertions do not belong here.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any

from cni import wire
from ledger import database, migrate, model, reads, writes
from reconciler import loop, recovery, verbs
from reconciler import settings as knobs
from reconciler.call import Call
from reconciler.providers import kernel
from tests.lab import spaces

NODE = model.Node(
    "i-1", "m5.large", "eu-west-1", "eu-west-1a", "vpc-1", "subnet-1", "02:aa:00:00:00:00",
    "10.0.0.4", ("10.0.0.0/16",), ("sg-1",),
)  # fmt: skip
ENIS = tuple(
    model.Eni(
        f"eni-{n}",
        f"02:aa:00:00:00:0{n}",
        "subnet-1",
        "10.0.0.0/24",
        f"10.0.0.{4 + n}",
        n,
        primary=n == 0,
        state="attached",
        attachment_id=f"eni-attach-{n}",
        delete_on_termination=True,
    )
    for n in range(2)
)


class Pod:
    """A sandbox that is no more than a namespace and an id."""

    _numbers = itertools.count(1)

    def __init__(self, name: str = "", ifname: str = "eth0") -> None:
        self.netns = spaces.Netns()
        number = next(self._numbers)
        self.container = f"container-{number}"
        self.name = name or f"pod-{number}"
        self.ifname = ifname
        self.result: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return str(self.result["ips"][0]["address"].partition("/")[0])

    def pings(self, address: str) -> bool:
        """One answer within ten seconds.

        A link is activated a moment after its peer has given it a carrier, by a work queue of the
        kernel's that waits its turn behind namespaces being torn down.
        """
        try:
            self.netns.command("ping", "-c1", "-i0.2", "-w10", address)
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        self.netns.close()


class Answer:
    """What the runtime was told: exit status and the object printed."""

    def __init__(self, reply: wire.Reply) -> None:
        self.status = reply.status
        self.said: dict[str, Any] = json.loads(reply.stdout) if reply.stdout else {}
        self.sysctls = reply.sysctls

    @property
    def code(self) -> int:
        return int(self.said.get("code", 0)) if self.status else 0

    @property
    def reason(self) -> str:
        return str(self.said.get("msg", "")).partition(":")[0]


class Door:
    """The daemon's inside, on a node with two interfaces and the addresses given for each."""

    def __init__(
        self,
        folder: Path,
        addresses: tuple[int, int] = (2, 2),
        node: spaces.Netns | None = None,
        **environ: str,
    ) -> None:
        self.node = node or self._machine()
        self.now = 1_800_000_000_000
        self.settings, _ = knobs.load({"VPCLEDGER_ADD_WAIT": "0", **environ})
        path = folder / "ledger.db"
        migrate.bring_to_head(path)
        self.ledger = database.Ledger.open(path)
        self.kernel: kernel.Kernel = self.node.run(kernel.Kernel)
        self.loop = loop.Loop(self.ledger, self.kernel, self.settings, self.clock)
        self.rings: list[bool] = []
        self.wakes: list[int] = []
        self.own = os.dup(self.node.fd)
        self.spool = folder / "spool"
        self.verbs = verbs.Verbs(
            self.ledger, self.loop, self.settings, "boot-1", self.clock,
            self.rings.append, self.wakes.append, self.own,
        )  # fmt: skip
        self.pods: list[Pod] = []
        self.replies: list[Answer] = []
        self.adopt(addresses)
        self.loop.tick()

    @staticmethod
    def _machine() -> spaces.Netns:
        """A node's namespace with its interfaces, as EC2 and DHCP leave it."""
        node = spaces.Netns()
        lines = []
        for eni in ENIS:
            lines += [
                f"link add eth{eni.device} address {eni.mac} type veth peer name far{eni.device}",
                f"link set far{eni.device} up",
                f"link set eth{eni.device} up",
            ]
        lines.append("address add 10.0.0.4/24 dev eth0")
        node.command("ip", "-batch", "-", stdin="\n".join(lines))
        node.sysctl("ipv4/ip_forward", 1)
        return node

    def clock(self) -> int:
        """A clock that stands until a test moves it."""
        return self.now

    def adopt(self, addresses: tuple[int, int]) -> None:
        """Take in a picture of EC2: this many secondaries on each interface."""
        seen = tuple(
            model.ObservedEni(
                eni, tuple(f"10.0.0.{10 * (eni.device + 1) + n}" for n in range(count))
            )
            for eni, count in zip(ENIS, addresses, strict=True)
        )
        with self.ledger.write(durable=True) as tx:
            writes.record_node(tx, NODE, self.now)
            writes.adopt(tx, model.ObservedCloud(self.now, "ec2", seen), self.now)

    # ------------------------------------------------------------------ calls

    def call(
        self, verb: str, pod: Pod | None = None, env: dict[str, str] | None = None, **config: Any
    ) -> Answer:
        """One call of the runtime, answered at once; AssertionError if it was held."""
        before = len(self.replies)
        self.begin(verb, pod, env, **config)
        assert len(self.replies) == before + 1, "the call was not answered exactly once"
        return self.replies[-1]

    def begin(
        self, verb: str, pod: Pod | None = None, env: dict[str, str] | None = None, **config: Any
    ) -> None:
        """One call of the runtime, whose answer may come later (see `replies`)."""
        conf = {"cniVersion": "1.0.0", "name": "aws-cni", "type": "aws-cni", **config}
        self.raw(self.environment(verb, pod) | (env or {}), json.dumps(conf).encode(), pod)

    def together(self, verb: str, pods: list[Pod]) -> None:
        """Calls that were ready at the same time: one batch."""
        conf = json.dumps({"cniVersion": "1.0.0", "name": "aws-cni"}).encode()
        self.verbs.handle([self._made(self.environment(verb, pod), conf, pod) for pod in pods])

    def raw(self, env: dict[str, str], stdin: bytes, pod: Pod | None) -> None:
        """One request as it stands; a pod's descriptors come with it as the launcher sends them."""
        self.verbs.handle([self._made(env, stdin, pod)])

    def _made(self, env: dict[str, str], stdin: bytes, pod: Pod | None) -> Call:
        fds: list[int] = []
        flags = 0
        if pod is not None and pod.netns.fd >= 0 and env.get("CNI_NETNS"):
            route = pod.netns.run(
                socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE
            )
            fds = [os.dup(pod.netns.fd), route.detach()]
            flags = wire.HAS_NETNS | wire.HAS_NETLINK
        request = wire.Request(env, stdin, flags)

        def end(_: Call, frame: bytes) -> None:
            for fd in fds:
                os.close(fd)
            fds.clear()
            if not frame:  # given back: the launcher keeps it and reports success
                self._keep(request)
                frame = wire.encode_reply(wire.Reply())
            self.replies.append(Answer(wire.decode_reply(frame[4:])))

        return Call(request, list(fds), lambda: False, end)

    def _keep(self, request: wire.Request) -> None:
        self.spool.mkdir(exist_ok=True)
        body = wire.encode_request(wire.Request(request.env, request.stdin))
        (self.spool / f"{len(self.replies)}-1-1.del").write_bytes(body)

    def drain(self) -> frozenset[tuple[str, str]]:
        """Take in what was kept, as the daemon does before an addition and every minute."""
        return recovery.take_spools_in(self.ledger, self.loop, [self.spool], self.clock)

    def environment(self, verb: str, pod: Pod | None) -> dict[str, str]:
        env = {"CNI_COMMAND": verb, "CNI_PATH": "/opt/cni/bin"}
        if pod is not None:
            args = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name};IgnoreUnknown=1"
            env |= {
                "CNI_CONTAINERID": pod.container,
                "CNI_IFNAME": pod.ifname,
                "CNI_NETNS": pod.netns.path,
                "CNI_ARGS": args,
            }
        return env

    def pod(self, name: str = "", ifname: str = "eth0") -> Pod:
        """A sandbox without network."""
        made = Pod(name, ifname)
        self.pods.append(made)
        return made

    def added(self, name: str = "") -> Pod:
        """A sandbox with network; AssertionError with what was said if it was refused."""
        pod = self.pod(name)
        answer = self.call("ADD", pod)
        assert answer.status == 0, answer.said
        pod.result = answer.said
        return pod

    # ------------------------------------------------------------------ what is there

    def lease(self, pod: Pod) -> model.Lease | None:
        with self.ledger.read() as tx:
            return reads.open_lease(tx, pod.container, pod.ifname)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        with self.ledger.read() as tx:
            return reads.query(tx, sql, 1000)

    def picture(self) -> list[Any]:
        """The node's namespace as `ip` shows it.

        Without what follows a change of state later by itself: operational state and carrier (RFC 2863),
        and the link-local address a link makes itself once it has a carrier (RFC 4862).
        """
        shown = [self.node.command("ip", "-4", "-j", what) for what in ("link", "address", "rule")]
        shown.append(self.node.command("ip", "-4", "-j", "route", "show", "table", "all"))
        rows = [json.loads(text) for text in shown]
        for row in (*rows[0], *rows[1], *rows[3]):
            row.pop("operstate", None)
            row["flags"] = sorted(set(row["flags"]) - {"LOWER_UP", "NO-CARRIER", "linkdown"})
        return rows

    def close(self) -> None:
        for pod in self.pods:
            pod.close()
        self.kernel.close()
        self.ledger.close()
        os.close(self.own)
        self.node.close()
