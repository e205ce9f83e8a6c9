"""The door asks the cloud through a child it can lose at any moment without being harmed."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger import model
from reconciler import cloud, errors
from reconciler.planner import actions
from tests.providers import ec2_lab
from tests.providers.ec2_lab import Ec2Lab

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Lab]:
    ec2_lab.without_credentials(monkeypatch)
    with ec2_lab.opened() as opened:
        yield opened


@pytest.fixture
def asks(lab: Ec2Lab) -> Iterator[cloud.Cloud]:
    made = cloud.Cloud(lab.settings(log_level="warn"))
    yield made
    made.close()


def primary(asks: cloud.Cloud) -> str:
    seen = asks.observe()
    assert isinstance(seen, model.ObservedCloud), seen
    return seen.enis[0].eni.eni_id


def until(what: str, done: object, within: float = 10.0) -> None:
    """Poll: another process's end and a call on its way offer a stranger no event to wait for."""
    deadline = time.monotonic() + within
    assert callable(done)
    while not done():
        assert time.monotonic() < deadline, f"not in {within} s: {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def met(lab: Ec2Lab) -> bool:
    """The fault with `times=1` has met its call, which waits in EC2 now."""
    return lab.front.faults.rules[0].times == 0


def test_node_interfaces_and_outcomes_come_through_whole(asks: cloud.Cloud, lab: Ec2Lab) -> None:
    """Every noun and verb survives the pipe, and each EC2 call is accounted for."""
    node = asks.identify()
    assert isinstance(node, model.Node)
    assert node.instance_id == lab.instance
    eni_id = primary(asks)
    assigned = asks.apply(actions.AssignAddresses(eni_id, 2), "t")
    assert (assigned.operation, assigned.code) == ("AssignPrivateIpAddresses", "ok")
    assert assigned.duration_us > 0
    addresses = assigned.outcome.result["addresses"]
    assert isinstance(addresses, tuple)
    create = actions.CreateEni(node.subnet_id, node.security_groups, "d", 1, (("team", "net"),))
    made = asks.apply(create, "token-1").outcome
    assert made.action == create
    fields = made.result["eni"]
    assert isinstance(fields, dict)
    assert model.Eni(**fields).state == "created"
    for seen in (asks.observe(), asks.observe("imds"), asks.observe(eni_ids=(eni_id,))):
        assert isinstance(seen, model.ObservedCloud)
        assert sorted(addresses) == sorted(seen.enis[0].addresses)
    refused = asks.apply(actions.AssignAddresses(eni_id, 60), "t")
    assert refused.code == refused.outcome.error == "PrivateIpAddressLimitExceeded"
    told = [(call.operation, call.code) for call in asks.calls()]
    assert told == lab.called()
    assert asks.calls() == ()


def test_a_known_node_needs_no_metadata(lab: Ec2Lab, asks: cloud.Cloud) -> None:
    """The ledger remembers who we are: EC2 is asked about that node whatever metadata would say."""
    node = asks.identify()
    assert isinstance(node, model.Node)
    other = dataclasses.replace(node, instance_id="i-0123456789abcdef0")
    with_node = cloud.Cloud(lab.settings(log_level="warn"), other)
    seen = with_node.observe()
    with_node.close()
    assert isinstance(seen, model.ObservedCloud)
    assert seen.enis == ()


