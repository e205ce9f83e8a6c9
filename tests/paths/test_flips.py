"""A setting changes while connections are open: they go on as they began, new ones follow the new setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab import talk
from tests.lab.kubeproxy import KubeProxy, Service
from tests.paths.town import INTERFACES, PORT, SETTINGS, TABLES, Town

CLUSTER_IP, SERVICE_PORT = "172.20.0.20", 8000
PORTS = {"Cluster": 30090, "Local": 30091}

FLIPS: dict[str, tuple[str, dict[str, str]]] = {
    **{name: (TABLES[name], SETTINGS[name]) for name in ("hashrandom", "excluded", "external")},
    "without node ports": (
        r"snat to [0-9.]+ fully-random",
        {"AWS_VPC_CNI_NODE_PORT_SUPPORT": "false"},
    ),
    "service networks": (
        r"1535:\tfrom all to 192\.0\.2\.0/24 lookup main",
        {"AWS_EXTERNAL_SERVICE_CIDRS": "192.0.2.0/24", "DISABLE_TCP_EARLY_DEMUX": "true"},
    ),
    "another mark": (r"0x00000100", {"AWS_VPC_K8S_CNI_CONNMARK": "0x100"}),
    "another prefix": (r'iifname "pod\*"', {"AWS_VPC_K8S_CNI_VETHPREFIX": "pod"}),
    "none": (TABLES["none"] + r"(?!.*1535:)", SETTINGS["none"]),
    "prng": (TABLES["prng"] + r"(?!.*iifname .pod\*)", SETTINGS["prng"]),
}
"""One after the other, besides the defaults: by what the table tells it, and what is set."""


class Calls:
    """Connections of every kind, each with what its far end must go on seeing."""

    def __init__(self, town: Town, stack: ExitStack) -> None:
        self._town, self._stack = town, stack
        self.open: dict[str, tuple[talk.Call, tuple[str, str]]] = {}
        caller = town.beyond.internet
        for interface in INTERFACES:
            pod, other = town.pod(0, interface), town.pod(1, interface)
            for name, address, port in (
                ("internet", caller.address, PORT),
                ("peer", town.beyond.peer.address, PORT),
                ("pod", other.address, PORT),
                ("service", CLUSTER_IP, SERVICE_PORT),
            ):
                self.dial(f"pod on eth{interface} > {name}", pod.netns, address, port)
            self.dial(f"peer > pod on eth{interface}", town.beyond.peer.netns, pod.address, PORT)
        for policy, port in PORTS.items():
            self.dial(f"internet > NodePort {policy}", caller.netns, town.public[0], port)

    def dial(self, name: str, *to: object) -> None:
        """Open one more."""
        try:
            call = self._stack.enter_context(talk.Call(*to))  # type: ignore[arg-type]  # as given
            self.open[name] = call, call.ask()
        except OSError as error:
            raise AssertionError(f"{name}: {error}; {self._town.told(PORT)}") from error

    def changed(self) -> dict[str, object]:
        """Those that broke, or whose far end sees somebody else now."""
        found: dict[str, object] = {}
        for name, (call, before) in self.open.items():
            try:
                now = call.ask()
            except OSError as error:
                found[name] = repr(error)
            else:
                if now != before:
                    found[name] = (before, now)
        return found


@pytest.fixture
def calls(town: Town) -> Iterator[Calls]:
    pod, peer = town.pod(0, 1, 1), town.beyond.peer
    proxy = KubeProxy(
        town.node(0).netns,
        "nftables",
        [
            Service("far", CLUSTER_IP, SERVICE_PORT, [(peer.address, PORT)]),
            *(
                Service(
                    policy,
                    f"172.20.1.{number}",
                    SERVICE_PORT,
                    [(pod.address, PORT)],
                    [(pod.address, PORT)],
                    port,
                    "Local" if policy == "Local" else "Cluster",
                )
                for number, (policy, port) in enumerate(PORTS.items(), 1)
            ),
        ],
    )
    with ExitStack() as stack:
        yield Calls(town, stack)
    proxy.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["prng"], indirect=True)
def test_what_is_open_goes_on_whatever_setting_changes(town: Town, calls: Calls) -> None:
    """The daemon restarts with one setting after the other, and at last with the defaults again.

    At each stop a new connection shows that the setting is in force, and stays open with the others.
    """
    pod, peer, node = town.pod(0, 1), town.beyond.peer, town.node(0).address
    for name, (tells, settings) in FLIPS.items():
        town.restart(tells, settings, nodes=1)
        assert calls.changed() == {}, f"at {name}"
        source = pod.address if name in {"external", "excluded"} else node
        calls.dial(f"since {name}", pod.netns, peer.address, PORT)
        assert calls.open[f"since {name}"][1] == (peer.name, source)


@pytest.mark.parametrize("mode", ["external"], indirect=True)
def test_what_began_untranslated_stays_so(town: Town) -> None:
    """From external to translated: the peer goes on seeing pods, by their own interfaces."""
    peer = town.beyond.peer.address
    with ExitStack() as stack:
        pods = [town.pod(0, interface) for interface in INTERFACES]
        open_calls = [stack.enter_context(talk.Call(pod.netns, peer, PORT)) for pod in pods]
        assert [call.ask()[1] for call in open_calls] == [pod.address for pod in pods]
        town.mode("prng")
        assert [call.ask()[1] for call in open_calls] == [pod.address for pod in pods]
        assert {talk.ask(pod.netns, peer, PORT)[1] for pod in pods} == {town.node(0).address}
