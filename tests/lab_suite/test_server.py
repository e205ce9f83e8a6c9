"""The lab over HTTP: as a real client meets it, on loopback and behind a router."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from tests.lab import accounting, imds, mounts, spaces, world
from tests.lab.clock import RealClock
from tests.lab.cloud import Cloud
from tests.lab.frontdoor import FrontDoor
from tests.lab.inproc import client
from tests.lab.mounts import Loopback
from tests.lab.server import Server

CREDENTIAL = "AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-1/ec2/aws4_request"
DESCRIBE_VPCS = "Action=DescribeVpcs&Version=2016-11-15"


@dataclass(frozen=True)
class Lab:
    """A running loopback mount and how to talk to it."""

    front: FrontDoor
    built: world.World
    mount: Loopback

    def client(self, who: str = "test", **config: Any) -> Any:
        """Return a boto3 client that comes in over the socket."""
        key = accounting.access_key(who) if who.startswith("i-") else who
        return over_http(self.mount.endpoint, key, **config)

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """Yield a bare connection, for what boto3 would never send."""
        address = urlsplit(self.mount.endpoint)
        opened = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
        with contextlib.closing(opened):
            yield opened

    def operate(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Use one of the operator's controls; return status and JSON."""
        with self.connection() as connection:
            connection.request(method, f"/lab/{path}", json.dumps(body) if body else None)
            answer = connection.getresponse()
            return answer.status, json.load(answer)


def over_http(endpoint: str, key: str, **config: Any) -> Any:
    """Return a boto3 client of any endpoint that does not retry by itself."""
    return boto3.client(
        "ec2",
        region_name="eu-west-1",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key="secret",
        config=Config(**{"retries": {"total_max_attempts": 1}, **config}),
    )


@pytest.fixture
def lab() -> Iterator[Lab]:
    front = FrontDoor(Cloud(RealClock(), start_delay=0.0, attach_delay=0.1, detach_delay=0.1))
    built = world.build(client(front))
    front.journal.clear()
    with Loopback.open(front) as mount:
        yield Lab(front, built, mount)


# ---- EC2 over the wire -------------------------------------------------------------------------


def test_any_static_credentials_are_the_operators(lab: Lab) -> None:
    """An instance's key is its instance's, everyone else is one person."""
    for who in ("test", "AKIAIOSFODNN7EXAMPLE", lab.built.instances[0]):
        lab.client(who).describe_vpcs()
    callers = [row.who for row in lab.front.journal.rows()]
    assert callers == ["operator", "operator", lab.built.instances[0]]


def test_a_get_is_answered_like_a_post(lab: Lab) -> None:
    """EC2 takes the query in the URL as well, and several requests share a connection."""
    bodies = []
    with lab.connection() as connection:
        for method, url, body in (
            ("GET", f"/?{DESCRIBE_VPCS}", None),
            ("POST", "/", DESCRIBE_VPCS),
            ("POST", "/", DESCRIBE_VPCS),
        ):
            connection.request(method, url, body, {"Authorization": CREDENTIAL})
            local = connection.sock.getsockname()
            answer = connection.getresponse()
            assert answer.status == 200
            bodies.append((local, answer.read().partition(b"</requestId>")[2]))
    assert len(set(bodies)) == 1


def test_a_lost_reply_is_a_closed_connection(lab: Lab) -> None:
    """The client learns nothing, the work is done, and the next call gets a new connection."""
    ec2 = lab.client()
    lab.front.faults.add(op="CreateNetworkInterface", drop=True, times=1)
    with pytest.raises(ConnectionClosedError):
        ec2.create_network_interface(SubnetId=lab.built.subnets[0])
    assert len(ec2.describe_network_interfaces()["NetworkInterfaces"]) == 3


def test_a_timer_fires_without_a_call(lab: Lab) -> None:
    """An attachment completes by itself; the hook tells when, so nobody polls."""
    attached = threading.Event()

    def hook(event: str, news: dict[str, Any]) -> None:
        if event == "attached" and news["eni"]["NetworkInterfaceId"] == eni:
            attached.set()

    ec2 = lab.client()
    eni = ec2.create_network_interface(SubnetId=lab.built.subnets[0])["NetworkInterface"][
        "NetworkInterfaceId"
    ]
    lab.front.cloud.hooks.append(hook)
    # A later timer is waited for already; the earlier one must not wait behind it.
    with lab.front.cloud.lock:
        lab.front.cloud.after(3600.0, attached.clear)
    lab.mount.timers.nudge()
    ec2.attach_network_interface(
        NetworkInterfaceId=eni, InstanceId=lab.built.instances[0], DeviceIndex=1
    )
    assert attached.wait(5)