def test_the_door_imports_none_of_the_heavy_clients() -> None:
    """Its memory, start and GIL stay its own: others pay for boto3 and Kubernetes."""
    with ec2_lab.opened() as lab:
        script = (
            "import sys\n"
            "from reconciler import cloud, daemon, settings, verbs\n"
            "made, _ = settings.load({'AWS_EC2_ENDPOINT': sys.argv[1],"
            " 'AWS_EC2_METADATA_SERVICE_ENDPOINT': sys.argv[2]})\n"
            "asks = cloud.Cloud(made)\n"
            "print(type(asks.observe()).__name__)\n"
            "asks.close()\n"
            "heavy = {'boto3', 'botocore', 'urllib3', 'kubernetes', 'pyroute2', 'grpc'}\n"
            "print(sorted({m.partition('.')[0] for m in sys.modules} & heavy))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, lab.mount.endpoint, lab.mount.imds(lab.instance)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert done.stdout.split("\n")[:2] == ["ObservedCloud", "[]"]


def test_the_child_has_no_capability(asks: cloud.Cloud) -> None:
    """It parses what the network sends; it may do nothing to the node."""
    asks.identify()
    status = Path(f"/proc/{asks.pid}/status").read_text().splitlines()
    facts = dict(line.split(":\t") for line in status if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(facts[name], 16) == 0, name
    assert facts["NoNewPrivs"] == "1"


def test_a_child_that_dies_before_a_question_is_replaced_after_a_pause(asks: cloud.Cloud) -> None:
    """The loss is found at the next question; until the pause is over nothing is sent at all."""
    eni_id = primary(asks)
    first = asks.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until("the child dies", lambda: not alive(first))
    assert isinstance(asks.observe(), model.Unknown)
    done = asks.apply(actions.AssignAddresses(eni_id, 1), "t")
    assert (done.outcome.error, done.outcome.unknown) == ("EndpointConnectionError", False)
    found = errors.from_ec2(done.outcome.error, done.outcome.text)
    assert isinstance(found, errors.TryLater)
    until("a new child answers", lambda: isinstance(asks.observe(), model.ObservedCloud))
    assert asks.pid != first


def test_a_child_that_dies_in_the_middle_leaves_a_mutation_unknown(
    asks: cloud.Cloud, lab: Ec2Lab
) -> None:
    """EC2 may have been told: whoever holds the intent has to look."""
    eni_id = primary(asks)
    pid = asks.pid
    assert pid is not None
    lab.fault("AssignPrivateIpAddresses", delay=5.0, times=1)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(asks.apply, actions.AssignAddresses(eni_id, 1), "t")
        until("the call waits in EC2", lambda: met(lab))
        os.kill(pid, signal.SIGKILL)
        done = asked.result(timeout=10)
    assert (done.outcome.unknown, done.code) == (True, "ConnectionClosed")


def test_a_child_that_hangs_is_ended_when_patience_is(lab: Ec2Lab) -> None:
    """A stuck call never holds its lane for longer than patience_s."""
    asks = cloud.Cloud(lab.settings(log_level="warn"), patience_s=1.5)
    eni_id = primary(asks)
    hung = asks.pid
    assert hung is not None
    lab.fault("*", delay=6.0)
    started = time.monotonic()
    done = asks.apply(actions.AssignAddresses(eni_id, 1), "t")
    assert 1.4 < time.monotonic() - started < 4
    assert (done.outcome.unknown, done.code) == (True, "ReadTimeout")
    assert not alive(hung)
    assert isinstance(asks.observe(), model.Unknown)
    asks.close()


def test_threads_take_turns(asks: cloud.Cloud) -> None:
    """Every question gets its own answer."""
    eni_id = primary(asks)
    with ThreadPoolExecutor(4) as pool:
        counts = [1, 2, 3, 1]
        done = list(pool.map(lambda n: asks.apply(actions.AssignAddresses(eni_id, n), ""), counts))
    found = [done_.outcome.result["addresses"] for done_ in done]
    assert counts == [len(each) for each in found if isinstance(each, tuple)]


def test_closing_lets_the_present_call_end_and_takes_no_more(
    asks: cloud.Cloud, lab: Ec2Lab
) -> None:
    """What EC2 was told is written down; the child is gone afterwards."""
    eni_id = primary(asks)
    pid = asks.pid
    assert pid is not None
    lab.fault("AssignPrivateIpAddresses", delay=0.5, times=1)
    outcomes: list[cloud.CloudOutcome] = []
    asking = threading.Thread(
        target=lambda: outcomes.append(asks.apply(actions.AssignAddresses(eni_id, 1), "t"))
    )
    asking.start()
    until("the call waits in EC2", lambda: met(lab))
    asks.close()
    asking.join()
    assert outcomes[0].code == "ok"
    assert not alive(pid)
    assert isinstance(asks.identify(), model.Unknown)
    assert asks.pid is None


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent(way: signal.Signals) -> None:
    """However the daemon dies, also while its child hangs in a call to EC2."""
    with ec2_lab.opened() as lab:
        lab.fault("*", delay=30.0, times=1)
        script = (
            "import sys, threading\n"
            "from reconciler import cloud, settings\n"
            "made, _ = settings.load({'AWS_EC2_ENDPOINT': sys.argv[1],"
            " 'AWS_EC2_METADATA_SERVICE_ENDPOINT': sys.argv[2]})\n"
            "asks = cloud.Cloud(made)\n"
            "asks.identify()\n"
            "print(asks.pid, flush=True)\n"
            "asks.observe()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, lab.mount.endpoint, lab.mount.imds(lab.instance)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            until("the call waits in EC2", lambda: met(lab))
            parent.send_signal(way)
        until("the child ends", lambda: not alive(child))
