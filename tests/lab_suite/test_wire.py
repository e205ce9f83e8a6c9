"""The wire format agrees with botocore's own serializer and parser, and keeps to the schema.

The shapes are drawn from botocore's model and not from the wire's own tables, so that a mistake
there cannot hide itself. What operations mean is not tested here.
"""

from __future__ import annotations

import datetime as dt
import random
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore.model import Shape
from botocore.parsers import create_parser
from botocore.serialize import create_serializer

from tests.lab import wire
from tests.lab.errors import ApiError
from tests.lab_suite.shapes import MODEL, draw

WIRE = wire.Wire(MODEL)
SERIALIZER = create_serializer("ec2")
PARSER = create_parser("ec2")
TRIALS = 4
SLICES = 16  # so that parallel workers share the operations


def bare(value: Any) -> Any:
    """Drop empty lists and structures: a query request has no way to say them."""
    if isinstance(value, dict):
        kept = {k: bare(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v not in ({}, [])}
    if isinstance(value, list):
        return [v for v in map(bare, value) if v not in ({}, [])]
    return value


def lacks(shape: Shape, value: Any) -> bool:
    """Tell whether something required is absent from `value`, here or further in."""
    if isinstance(value, dict):
        return not value.keys() >= set(shape.required_members) or any(
            lacks(shape.members[name], below) for name, below in value.items()
        )
    return isinstance(value, list) and any(lacks(shape.member, item) for item in value)


def query(action: str, **params: str) -> str:
    """Write a request by hand, as a client without a model would."""
    return urlencode({"Action": action, "Version": "2016-11-15", **params})


def refusal(form: str) -> tuple[str, str]:
    """Return the code and message `form` is refused with."""
    with pytest.raises(ApiError) as refused:
        WIRE.parse(form)
    return refused.value.code, refused.value.message


def test_the_model_has_all_operations() -> None:
    """The round trip below covers EC2 as a whole; a botocore with fewer operations is not EC2."""
    assert len(WIRE.actions) >= 830


@pytest.mark.parametrize("part", range(SLICES))
def test_every_request_is_read_as_botocore_wrote_it(part: int) -> None:
    """Parameters survive botocore's serializer and our parser; one drawn empty may be missed."""
    lacking = read = 0
    for name in sorted(WIRE.actions)[part::SLICES]:
        operation = MODEL.operation_model(name)
        for trial in range(TRIALS):
            rng = random.Random(f"request {name} {trial}")
            params = draw(operation.input_shape, rng)
            body = SERIALIZER.serialize_to_request(params, operation)["body"]
            if lacks(operation.input_shape, bare(params)):
                assert refusal(urlencode(body))[0] == "MissingParameter", (name, trial)
                lacking += 1
                continue
            assert WIRE.parse(urlencode(body)) == wire.Request(name, bare(params)), (name, trial)
            read += 1
    assert read > 9 * lacking


@pytest.mark.parametrize("part", range(SLICES))
def test_every_reply_is_read_back_by_botocore(part: int) -> None:
    """Results survive our writer and botocore's parser, empty lists and odd texts included."""
    for name in sorted(WIRE.actions)[part::SLICES]:
        shape = MODEL.operation_model(name).output_shape
        for trial in range(TRIALS):
            result = draw(shape, random.Random(f"reply {name} {trial}")) if shape else {}
            body = WIRE.render(name, result, "rq-1")
            parsed = PARSER.parse({"body": body, "headers": {}, "status_code": 200}, shape)
            metadata = parsed.pop("ResponseMetadata")
            assert metadata["RequestId"] == "rq-1"
            assert parsed == result, (name, trial)


def test_an_error_is_read_by_botocore() -> None:
    """Code, message and request id of a refusal reach the caller as they are."""
    body = wire.error("InvalidParameterValue", 'Value (<a & "b">) is bad', "rq-2")
    parsed = PARSER.parse({"body": body, "headers": {}, "status_code": 400}, None)
    assert parsed["Error"] == {
        "Code": "InvalidParameterValue",
        "Message": 'Value (<a & "b">) is bad',
    }
    assert parsed["ResponseMetadata"]["RequestId"] == "rq-2"


@pytest.mark.parametrize(
    ("form", "code", "says"),
    [
        ("", "MissingAction", "Action"),
        ("Version=2016-11-15", "MissingAction", "Action"),
        ("Action.1=x", "MissingAction", "Action"),
        (query("DescribeNothing"), "InvalidAction", "DescribeNothing"),
        ("Action=DescribeVpcs", "NoSuchVersion", ""),
        ("Action=DescribeVpcs&Version=2011-01-01", "NoSuchVersion", "2011-01-01"),
        (query("DescribeVpcs", Colour="red"), "UnknownParameter", "Colour"),
        (query("DescribeVpcs", vpcId="x"), "UnknownParameter", "vpcId"),
        (query("DescribeVpcs", VpcId="x"), "UnknownParameter", "VpcId"),
        (query("DescribeVpcs", **{"VpcId.0": "x"}), "UnknownParameter", "VpcId.0"),
        (query("DescribeVpcs", **{"VpcId.one": "x"}), "UnknownParameter", "VpcId.one"),
        (query("DescribeVpcs", **{"VpcId.1.x": "x"}), "UnknownParameter", "VpcId.1.x"),
        (query("DescribeVpcs", **{"Filter.1": "x"}), "UnknownParameter", "Filter.1"),
        (query("DescribeVpcs", **{"Filter.1.Nom": "x"}), "UnknownParameter", "Filter.1.Nom"),
        (query("DescribeVpcs") + "&DryRun=true&DryRun.x=1", "UnknownParameter", "DryRun.x"),
        (query("DescribeVpcs") + "&DryRun.x=1&DryRun=true", "UnknownParameter", "DryRun"),
        (query("AssignPrivateIpAddresses"), "MissingParameter", "NetworkInterfaceId"),
        (
            query("DetachNetworkInterface", Force="yes", AttachmentId="x"),
            "InvalidParameterValue",
            "Value (yes) for parameter Force is invalid.",
        ),
        (query("DescribeVpcs", MaxResults="many"), "InvalidParameterValue", "MaxResults"),
        (query("DescribeVpcs", MaxResults="4"), "InvalidParameterValue", "equal to 5"),
        (query("DescribeVpcs", MaxResults="1001"), "InvalidParameterValue", "equal to 1000"),
        (query("DescribeVpcs", MaxResults="9" * 99), "InvalidParameterValue", "MaxResults"),
        (
            query("CreateNetworkInterface", SubnetId="s", InterfaceType="tree"),
            "InvalidParameterValue",
            "InterfaceType",
        ),
        (
            query("CreateNetworkInterface", SubnetId="s", Description="a\0b"),
            "InvalidParameterValue",
            "Description",
        ),
    ],
)
def test_a_bad_request_gets_ec2s_code(form: str, code: str, says: str) -> None:
    """What cannot be read is refused by EC2's code, and the message names the culprit."""
    got, message = refusal(form)
    assert (got, says in message) == (code, True), message


def test_a_list_is_ordered_by_its_numbers() -> None:
    """Ten comes after nine, whatever the order on the wire, and gaps close."""
    form = query("DescribeVpcs", **{"VpcId.10": "c", "VpcId.9": "b", "VpcId.2": "a"})
    assert WIRE.parse(form).params == {"VpcIds": ["a", "b", "c"]}


def test_a_new_instance_type_passes() -> None:
    """Instance types come out faster than botocore's list of them."""
    form = query("DescribeInstanceTypes", **{"InstanceType.1": "m99.huge"})
    assert WIRE.parse(form).params == {"InstanceTypes": ["m99.huge"]}


@pytest.mark.parametrize(
    ("action", "result", "where"),
    [
        ("DescribeVpcs", {"Vpc": []}, "'Vpc'"),
        ("DescribeVpcs", {"Vpcs": [{"Id": "x"}]}, r"Vpcs\[0\]"),
        ("DescribeVpcs", {"Vpcs": {}}, "Vpcs must be list"),
        ("DescribeVpcs", {"Vpcs": [None]}, r"Vpcs\[0\]"),
        ("DescribeVpcs", {"Vpcs": [{"VpcId": None}]}, "VpcId must be string"),
        ("DescribeVpcs", {"Vpcs": [{"VpcId": "\0"}]}, "VpcId must be string"),
        ("DescribeVpcs", {"Vpcs": [{"IsDefault": 1}]}, "IsDefault must be boolean"),
        ("DescribeVpcs", {"Vpcs": [{"State": "fine"}]}, "State must be string"),
        ("DescribeSubnets", {"Subnets": [{"AvailableIpAddressCount": True}]}, "integer"),
        (
            "AttachNetworkInterface",
            {"AttachmentId": 7},
            "AttachmentId must be string",
        ),
        ("AssociateDhcpOptions", {"Return": True}, "no result"),
        (
            "DescribeVolumes",
            {"Volumes": [{"CreateTime": dt.datetime(2026, 1, 1)}]},  # noqa: DTZ001 - the point
            "CreateTime must be timestamp",
        ),
    ],
)
def test_a_result_outside_the_schema_is_a_bug(
    action: str, result: dict[str, Any], where: str
) -> None:
    """The writer names the place instead of dropping what EC2 would never send."""
    with pytest.raises(wire.SchemaError, match=where):
        WIRE.render(action, result, "rq")
