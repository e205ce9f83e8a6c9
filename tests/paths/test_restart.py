"""A daemon restarts, politely or not, while packets flow: none is lost, and the kernel hears nothing."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from tests.lab import talk
from tests.lab.ear import Ear
from tests.lab.node import Node
from tests.lab.stream import Stream
from tests.paths.town import INTERFACES, MARK, PORT, Town

WRITTEN = "SELECT kind, subject, text FROM v_journal WHERE kind LIKE 'kernel.%' AND id > {}"


def ledger(node: Node, sql: str) -> list[dict[str, object]]:
    done = node.product("sql", "--json", sql)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.parametrize("mode", ["prng"], indirect=True)
def test_a_restart_loses_no_packet_and_changes_nothing(town: Town, how: str) -> None:
    """Streams from a pod of each interface to the internet and to the other node, and open connections."""
    one, two = town.node(0), town.node(1)
    [last] = ledger(one, "SELECT max(id) AS id FROM v_journal")
    with ExitStack() as stack:
        stack.enter_context(town.unobserved())
        pods = [town.pod(0, interface) for interface in INTERFACES]
        streams = {
            f"eth{interface} > {name}": stack.enter_context(Stream(pod.netns, address))
            for interface, pod in zip(INTERFACES, pods, strict=True)
            for name, address in (
                ("internet", town.beyond.internet.address),
                ("pod", town.pod(1, interface).address),
            )
        }
        calls = [
            stack.enter_context(talk.Call(pod.netns, town.beyond.internet.address, PORT))
            for pod in pods
        ]
        seen = [call.ask() for call in calls]
        ears = [stack.enter_context(Ear(node.netns)) for node in (one, two)]
        if how == "killed":
            one.kill_daemon()
        else:
            assert one.stop_daemon() == 0
        one.start_daemon()
        reports = {name: stream.stop() for name, stream in streams.items()}
        assert [call.ask() for call in calls] == seen
        assert [ear.heard() for ear in ears] == [[], []]
        # Something that it must put right says that it has looked at all and is at work again.
        marked = f"fwmark {MARK:#x}/{MARK:#x}"
        one.netns.command("ip", "rule", "delete", *marked.split())
        town.until(lambda: marked in one.netns.command("ip", "rule"), "the rule is back")
        assert {name: report.lost for name, report in reports.items() if report.lost} == {}
        assert set(ears[0].heard()) == {"new rule", "del rule"}
    assert town.lab.fabric.drops() == {}
    mended = ledger(one, WRITTEN.format(last["id"]))
    assert [(row["kind"], "1024" in str(row)) for row in mended] == [("kernel.mended", True)]
