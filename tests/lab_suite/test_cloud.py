"""The cloud from inside: news, identity by source, the past of interfaces, repeatability."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.clock import VirtualClock
from tests.lab.cloud import ApiError, Cloud


class Bench:
    """A cloud with one subnet and one running instance, and its news."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        self.clock = VirtualClock()
        self.cloud = Cloud(self.clock, seed=seed, **options)
        self.news: list[tuple[str, dict[str, Any]]] = []
        self.cloud.hooks.append(lambda event, what: self.news.append((event, what)))
        vpc = self.call("CreateVpc", CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        made = self.call("CreateSubnet", VpcId=vpc, CidrBlock="10.0.0.0/24")
        self.subnet = made["Subnet"]["SubnetId"]
        self.instance = self.launch()

    def call(self, operation: str, **params: Any) -> dict[str, Any]:
        return self.cloud.call(operation, params, "operator")

    def launch(self) -> str:
        launched = self.call(
            "RunInstances", InstanceType="m5.large", MinCount=1, MaxCount=1, SubnetId=self.subnet
        )
        self.wait(1.0)
        instance: str = launched["Instances"][0]["InstanceId"]
        return instance

    def eni(self, **params: Any) -> dict[str, Any]:
        made = self.call("CreateNetworkInterface", SubnetId=self.subnet, **params)
        eni: dict[str, Any] = made["NetworkInterface"]
        return eni

    def attach(self, eni: dict[str, Any], index: int = 1) -> str:
        reply = self.call(
            "AttachNetworkInterface",
            NetworkInterfaceId=eni["NetworkInterfaceId"],
            InstanceId=self.instance,
            DeviceIndex=index,
        )
        attachment: str = reply["AttachmentId"]
        return attachment

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.cloud.run_due()

    def events(self) -> list[str]:
        """Names of the news since last asked."""
        names = [event for event, _ in self.news]
        self.news.clear()
        return names


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_interfaces_life_is_told(bench: Bench) -> None:
    assert bench.events() == ["instance-running", "attached"]
    eni = bench.eni()
    attachment = bench.attach(eni)
    assert bench.events() == [], "attaching is not attached"
    bench.wait(1.5)
    assert bench.events() == ["attached"]
    named = {"NetworkInterfaceId": eni["NetworkInterfaceId"]}
    bench.call("AssignPrivateIpAddresses", **named, SecondaryPrivateIpAddressCount=1)
    bench.call("ModifyNetworkInterfaceAttribute", **named, SourceDestCheck={"Value": False})
    assert bench.events() == ["addresses", "source-check"]
    bench.call("DetachNetworkInterface", AttachmentId=attachment)
    bench.wait(1.5)
    bench.call("DeleteNetworkInterface", **named)
    assert bench.events() == ["detached", "deleted"]


def test_an_instances_end_is_told(bench: Bench) -> None:
    bench.events()
    bench.call("TerminateInstances", InstanceIds=[bench.instance])
    assert bench.events() == []
    bench.wait(1.0)
    assert bench.events() == ["detached", "deleted", "instance-terminated"]


def test_news_are_copies(bench: Bench) -> None:
    """A hook may do what it likes with what it is told."""
    bench.cloud.hooks.append(lambda _, what: what.clear())
    bench.cloud.hooks.append(lambda _, what: what["eni"]["PrivateIpAddresses"].clear())
    eni = bench.eni()
    bench.call(
        "AssignPrivateIpAddresses",
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        SecondaryPrivateIpAddressCount=1,
    )
    shown = bench.call("DescribeNetworkInterfaces")["NetworkInterfaces"][-1]
    assert len(shown["PrivateIpAddresses"]) == 2


def test_replies_are_copies(bench: Bench) -> None:
    bench.eni()["PrivateIpAddresses"].clear()
    shown = bench.call("DescribeNetworkInterfaces")["NetworkInterfaces"]
    assert all(each["PrivateIpAddresses"] for each in shown)


def test_without_delay_the_consequence_is_there_at_once() -> None:
    bench = Bench(attach_delay=0.0)
    bench.attach(bench.eni())
    assert bench.events()[-1] == "attached"
    assert len(bench.cloud.interfaces_of(bench.instance)) == 2


def test_only_attached_interfaces_are_an_instances(bench: Bench) -> None:
    bench.attach(bench.eni())
    assert len(bench.cloud.interfaces_of(bench.instance)) == 1
    bench.wait(1.5)
    indices = [e["Attachment"]["DeviceIndex"] for e in bench.cloud.interfaces_of(bench.instance)]
    assert indices == [0, 1]


def test_an_instances_past_can_be_asked(bench: Bench) -> None:
    """A stale metadata service shows neither new interfaces nor new addresses."""
    eni = bench.eni()
    bench.attach(eni)
    bench.wait(1.5)
    bench.wait(10.0)
    bench.call(
        "AssignPrivateIpAddresses",
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        SecondaryPrivateIpAddressCount=2,
    )
    bench.wait(5.0)
    counts = [
        [len(e["PrivateIpAddresses"]) for e in bench.cloud.interfaces_of(bench.instance, ago=ago)]
        for ago in (0.0, 4.0, 6.0, 15.5)
    ]
    assert counts == [[1, 3], [1, 3], [1, 1], [1]]
    assert bench.cloud.instance(bench.instance, ago=60.0) is None


def test_reads_lag_and_writes_do_not(bench: Bench) -> None:
    bench.cloud.api_lag = 3.0
    eni = bench.eni()["NetworkInterfaceId"]
    with pytest.raises(ApiError, match="NotFound"):
        bench.call("DescribeNetworkInterfaces", NetworkInterfaceIds=[eni])
    bench.wait(3.0)
    bench.call("DescribeNetworkInterfaces", NetworkInterfaceIds=[eni])
    bench.call("DeleteNetworkInterface", NetworkInterfaceId=eni)
    bench.wait(2.9)
    bench.call("DescribeNetworkInterfaces", NetworkInterfaceIds=[eni])
    bench.wait(0.2)
    with pytest.raises(ApiError, match="NotFound"):
        bench.call("DescribeNetworkInterfaces", NetworkInterfaceIds=[eni])


def test_a_source_address_names_its_instance(bench: Bench) -> None:
    """Primary, secondary and prefix of an attached interface; nobody for any other."""
    eni = bench.eni(Ipv4PrefixCount=1)
    prefix = eni["Ipv4Prefixes"][0]["Ipv4Prefix"].removesuffix("/28")
    sources = [eni["PrivateIpAddress"], prefix]
    assert [bench.cloud.owner_of_source(each) for each in sources] == [None, None]
    bench.attach(eni)
    bench.wait(1.5)
    assert [bench.cloud.owner_of_source(each) for each in sources] == [bench.instance] * 2
    assert bench.cloud.owner_of_source("10.0.0.1") is None
    assert bench.cloud.owner_of_source("192.0.2.1") is None


def test_a_branchs_source_names_the_trunks_instance(bench: Bench) -> None:
    trunk, branch = bench.eni(InterfaceType="trunk"), bench.eni(InterfaceType="branch")
    bench.attach(trunk)
    bench.wait(1.5)
    bench.call(
        "AssociateTrunkInterface",
        TrunkInterfaceId=trunk["NetworkInterfaceId"],
        BranchInterfaceId=branch["NetworkInterfaceId"],
        VlanId=3,
    )
    assert bench.cloud.owner_of_source(branch["PrivateIpAddress"]) == bench.instance


def test_the_end_of_an_instance_overtakes_a_detachment(bench: Bench) -> None:
    """The interface comes free once, not twice."""
    attachment = bench.attach(bench.eni())
    bench.wait(1.5)
    bench.events()
    bench.call("DetachNetworkInterface", AttachmentId=attachment)
    bench.call("TerminateInstances", InstanceIds=[bench.instance])
    bench.wait(10.0)
    assert bench.events().count("detached") == 2, "the primary one and the other, once each"


def test_a_terminated_instance_is_forgotten_in_the_end(bench: Bench) -> None:
    bench.call("TerminateInstances", InstanceIds=[bench.instance])
    bench.wait(60.0)
    bench.call("DescribeInstances", InstanceIds=[bench.instance])
    bench.wait(3600.0)
    with pytest.raises(ApiError, match=r"InvalidInstanceID\.NotFound"):
        bench.call("DescribeInstances", InstanceIds=[bench.instance])


def test_the_same_seed_tells_the_same_story() -> None:
    stories = []
    for seed in (1, 1, 2):
        bench = Bench(seed)
        bench.attach(bench.eni(SecondaryPrivateIpAddressCount=4))
        bench.wait(2.0)
        stories.append(bench.news)
    assert stories[0] == stories[1]
    assert stories[0] != stories[2]


def test_an_unknown_action_is_refused(bench: Bench) -> None:
    with pytest.raises(ApiError, match="InvalidAction"):
        bench.call("MakeCoffee")


def test_prefixes_need_nitro() -> None:
    bench = Bench()
    old = bench.call(
        "RunInstances", InstanceType="t2.micro", MinCount=1, MaxCount=1, SubnetId=bench.subnet
    )["Instances"][0]
    bench.wait(1.0)
    primary = old["NetworkInterfaces"][0]["NetworkInterfaceId"]
    with pytest.raises(ApiError, match="not supported on instance type"):
        bench.call("AssignPrivateIpAddresses", NetworkInterfaceId=primary, Ipv4PrefixCount=1)
