"""The metadata service answers as AWS documents it, from the same state as the API."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.session import Session
from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher

from tests.lab import accounting, imds, world
from tests.lab.clock import RealClock
from tests.lab.cloud import Cloud
from tests.lab.frontdoor import FrontDoor
from tests.lab.inproc import InProcess, client
from tests.lab.mounts import Loopback
from tests.lab.reply import Reply

META = "/latest/meta-data/"
MACS = "network/interfaces/macs/"


@dataclasses.dataclass
class Node:
    """One instance and what a process on it would do."""

    lab: InProcess
    service: imds.Imds
    built: world.World
    instance: str
    ec2: Any

    def ask(self, path: str, method: str = "GET", **headers: str) -> Reply:
        """Send one request; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.service.answer(self.instance, method, path, named)

    def new_token(self, ttl: str = "21600") -> str:
        """Ask for a token."""
        reply = self.ask(imds.TOKEN_PATH, "PUT", **{imds.TTL: ttl})
        assert reply.status == 200
        return reply.body.decode()

    def get(self, path: str) -> str | int:
        """Return the text at a path below meta-data, or the status that is not 200."""
        reply = self.ask(META + path, **{imds.TOKEN: self.new_token()})
        return reply.body.decode() if reply.status == 200 else reply.status

    def lines(self, path: str) -> list[str]:
        """Return the lines at a path."""
        text = self.get(path)
        assert isinstance(text, str), text
        return text.splitlines()

    def primary(self) -> dict[str, Any]:
        """Return the primary interface as the API shows it."""
        found = self.ec2.describe_network_interfaces(
            Filters=[
                {"Name": "attachment.instance-id", "Values": [self.instance]},
                {"Name": "attachment.device-index", "Values": ["0"]},
            ]
        )["NetworkInterfaces"]
        assert len(found) == 1
        return dict(found[0])

    def attach(self, index: int = 1, **created: Any) -> dict[str, Any]:
        """Create and attach an interface; return it as the API shows it, once attached."""
        eni = self.ec2.create_network_interface(
            SubnetId=self.built.subnets[0], Groups=list(self.built.security_groups), **created
        )["NetworkInterface"]["NetworkInterfaceId"]
        self.ec2.attach_network_interface(
            NetworkInterfaceId=eni, InstanceId=self.instance, DeviceIndex=index
        )
        self.lab.advance(10)
        shown = self.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni])
        return dict(shown["NetworkInterfaces"][0])


@pytest.fixture
def node() -> Node:
    lab = InProcess()
    ec2 = lab.client()
    built = world.build(ec2)
    lab.advance(60)
    return Node(lab, imds.Imds(lab.cloud), built, built.instances[0], ec2)


# ---- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "status"),
    [
        ("1", 200),
        ("21600", 200),
        ("0", 400),
        ("21601", 400),
        ("-1", 400),
        ("", 400),
        ("six", 400),
        ("1.5", 400),
        ("9" * 5000, 400),
        ("٣", 400),
    ],
)
def test_a_token_lives_from_a_second_to_six_hours(node: Node, ttl: str, status: int) -> None:
    """Any other TTL is a bad request."""
    reply = node.ask(imds.TOKEN_PATH, "PUT", **{imds.TTL: ttl})
    assert reply.status == status
    assert reply.headers.get(imds.TTL) == (ttl if status == 200 else None)


def test_a_token_request_needs_a_ttl(node: Node) -> None:
    """Without the header it is a bad request."""
    assert node.ask(imds.TOKEN_PATH, "PUT").status == 400


def test_a_token_request_through_a_proxy_is_forbidden(node: Node) -> None:
    """X-Forwarded-For means that somebody asks for somebody else."""
    reply = node.ask(imds.TOKEN_PATH, "PUT", x_forwarded_for="10.0.0.9", **{imds.TTL: "60"})
    assert reply.status == 403


def test_a_request_without_a_token_is_unauthorized(node: Node) -> None:
    """HttpTokens=required, which the default world has."""
    assert node.ask(META + "instance-id").status == 401


def test_a_token_ends_when_its_time_is_over(node: Node) -> None:
    """It works until the last moment and then is unauthorized."""
    token = node.new_token("60")
    node.lab.advance(59.9)
    assert node.ask(META + "instance-id", **{imds.TOKEN: token}).status == 200
    node.lab.advance(0.2)
    assert node.ask(META + "instance-id", **{imds.TOKEN: token}).status == 401


