"""The way of a call through the front door, seen from a boto3 client without a socket."""

from __future__ import annotations

import collections
import random
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from botocore.serialize import create_serializer

from tests.lab import accounting, wire, world
from tests.lab.clock import VirtualClock
from tests.lab.cloud import OPERATIONS, Cloud
from tests.lab.frontdoor import FrontDoor
from tests.lab.inproc import InProcess, client
from tests.lab_suite.shapes import MODEL, draw


@pytest.fixture
def lab() -> InProcess:
    return InProcess()


@pytest.fixture
def built(lab: InProcess) -> world.World:
    made = world.build(lab.client())
    lab.advance(60)
    lab.front.journal.clear()
    return made


def refused(call: Any, **params: Any) -> tuple[str, str, int]:
    """Call and return the code, message and HTTP status of the refusal."""
    with pytest.raises(ClientError) as caught:
        call(**params)
    answer = caught.value.response
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    return answer["Error"]["Code"], answer["Error"]["Message"], status


def booked(lab: InProcess) -> list[tuple[str, str, str, str, bool]]:
    """Return the journal without times and parameters."""
    rows = lab.front.journal.rows()
    return [(row.who, row.action, row.outcome, row.cause, row.lost) for row in rows]


def test_the_default_world_is_built_through_the_api(lab: InProcess) -> None:
    """A /16, two /24 in different zones, one group, and running instances in the first subnet."""
    ec2 = lab.client()
    made = world.build(ec2, instances=3)
    lab.advance(60)
    vpc = ec2.describe_vpcs(VpcIds=[made.vpc])["Vpcs"][0]
    subnets = ec2.describe_subnets(SubnetIds=list(made.subnets))["Subnets"]
    groups = ec2.describe_security_groups(GroupIds=list(made.security_groups))["SecurityGroups"]
    reservations = ec2.describe_instances(InstanceIds=list(made.instances))["Reservations"]
    instances = [instance for each in reservations for instance in each["Instances"]]
    assert vpc["CidrBlock"] == "10.0.0.0/16"
    assert [subnet["CidrBlock"] for subnet in subnets] == ["10.0.0.0/24", "10.0.1.0/24"]
    zones = [subnet["AvailabilityZone"] for subnet in subnets]
    assert zones == ["eu-west-1a", "eu-west-1b"]
    assert [group["VpcId"] for group in groups] == [made.vpc]
    assert [instance["InstanceId"] for instance in instances] == list(made.instances)
    assert {
        (instance["InstanceType"], instance["SubnetId"], instance["State"]["Name"])
        for instance in instances
    } == {("m5.large", made.subnets[0], "running")}


def test_a_call_is_booked_to_its_instance(lab: InProcess, built: world.World) -> None:
    """The access key alone tells who called; parameters and arrival are kept."""
    lab.advance(5)
    node = lab.client(who=built.instances[1])
    node.describe_subnets(SubnetIds=[built.subnets[0]])
    lab.client().describe_vpcs()
    first, second = lab.front.journal.rows()
    assert first == accounting.Row(
        at=lab.clock.now(),
        who=built.instances[1],
        action="DescribeSubnets",
        outcome="ok",
        cause="cloud",
        lost=False,
        params={"SubnetIds": [built.subnets[0]]},
    )
    assert (second.who, second.action) == ("operator", "DescribeVpcs")


def test_a_refusal_of_the_cloud_is_booked_under_its_code(lab: InProcess) -> None:
    """The caller and the journal see the same code."""
    got = refused(lab.client().describe_vpcs, VpcIds=["vpc-0123456789abcdef0"])
    assert (got[0], got[2]) == ("InvalidVpcID.NotFound", 400)
    assert booked(lab) == [("operator", "DescribeVpcs", "InvalidVpcID.NotFound", "cloud", False)]


def test_an_empty_bucket_refuses_and_refills(lab: InProcess, built: world.World) -> None:
    """Two nodes share one bucket; time, and only time, fills it."""
    one, two = (lab.client(who=instance) for instance in built.instances)
    for _ in range(50):
        one.describe_instances()
    expected = ("RequestLimitExceeded", "Request limit exceeded.", 503)
    assert refused(two.describe_instances) == expected
    lab.advance(0.125)  # 10 a second
    two.describe_instances()
    assert refused(one.describe_instances) == expected
    throttled = [row.who for row in lab.front.journal.rows() if row.cause == "throttle"]
    assert throttled == [built.instances[1], built.instances[0]]


def test_an_injected_error_does_no_work(lab: InProcess, built: world.World) -> None:
    """The refusal looks like EC2's and is booked as a fault; the next call goes through."""
    node = lab.client(who=built.instances[0])
    before = len(node.describe_network_interfaces()["NetworkInterfaces"])
    lab.front.faults.add(
        op="CreateNetworkInterface", who=built.instances[0], error="InternalError", times=1
    )
    assert refused(node.create_network_interface, SubnetId=built.subnets[0])[::2] == (
        "InternalError",
        500,
    )
    assert len(node.describe_network_interfaces()["NetworkInterfaces"]) == before
    node.create_network_interface(SubnetId=built.subnets[0])
    assert len(node.describe_network_interfaces()["NetworkInterfaces"]) == before + 1
    assert booked(lab)[1] == (
        built.instances[0],
        "CreateNetworkInterface",
        "InternalError",
        "fault",
        False,
    )


def test_a_delay_passes_on_the_labs_clock(lab: InProcess) -> None:
    """The call arrives, waits, and is done at the later time."""
    arrived = lab.clock.now()
    lab.front.faults.add(op="DescribeVpcs", delay=7.5)
    lab.client().describe_vpcs()
    assert lab.clock.now() == arrived + 7.5
    assert [row.at for row in lab.front.journal.rows()] == [arrived]


