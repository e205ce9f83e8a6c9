"""The instance metadata service, computed at each request from the same state as EC2's answers.

Paths and codes are those of "Instance metadata categories" and "Use the Instance Metadata Service
to access instance metadata" (EC2 User Guide). The view of the interfaces is `imds_lag` seconds old;
what an instance is born with (its id, type, primary interface) is there from its first moment.
How a caller is told to be one instance or another does not belong here.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import hmac
import json
import random
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tests.lab import accounting
from tests.lab.cloud import Cloud
from tests.lab.reply import Reply

Item = dict[str, Any]
# A directory's entries; a value is text, a directory, or a function that makes one when needed.
Tree = dict[str, Any]

ROLE = "vpcledger-node"
CREDENTIALS_LAST = 6 * 3600
LONGEST_TTL = 21600
TOKEN_PATH = "/latest/api/token"
TOKEN = "x-aws-ec2-metadata-token"
TTL = "x-aws-ec2-metadata-token-ttl-seconds"

_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
}


class Imds:
    """The metadata service of every instance of a cloud."""

    def __init__(self, cloud: Cloud, *, role: str = ROLE, seed: int = 0) -> None:
        self._cloud = cloud
        self._role = role
        self._key = random.Random(f"imds {seed}").randbytes(32)

    def answer(self, instance_id: str, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """Answer one request of an instance; `path` starts with /latest.

        Names of headers are in lower case. The answer to a PUT may travel HttpPutResponseHopLimit hops; an instance that does not
        exist, or no longer, gets 404.
        """
        with self._cloud.lock:
            self._cloud.run_due()
            instance = self._cloud.instance(instance_id)
            if instance is None or instance["State"]["Name"] == "terminated":
                return _error(404)
            options = instance.get("MetadataOptions", {})
            if options.get("HttpEndpoint") == "disabled":
                reply = _error(403)
            elif path == TOKEN_PATH and method == "PUT":
                reply = self._token(instance_id, headers)
            elif path == TOKEN_PATH or method != "GET":
                reply = _error(405)
            else:
                reply = self._get(instance, path, headers.get(TOKEN), options)
        hops = options.get("HttpPutResponseHopLimit", 1) if method == "PUT" else None
        return dataclasses.replace(reply, hops=hops)

    def _get(self, instance: Item, path: str, token: str | None, options: Item) -> Reply:
        if token is None and options.get("HttpTokens") == "required":
            return _error(401)
        if token is not None and not self._valid(instance["InstanceId"], token):
            return _error(401)
        found = _walk({"latest": lambda: self._latest(instance)}, path)
        if found is None:
            return _error(404)
        return Reply(200, found.encode(), {"Content-Type": "text/plain"})

    def _token(self, instance_id: str, headers: Mapping[str, str]) -> Reply:
        # A proxy that was tricked into asking adds this header; so EC2 refuses it.
        if "x-forwarded-for" in headers:
            return _error(403)
        ttl = headers.get(TTL, "")
        if not re.fullmatch("[0-9]{1,5}", ttl) or not 1 <= int(ttl) <= LONGEST_TTL:
            return _error(400)
        expires = int((self._cloud.clock.now() + int(ttl)) * 1000).to_bytes(8, "big")
        token = base64.urlsafe_b64encode(expires + self._sign(instance_id, expires))
        return Reply(200, token, {"Content-Type": "text/plain", TTL: ttl})

    def _valid(self, instance_id: str, token: str) -> bool:
        try:
            raw = base64.urlsafe_b64decode(token)
        except ValueError:
            return False
        expires, signature = raw[:8], raw[8:]
        if not hmac.compare_digest(signature, self._sign(instance_id, expires)):
            return False
        return self._cloud.clock.now() * 1000 < int.from_bytes(expires, "big")

    def _sign(self, instance_id: str, expires: bytes) -> bytes:
        return hmac.digest(self._key, instance_id.encode() + expires, "sha256")

    # ---- the tree --------------------------------------------------------------------------

    def _latest(self, instance: Item) -> Tree:
        return {
            "dynamic": {
                "instance-identity": {"document": lambda: self._document(instance)},
            },
            "meta-data": lambda: self._metadata(instance),
        }

    def _metadata(self, instance: Item) -> Tree:
        interfaces = self._interfaces(instance)
        primary = next((eni for eni in interfaces if _is_primary(eni)), {})
        zone = instance["Placement"]["AvailabilityZone"]
        return _present(
            {
                "ami-id": instance.get("ImageId"),
                "ami-launch-index": str(instance.get("AmiLaunchIndex", 0)),
                "hostname": primary.get("PrivateDnsName"),
                "iam": {
                    "info": lambda: self._iam_info(instance),
                    "security-credentials": {self._role: lambda: self._credentials(instance)},
                },
                "instance-id": instance["InstanceId"],
                "instance-life-cycle": "on-demand",
                "instance-type": instance["InstanceType"],
                "ipv6": _first(_ipv6s(primary)),
                "local-hostname": primary.get("PrivateDnsName"),
                "local-ipv4": primary.get("PrivateIpAddress"),
                "mac": primary.get("MacAddress"),
                "network": {
                    "interfaces": {
                        "macs": {
                            eni["MacAddress"]: lambda eni=eni: self._interface(eni)
                            for eni in sorted(interfaces, key=lambda eni: str(eni["MacAddress"]))
                        }
                    }
                },
                "placement": {
                    "availability-zone": zone,
                    "region": self._cloud.region,
                },
                "public-ipv4": _first(_public_ipv4s(primary)),
                "security-groups": _lines(
                    group["GroupName"] for group in primary.get("Groups", [])
                ),
                "services": {"domain": "amazonaws.com", "partition": "aws"},
            }
        )

    def _interfaces(self, instance: Item) -> list[Item]:
        """Return what this instance may see of its interfaces: attached ones, some time ago."""
        instance_id = instance["InstanceId"]
        seen = self._cloud.interfaces_of(instance_id, ago=self._cloud.imds_lag)
        if any(_is_primary(eni) for eni in seen):
            return seen
        # Younger than the lag: an instance comes up with its primary interface known.
        return seen + [eni for eni in self._cloud.interfaces_of(instance_id) if _is_primary(eni)]

    def _interface(self, eni: Item) -> Tree:
        # Subnets and VPCs do not move; their present state does for every lag.
        subnet = self._cloud.get("subnet", eni["SubnetId"]) or {}
        vpc = self._cloud.get("vpc", eni["VpcId"]) or {}
        attachment = eni["Attachment"]
        card = attachment.get("NetworkCardIndex", 0)
        return _present(
            {
                "device-number": str(attachment["DeviceIndex"]),
                "interface-id": eni["NetworkInterfaceId"],
                "ipv4-associations": {
                    private["Association"]["PublicIp"]: private["PrivateIpAddress"]
                    for private in eni.get("PrivateIpAddresses", [])
                    if "Association" in private
                },
                "ipv4-prefix": _lines(x["Ipv4Prefix"] for x in eni.get("Ipv4Prefixes", [])),
                "ipv6-prefix": _lines(x["Ipv6Prefix"] for x in eni.get("Ipv6Prefixes", [])),
                "ipv6s": _lines(_ipv6s(eni)),
                "local-hostname": eni.get("PrivateDnsName"),
                "local-ipv4s": _lines(_ipv4s(eni)),
                "mac": eni["MacAddress"],
                # Cards other than the first only, as instances were seen to do it.
                "network-card": str(card) if card else None,
                "owner-id": eni["OwnerId"],
                "public-ipv4s": _lines(_public_ipv4s(eni)),
                "security-group-ids": _lines(group["GroupId"] for group in eni["Groups"]),
                "security-groups": _lines(group["GroupName"] for group in eni["Groups"]),
                "subnet-id": eni["SubnetId"],
                "subnet-ipv4-cidr-block": subnet.get("CidrBlock"),
                "subnet-ipv6-cidr-blocks": _lines(_associated(subnet, "Ipv6Cidr")),
                "vpc-id": eni["VpcId"],
                "vpc-ipv4-cidr-block": vpc.get("CidrBlock"),
                "vpc-ipv4-cidr-blocks": _lines(_associated(vpc, "Cidr")),
                "vpc-ipv6-cidr-blocks": _lines(_associated(vpc, "Ipv6Cidr")),
            }
        )

    def _document(self, instance: Item) -> str:
        document = {
            "accountId": self._cloud.account,
            "architecture": instance.get("Architecture", "x86_64"),
            "availabilityZone": instance["Placement"]["AvailabilityZone"],
            "billingProducts": None,
            "devpayProductCodes": None,
            "marketplaceProductCodes": None,
            "imageId": instance.get("ImageId"),
            "instanceId": instance["InstanceId"],
            "instanceType": instance["InstanceType"],
            "kernelId": None,
            "pendingTime": _iso(instance["LaunchTime"]),
            "privateIp": instance.get("PrivateIpAddress"),
            "ramdiskId": None,
            "region": self._cloud.region,
            "version": "2017-09-30",
        }
        return json.dumps(document, indent=2)

    def _iam_info(self, instance: Item) -> str:
        info = {
            "Code": "Success",
            "LastUpdated": _iso(instance["LaunchTime"]),
            "InstanceProfileArn": f"arn:aws:iam::{self._cloud.account}:instance-profile/{self._role}",
            "InstanceProfileId": "AIPA" + accounting.access_key(instance["InstanceId"])[4:],
        }
        return json.dumps(info, indent=2)

    def _credentials(self, instance: Item) -> str:
        key = accounting.access_key(instance["InstanceId"])
        now = dt.datetime.fromtimestamp(self._cloud.clock.now(), dt.UTC)
        secret = hashlib.sha256(key.encode()).digest()
        credentials = {
            "Code": "Success",
            "LastUpdated": _iso(now),
            "Type": "AWS-HMAC",
            "AccessKeyId": key,
            "SecretAccessKey": base64.b64encode(secret).decode()[:40],
            "Token": base64.b64encode(secret * 4).decode(),
            "Expiration": _iso(now + dt.timedelta(seconds=CREDENTIALS_LAST)),
        }
        return json.dumps(credentials, indent=2)


def _walk(root: Tree, path: str) -> str | None:
    """Return the text at `path`, a directory's listing, or None. A final slash is allowed."""
    node: Any = root
    names = path.strip("/")
    for name in names.split("/") if names else ():
        if not isinstance(node, dict) or name not in node:
            return None
        node = _made(node[name])
    if isinstance(node, dict):
        return _lines(_listed(name, below) for name, below in node.items()) or ""
    return str(node)


