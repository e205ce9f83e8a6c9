"""EC2's hands: `observe` describes this node's interfaces, `apply` carries out one mutation.

Throttled calls are repeated, up to ATTEMPTS times within BUDGET_S; a description is repeated after a lost
connection too. A mutation whose reply was lost never is: its
outcome is `unknown`. Results that `Outcome.result` carries, all in JSON's types:

    CreateEni         eni (the fields of model.Eni), addresses (secondaries), prefixes
    AttachEni         attachment_id
    AssignAddresses   addresses (only the new ones)
    AssignPrefixes    prefixes (only the new ones)
    Regain...         regained, and lost: what another interface has, with that one's id

The only file with boto3, imported when an Ec2 is made. Deciding what to call, or when to call again
after an error, does not belong here.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ledger import model
from reconciler import errors
from reconciler import settings as knobs
from reconciler.planner import actions, tags
from reconciler.providers import by_name, interfaces

log = logging.getLogger(__name__)

ATTEMPTS: Final = 10
"""Tries of a throttled call, if they find room in BUDGET_S."""
READ_ATTEMPTS: Final = 3
"""Tries of a description that got no reply."""
BUDGET_S: Final = 3.0
"""Repetitions end so long after the first try: the ledger's own back-off goes on, and a pod that waits
hears why while it is still held (VPCLEDGER_ADD_WAIT)."""
PAGE: Final = 1000
"""A filter and a page size: a description without them is drawn from a smaller bucket."""
MODEL: Final = Path(__file__).with_name("ec2_model")

ACTION: Final[dict[type[actions.CloudAction], str]] = {
    actions.CreateEni: "CreateNetworkInterface",
    actions.AttachEni: "AttachNetworkInterface",
    actions.SetDeleteOnTermination: "ModifyNetworkInterfaceAttribute",
    actions.AssignAddresses: "AssignPrivateIpAddresses",
    actions.UnassignAddresses: "UnassignPrivateIpAddresses",
    actions.AssignPrefixes: "AssignPrivateIpAddresses",
    actions.UnassignPrefixes: "UnassignPrivateIpAddresses",
    actions.RegainAddresses: "AssignPrivateIpAddresses",
    actions.RegainPrefixes: "AssignPrivateIpAddresses",
    actions.SetSecurityGroups: "ModifyNetworkInterfaceAttribute",
    actions.TagEni: "CreateTags",
    actions.DetachEni: "DetachNetworkInterface",
    actions.DeleteEni: "DeleteNetworkInterface",
}
"""The EC2 action that each verb is."""

Json = dict[str, Any]
AddressAction = (
    actions.AssignAddresses
    | actions.AssignPrefixes
    | actions.UnassignAddresses
    | actions.UnassignPrefixes
    | actions.RegainAddresses
    | actions.RegainPrefixes
)


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One EC2 call. `code` is 'ok' or EC2's; `at` its start, in ms; `attempts` counts up when repeated."""

    operation: str
    code: str
    at: int
    duration_us: int
    attempts: int


