"""The cloud at arm's length: a child process holds the providers of ec2, imds and cluster.

boto3 costs memory, start-up time and the interpreter's lock, and EC2 may hang; the door must not
notice (decision 13). `Cloud` asks, `python -m reconciler.cloud` answers, a line of JSON each way over
a socket pair. A child that dies or answers too late makes an observation Unknown and a mutation's
outcome `unknown`; it is started again after a pause. The child keeps no capability and ends with its
pipe. What is asked, and what an answer leads to, does not belong here.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from ledger import model
from reconciler import logs, privileges
from reconciler import settings as knobs
from reconciler.planner import actions, notation
from reconciler.providers import ec2

log = logging.getLogger(__name__)

PATIENCE_S: Final = 120.0
"""How long an answer may take: EC2's throttles, repeated with pauses, need the most."""
PAUSE_S: Final = (0.5, 60.0)
"""First and longest pause before a child that was lost is started again; it doubles in between."""
GOODBYE_S: Final = 2.0
CALLS_KEPT: Final = 1000

Source = Literal["ec2", "imds"]


@dataclasses.dataclass(frozen=True, slots=True)
class CloudOutcome:
    """A mutation's outcome, and its api_calls row: EC2's action, 'ok' or the code, microseconds."""

    outcome: actions.Outcome
    operation: str
    code: str
    duration_us: int


class _LostError(Exception):
    """No answer. `sent` says whether the question may have reached the child."""

    def __init__(self, why: str, *, sent: bool, code: str) -> None:
        super().__init__(why)
        self.sent, self.code = sent, code