def _listed(name: str, below: Any) -> str:
    return name + "/" if isinstance(_made(below), dict) else name


def _made(node: Any) -> Any:
    return node() if callable(node) else node


def _present(tree: Tree) -> Tree:
    """Leave out what has no value: a path without a value is a 404, and not listed."""
    return {name: value for name, value in tree.items() if value not in (None, "", {})}


def _lines(values: Iterable[str]) -> str | None:
    return "\n".join(values) or None


def _first(values: Iterable[str]) -> str | None:
    return next(iter(values), None)


def _is_primary(eni: Item) -> bool:
    attachment = eni["Attachment"]
    return bool(attachment["DeviceIndex"] == 0 == attachment.get("NetworkCardIndex", 0))


def _ipv4s(eni: Item) -> list[str]:
    """Return the private addresses, the primary first as IMDS lists them."""
    listed = sorted(eni.get("PrivateIpAddresses", []), key=lambda x: not x["Primary"])
    return [x["PrivateIpAddress"] for x in listed]


def _ipv6s(eni: Item) -> list[str]:
    return [x["Ipv6Address"] for x in eni.get("Ipv6Addresses", [])]


def _public_ipv4s(eni: Item) -> list[str]:
    associations = (x.get("Association") for x in eni.get("PrivateIpAddresses", []))
    return [association["PublicIp"] for association in associations if association]


def _associated(owner: Item, kind: str) -> list[str]:
    """Return the associated CIDR blocks of a VPC or subnet; `kind` is Cidr or Ipv6Cidr."""
    return [
        association[f"{kind}Block"]
        for association in owner.get(f"{kind}BlockAssociationSet", [])
        if association[f"{kind}BlockState"]["State"] == "associated"
    ]


def _iso(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _error(status: int) -> Reply:
    title = f"{status} - {_TITLES[status]}"
    body = (
        '<?xml version="1.0" encoding="iso-8859-1"?>\n'
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"\n'
        '\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">\n'
        f" <head>\n  <title>{title}</title>\n </head>\n"
        f" <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    )
    return Reply(status, body.encode(), {"Content-Type": "text/html"})