def test_many_callers_at_once_get_different_addresses(lab: Lab) -> None:
    """Sixteen threads create interfaces; none meets another's address or reply."""

    def create(caller: int) -> list[tuple[str, str]]:
        ec2 = lab.client()
        made = [
            ec2.create_network_interface(SubnetId=lab.built.subnets[0], Description=f"{caller}")
            for _ in range(4)
        ]
        assert {each["NetworkInterface"]["Description"] for each in made} == {f"{caller}"}
        return [
            (each["NetworkInterface"]["PrivateIpAddress"], each["ResponseMetadata"]["RequestId"])
            for each in made
        ]

    with ThreadPoolExecutor(16) as pool:
        made = [each for some in pool.map(create, range(16)) for each in some]
    assert len({address for address, _ in made}) == len({request for _, request in made}) == 64
    assert len(lab.front.journal.rows(action="CreateNetworkInterface")) == 64


def test_a_bug_in_the_lab_is_no_answer_of_ec2(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """A hook that fails gives status 500 with the traceback, there and on standard error."""

    def hook(event: str, news: dict[str, Any]) -> None:
        raise ZeroDivisionError(f"{event} {sorted(news)}")

    lab.front.cloud.hooks.append(hook)
    eni = lab.client().describe_network_interfaces()["NetworkInterfaces"][0]["NetworkInterfaceId"]
    form = (
        "Action=AssignPrivateIpAddresses&Version=2016-11-15"
        f"&NetworkInterfaceId={eni}&SecondaryPrivateIpAddressCount=1"
    )
    with lab.connection() as connection:
        connection.request("POST", "/", form, {"Authorization": CREDENTIAL})
        answer = connection.getresponse()
        assert (answer.status, b"ZeroDivisionError" in answer.read()) == (500, True)
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("length", ["x", "-1", "99999999", "9" * 5000])
def test_a_hostile_length_is_refused(lab: Lab, length: str) -> None:
    """Nothing is read, the connection ends, the server goes on."""
    with lab.connection() as connection:
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", length)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")
    lab.client().describe_vpcs()


def test_closing_ends_open_connections() -> None:
    """A client that keeps its connection does not keep the lab, nor any of its threads."""
    before = set(threading.enumerate())
    front = FrontDoor(Cloud(RealClock()))
    mount = Loopback.open(front)
    address = urlsplit(mount.endpoint)
    with socket.create_connection((str(address.hostname), address.port or 0), 10) as held:
        held.sendall(b"GET /lab/dials HTTP/1.1\r\n\r\n")
        assert held.recv(1)
        started = time.monotonic()
        mount.close()
        assert time.monotonic() - started < 5
        while held.recv(65536):
            pass
    left = {thread for thread in threading.enumerate() if thread not in before}
    for thread in left:
        thread.join(5)
    assert not any(thread.is_alive() for thread in left)


# ---- the operator's controls -------------------------------------------------------------------


def test_dials_turn_while_the_lab_runs(lab: Lab) -> None:
    """What is turned is answered and in force."""
    status, dials = lab.operate("POST", "dials", {"api_lag": 2, "throttle": 0})
    assert (status, dials["api_lag"], dials["throttle"]) == (200, 2.0, 0)
    assert lab.operate("GET", "dials") == (200, dials)
    with pytest.raises(ClientError, match="RequestLimitExceeded"):
        lab.client().describe_vpcs()
    assert lab.front.cloud.api_lag == 2.0


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("dials", {"gravity": 1}, "gravity"),
        ("dials", {"api_lag": -1}, "api_lag"),
        ("dials", {"api_lag": None}, "api_lag"),
        ("dials", {"api_lag": True}, "api_lag"),
        ("dials", {"attach_delay": 1, "throttle": "off"}, "throttle"),
        ("dials", ["api_lag"], ""),
        ("faults", {"op": "CreateTags"}, "needs an error"),
        ("faults", {"drop": True, "when": "now"}, "when"),
        ("faults", "CreateTags", "CreateTags"),
        ("faults", [{"drop": True}, {"drop": "yes"}], "drop"),
    ],
)
def test_a_wrong_control_changes_nothing(lab: Lab, path: str, body: object, says: str) -> None:
    """The answer says what is wrong."""
    before = (lab.operate("GET", "dials"), lab.operate("GET", "faults"))
    status, answer = lab.operate("POST", path, body)
    assert (status, says in answer["error"]) == (400, True)
    assert (lab.operate("GET", "dials"), lab.operate("GET", "faults")) == before


