"""The instance metadata service's hands: who this machine is and which interfaces it shows.

IMDSv2 only: a session token, kept until it is refused (401) or old. 404 means absent and is no error.
An interface that vanishes during the walk is left out. Metadata lags behind EC2 and knows neither tags
nor attachment ids, so what it shows can contradict a plan and never allow one; `managed` is therefore
false but for the primary interface. What is concluded from it does not belong here.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Final
from urllib.parse import urlsplit

from ledger import model
from reconciler import settings as knobs

ATTEMPTS: Final = 3
TIMEOUT_S: Final = 2.0
TOKEN_TTL_S: Final = 21_600
_MACS: Final = "meta-data/network/interfaces/macs/"


class _Failed(Exception):
    """No usable answer; the text says to what."""


class Imds:
    """One metadata service, with its token and connection kept."""

    def __init__(self, settings: knobs.Settings) -> None:
        """Nothing is asked before `observe`. The endpoint may carry a path prefix."""
        url = urlsplit(settings.imds_endpoint)
        if url.scheme != "http" or not url.hostname:
            raise ValueError(f"{settings.imds_endpoint!r} is not an http URL")
        self._connection = http.client.HTTPConnection(
            url.hostname, url.port or 80, timeout=TIMEOUT_S
        )
        self._prefix = url.path.rstrip("/") + "/latest/"
        self._multi_nic = settings.multi_nic
        self._token: str | None = None

    def observe(self) -> tuple[model.Node, model.ObservedCloud] | model.Unknown:
        """The node and its attached interfaces; Unknown if anything indispensable is missing."""
        at = time.time_ns() // 1_000_000
        try:
            mac = self._need("meta-data/mac")
            seen = [
                each
                for entry in self._need(_MACS.rstrip("/")).split()
                if (each := self._interface(entry.rstrip("/"), mac)) is not None
            ]
            node = self._node(mac)
        except (_Failed, ValueError) as failed:  # a number that is none
            return model.Unknown(f"instance metadata: {failed}", at)
        finally:
            self._connection.close()
        return node, model.ObservedCloud(at, "imds", tuple(seen))

    def _node(self, mac: str) -> model.Node:
        primary = f"{_MACS}{mac}/"
        return model.Node(
            instance_id=self._need("meta-data/instance-id"),
            instance_type=self._need("meta-data/instance-type"),
            region=self._region(),
            availability_zone=self._need("meta-data/placement/availability-zone"),
            vpc_id=self._need(primary + "vpc-id"),
            subnet_id=self._need(primary + "subnet-id"),
            primary_mac=mac,
            primary_ip=self._need("meta-data/local-ipv4"),
            vpc_cidrs=tuple(self._need(primary + "vpc-ipv4-cidr-blocks").split()),
            security_groups=tuple(self._need(primary + "security-group-ids").split()),
        )

    def _region(self) -> str:
        """From the identity document, as the AWS SDKs read it: placement/region came later."""
        path = "dynamic/instance-identity/document"
        try:
            region = json.loads(self._need(path)).get("region")
        except ValueError:
            region = None
        if not region:
            raise _Failed(f"{path} names no region")
        return str(region)

    def _interface(self, mac: str, primary_mac: str) -> model.ObservedEni | None:
        here = f"{_MACS}{mac}/"
        eni_id = self._get(here + "interface-id")
        if eni_id is None:
            return None  # detached since it was listed
        addresses = (self._get(here + "local-ipv4s") or "").split()
        only_efa = not addresses and self._get(here + "ipv6s") is None
        prefixes = (self._get(here + "ipv4-prefix") or "").split()
        device = 0 if mac == primary_mac else int(self._need(here + "device-number"))
        card = int(self._get(here + "network-card") or 0)
        eni = model.Eni(
            eni_id=eni_id,
            mac=mac,
            subnet_id=self._need(here + "subnet-id"),
            subnet_cidr=self._get(here + "subnet-ipv4-cidr-block") or "",
            primary_ip=addresses[0] if addresses else "",
            device=device,
            card=card,
            kind="efa-only" if only_efa else "interface",
            primary=mac == primary_mac,
            managed=mac == primary_mac
            or ((card == 0 or self._multi_nic) and (len(addresses) > 1 or bool(prefixes))),
            state="attached",
        )
        return model.ObservedEni(eni, tuple(addresses[1:]), tuple(prefixes))

    # ----------------------------------------------------------------------- the protocol

    def _need(self, path: str) -> str:
        value = self._get(path)
        if value is None:
            raise _Failed(f"{path} is missing")
        return value

    def _get(self, path: str) -> str | None:
        """The text at a path, None where there is none (404)."""
        if self._token is None:
            self._token = self._new_token()
        status, text = self._request("GET", path, {"X-aws-ec2-metadata-token": self._token})
        if status == 401:
            self._token = self._new_token()
            status, text = self._request("GET", path, {"X-aws-ec2-metadata-token": self._token})
        if status == 404:
            return None
        if status != 200:
            raise _Failed(f"{path} answered HTTP {status}")
        return text

    def _new_token(self) -> str:
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
        status, text = self._request("PUT", "api/token", ttl)
        if status != 200:
            raise _Failed(f"the request for a token was answered with HTTP {status}")
        return text

    def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """One answer; a lost connection and HTTP 5xx are tried again, for nothing here changes state."""
        trouble = ""
        for _ in range(ATTEMPTS):
            try:
                self._connection.request(method, self._prefix + path, headers=headers)
                reply = self._connection.getresponse()
                text = reply.read().decode()
            except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
                self._connection.close()
                trouble = str(error) or type(error).__name__
                continue
            if reply.status < 500:
                return reply.status, text
            trouble = f"HTTP {reply.status}"
        raise _Failed(f"{path}: {trouble}")