def test_a_lost_reply_leaves_the_work_done(lab: InProcess, built: world.World) -> None:
    """The caller sees a closed connection; EC2 has the interface; the same token names it again."""
    ec2 = lab.client()
    lab.front.faults.add(op="CreateNetworkInterface", drop=True, times=1)
    wanted = {"SubnetId": built.subnets[0], "ClientToken": "once"}
    with pytest.raises(ConnectionClosedError):
        ec2.create_network_interface(**wanted)
    assert booked(lab) == [("operator", "CreateNetworkInterface", "ok", "cloud", True)]
    again = ec2.create_network_interface(**wanted)["NetworkInterface"]["NetworkInterfaceId"]
    found = ec2.describe_network_interfaces(Filters=[{"Name": "status", "Values": ["available"]}])[
        "NetworkInterfaces"
    ]
    assert [eni["NetworkInterfaceId"] for eni in found] == [again]


def test_a_lost_request_leaves_nothing_done(lab: InProcess, built: world.World) -> None:
    """An error together with drop: to the caller it looks the same, in EC2 nothing happened."""
    ec2 = lab.client()
    lab.front.faults.add(op="CreateNetworkInterface", error="InternalError", drop=True)
    with pytest.raises(ConnectionClosedError):
        ec2.create_network_interface(SubnetId=built.subnets[0])
    assert len(ec2.describe_network_interfaces()["NetworkInterfaces"]) == len(built.instances)


def test_a_blind_retry_of_assign_leaks_addresses(lab: InProcess, built: world.World) -> None:
    """What the lab exists to show: four addresses assigned, two of them named to the caller."""
    ec2 = lab.client(retries={"total_max_attempts": 2})
    eni = ec2.describe_network_interfaces()["NetworkInterfaces"][0]["NetworkInterfaceId"]
    lab.front.faults.add(op="AssignPrivateIpAddresses", drop=True, times=1)
    named = ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=2
    )["AssignedPrivateIpAddresses"]
    held = ec2.describe_network_interfaces(NetworkInterfaceIds=[eni])["NetworkInterfaces"][0]
    assert (len(named), len(held["PrivateIpAddresses"])) == (2, 1 + 4)


@pytest.mark.parametrize(
    ("form", "authorization", "code", "who", "action"),
    [
        ("", "", "MissingParameter", "nobody", ""),
        (
            "Action=DescribeVpcs&Version=2016-11-15",
            "",
            "MissingParameter",
            "nobody",
            "DescribeVpcs",
        ),
        ("Action=Fly&Version=2016-11-15", "key", "InvalidAction", "operator", "Fly"),
        (
            "Action=DescribeVpcs&Version=2016-11-15&Fly=1",
            "key",
            "UnknownParameter",
            "operator",
            "DescribeVpcs",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_and_booked(
    lab: InProcess, form: str, authorization: str, code: str, who: str, action: str
) -> None:
    """Also a caller that is no EC2 client leaves a row, and no bucket is touched."""
    signed = f"AWS4-HMAC-SHA256 Credential={authorization}/20260101/r/ec2/aws4_request"
    reply = lab.front.answer(form, signed if authorization else None)
    assert reply is not None
    assert (reply.status, f"<Code>{code}</Code>".encode() in reply.body) == (400, True)
    assert booked(lab) == [(who, action, code, "request", False)]


def test_a_wrong_result_is_a_bug_and_no_reply() -> None:
    """A cloud that invents a member is found out at the door, and the test that met it fails."""

    class Inventive(Cloud):
        def call(self, *_: Any) -> dict[str, Any]:
            return {"Vpcs": [], "Weather": "fine"}

    ec2 = client(FrontDoor(Inventive(VirtualClock())))
    with pytest.raises(wire.SchemaError, match="Weather"):
        ec2.describe_vpcs()


def test_no_request_makes_the_lab_fail(lab: InProcess, built: world.World) -> None:
    """Ten thousand random calls, half sensible at best: each is answered, or refused by a code."""
    lab.front.buckets.scale = None
    serializer = create_serializer("ec2")
    sensible = (*built.subnets, *built.instances, *built.security_groups, built.vpc)
    odd = ("", "-1", "2", "true", "10.0.0.0/28", "10.0.0.9", "eni-0123456789abcdef0", "9" * 18)
    signed = "AWS4-HMAC-SHA256 Credential=key/20260101/r/ec2/aws4_request"
    outcomes: collections.Counter[int] = collections.Counter()
    for trial in range(10_000):
        rng = random.Random(trial)
        operation = MODEL.operation_model(rng.choice(sorted(OPERATIONS)))
        drawn = draw(operation.input_shape, rng)
        body = serializer.serialize_to_request(drawn, operation)["body"]
        for name in [name for name in body if name not in ("Action", "Version")]:
            if name == "DryRun" or rng.random() < 0.2:
                del body[name]
            elif rng.random() < 0.7:
                body[name] = rng.choice(sensible + odd)
        reply = lab.front.answer(urlencode(body), signed)
        assert reply is not None
        outcomes[reply.status] += 1
    assert outcomes.keys() == {200, 400}
    assert outcomes[200] > 50


def test_the_same_seed_gives_the_same_story() -> None:
    """Ids, addresses and request ids repeat, so a failure can be told by its seed."""

    def story(seed: int) -> list[Any]:
        lab = InProcess(seed=seed)
        ec2 = lab.client()
        made = world.build(ec2)
        return [made, ec2.describe_network_interfaces()]

    assert story(1) == story(1)
    assert story(1) != story(2)