@pytest.mark.parametrize("change", ["B", "=", "é", "", "?"])
def test_a_foreign_token_is_unauthorized(node: Node, change: str) -> None:
    """Another instance's token, and a token that was tampered with, open nothing."""
    token = node.new_token()
    other = dataclasses.replace(node, instance=node.built.instances[1])
    assert node.ask(META + "mac", **{imds.TOKEN: change + token[1:]}).status == 401
    assert node.ask(META + "mac", **{imds.TOKEN: other.new_token()}).status == 401


def launched(node: Node, **options: Any) -> Node:
    """Launch another instance with these metadata options."""
    instance = node.ec2.run_instances(
        ImageId=world.IMAGE,
        InstanceType="m5.large",
        MinCount=1,
        MaxCount=1,
        SubnetId=node.built.subnets[0],
        MetadataOptions=options,
    )["Instances"][0]["InstanceId"]
    node.lab.advance(60)
    return dataclasses.replace(node, instance=instance)


def test_version_1_answers_where_tokens_are_optional(node: Node) -> None:
    """No token is fine; a wrong one still is not."""
    old = launched(node, HttpTokens="optional")
    assert old.ask(META + "instance-id").body.decode() == old.instance
    assert old.ask(META + "instance-id", **{imds.TOKEN: "x"}).status == 401


def test_a_disabled_service_is_forbidden(node: Node) -> None:
    """HttpEndpoint=disabled refuses tokens and data alike."""
    off = launched(node, HttpEndpoint="disabled")
    assert off.ask(imds.TOKEN_PATH, "PUT", **{imds.TTL: "60"}).status == 403
    assert off.ask(META + "instance-id").status == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", META + "mac"),
        ("PUT", META + "mac"),
        ("DELETE", META + "mac"),
        ("GET", imds.TOKEN_PATH),
    ],
)
def test_other_methods_are_not_allowed(node: Node, method: str, path: str) -> None:
    """PUT is for the token and GET for the rest."""
    assert node.ask(path, method, **{imds.TOKEN: node.new_token()}).status == 405


def test_only_the_answer_to_a_put_is_short_of_hops(node: Node) -> None:
    """HttpPutResponseHopLimit is about token requests; data travels as usual."""
    near = launched(node, HttpPutResponseHopLimit=1, HttpTokens="required")
    token = near.ask(imds.TOKEN_PATH, "PUT", **{imds.TTL: "60"})
    data = near.ask(META + "mac", **{imds.TOKEN: token.body.decode()})
    assert (token.hops, data.hops) == (1, None)
    assert node.ask(imds.TOKEN_PATH, "PUT", **{imds.TTL: "60"}).hops == 2


def test_an_instance_that_is_no_more_has_no_metadata(node: Node) -> None:
    """Terminated or never launched: 404."""
    node.ec2.terminate_instances(InstanceIds=[node.instance])
    node.lab.advance(60)
    assert node.ask(imds.TOKEN_PATH, "PUT", **{imds.TTL: "60"}).status == 404
    nobody = dataclasses.replace(node, instance="i-0123456789abcdef0")
    assert nobody.ask(imds.TOKEN_PATH, "PUT", **{imds.TTL: "60"}).status == 404


# ---- paths -------------------------------------------------------------------------------------


def test_the_instance_knows_itself(node: Node) -> None:
    """The top-level values agree with what the API says."""
    eni = node.primary()
    expected = {
        "instance-id": node.instance,
        "instance-type": "m5.large",
        "local-ipv4": eni["PrivateIpAddress"],
        "mac": eni["MacAddress"],
        "placement/availability-zone": "eu-west-1a",
        "placement/region": "eu-west-1",
        "ami-id": world.IMAGE,
        "services/domain": "amazonaws.com",
        "security-groups": "nodes",
        "ipv6": 404,
        "public-ipv4": 404,
        "no/such/path": 404,
        "instance-id/below": 404,
    }
    assert {path: node.get(path) for path in expected} == expected