def test_there_is_no_other_control(lab: Lab) -> None:
    """A typing mistake in a path is a 404 that repeats it."""
    assert lab.operate("GET", "sate") == (404, {"error": "there is no GET /lab/sate"})
    assert lab.operate("DELETE", "state") == (404, {"error": "there is no DELETE /lab/state"})


def test_faults_are_injected_and_lifted_from_outside(lab: Lab) -> None:
    """One rule or a list of them; the remaining times are shown."""
    status, rules = lab.operate(
        "POST",
        "faults",
        [{"op": "DescribeVpcs", "error": "InternalError", "times": 2}, {"delay": 0.001}],
    )
    assert (status, [rule["op"] for rule in rules]) == (200, ["DescribeVpcs", "*"])
    with pytest.raises(ClientError, match="InternalError"):
        lab.client().describe_vpcs()
    assert [rule["times"] for rule in lab.operate("GET", "faults")[1]] == [1, None]
    assert lab.operate("DELETE", "faults") == (200, [])
    lab.client().describe_vpcs()


def test_calls_are_counted_for_whoever_asks(lab: Lab) -> None:
    """By caller, action and time; and they can be forgotten."""
    node = lab.built.instances[0]
    lab.client(node).describe_vpcs()
    lab.client().describe_vpcs()
    middle = time.time()
    lab.client().describe_subnets()
    assert lab.operate("GET", "calls")[1]["counts"] == {
        node: {"DescribeVpcs": {"ok": 1}},
        "operator": {"DescribeVpcs": {"ok": 1}, "DescribeSubnets": {"ok": 1}},
    }
    rows = lab.operate("GET", f"calls?who={node}")[1]["rows"]
    assert [(row["who"], row["action"], row["params"]) for row in rows] == [
        (node, "DescribeVpcs", {})
    ]
    late = lab.operate("GET", f"calls?since={middle}")[1]["rows"]
    assert [row["action"] for row in late] == ["DescribeSubnets"]
    assert lab.operate("GET", "calls?since=yesterday")[0] == 400
    lab.operate("DELETE", "calls")
    assert lab.operate("GET", "calls")[1] == {"counts": {}, "rows": []}


def test_the_state_is_the_present_whatever_the_lag(lab: Lab) -> None:
    """The operator sees an interface that EC2's readers do not see yet."""
    lab.operate("POST", "dials", {"api_lag": 60})
    made = lab.client().create_network_interface(SubnetId=lab.built.subnets[0])
    seen = lab.operate("GET", "state")[1]
    enis = {eni["NetworkInterfaceId"] for eni in seen["network_interfaces"]}
    assert made["NetworkInterface"]["NetworkInterfaceId"] in enis
    assert len(enis) == 3
    assert [each["InstanceId"] for each in seen["instances"]] == list(lab.built.instances)
    assert [each["State"]["Name"] for each in seen["instances"]] == ["running", "running"]
    assert [each["VpcId"] for each in seen["vpcs"]] == [lab.built.vpc]


# ---- the command -------------------------------------------------------------------------------


@contextlib.contextmanager
def command(*args: str) -> Iterator[subprocess.Popen[str]]:
    """Run the lab's command line."""
    line = [sys.executable, "-m", "tests.lab", *args]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_is_serves_and_ends(end: signal.Signals) -> None:
    """One line of JSON, a working endpoint, exit code 0, nothing on standard error."""
    with command("ec2", "--instances", "3", "--type", "t3.small", "--seed", "7") as process:
        assert process.stdout
        line = json.loads(process.stdout.readline())
        assert list(line) == [
            "endpoint",
            "region",
            "vpc",
            "subnets",
            "security_groups",
            "instances",
        ]
        ec2 = over_http(line["endpoint"], "test")
        found = [
            instance
            for each in ec2.describe_instances()["Reservations"]
            for instance in each["Instances"]
        ]
        assert [(each["id"], each["type"]) for each in line["instances"]] == [
            (each["InstanceId"], each["InstanceType"]) for each in found
        ]
        assert {each["InstanceType"] for each in found} == {"t3.small"}
        assert len(found) == 3
        subnets = ec2.describe_subnets(SubnetIds=line["subnets"])["Subnets"]
        assert {subnet["VpcId"] for subnet in subnets} == {line["vpc"]}
        for each in line["instances"]:
            assert each["imds"] == f"{line['endpoint']}/imds/{each['id']}/"
        process.send_signal(end)
        rest, errors = process.communicate(timeout=10)
    assert (process.returncode, rest, errors) == (0, "", "")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 0, "ec2"),
        (("--help",), 0, "up"),
        (("fly",), 2, "there is no command 'fly'"),
        (("ec2", "--help"), 0, "--instances"),
        (("ec2", "--type", "m99.huge"), 1, "m99.huge"),
        (("ec2", "--port", "x"), 2, "--port"),
    ],
)
def test_the_command_helps(args: tuple[str, ...], code: int, says: str) -> None:
    """Asked without or with a wrong word it says what there is."""
    with command(*args) as process:
        out, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert says in out + errors


