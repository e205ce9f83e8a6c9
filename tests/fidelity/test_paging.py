"""MaxResults and NextToken."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fidelity.workshop import Place, Workshop, refused

PAGED = {
    "describe_network_interfaces": "NetworkInterfaces",
    "describe_instances": "Reservations",
    "describe_subnets": "Subnets",
    "describe_vpcs": "Vpcs",
    "describe_security_groups": "SecurityGroups",
    "describe_tags": "Tags",
    "describe_instance_types": "InstanceTypes",
}


def pages(call: Any, member: str, **params: Any) -> list[list[dict[str, Any]]]:
    """Every page, by following the tokens."""
    seen, token = [], None
    while True:
        reply = call(**params, **({"NextToken": token} if token else {}))
        seen.append(reply[member])
        token = reply.get("NextToken")
        if not token:
            return seen


def in_vpc(place: Place) -> list[dict[str, Any]]:
    return [{"Name": "vpc-id", "Values": [place.vpc]}]


def test_pages_cover_everything_once(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)["SubnetId"]
    made = {make.eni(SubnetId=subnet)["NetworkInterfaceId"] for _ in range(11)}
    seen = pages(
        ec2.describe_network_interfaces,
        "NetworkInterfaces",
        Filters=[{"Name": "subnet-id", "Values": [subnet]}],
        MaxResults=5,
    )
    ids = [each["NetworkInterfaceId"] for page in seen for each in page]
    assert (len(ids), set(ids)) == (11, made)
    assert max(len(page) for page in seen) <= 5


def test_a_reply_that_fits_has_no_token(ec2: Any, make: Workshop) -> None:
    make.eni()
    reply = ec2.describe_network_interfaces(Filters=in_vpc(make.place), MaxResults=1000)
    assert not reply.get("NextToken")


def test_without_max_results_everything_comes(ec2: Any, make: Workshop) -> None:
    made = {make.eni()["NetworkInterfaceId"] for _ in range(8)}
    reply = ec2.describe_network_interfaces(Filters=in_vpc(make.place))
    assert made <= {each["NetworkInterfaceId"] for each in reply["NetworkInterfaces"]}
    assert not reply.get("NextToken")


@pytest.mark.lab_only("EC2 may hold a token's list for a while")
def test_deletions_between_pages_hide_nothing(ec2: Any, make: Workshop) -> None:
    subnet = make.subnet(28)["SubnetId"]
    for _ in range(9):
        make.eni(SubnetId=subnet)
    wanted = {"Filters": [{"Name": "subnet-id", "Values": [subnet]}], "MaxResults": 5}
    first = ec2.describe_network_interfaces(**wanted)
    for eni in first["NetworkInterfaces"]:
        ec2.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])
    rest = ec2.describe_network_interfaces(**wanted, NextToken=first["NextToken"])
    assert len(rest["NetworkInterfaces"]) == 4


@pytest.mark.parametrize("operation", PAGED)
def test_a_made_up_token_is_refused(ec2: Any, operation: str) -> None:
    code, _ = refused(getattr(ec2, operation), NextToken="made up", MaxResults=5)
    assert code in ("InvalidNextToken", "InvalidPaginationToken", "InvalidParameterValue")


@pytest.mark.parametrize("operation", PAGED)
def test_a_page_of_fewer_than_five_is_refused(ec2: Any, operation: str) -> None:
    code, text = refused(getattr(ec2, operation), MaxResults=4)
    assert code == "InvalidParameterValue"
    assert "Expecting a value greater than or equal to 5" in text


def test_ids_and_pages_exclude_each_other(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    for call, ids in (
        (ec2.describe_network_interfaces, {"NetworkInterfaceIds": [eni]}),
        (ec2.describe_instances, {"InstanceIds": [node]}),
    ):
        code, _ = refused(call, MaxResults=5, **ids)
        assert code == "InvalidParameterCombination"


def test_pages_of_instances_count_instances(ec2: Any, make: Workshop) -> None:
    """Though they come in reservations."""
    launched = [make.instance()["InstanceId"] for _ in range(6)]
    seen = pages(
        ec2.describe_instances,
        "Reservations",
        Filters=[{"Name": "instance-id", "Values": launched}],
        MaxResults=5,
    )
    ids = [each["InstanceId"] for page in seen for launch in page for each in launch["Instances"]]
    assert (sorted(ids), len(seen)) == (sorted(launched), 2)


def test_subnets_come_in_pages(ec2: Any, make: Workshop) -> None:
    made = {make.subnet(28)["SubnetId"] for _ in range(5)}
    seen = pages(ec2.describe_subnets, "Subnets", Filters=in_vpc(make.place), MaxResults=5)
    assert made <= {each["SubnetId"] for page in seen for each in page}
    assert len(seen) >= 2


def test_tags_come_in_pages(ec2: Any, make: Workshop) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    labels = [{"Key": f"k{number}", "Value": "v"} for number in range(7)]
    ec2.create_tags(Resources=[eni], Tags=labels)
    seen = pages(
        ec2.describe_tags,
        "Tags",
        Filters=[{"Name": "resource-id", "Values": [eni]}],
        MaxResults=5,
    )
    assert [len(page) for page in seen] == [5, 2]


def test_types_come_in_pages_even_unasked(ec2: Any) -> None:
    reply = ec2.describe_instance_types()
    assert len(reply["InstanceTypes"]) <= 100
    assert reply["NextToken"]
