"""Services by the rules of a kube-proxy, in each of its modes: translated, masqueraded or not, refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab import spaces, talk
from tests.lab.kubeproxy import MODES, KubeProxy, Mode, Service
from tests.lab_suite.small_vpc import SmallVpc, opened

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
_names = (f"kubeproxy-{n}" for n in itertools.count())


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.fixture
def vpc() -> Iterator[SmallVpc]:
    with opened(next(_names)) as small, ExitStack() as listening:
        small.call(
            "AuthorizeSecurityGroupIngress",
            GroupId=small.held(small.one)[0]["Groups"][0]["GroupId"],
            IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
        )
        for node in (small.one, small.two):
            listening.enter_context(talk.Listener(node.netns, 8080, node.name))
        yield small


def test_a_cluster_ip_leads_to_its_endpoint_and_keeps_the_source(vpc: SmallVpc, mode: Mode) -> None:
    service = Service("web", "172.20.0.10", 80, [(vpc.two.address, 8080)])
    proxy = KubeProxy(vpc.one.netns, mode, [service])
    assert talk.ask(vpc.one.netns, "172.20.0.10", 80) == ("two", vpc.one.address)
    proxy.close()
    with pytest.raises(OSError, match=r"timed out|refused"):
        talk.ask(vpc.one.netns, "172.20.0.10", 80, wait=0.3)


def test_a_node_port_of_policy_cluster_hides_the_caller_one_of_policy_local_shows_him(
    vpc: SmallVpc, mode: Mode
) -> None:
    here, there = (vpc.one.address, 8080), (vpc.two.address, 8080)
    wide = Service("wide", "172.20.0.10", 80, [there], node_port=30080)
    near = Service("near", "172.20.0.11", 80, [here, there], [here], 30081, external_policy="Local")
    none = Service("none", "172.20.0.12", 80, [there], [], 30082, external_policy="Local")
    KubeProxy(vpc.one.netns, mode, [wide, near, none])
    assert talk.ask(vpc.two.netns, vpc.one.address, 30080) == ("two", vpc.one.address)
    for _ in range(4):
        assert talk.ask(vpc.two.netns, vpc.one.address, 30081) == ("one", vpc.two.address)
    with pytest.raises(TimeoutError):
        talk.ask(vpc.two.netns, vpc.one.address, 30082, wait=0.3)


def test_endpoints_take_turns_and_a_reload_changes_them(vpc: SmallVpc, mode: Mode) -> None:
    here, there = (vpc.one.address, 8080), (vpc.two.address, 8080)
    both = Service("web", "172.20.0.10", 80, [here, there])
    proxy = KubeProxy(vpc.one.netns, mode, [both])
    seen = {talk.ask(vpc.one.netns, "172.20.0.10", 80)[0] for _ in range(40)}
    assert seen == {"one", "two"}
    with talk.Call(vpc.one.netns, "172.20.0.10", 80) as open_since_before:
        before = open_since_before.ask()
        proxy.load([Service("web", "172.20.0.10", 80, [there])])
        assert {talk.ask(vpc.one.netns, "172.20.0.10", 80)[0] for _ in range(10)} == {"two"}
        assert open_since_before.ask() == before


def test_a_service_without_endpoints_answers_nothing(vpc: SmallVpc, mode: Mode) -> None:
    KubeProxy(vpc.one.netns, mode, [Service("web", "172.20.0.10", 80, [], node_port=30080)])
    for address, port in (("172.20.0.10", 80), (vpc.one.address, 30080)):
        with pytest.raises(OSError, match=r"timed out|refused|unreachable"):
            talk.ask(vpc.two.netns if port == 30080 else vpc.one.netns, address, port, wait=0.3)