def test_an_interface_is_shown_under_its_mac(node: Node) -> None:
    """Every value the node reads of an interface; what has no value is 404."""
    eni = node.primary()
    expected = {
        "device-number": "0",
        "interface-id": eni["NetworkInterfaceId"],
        "subnet-id": node.built.subnets[0],
        "vpc-id": node.built.vpc,
        "mac": eni["MacAddress"],
        "owner-id": "111122223333",
        "security-group-ids": node.built.security_groups[0],
        "security-groups": "nodes",
        "local-ipv4s": eni["PrivateIpAddress"],
        "subnet-ipv4-cidr-block": "10.0.0.0/24",
        "vpc-ipv4-cidr-block": "10.0.0.0/16",
        "vpc-ipv4-cidr-blocks": "10.0.0.0/16",
        "ipv4-prefix": 404,
        "ipv6s": 404,
        "ipv6-prefix": 404,
        "subnet-ipv6-cidr-blocks": 404,
        "vpc-ipv6-cidr-blocks": 404,
        "network-card": 404,
        "public-ipv4s": 404,
    }
    base = MACS + eni["MacAddress"] + "/"
    assert {name: node.get(base + name) for name in expected} == expected
    assert node.get(MACS + "02:00:00:00:00:00/") == 404
    assert set(node.lines(base)) == {name for name, text in expected.items() if text != 404} | (
        {"local-hostname"} if node.get(base + "local-hostname") != 404 else set()
    )


@pytest.mark.parametrize("slash", ["", "/"])
def test_directories_are_listed_with_and_without_the_final_slash(node: Node, slash: str) -> None:
    """Entries that are directories end in a slash, the role's name does not."""
    second = node.attach()
    macs = sorted([node.primary()["MacAddress"], second["MacAddress"]])
    assert node.lines("network/interfaces/macs" + slash) == [f"{mac}/" for mac in macs]
    assert node.lines("network" + slash) == ["interfaces/"]
    assert {"mac", "network/", "iam/", "placement/"} <= set(node.lines(slash))
    assert node.lines("iam/security-credentials" + slash) == ["vpcledger-node"]
    headers = {imds.TOKEN: node.new_token()}
    assert node.ask("/latest" + slash, **headers).body == b"dynamic/\nmeta-data/"
    assert node.ask("/" + slash.strip("/"), **headers).body == b"latest/"


def test_a_value_is_also_found_with_a_final_slash(node: Node) -> None:
    """botocore asks for the zone that way."""
    assert node.get("placement/availability-zone/") == "eu-west-1a"


def test_the_primary_address_is_listed_first(node: Node) -> None:
    """local-ipv4s starts with the primary, whatever the numbers are."""
    eni = node.primary()
    node.ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], SecondaryPrivateIpAddressCount=9
    )
    shown = node.lines(f"{MACS}{eni['MacAddress']}/local-ipv4s")
    held = [x["PrivateIpAddress"] for x in node.primary()["PrivateIpAddresses"]]
    assert shown[0] == eni["PrivateIpAddress"]
    assert sorted(shown) == sorted(held)
    assert len(shown) == 10


def test_prefixes_are_shown_apart_from_addresses(node: Node) -> None:
    """A delegated /28 appears as ipv4-prefix and not among local-ipv4s."""
    eni = node.attach(Ipv4PrefixCount=2)
    base = f"{MACS}{eni['MacAddress']}/"
    prefixes = [each["Ipv4Prefix"] for each in eni["Ipv4Prefixes"]]
    assert sorted(node.lines(base + "ipv4-prefix")) == sorted(prefixes)
    assert node.lines(base + "local-ipv4s") == [eni["PrivateIpAddress"]]
    assert node.get(base + "device-number") == "1"


def test_only_attached_interfaces_are_listed(node: Node) -> None:
    """An interface on its way in or out is not there yet, or no longer."""
    mac = node.primary()["MacAddress"]
    eni = node.ec2.create_network_interface(SubnetId=node.built.subnets[0])["NetworkInterface"]
    attachment = node.ec2.attach_network_interface(
        NetworkInterfaceId=eni["NetworkInterfaceId"], InstanceId=node.instance, DeviceIndex=1
    )["AttachmentId"]
    assert node.lines(MACS) == [f"{mac}/"]
    node.lab.advance(10)
    assert sorted(node.lines(MACS)) == sorted([f"{mac}/", f"{eni['MacAddress']}/"])
    node.ec2.detach_network_interface(AttachmentId=attachment)
    assert node.lines(MACS) == [f"{mac}/"]


