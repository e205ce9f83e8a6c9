"""What `whatif` foresees: upstream's numbers, within the limits, and what daemons in the lab then do."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

from ledger import database, model, reads
from reconciler import daemon, ideal, record, whatif
from reconciler import settings as knobs
from reconciler.planner import limits
from reconciler.planner import plan as planner
from tests.lab import spaces
from tests.lab.kubelet import Kubelet
from tests.lab.node import Node
from tests.lab.whole import Lab
from tests.reconciler import live

Environ = dict[str, str]


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`vpcledger whatif` in an environment that holds no other settings."""
    path = Path(sys.executable).with_name("vpcledger")
    env = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run(
        [str(path), "whatif", *argv], capture_output=True, text=True, check=False, env=env
    )


def asked(instance_type: str, pods: list[int], settings: Environ) -> list[dict[str, Any]]:
    """The command's answer for settings given by --set."""
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    counts = ",".join(map(str, pods))
    done = run("--instance-type", instance_type, "--pods", counts, *sets, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# --------------------------------------------------------------------------- the command


BY_ENI = {"WARM_ENI_TARGET": "1"}
BY_IP = {"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "1"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (BY_IP, {0: [1], 5: [3, 3], 9: [3, 3, 3]}),
        (BY_ENI, {0: [3], 5: [3, 3, 3], 9: [3, 3, 3]}),
    ],
)
def test_upstreams_golden_vectors(settings: Environ, expected: dict[int, list[int]]) -> None:
    """Addresses per interface on a type of 3 interfaces with 3 slots."""
    found = asked("t3.small", list(expected), settings)
    assert expected == {each["pods"]: [eni["ips"] for eni in each["enis"]] for each in found}


def test_the_answer_has_the_order_of_the_question_and_counts_calls_since_the_first_start() -> None:
    (nine, none) = asked("t3.small", [9, 0], BY_IP)
    assert none == {
        "pods": 0,
        "enis": [{"ips": 1, "prefixes": 0}],
        "waiting": 0,
        "ec2_calls": {"AssignPrivateIpAddresses": 1, "CreateTags": 1},
    }
    assert nine["ec2_calls"] == {
        "AssignPrivateIpAddresses": 7,
        "CreateNetworkInterface": 2,
        "AttachNetworkInterface": 2,
        "ModifyNetworkInterfaceAttribute": 2,
        "CreateTags": 1,
    }


def test_the_table_says_how_many_are_free_and_how_many_pods_find_no_room() -> None:
    done = run("--instance-type", "t3.small", "--pods", "2,11", "--set", "WARM_IP_TARGET=1")
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    two, eleven = ([cell.strip() for cell in row if cell.strip()] for row in rows[1:])
    assert two == ["2", "1", "3", "3", "1", "0", "4"]
    assert eleven == ["11", "3", "9", "3 3 3", "0", "2", "14"]


def test_settings_come_from_the_environment_and_set_goes_before_it() -> None:
    argv = ("--instance-type", "t3.small", "--pods", "0", "--json")
    outside = json.loads(run(*argv, WARM_IP_TARGET="2").stdout)
    inside = json.loads(run(*argv, "--set", "WARM_IP_TARGET=3", WARM_IP_TARGET="2").stdout)
    assert [outside[0]["enis"][0]["ips"], inside[0]["enis"][0]["ips"]] == [2, 3]