class Cloud:
    """Asks the child, one question at a time; threads may share it."""

    def __init__(
        self,
        settings: knobs.Settings,
        node: model.Node | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Nothing is started before the first question. `node`, if known, spares asking IMDS first."""
        self._settings, self._node, self._patience = settings, node, patience_s
        self._turn = threading.Lock()
        self._child: _Child | None = None
        self._closed = False
        self._pause, self._not_before = PAUSE_S[0], 0.0
        self._calls: collections.deque[ec2.Call] = collections.deque(maxlen=CALLS_KEPT)
        self.metadata: model.ObservedCloud | None = None
        """The interfaces that instance metadata showed when they were last asked who we are."""

    def identify(self) -> model.Node | model.Unknown:
        """Who this machine is, from the instance metadata service."""
        answer = self._ask_about({"do": "identify"})
        if isinstance(answer, model.Unknown):
            self.metadata = None
            return answer
        assert isinstance(answer, tuple)
        self._node, self.metadata = answer
        assert isinstance(self._node, model.Node)
        return self._node

    def observe(
        self,
        source: Source = "ec2",
        eni_ids: tuple[str, ...] | None = None,
        known: tuple[model.Eni, ...] = (),
    ) -> model.ObservedCloud | model.Unknown:
        """What EC2 shows of these interfaces (None: of this node's), or all that IMDS shows.

        `known` spares EC2 questions; see ec2.Ec2.observe.
        """
        answer = self._ask_about(
            {"do": "observe", "source": source, "eni_ids": eni_ids, "known": known}
        )
        assert isinstance(answer, model.ObservedCloud | model.Unknown)
        return answer

    def observe_leaked(self) -> model.ObservedCloud | model.Unknown:
        """The cluster's interfaces that are attached to nothing; see ec2.Ec2.observe_leaked."""
        answer = self._ask_about({"do": "observe_leaked"})
        assert isinstance(answer, model.ObservedCloud | model.Unknown)
        return answer

    def schedule(self) -> model.Scheduling | model.Unknown:
        """What the cluster's API says of this node; see cluster.Cluster.observe."""
        answer = self._ask_about({"do": "schedule"})
        assert isinstance(answer, model.Scheduling | model.Unknown)
        return answer

    def apply(self, action: actions.CloudAction, token: str) -> CloudOutcome:
        """Carry out one mutation; see ec2.Ec2.apply. An answer that got lost leaves it `unknown`."""
        started = time.monotonic()
        try:
            outcome = self._ask({"do": "apply", "action": action, "token": token})
            assert isinstance(outcome, actions.Outcome)
        except _LostError as lost:
            outcome = actions.Outcome(action, lost.code, str(lost), unknown=lost.sent)
        spent = int((time.monotonic() - started) * 1e6)
        return CloudOutcome(outcome, ec2.ACTION[type(action)], outcome.error or "ok", spent)

    def calls(self) -> tuple[ec2.Call, ...]:
        """All EC2 calls since this was asked last, descriptions included (the latest CALLS_KEPT)."""
        return tuple(self._calls.popleft() for _ in range(len(self._calls)))

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        child = self._child
        return child.process.pid if child else None

    def close(self) -> None:
        """Let the child finish what it is at, for GOODBYE_S; it is not started again."""
        self._closed = True
        child = self._child
        if child is not None:
            child.end()
        with self._turn:  # free at once: whoever waits for the child has its answer or its end
            if self._child is not None:
                self._child.kill()
            self._child = None

    def _ask_about(self, question: dict[str, object]) -> object:
        asked = time.time_ns() // 1_000_000
        try:
            return self._ask(question)
        except _LostError as lost:
            return model.Unknown(str(lost), asked)

    def _ask(self, question: dict[str, object]) -> object:
        """The child's answer; _LostError without one, and then the child is gone."""
        with self._turn:
            child = self._running()
            try:
                reply = child.ask({"node": self._node, **question}, self._patience)
            except _LostError as lost:
                log.warning("the cloud's child is lost: %s", lost)
                child.kill()
                self._child = None
                self._not_before = time.monotonic() + self._pause
                self._pause = min(self._pause * 2, PAUSE_S[1])
                raise
            self._pause = PAUSE_S[0]
            self._calls.extend(ec2.Call(**call) for call in reply["calls"])
            if "failed" in reply:
                raise _LostError(reply["failed"], sent=True, code="InternalFailure")
            return notation.read(reply["answer"])

    def _running(self) -> _Child:
        if self._closed:
            raise _LostError("the daemon is stopping", sent=False, code="EndpointConnectionError")
        if self._child is None:
            left = self._not_before - time.monotonic()
            if left > 0:
                why = f"the child that talks to EC2 was lost; a new one starts in {left:.1f} s"
                raise _LostError(why, sent=False, code="EndpointConnectionError")
            self._child = _Child(self._settings)
        return self._child


class _Child:
    """One child process and our end of its socket."""

    def __init__(self, settings: knobs.Settings) -> None:
        self._socket, theirs = socket.socketpair()
        self._rest = b""
        root = str(Path(__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "reconciler.cloud"],
                stdin=theirs.fileno(),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        self._hello: dict[str, Any] | None = {
            "parent": os.getpid(),
            "settings": dataclasses.asdict(settings),
        }

    def ask(self, question: dict[str, object], patience_s: float) -> dict[str, Any]:
        """Send a line, wait for a line; _LostError if that fails or takes longer."""
        until = time.monotonic() + patience_s
        lines = [self._hello, question] if self._hello else [question]
        self._hello = None
        text = "".join(json.dumps(notation.written(line)) + "\n" for line in lines)
        try:
            self._socket.settimeout(patience_s)
            self._socket.sendall(text.encode())
        except OSError as error:  # the line is not complete, so nobody acts on it
            why = f"the child took no question: {error}"
            raise _LostError(why, sent=False, code="EndpointConnectionError") from None
        return self._answer(until, patience_s)

    def _answer(self, until: float, patience_s: float) -> dict[str, Any]:
        while b"\n" not in self._rest:
            try:
                self._socket.settimeout(max(until - time.monotonic(), 0.001))
                more = self._socket.recv(1 << 16)
            except TimeoutError:
                why = f"the child gave no answer in {patience_s:g} s"
                raise _LostError(why, sent=True, code="ReadTimeout") from None
            except OSError as error:
                raise _LostError(str(error), sent=True, code="ConnectionClosed") from None
            if not more:
                raise _LostError("the child ended", sent=True, code="ConnectionClosed")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def end(self) -> None:
        """No more questions; kill it only if it does not end by itself."""
        with contextlib.suppress(OSError):  # it has ended already
            self._socket.shutdown(socket.SHUT_WR)
        try:
            self.process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def kill(self) -> None:
        """End it now and forget it; harmless for one that has ended."""
        self.process.kill()
        self.process.wait()
        self._socket.close()


# --------------------------------------------------------------------------- the child


class _Hands:
    """The providers, made when they are first needed, and the calls they made."""

    def __init__(self, settings: knobs.Settings) -> None:
        from reconciler.providers import cluster, imds

        self._settings = settings
        self._cluster = cluster.Cluster(settings)
        self._imds = imds.Imds(settings)
        self._ec2: dict[tuple[str, str], ec2.Ec2] = {}
        self.calls: list[ec2.Call] = []

    def answer(self, do: str, node: model.Node | None, asked: dict[str, Any]) -> object:
        """The answer to one question; `node` is what the asker knows of this machine."""
        if do == "identify":
            return self._imds.observe()
        if do == "schedule":
            return self._cluster.observe()
        if do == "observe" and asked["source"] == "imds":
            seen = self._imds.observe()
            return seen if isinstance(seen, model.Unknown) else seen[1]
        hands = self._of(node)
        if isinstance(hands, model.Unknown):
            if do != "apply":
                return hands
            return actions.Outcome(asked["action"], "EndpointConnectionError", hands.why)
        if do == "observe_leaked":
            return hands.observe_leaked()
        if do == "observe":
            return hands.observe(asked["eni_ids"], asked["known"])
        return hands.apply(asked["action"], asked["token"])

    def _of(self, node: model.Node | None) -> ec2.Ec2 | model.Unknown:
        """EC2 as this node sees it; a second session would cost 23 MB, so there is one."""
        if node is None:
            seen = self._imds.observe()
            if isinstance(seen, model.Unknown):
                return seen
            node = seen[0]
        who = (node.instance_id, node.region)
        if who not in self._ec2:
            self._ec2 = {who: ec2.Ec2(node, self._settings, self.calls.append)}
        return self._ec2[who]


def main() -> int:
    """Answer the questions that come in on standard input, a socket, until it closes."""
    pipe = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the daemon's to act on
    privileges.die_with_parent()
    privileges.drop_all()
    questions = _lines(pipe)
    hello = next(questions, None)
    if hello is None or os.getppid() != hello["parent"]:
        return 0  # the daemon was gone before it could be watched
    settings = knobs.Settings(**hello["settings"])
    logs.start(settings.log_level, "stderr")
    hands = _Hands(settings)
    for question in questions:
        reply: dict[str, object] = {}
        try:
            reply["answer"] = hands.answer(question["do"], question["node"], question)
        except Exception as error:
            log.exception("a question could not be answered")
            reply["failed"] = f"{type(error).__name__}: {error}"
        reply["calls"] = [dataclasses.asdict(call) for call in hands.calls]
        hands.calls.clear()
        try:
            pipe.sendall(json.dumps(notation.written(reply)).encode() + b"\n")
        except OSError:
            return 0  # nobody waits any more
    return 0


def _lines(pipe: socket.socket) -> Iterator[dict[str, Any]]:
    with pipe.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return  # the asker died in the middle of a question
            yield notation.read(json.loads(line))


if __name__ == "__main__":
    raise SystemExit(main())