def test_metadata_has_a_lag_of_its_own(node: Node) -> None:
    """The API shows a new interface and new addresses at once, the node learns of them later."""
    node.lab.cloud.imds_lag = 30.0
    mac = node.primary()["MacAddress"]
    eni = node.attach()
    assert eni["Attachment"]["Status"] == "attached"
    assert node.lines(MACS) == [f"{mac}/"]
    node.lab.advance(30)
    assert len(node.lines(MACS)) == 2
    node.ec2.assign_private_ip_addresses(
        NetworkInterfaceId=eni["NetworkInterfaceId"], SecondaryPrivateIpAddressCount=1
    )
    path = f"{MACS}{eni['MacAddress']}/local-ipv4s"
    assert len(node.lines(path)) == 1
    node.lab.advance(30)
    assert len(node.lines(path)) == 2


def test_a_young_instance_sees_its_primary_interface_whatever_the_lag(node: Node) -> None:
    """An instance boots with what it was launched with."""
    node.lab.cloud.imds_lag = 300.0
    young = launched(node, HttpTokens="required")
    assert young.lines(MACS) == [f"{young.primary()['MacAddress']}/"]
    young.attach()
    assert young.lines(MACS) == [f"{young.primary()['MacAddress']}/"]


def test_the_identity_document_names_region_and_account(node: Node) -> None:
    """The AWS SDKs find their region here."""
    reply = node.ask("/latest/dynamic/instance-identity/document", **{imds.TOKEN: node.new_token()})
    document = json.loads(reply.body)
    expected = {
        "region": "eu-west-1",
        "accountId": "111122223333",
        "instanceId": node.instance,
        "instanceType": "m5.large",
        "availabilityZone": "eu-west-1a",
        "privateIp": node.primary()["PrivateIpAddress"],
        "architecture": "x86_64",
        "version": "2017-09-30",
    }
    assert {name: document[name] for name in expected} == expected


def test_credentials_are_the_instances_own(node: Node) -> None:
    """Each instance gets another key, good for six hours, and it leads back to the instance."""
    other = dataclasses.replace(node, instance=node.built.instances[1])
    for each in (node, other):
        credentials = json.loads(str(each.get("iam/security-credentials/vpcledger-node")))
        assert credentials["Code"] == "Success"
        assert accounting.who_holds(credentials["AccessKeyId"]) == each.instance
        ends = dt.datetime.fromisoformat(credentials["Expiration"]).timestamp()
        assert ends == int(node.lab.clock.now()) + 6 * 3600
    assert node.get("iam/security-credentials/other-role") == 404
    assert "vpcledger-node" in json.loads(str(node.get("iam/info")))["InstanceProfileArn"]


# ---- botocore ----------------------------------------------------------------------------------


@pytest.fixture
def mount() -> Iterator[tuple[Loopback, FrontDoor, world.World]]:
    front = FrontDoor(Cloud(RealClock(), start_delay=0.0))
    built = world.build(client(front))
    front.journal.clear()
    with Loopback.open(front) as opened:
        yield opened, front, built


@pytest.mark.parametrize("final", ["", "/"])
def test_botocore_finds_credentials_and_region(
    mount: tuple[Loopback, FrontDoor, world.World], final: str
) -> None:
    """Its own fetchers accept the service, under a path prefix with and without a final slash."""
    opened, _, built = mount
    base = {"ec2_metadata_service_endpoint": opened.imds(built.instances[0]).rstrip("/") + final}
    credentials = InstanceMetadataFetcher(config=base, env={}).retrieve_iam_role_credentials()
    assert credentials["role_name"] == "vpcledger-node"
    assert credentials["access_key"] == accounting.access_key(built.instances[0])
    assert InstanceMetadataRegionFetcher(config=base, env={}).retrieve_region() == "eu-west-1"


def test_a_client_with_nothing_but_the_metadata_url_is_booked_to_its_node(
    mount: tuple[Loopback, FrontDoor, world.World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment variable is all a process on the instance needs."""
    opened, front, built = mount
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", opened.imds(built.instances[1]))
    ec2 = Session().create_client("ec2", region_name="eu-west-1", endpoint_url=opened.endpoint)
    ec2.describe_vpcs()
    assert [(row.who, row.action) for row in front.journal.rows()] == [
        (built.instances[1], "DescribeVpcs")
    ]