def test_a_frozen_cloud_gets_no_call() -> None:
    (found,) = asked("t3.small", [2], {"VPCLEDGER_FREEZE": "cloud"})
    assert (found["enis"], found["waiting"]) == ([{"ips": 0, "prefixes": 0}], 2)
    assert found["ec2_calls"] == {}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--instance-type", "m5.huge", "--pods", "1"], "m5.huge is not in the table"),
        (["--instance-type", "_source", "--pods", "1"], "_source is not in the table"),
        (["--instance-type", "m5.large", "--pods", "-1"], "up to 2000, such as 0,5,9"),
        (["--instance-type", "m5.large", "--pods", "1,,2"], "up to 2000, such as 0,5,9"),
        (["--instance-type", "m5.large", "--pods", "2001"], "up to 2000, such as 0,5,9"),
        (["--instance-type", "m5.large"], "--pods"),
        (
            ["--instance-type", "m5.large", "--pods", "1", "--set", "WARM_PODS=1"],
            "'WARM_PODS' is no setting",
        ),
        (
            ["--instance-type", "m5.large", "--pods", "1", "--set", "WARM_IP_TARGET=few"],
            "WARM_IP_TARGET='few' is not a whole number of at least 0",
        ),
        (
            ["--instance-type", "m5.large", "--pods", "1", "--set", "WARM_IP_TARGET"],
            "WARM_IP_TARGET='' is not a whole number",
        ),
    ],
)
def test_what_cannot_be_foreseen_is_said_in_a_sentence(argv: list[str], said: str) -> None:
    """A value that the daemon would replace by its default is refused too: the answer would mislead."""
    done = run(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


PAGE = (Path(__file__).parents[2] / "deploy" / "docs" / "warm-targets.md").read_text()
EXAMPLES = re.findall(
    r"^vpcledger whatif ([^\n]+)\n```\n\n```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
)


def test_the_manual_shows_what_the_command_prints() -> None:
    assert [run(*argv.split()).stdout for argv, _ in EXAMPLES] == [shown for _, shown in EXAMPLES]
    assert len(EXAMPLES) == PAGE.count("vpcledger whatif --") > 0


# --------------------------------------------------------------------------- any settings


TARGETS = some.builds(
    knobs.Settings,
    warm_eni_target=some.integers(0, 3),
    warm_ip_target=some.integers(0, 8),
    minimum_ip_target=some.integers(0, 12),
    max_eni=some.none() | some.integers(1, 5),
    ip_cooldown_ms=some.sampled_from([0, 30_000, 600_000]),
)
TYPES = some.builds(
    lambda enis, slots: limits.Limits(enis, slots + 1, (enis,), "nitro"),
    some.integers(1, 5),
    some.integers(1, 6),
)


def sums(settings: knobs.Settings, limit: limits.Limits, pods: int) -> list[int]:
    """Addresses per interface by upstream's targets as one would do the sum on paper."""
    enis = min(limit.enis, settings.max_eni or limit.enis)
    warm, least = settings.warm_ip_target, settings.minimum_ip_target
    if warm or least:
        total = min(max(pods + warm, least), enis * limit.slots)
    else:
        spare = max(settings.warm_eni_target * limit.slots, 1)
        total = min(math.ceil((pods + spare) / limit.slots), enis) * limit.slots
    full, rest = divmod(total, limit.slots)
    return [limit.slots] * full + [rest] * bool(rest) or [0]


@given(TARGETS, TYPES, some.lists(some.integers(0, 35), min_size=1, max_size=4))
@effort(max_examples=300, deadline=None)
def test_every_forecast_is_the_targets_sum_within_the_types_limits(
    settings: knobs.Settings, limit: limits.Limits, pods: list[int]
) -> None:
    """No more interfaces or addresses than the type takes; every pod is served while there is room."""
    found = whatif.forecast(settings, limit, pods)
    room = limit.slots * min(limit.enis, settings.max_eni or limit.enis)
    assert [each.pods for each in found] == pods
    assert [each.waiting for each in found] == [max(count - room, 0) for count in pods]
    assert [[eni.ips for eni in each.enis] for each in found] == [
        sums(settings, limit, count) for count in pods
    ]


@given(TARGETS, TYPES, some.integers(0, 35))
@effort(max_examples=100, deadline=None)
def test_pods_that_come_all_at_once_lead_to_the_same_node_by_no_more_calls(
    settings: knobs.Settings, limit: limits.Limits, pods: int
) -> None:
    """Nothing is given back on the way up, and a burst shares its calls."""
    (slow,) = whatif.forecast(settings, limit, [pods])
    burst = ideal.World(settings, limit)
    burst.rest()
    for _ in range(pods):
        burst.add()
    burst.rest()
    assert burst.per_eni() == [eni.ips for eni in slow.enis]
    assert len(burst.calls) <= sum(slow.ec2_calls.values())
    assert not {"UnassignPrivateIpAddresses", "DetachNetworkInterface"} & set(slow.ec2_calls)


def test_a_pod_gets_what_the_ledger_would_give_it() -> None:
    """The fullest interface's address; of those of one interface the longest-rested; none that cools."""
    world = ideal.World(knobs.Settings(warm_ip_target=1), limits.Limits(3, 4, (3,), "nitro"))
    for _ in range(5):
        world.add()
        world.rest()
    first, second, *stay = (lease.address for lease in world.pods.values())
    (free,) = set(world.rows) - {first, second, *stay}
    assert world.per_eni() == [3, 3]

    world.remove(1)
    world.pass_time(1)
    world.remove(0)
    world.pass_time(30_000)
    world.add()
    world.add()
    rested = [lease.address for lease in world.pods.values()]
    world.add()
    world.remove(-1)
    world.add()
    cooling = [lease.address for lease in world.pods.values()]
    world.pass_time(30_000)
    cooled = [lease.address for lease in world.pods.values()]

    assert rested == [*stay, free, second]
    assert cooling == [*rested, None]
    assert cooled == [*rested, first]


# --------------------------------------------------------------------------- the lab


@dataclass(frozen=True)
class Trial:
    """One daemon's settings, and the numbers of pods at which it is compared."""

    settings: Environ
    pods: tuple[int, ...]


PREFIXES = {"ENABLE_PREFIX_DELEGATION": "true"}
DENSE = {"WARM_IP_TARGET": "2", "MINIMUM_IP_TARGET": "5"}
TRIALS = {
    "t3.small": (  # 3 interfaces of 3
        Trial(BY_IP, (0, 1, 5, 9)),
        Trial(BY_ENI, (0, 1, 5, 9)),
        Trial({"WARM_ENI_TARGET": "0"}, (0, 2, 3, 6)),
        Trial(DENSE, (0, 4, 9)),
        Trial({"MINIMUM_IP_TARGET": "4"}, (0, 4, 5)),
        Trial({"WARM_ENI_TARGET": "1", "MAX_ENI": "2"}, (0, 4, 6)),
    ),
    # By itself: the single addresses of other nodes leave a small subnet few whole blocks.
    "t3.small prefixes": (
        Trial(PREFIXES | {"WARM_PREFIX_TARGET": "1"}, (0, 1, 17)),
        Trial(PREFIXES | {"WARM_PREFIX_TARGET": "4"}, (0, 2)),
        Trial(PREFIXES | {"WARM_PREFIX_TARGET": "1", "MAX_ENI": "1"}, (0, 17)),
    ),
    "m5.large prefixes": (
        Trial(PREFIXES | {"WARM_IP_TARGET": "5", "MINIMUM_IP_TARGET": "40"}, (0, 12)),
        Trial(PREFIXES | {"WARM_IP_TARGET": "16"}, (0, 1, 17)),
    ),
    "m5.large": (  # 3 interfaces of 9
        Trial(BY_IP, (0, 8, 9, 14)),
        Trial({"WARM_IP_TARGET": "5"}, (0, 3, 13)),
        Trial({}, (0, 1, 10)),
        Trial(DENSE, (0, 7, 15)),
    ),
    "c6in.32xlarge": (  # two network cards of 8 interfaces of 49
        Trial({"WARM_IP_TARGET": "2", "ENABLE_MULTI_NIC": "true"}, (0, 3)),
        Trial({"WARM_IP_TARGET": "2"}, (0, 3)),
        Trial(
            PREFIXES | {"WARM_PREFIX_TARGET": "1", "MAX_ENI": "1", "ENABLE_MULTI_NIC": "true"},
            (0, 1),
        ),
    ),
    "c5.xlarge": (  # 4 interfaces of 14
        Trial({"WARM_ENI_TARGET": "2"}, (0, 1, 15)),
        Trial({"WARM_ENI_TARGET": "3", "MAX_ENI": "3"}, (0, 15)),
        Trial({"WARM_IP_TARGET": "14", "MINIMUM_IP_TARGET": "20"}, (0, 6, 12)),
    ),
}


def test_there_are_enough_trials() -> None:
    assert sum(len(trial.pods) for trials in TRIALS.values() for trial in trials) >= 30


@pytest.mark.slow
@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
@pytest.mark.parametrize("name", TRIALS)
def test_the_lab_does_what_was_foreseen(name: str) -> None:
    """Interfaces, addresses and EC2's own count of the calls, for every daemon and number of pods."""
    trials, instance_type = TRIALS[name], name.split(maxsplit=1)[0]
    foreseen = [asked(instance_type, list(each.pods), each.settings) for each in trials]
    with Lab(
        nodes=len(trials), instance_type=instance_type, attach_delay=0.1, throttle=None
    ) as lab:
        seen = lab.on_each(
            lambda at: tried(lab, lab.nodes[at], lab.kubelets[at], trials[at]), range(len(trials))
        )
    assert seen == foreseen


def tried(lab: Lab, node: Node, kubelet: Kubelet, trial: Trial) -> list[dict[str, Any]]:
    """What EC2 shows of the node at each number of pods, in the words of the forecast."""
    node.start_daemon(**trial.settings)
    settings, _ = knobs.load(trial.settings)
    found = []
    with database.Ledger.open(node.ledger, read_only=True) as ledger:
        wait_for_rest(ledger, settings)
        # The primary's tags come last, and the rows do not tell: EC2 alone keeps them.
        live.until(lambda: "CreateTags" in picture(lab, node)["ec2_calls"], "the primary's tags")
        for before, count in pairwise((0, *trial.pods)):
            for number in range(before, count):
                kubelet.start(f"pod-{number}")
                wait_for_rest(ledger, settings)
            found.append({"pods": count, **picture(lab, node), "waiting": 0})
    return found


def wait_for_rest(ledger: database.Ledger, settings: knobs.Settings) -> None:
    """Until the rows hold all that the planner wants, wired, and no call and no pod is open.

    Another process's commits ring no bell here; their number tells when it is worth another look.
    """
    looked_at: int | None = None

    def rests() -> bool:
        nonlocal looked_at
        if ledger.revision() == looked_at:
            return False
        looked_at, now = ledger.revision(), daemon.clock()
        with ledger.read() as tx:
            rows = reads.desired(tx, now)
        plan = planner.cloud(rows, model.Unknown("not asked", now), settings, now)
        return (
            bool(rows.enis)
            and all(eni.state == "usable" for eni in rows.enis)
            and all(lease.state == "active" for lease in rows.leases)
            and not (rows.intents or plan.cloud or record.wants_a_look(plan))
        )

    live.until(rests, "a pool at rest")


def picture(lab: Lab, node: Node) -> dict[str, Any]:
    """Secondary addresses on each interface, and the changes EC2 was asked for by this node."""
    with lab.cloud.lock:
        enis = lab.cloud.interfaces_of(node.instance)
    made = Counter(row.action for row in lab.front.journal.rows(who=node.instance))
    return {
        "enis": [
            {
                "ips": len(eni["PrivateIpAddresses"]) - 1,
                "prefixes": len(eni.get("Ipv4Prefixes", ())),
            }
            for eni in sorted(enis, key=_place)
        ],
        "ec2_calls": {call: n for call, n in made.items() if not call.startswith("Describe")},
    }


def _place(eni: dict[str, Any]) -> tuple[int, int]:
    return int(eni["Attachment"]["NetworkCardIndex"]), int(eni["Attachment"]["DeviceIndex"])