class Ec2:
    """EC2 of the node's region, with one session and its connections kept open."""

    def __init__(
        self,
        node: model.Node,
        settings: knobs.Settings,
        called: Callable[[Call], None] = lambda _call: None,
    ) -> None:
        """Import boto3 and make the client; `called` is told of every try when it is over."""
        self._node, self._settings, self._called = node, settings, called
        self._client = _client(node.region, settings)
        self._subnets: dict[str, str] = {}

    def observe(
        self, eni_ids: tuple[str, ...] | None = None, known: tuple[model.Eni, ...] = ()
    ) -> model.ObservedCloud | model.Unknown:
        """These interfaces; without ids those attached to this instance and those tagged as its own.

        Filters narrow each other (EC2, DescribeNetworkInterfaces), so the two are two questions. The second
        is left out when all the interfaces `known` to the asker are found attached: then there is none
        that could only be told by its tag. Their subnets need no question either. `at` is when the first
        question was sent: what happened later may not be in the answer.
        """
        at = _now()
        self._subnets |= {eni.subnet_id: eni.subnet_cidr for eni in known if eni.subnet_cidr}
        try:
            if eni_ids is not None:
                found = self._found("network-interface-id", eni_ids)
            else:
                found = self._found("attachment.instance-id", (self._node.instance_id,))
                if not known or any(eni.eni_id not in found for eni in known):
                    found |= self._found(f"tag:{tags.INSTANCE}", (self._node.instance_id,))
            seen = [self._observed(raw) for raw in found.values()]
            subnets = self._tags_of({each.eni.subnet_id for each in seen} | {self._node.subnet_id})
        except by_name.Failed as failed:
            return model.Unknown(str(failed), at)
        seen.sort(key=lambda each: (each.eni.device < 0, each.eni.device, each.eni.eni_id))
        return model.ObservedCloud(at, "ec2", tuple(seen), subnets)

    def _tags_of(self, subnet_ids: set[str]) -> tuple[model.ObservedSubnet, ...] | None:
        """These subnets' tags if they matter; None if EC2 does not say, which stops nothing else."""
        if not self._settings.subnet_tags:
            return ()
        wanted = [{"Name": "subnet-id", "Values": sorted(subnet_ids)}]
        try:
            reply = self._call("DescribeSubnets", Filters=wanted)
        except by_name.Failed as failed:
            log.warning("the subnets' tags are not known: %s", failed)
            return None
        return tuple(
            model.ObservedSubnet(
                each["SubnetId"], {tag["Key"]: tag["Value"] for tag in each.get("Tags", ())}
            )
            for each in reply["Subnets"]
        )

    def observe_leaked(self) -> model.ObservedCloud | model.Unknown:
        """Interfaces of this VPC attached to nothing that carry an instance's tag and the cluster's.

        Whoever made them; whether they leaked is the planner's to say. Their subnets are not asked for.
        """
        at, vpc, cluster = _now(), self._node.vpc_id, self._settings.cluster_name
        filters = [("tag-key", tags.INSTANCE), ("status", "available"), ("vpc-id", vpc)]
        filters.append((f"tag:{tags.CLUSTER}", cluster))
        try:
            found = list(self._describe(*((name, (value,)) for name, value in filters)))
        except by_name.Failed as failed:
            return model.Unknown(str(failed), at)
        seen = tuple(interfaces.observed(raw, "", self._node, self._settings) for raw in found)
        return model.ObservedCloud(at, "ec2", seen)

    def apply(self, action: actions.CloudAction, token: str) -> actions.Outcome:
        """Carry it out. `token` makes CreateEni, and no other verb, safe to repeat after a lost reply.

        What is there already, attached already or gone already is success.
        """
        try:
            return actions.Outcome(action, result=self._carry_out(action, token))
        except by_name.Failed as failed:
            return actions.Outcome(action, failed.code, failed.text, failed.unknown)

    # ----------------------------------------------------------------------- the verbs

    def _carry_out(self, action: actions.CloudAction, token: str) -> dict[str, object]:
        match action:
            case actions.CreateEni():
                return self._create(action, token)
            case actions.AttachEni():
                return self._attach(action)
            case actions.SetDeleteOnTermination(eni_id, attachment_id):
                change = {"AttachmentId": attachment_id, "DeleteOnTermination": True}
                self._call(ACTION[type(action)], NetworkInterfaceId=eni_id, Attachment=change)
            case actions.SetSecurityGroups(eni_id, groups):
                self._call(ACTION[type(action)], NetworkInterfaceId=eni_id, Groups=list(groups))
            case actions.TagEni(eni_id, pairs):
                self._call(
                    ACTION[type(action)], Resources=[eni_id], Tags=interfaces.tag_list(pairs)
                )
            case actions.DetachEni(_, attachment_id):
                self._gone_is_fine(ACTION[type(action)], AttachmentId=attachment_id)
            case actions.DeleteEni(eni_id):
                self._gone_is_fine(ACTION[type(action)], NetworkInterfaceId=eni_id)
            case _:
                return self._change_addresses(action)
        return {}

    def _change_addresses(self, action: AddressAction) -> dict[str, object]:
        match action:
            case actions.AssignAddresses(eni_id, count):
                reply = self._call(
                    ACTION[type(action)],
                    NetworkInterfaceId=eni_id,
                    SecondaryPrivateIpAddressCount=count,
                )
                new = reply.get("AssignedPrivateIpAddresses", ())
                return {"addresses": [each["PrivateIpAddress"] for each in new]}
            case actions.AssignPrefixes(eni_id, count):
                reply = self._call(
                    ACTION[type(action)], NetworkInterfaceId=eni_id, Ipv4PrefixCount=count
                )
                blocks = reply.get("AssignedIpv4Prefixes", ())
                return {"prefixes": [each["Ipv4Prefix"] for each in blocks]}
            case actions.UnassignAddresses(eni_id, addresses):
                by_name.unassign(self._gone_is_fine, eni_id, by_name.ADDRESSES, addresses)
            case actions.UnassignPrefixes(eni_id, prefixes):
                by_name.unassign(self._gone_is_fine, eni_id, by_name.PREFIXES, prefixes)
            case actions.RegainAddresses(eni_id, addresses):
                return self._regain(eni_id, by_name.ADDRESSES, addresses)
            case actions.RegainPrefixes(eni_id, prefixes):
                return self._regain(eni_id, by_name.PREFIXES, prefixes)
        return {}

    def _create(self, action: actions.CreateEni, token: str) -> dict[str, object]:
        self._subnet_cidr(action.subnet_id)  # so that nothing can fail once the interface is made
        parameters = interfaces.create_parameters(action, token)
        raw = self._call("CreateNetworkInterface", **parameters)["NetworkInterface"]
        made = self._observed(raw)
        eni = dataclasses.replace(made.eni, managed=True, card=action.card)
        return {
            "eni": dataclasses.asdict(eni),
            "addresses": list(made.addresses),
            "prefixes": list(made.prefixes),
        }

    def _attach(self, action: actions.AttachEni) -> dict[str, object]:
        try:
            reply = self._call(
                "AttachNetworkInterface",
                NetworkInterfaceId=action.eni_id,
                InstanceId=action.instance_id,
                DeviceIndex=action.device,
                NetworkCardIndex=action.card,
            )
            return {"attachment_id": reply["AttachmentId"]}
        except by_name.Failed as failed:
            if failed.code != "InvalidNetworkInterface.InUse":
                raise
            for raw in self._describe(("network-interface-id", (action.eni_id,))):
                attachment = raw.get("Attachment", {})
                place = (attachment.get("InstanceId"), attachment.get("DeviceIndex"))
                if place == (action.instance_id, action.device):
                    return {"attachment_id": attachment["AttachmentId"]}
            raise

    def _regain(self, eni_id: str, kind: str, things: tuple[str, ...]) -> dict[str, object]:
        ours, lost = by_name.regain(self._call, self._describe, eni_id, kind, things)
        return {"regained": ours, "lost": lost}

    def _gone_is_fine(self, operation: str, **parameters: Any) -> None:
        try:
            self._call(operation, **parameters)
        except by_name.Failed as failed:
            begun = failed.code == "IncorrectState" and "detaching" in failed.text
            if not failed.code.endswith(".NotFound") and not begun:
                raise

    # ----------------------------------------------------------------------- the calls

    def _observed(self, raw: Json) -> model.ObservedEni:
        cidr = self._subnet_cidr(raw["SubnetId"])
        return interfaces.observed(raw, cidr, self._node, self._settings)

    def _subnet_cidr(self, subnet_id: str) -> str:
        """A subnet's IPv4 block never changes, so it is asked for once."""
        if subnet_id not in self._subnets:
            reply = self._call(
                "DescribeSubnets", Filters=[{"Name": "subnet-id", "Values": [subnet_id]}]
            )
            for subnet in reply["Subnets"]:
                self._subnets[subnet["SubnetId"]] = subnet["CidrBlock"]
        if subnet_id not in self._subnets:
            raise by_name.Failed("InvalidSubnetID.NotFound", subnet_id, unknown=False, again=False)
        return self._subnets[subnet_id]

    def _found(self, name: str, values: tuple[str, ...]) -> dict[str, Json]:
        return {raw["NetworkInterfaceId"]: raw for raw in self._describe((name, values))}

    def _describe(self, *filters: tuple[str, tuple[str, ...]]) -> Iterator[Json]:
        """All pages of DescribeNetworkInterfaces under these filters."""
        more: Json = {}
        while True:
            page = self._call(
                "DescribeNetworkInterfaces",
                Filters=[{"Name": name, "Values": list(values)} for name, values in filters],
                MaxResults=PAGE,
                **more,
            )
            yield from page["NetworkInterfaces"]
            if not page.get("NextToken"):
                return
            more = {"NextToken": page["NextToken"]}

    def _call(self, operation: str, **parameters: Any) -> Json:
        """One call with its repetitions; by_name.Failed if there is no result in the end."""
        began, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            try:
                return self._once(operation, parameters, attempt)
            except by_name.Failed as failed:
                most = ATTEMPTS if failed.throttled else READ_ATTEMPTS if failed.again else 1
                # Full jitter, so that nodes that were throttled together do not return together.
                pause = random.uniform(0, 0.25 * 2**attempt)  # noqa: S311  (no secret)
                if attempt >= most or time.monotonic() - began + pause > BUDGET_S:
                    raise
            time.sleep(pause)

    def _once(self, operation: str, parameters: Json, attempt: int) -> Json:
        """One try, told of when it is over."""
        at, started, code = _now(), time.monotonic(), "ok"
        try:
            return self._send(operation, parameters)
        except by_name.Failed as failed:
            code = failed.code
            raise
        finally:
            spent = int((time.monotonic() - started) * 1e6)
            self._called(Call(operation, code, at, spent, attempt))

    def _send(self, operation: str, parameters: Json) -> Json:
        """One request; botocore's errors become by_name.Failed."""
        from botocore import exceptions, xform_name
        from botocore.parsers import ResponseParserError

        reads = operation.startswith("Describe")
        try:
            reply: Json = getattr(self._client, xform_name(operation))(**parameters)
            return reply
        except exceptions.ClientError as error:
            code, text = error.response["Error"]["Code"], error.response["Error"]["Message"]
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            broken = status >= 500 and errors.from_ec2(code, text).reason != "throttled"
            raise by_name.Failed(
                code, text, unknown=broken and not reads, again=broken and reads
            ) from None
        except (exceptions.HTTPClientError, exceptions.SSLError, ResponseParserError) as error:
            raise by_name.Failed(_code(error), str(error), unknown=not reads, again=reads) from None
        except exceptions.BotoCoreError as error:  # no connection, no credentials: nothing was sent
            away = isinstance(error, exceptions.ConnectionError)
            raise by_name.Failed(
                _code(error), str(error), unknown=False, again=away and reads
            ) from None


