"""Instance metadata tells who the machine is and which interfaces it has, or that it cannot be asked."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.providers import imds
from tests.providers import ec2_lab
from tests.providers.ec2_lab import Ec2Lab


@pytest.fixture
def lab() -> Iterator[Ec2Lab]:
    with ec2_lab.opened() as opened:
        yield opened


def looked(hands: imds.Imds) -> tuple[model.Node, model.ObservedCloud]:
    found = hands.observe()
    assert not isinstance(found, model.Unknown), found
    return found


def add_interface(lab: Ec2Lab, addresses: int = 2) -> dict[str, Any]:
    raw: dict[str, Any] = lab.client.create_network_interface(
        SubnetId=lab.built.subnets[0], SecondaryPrivateIpAddressCount=addresses
    )["NetworkInterface"]
    lab.client.attach_network_interface(
        NetworkInterfaceId=raw["NetworkInterfaceId"], InstanceId=lab.instance, DeviceIndex=1
    )
    return raw


def test_the_node_is_described_whole(lab: Ec2Lab) -> None:
    """Identity, place, VPC blocks and the primary interface's groups."""
    node, _ = looked(imds.Imds(lab.settings()))
    raw = lab.interfaces()[0]
    expected = model.Node(
        instance_id=lab.instance,
        instance_type="m5.large",
        region="eu-west-1",
        availability_zone="eu-west-1a",
        vpc_id=lab.built.vpc,
        subnet_id=lab.built.subnets[0],
        primary_mac=raw["MacAddress"],
        primary_ip=raw["PrivateIpAddress"],
        vpc_cidrs=("10.0.0.0/16",),
        security_groups=lab.built.security_groups,
    )
    assert expected == node


def test_all_blocks_of_the_vpc_are_named(lab: Ec2Lab) -> None:
    """A second CIDR block is listed in the order metadata gives."""
    lab.client.associate_vpc_cidr_block(VpcId=lab.built.vpc, CidrBlock="100.64.0.0/16")
    assert looked(imds.Imds(lab.settings()))[0].vpc_cidrs == ("10.0.0.0/16", "100.64.0.0/16")


def test_every_attached_interface_is_seen_with_its_secondaries(lab: Ec2Lab) -> None:
    """Addresses without the primary, device index, subnet block; absent keys are defaults."""
    raw = add_interface(lab)
    _, seen = looked(imds.Imds(lab.settings()))
    assert seen.source == "imds"
    first, second = sorted(seen.enis, key=lambda each: each.eni.device)
    assert (first.eni.primary, first.eni.managed, first.addresses) == (True, True, ())
    private = raw["PrivateIpAddresses"]
    assert set(second.addresses) == {a["PrivateIpAddress"] for a in private if not a["Primary"]}
    expected = model.Eni(
        eni_id=raw["NetworkInterfaceId"],
        mac=raw["MacAddress"],
        subnet_id=lab.built.subnets[0],
        subnet_cidr="10.0.0.0/24",
        primary_ip=raw["PrivateIpAddress"],
        device=1,
        managed=True,  # where EC2 is never asked: somebody gave it addresses for pods
        state="attached",
    )
    assert expected == second.eni


def test_prefixes_are_seen(lab: Ec2Lab) -> None:
    """ipv4-prefix is absent until there is one."""
    eni_id = lab.interfaces()[0]["NetworkInterfaceId"]
    lab.client.assign_private_ip_addresses(NetworkInterfaceId=eni_id, Ipv4PrefixCount=1)
    _, seen = looked(imds.Imds(lab.settings()))
    (prefix,) = seen.enis[0].prefixes
    assert prefix.endswith("/28")


def test_a_refused_token_is_renewed_and_a_good_one_kept(lab: Ec2Lab) -> None:
    """One token for all requests; after 401 a new one, without the caller noticing."""
    hands = imds.Imds(lab.settings())
    first = looked(hands)[0]
    kept = hands._token
    assert looked(hands)[0] == first
    assert kept is hands._token
    hands._token = "worn-out"
    assert looked(hands)[0] == first
    assert hands._token != "worn-out"


