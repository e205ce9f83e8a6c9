"""A kubelet and its runtime: pods that are wanted, sandboxes that are tried, deleted and tried again.

As containerd does it: a refused ADD is answered with DEL and a new sandbox; a DEL that fails is repeated; a
call cut short by the daemon's death counts as refused; while nobody listens the launcher spools deletions.
What the daemon makes of it does not belong here.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass, field
from typing import Literal

from cni import wire
from reconciler import errors
from tests.stories.machine import Machine
from tests.stories.paper import PodSpace
from tests.stories.verdict import check

State = Literal["asked", "up", "refused", "going", "gone"]
_CONF = {"cniVersion": "1.0.0", "name": "aws-cni", "type": "aws-cni"}


@dataclass(eq=False, slots=True)
class Sandbox:
    """One try of a pod. `asked` waits for an answer, `up` serves, `refused` and `going` are to be deleted."""

    container: str
    pod: str
    space: PodSpace
    state: State = "asked"
    address: str = ""
    said: dict[str, object] = field(default_factory=dict)


class Runtime:
    """One node's pods."""

    def __init__(self, machine: Machine, rng: random.Random) -> None:
        self.machine, self.rng = machine, rng
        self.wanted: dict[str, Sandbox | None] = {}
        """Pods that should run, each with its present sandbox."""
        self.sandboxes: list[Sandbox] = []
        """All that are not gone."""
        self.refusals: list[tuple[int, str]] = []
        """Code and reason of every refused call."""
        self.forgetful = 0.0
        """How likely the runtime is to forget the DEL of a refused ADD until it is asked again."""
        self._cool: dict[str, int] = {}
        """When (ms, by a clock that nobody sets) an address whose pod was deleted may have its next."""
        self._steady = True
        self._numbers = itertools.count(1)
        self._names = itertools.count(1)

    # ------------------------------------------------------------------ what a user does

    def want(self, count: int) -> None:
        """So many more pods, and their first tries."""
        for _ in range(count):
            self.wanted[f"pod-{next(self._names)}"] = None
        self.try_all()

    def drop(self, count: int) -> None:
        """Delete so many pods."""
        for name in self.rng.sample(sorted(self.wanted), min(count, len(self.wanted))):
            self._let_go(self.wanted.pop(name))
        self.delete_all()

    def leave(self, name: str) -> None:
        """Delete this pod."""
        self._let_go(self.wanted.pop(name))
        self.delete_all()

    def replace(self, count: int) -> None:
        """A StatefulSet's update: the new sandbox of a pod may come before the old one's DEL."""
        for name in self.rng.sample(sorted(self.wanted), min(count, len(self.wanted))):
            self._let_go(self.wanted[name])
            self.wanted[name] = None
        first, second = self.rng.sample((self.try_all, self.delete_all), 2)
        first()
        second()

    def lose(self, count: int) -> None:
        """Sandboxes die with their namespaces; the DEL comes after."""
        up = [each for each in self.sandboxes if each.state == "up"]
        for each in self.rng.sample(up, min(count, len(up))):
            self.machine.kernel.end_pod(each.space)
            self._let_go(each)
        self.delete_all()

    # ------------------------------------------------------------------ what the runtime does

    def reconcile(self) -> None:
        """One round of kubelet's: delete what failed, try again what is wanted."""
        self.delete_all()
        self.try_all()

    def try_all(self) -> None:
        """A sandbox for each wanted pod that has none."""
        for name in [name for name, box in self.wanted.items() if box is None]:
            if not self.machine.running:
                return  # the launcher says so at once, and kubelet tries later
            self._add(name)

    def ask_again(self) -> None:
        """The runtime repeats an ADD whose answer it has already (or has not yet)."""
        open_ = [each for each in self.sandboxes if each.state in {"asked", "up"}]
        if open_ and self.machine.running:
            self._ask(self.rng.choice(open_))

    def delete_all(self) -> None:
        """DEL for every sandbox that is to go."""
        for each in [s for s in self.sandboxes if s.state in {"refused", "going"}]:
            if each.state == "refused" and self.rng.random() < self.forgetful:
                continue
            if self.rng.random() < 0.5:
                self.machine.kernel.end_pod(each.space)
            if self.machine.running:
                self._delete(each)
            if not self.machine.running and each.state != "gone":
                self._spool(each)

    def delete_twice(self) -> None:
        """A DEL for something that is long gone, as runtimes send."""
        if self.machine.running:
            ghost = Sandbox(f"ghost-{next(self._numbers)}", "ghost", self.machine.kernel.new_pod())
            self._delete(ghost)

    def daemon_died(self) -> None:
        """Calls without an answer are failures to the runtime."""
        for each in self.sandboxes:
            if each.state == "asked":
                self._refused(each)

    def machine_rebooted(self) -> None:
        """No sandbox survives; the runtime deletes the old ones when it can."""
        for each in self.sandboxes:
            if each.state in {"asked", "up"}:
                self._let_go(each)
        for name in self.wanted:
            self.wanted[name] = None

    def clock_jumped(self) -> None:
        """What rests by the node's clock ends when nobody can say, from now on."""
        self._steady = False

    def full(self) -> bool:
        """Was the last refusal for lack of room on the node?"""
        return bool(self.refusals) and self.refusals[-1][1] == "node_full"

    # ------------------------------------------------------------------ particulars

    def _add(self, name: str) -> None:
        number = next(self._numbers)
        box = Sandbox(f"container-{number}", name, self.machine.kernel.new_pod())
        self.sandboxes.append(box)
        self.wanted[name] = box
        self._ask(box)

    def _ask(self, box: Sandbox) -> None:
        def told(reply: wire.Reply) -> None:
            said = json.loads(reply.stdout) if reply.stdout else {}
            if box.state not in {"asked", "up"}:
                return  # deleted while the answer was on its way
            if reply.status:
                self._note(reply)
                if box.state == "asked":
                    self._refused(box)
                return
            address = str(said["ips"][0]["address"]).partition("/")[0]
            same = box.state == "asked" or box.address == address
            check("I2", same, f"{box.container} asked twice and was told {box.address}, {address}")
            if box.state == "asked":
                self._rested(address)
            box.state, box.address = "up", address

        self.machine.call(self._environment("ADD", box), _stdin(), box.space.number, told)
        if not self.machine.running and box.state == "asked":
            self._refused(box)

    def _delete(self, box: Sandbox) -> None:
        held = {lease.container_id: lease.address for lease in self.machine.desired().leases}
        served = held.get(box.container) == box.address

        def told(reply: wire.Reply) -> None:
            if reply.status:
                self._note(reply)
                return
            if served and box.address:
                until = self.machine.time.elapsed_ms() + self.machine.settings.ip_cooldown_ms
                self._cool[box.address] = until
            self._gone(box)

        pod = box.space.number if box.space.alive else None
        self.machine.call(self._environment("DEL", box), _stdin(), pod, told)

    def _spool(self, box: Sandbox) -> None:
        """As the launcher does: a file, then success."""
        stamp = self.machine.time.time_ns()
        body = wire.encode_request(wire.Request(self._environment("DEL", box), _stdin(), 0))
        path = self.machine.spool / f"{stamp}-1-{next(self._numbers)}.del"
        path.write_bytes(body)
        self._gone(box)

    def _gone(self, box: Sandbox) -> None:
        box.state = "gone"
        if box in self.sandboxes:
            self.sandboxes.remove(box)
        self.machine.kernel.end_pod(box.space)

    def _rested(self, address: str) -> None:
        """IP_COOLDOWN_PERIOD: nobody has an address so soon after its last pod's deletion was answered."""
        early = self._cool.pop(address, 0) - self.machine.time.elapsed_ms() if self._steady else 0
        check("cooldown", early <= 0, f"{address} has a pod again {early} ms too early")

    def _refused(self, box: Sandbox) -> None:
        box.state = "refused"
        if self.wanted.get(box.pod) is box:
            self.wanted[box.pod] = None

    def _let_go(self, box: Sandbox | None) -> None:
        if box is not None and box.state != "gone":
            box.state = "going"
            if self.wanted.get(box.pod) is box:
                self.wanted[box.pod] = None

    def _note(self, reply: wire.Reply) -> None:
        said = json.loads(reply.stdout)
        reason = str(said["msg"]).partition(":")[0]
        check("I4", said["code"] > 0, f"a refusal without a code: {said}")
        check("I4", reason in errors.REASONS, f"a refusal without a reason: {said}")
        self.refusals.append((int(said["code"]), reason))

    def _environment(self, verb: str, box: Sandbox) -> dict[str, str]:
        return {
            "CNI_COMMAND": verb,
            "CNI_PATH": "/opt/cni/bin",
            "CNI_CONTAINERID": box.container,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": f"/var/run/netns/{box.space.number}",
            "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={box.pod};IgnoreUnknown=1",
        }


def _stdin() -> bytes:
    return json.dumps(_CONF).encode()
