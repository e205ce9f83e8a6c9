"""Each finding is brought about on a running daemon, looked at as the runbook says, ended so, and closed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import spaces
from tests.lab.whole import Lab
from tests.reconciler import live, runbook
from tests.reconciler.runbook import Town

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing())),
]

REFUSALS = ("throttled", "ec2_denied", "ec2_error", "subnet_full", "node_full")
"""What EC2 answers to a call: each is repeated after its pause, so all are waited for together."""
OTHERS = sorted(runbook.sections().keys() - {*REFUSALS})


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    with Lab(nodes=1, attach_delay=0.1, throttle=None) as lab:
        made = Town(lab, lab.kubernetes(), lab.nodes[0], lab.kubelets[0])
        made.start(
            WARM_IP_TARGET="3",
            IP_COOLDOWN_PERIOD="0",
            VPCLEDGER_SANDBOX_INTERVAL="5",
            VPCLEDGER_CRI_SOCKET=str(made.node.run / "cri.sock"),
        )
        made.kubelet.start("web")
        live.settle(made.node)
        yield made


def opened(town: Town, code: str, subject: str) -> None:
    live.until(lambda: town.is_open(code, subject), f"{code} {subject} opens")


def closed(town: Town, code: str, subject: str, patience: float = live.PATIENCE_S) -> None:
    live.until(lambda: not town.is_open(code, subject), f"{code} {subject} closes", patience)


def looked_at(town: Town, code: str, subject: str) -> None:
    """Every command of the section works while the finding is open, and the last ones show something."""
    for command in runbook.sections()[code].look:
        done = town.run(command, subject)
        problem = command == "vpcledger integrity" and done.returncode == 1
        assert done.returncode == 0 or problem, f"{command}: {done.stderr}"
        assert done.stdout.strip() not in {"", "(no rows)"}, f"{command} shows nothing"


def ended(town: Town, code: str, subject: str) -> None:
    for command in runbook.sections()[code].do:
        done = town.run(command, subject)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("code", OTHERS)
def test_a_finding_is_looked_at_and_ended_as_the_runbook_says(town: Town, code: str) -> None:
    way: Iterator[str] = getattr(runbook, code)(town)
    subject = next(way)
    opened(town, code, subject)
    looked_at(town, code, subject)
    ended(town, code, subject)
    for _ in way:  # what was mended is seen before the rest is cleared away
        closed(town, code, subject)
    closed(town, code, subject)
    pod = town.kubelet.start(f"after-{code.replace('_', '-')}")
    assert pod.ping(town.node.address)
    town.kubelet.stop(pod)


@pytest.mark.timeout(300)
def test_what_ec2_refuses_is_looked_at_and_ended_as_the_runbook_says() -> None:
    with Lab(nodes=len(REFUSALS), attach_delay=0.1, throttle=None) as lab:
        lab.start(WARM_IP_TARGET="1")
        api = lab.kubernetes()
        towns = {
            code: Town(lab, api, node, kubelet)
            for code, node, kubelet in zip(REFUSALS, lab.nodes, lab.kubelets, strict=True)
        }
        for made in towns.values():
            live.settle(made.node)
        ways = {code: getattr(runbook, code)(made) for code, made in towns.items()}
        subjects = {code: next(way) for code, way in ways.items()}
        for code, made in towns.items():
            opened(made, code, subjects[code])
            looked_at(made, code, subjects[code])
        for way in ways.values():
            assert next(way, None) is None
        for code, made in towns.items():
            closed(made, code, subjects[code], patience=130)