def test_an_endpoint_where_nobody_listens_is_unknown() -> None:
    """No guess about who we are."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        found = imds.Imds(knobs.Settings(imds_endpoint=url)).observe()
    assert isinstance(found, model.Unknown)
    assert "refused" in found.why


def test_an_endpoint_that_is_no_http_url_is_refused() -> None:
    """A typo is told at once, not after three timeouts."""
    with pytest.raises(ValueError, match="not an http URL"):
        imds.Imds(knobs.Settings(imds_endpoint="169.254.169.254"))


class _Odd(http.server.BaseHTTPRequestHandler):
    """Metadata as a script of answers: path -> status and text, all else 404."""

    protocol_version = "HTTP/1.1"
    script: dict[str, list[tuple[int, str]]]

    def do_PUT(self) -> None:
        self._send(200, "token")

    def do_GET(self) -> None:
        answers = self.script.get(self.path.removeprefix("/latest/"), [(404, "")])
        self._send(*(answers.pop(0) if len(answers) > 1 else answers[0]))

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the parent's name)
        """Say nothing."""


MACS = "meta-data/network/interfaces/macs"
ONE = f"{MACS}/02:00:00:00:00:01"
PLAIN: dict[str, list[tuple[int, str]]] = {
    "meta-data/mac": [(200, "02:00:00:00:00:01")],
    "meta-data/instance-id": [(200, "i-1")],
    "meta-data/instance-type": [(200, "m5.large")],
    "meta-data/local-ipv4": [(200, "10.0.0.10")],
    "meta-data/placement/availability-zone": [(200, "eu-west-1a")],
    "dynamic/instance-identity/document": [(200, '{"region": "eu-west-1"}')],
    MACS: [(200, "02:00:00:00:00:01/")],
    f"{ONE}/interface-id": [(200, "eni-1")],
    f"{ONE}/device-number": [(200, "0")],
    f"{ONE}/subnet-id": [(200, "subnet-1")],
    f"{ONE}/vpc-id": [(200, "vpc-1")],
    f"{ONE}/security-group-ids": [(200, "sg-1")],
    f"{ONE}/local-ipv4s": [(200, "10.0.0.10")],
    f"{ONE}/vpc-ipv4-cidr-blocks": [(200, "10.0.0.0/16")],
}


def told(changes: dict[str, list[tuple[int, str]]]) -> Any:
    """What comes of metadata that answers like PLAIN but for `changes`."""
    handler = type("Handler", (_Odd,), {"script": PLAIN | changes})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        found = imds.Imds(knobs.Settings(imds_endpoint=url)).observe()
        server.shutdown()
        serving.join()
    return found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"meta-data/instance-id": [(404, "")]}, "instance-id is missing"),
        ({f"{ONE}/subnet-id": [(404, "")]}, "subnet-id is missing"),
        ({"meta-data/mac": [(500, "")]}, "HTTP 500"),
        ({"meta-data/mac": [(403, "")]}, "HTTP 403"),
        ({"dynamic/instance-identity/document": [(200, "{")]}, "names no region"),
        ({f"{ONE}/network-card": [(200, "first")]}, "invalid literal"),
    ],
)
def test_what_is_indispensable_and_missing_makes_all_unknown(
    changes: dict[str, list[tuple[int, str]]], why: str
) -> None:
    """Half an identity is none."""
    found = told(changes)
    assert isinstance(found, model.Unknown)
    assert why in found.why


def test_a_server_error_is_asked_again() -> None:
    """Nothing is changed by asking."""
    node, _ = told({"meta-data/instance-id": [(500, ""), (503, ""), (200, "i-1")]})
    assert node.instance_id == "i-1"


def test_an_interface_that_vanishes_during_the_walk_is_left_out() -> None:
    """It was listed and its keys are gone: detached in between."""
    both = "02:00:00:00:00:01/\n02:00:00:00:00:02/"
    _, seen = told({MACS: [(200, both)]})
    assert [each.eni.eni_id for each in seen.enis] == ["eni-1"]


def test_an_interface_without_any_address_is_efa_only_and_cards_are_told_apart() -> None:
    """efa-only has no local-ipv4s; network-card is absent on card 0."""
    two = f"{MACS}/02:00:00:00:00:02"
    _, seen = told(
        {
            MACS: [(200, "02:00:00:00:00:01/\n02:00:00:00:00:02/")],
            f"{two}/interface-id": [(200, "eni-2")],
            f"{two}/device-number": [(200, "1")],
            f"{two}/network-card": [(200, "1")],
            f"{two}/subnet-id": [(200, "subnet-1")],
        }
    )
    found = [(each.eni.kind, each.eni.card) for each in seen.enis]
    assert found == [("interface", 0), ("efa-only", 1)]