# ---- behind a router ---------------------------------------------------------------------------

ADDRESS = "169.254.169.254"


@dataclass(frozen=True)
class Path:
    """Three namespaces in a row: the metadata service, a node, a pod behind the node."""

    service: spaces.Netns
    node: spaces.Netns
    pod: spaces.Netns

    def token(self, where: spaces.Netns) -> int | None:
        """Ask for a token from a namespace; return the status, None for no answer in time."""
        try:
            return where.run(_ask_token)
        except TimeoutError:
            return None


def _ask_token() -> int:
    opened = http.client.HTTPConnection(ADDRESS, 80, timeout=1)
    with contextlib.closing(opened):
        opened.request("PUT", imds.TOKEN_PATH, headers={imds.TTL: "60"})
        return opened.getresponse().status


@pytest.fixture
def path() -> Iterator[Path]:
    with spaces.Netns() as service, spaces.Netns() as node, spaces.Netns() as pod:
        for near, far, name, mine, theirs in (
            (service, node, "node", "10.0.0.1/24", "10.0.0.10/24"),
            (node, pod, "pod", "10.1.0.1/24", "10.1.0.2/24"),
        ):
            near.command(*f"ip link add {name} type veth peer name far0 netns {far.path}".split())
            near.command("ip", "address", "add", mine, "dev", name)
            far.command("ip", "address", "add", theirs, "dev", "far0")
            near.command("ip", "link", "set", name, "up")
            far.command("ip", "link", "set", "far0", "up")
            gateway = mine.partition("/")[0]
            far.command("ip", "route", "add", "default", "via", gateway)
        service.command("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
        service.command("ip", "route", "add", "10.1.0.0/24", "via", "10.0.0.10")
        node.sysctl("ipv4/ip_forward", 1)
        yield Path(service, node, pod)


@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
@pytest.mark.netns
@pytest.mark.parametrize(("limit", "pod_gets"), [(1, None), (2, 200)])
def test_the_hop_limit_keeps_the_token_from_pods(
    path: Path, limit: int, pod_gets: int | None
) -> None:
    """With 1 the node gets its token and a pod behind it waits in vain; with 2 both get one."""
    front = FrontDoor(Cloud(RealClock(), start_delay=0.0))
    ec2 = client(front)
    built = world.build(ec2, instances=0)
    instance = ec2.run_instances(
        ImageId=world.IMAGE,
        InstanceType="m5.large",
        MinCount=1,
        MaxCount=1,
        SubnetId=built.subnets[0],
        MetadataOptions={"HttpPutResponseHopLimit": limit},
    )["Instances"][0]["InstanceId"]
    callers = {"10.0.0.10": instance, "10.1.0.2": instance}
    listener = path.service.run(socket.create_server, (ADDRESS, 80))
    with Server(listener, mounts.metadata(imds.Imds(front.cloud), callers.get)):
        assert path.token(path.node) == 200
        assert path.token(path.pod) == pod_gets


@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
@pytest.mark.netns
def test_a_stranger_gets_no_metadata(path: Path) -> None:
    """A source address that is nobody's is not answered at all."""
    front = FrontDoor(Cloud(RealClock()))
    listener = path.service.run(socket.create_server, (ADDRESS, 80))
    respond = mounts.metadata(imds.Imds(front.cloud), lambda _: None)
    with Server(listener, respond), pytest.raises(http.client.RemoteDisconnected):
        path.node.run(_ask_token)