def _code(error: Exception) -> str:
    """A code for what has none from EC2, such as ReadTimeout; see errors.from_ec2."""
    name = type(error).__name__
    return name if name == "EndpointConnectionError" else name.removesuffix("Error")


def _client(region: str, settings: knobs.Settings) -> Any:
    """The one client of this process; without the pruned model it works and is 22 MB larger."""
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.loaders import Loader

    session = botocore.session.get_session()
    if MODEL.is_dir():
        session.register_component("data_loader", Loader(extra_search_paths=[str(MODEL)]))
    else:
        log.warning("no pruned EC2 model at %s: the full one costs 22 MB; `make` builds it", MODEL)
    session.set_config_variable("ec2_metadata_service_endpoint", settings.imds_endpoint)
    session.set_config_variable("metadata_service_num_attempts", 3)
    return boto3.Session(botocore_session=session, region_name=region).client(
        "ec2",
        endpoint_url=settings.ec2_endpoint or None,
        config=Config(
            # botocore would repeat an Assign whose reply was lost, and its limiter would keep a pod
            # waiting in silence; the pace is the budget's and the back-off the ledger's.
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=min(5, settings.http_timeout_s),
            read_timeout=settings.http_timeout_s,
            tcp_keepalive=True,
            user_agent_extra=f"amazon-vpc-cni-k8s/{_version()}",
        ),
    )


def _version() -> str:
    try:
        return metadata.version("vpcledger")
    except metadata.PackageNotFoundError:
        return "0"


def _now() -> int:
    return time.time_ns() // 1_000_000
