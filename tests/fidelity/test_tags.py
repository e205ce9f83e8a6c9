"""Tags: set with a thing, later, over others, away again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fidelity.workshop import Place, Workshop, refused


def tags(make: Workshop, eni: str) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in make.shown(eni)["TagSet"]}


def tagged(*labels: tuple[str, str]) -> list[dict[str, Any]]:
    rows = [{"Key": key, "Value": value} for key, value in labels]
    return [{"ResourceType": "network-interface", "Tags": rows}]


def test_tags_come_with_creation(ec2: Any, make: Workshop) -> None:
    """The reply shows them already: there is no moment without them."""
    eni = make.eni(TagSpecifications=tagged(("a", "1"), ("b", "2")))
    assert {tag["Key"]: tag["Value"] for tag in eni["TagSet"]} == {"a": "1", "b": "2"}
    assert tags(make, eni["NetworkInterfaceId"]) == {"a": "1", "b": "2"}


def test_tags_are_set_over_others(ec2: Any, make: Workshop) -> None:
    eni = make.eni(TagSpecifications=tagged(("a", "1"), ("b", "2")))["NetworkInterfaceId"]
    ec2.create_tags(Resources=[eni], Tags=[{"Key": "b", "Value": "3"}, {"Key": "c", "Value": "4"}])
    assert tags(make, eni) == {"a": "1", "b": "3", "c": "4"}


def test_one_call_tags_several_things(ec2: Any, make: Workshop, node: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    ec2.create_tags(Resources=[eni, node], Tags=[{"Key": "both", "Value": "yes"}])
    assert tags(make, eni)["both"] == "yes"
    assert {"Key": "both", "Value": "yes"} in make.shown_instance(node)["Tags"]


def test_tags_are_deleted_by_key(ec2: Any, make: Workshop) -> None:
    eni = make.eni(TagSpecifications=tagged(("a", "1"), ("b", "2")))["NetworkInterfaceId"]
    ec2.delete_tags(Resources=[eni], Tags=[{"Key": "a"}])
    assert tags(make, eni) == {"b": "2"}


def test_a_tag_with_another_value_is_not_deleted(ec2: Any, make: Workshop) -> None:
    eni = make.eni(TagSpecifications=tagged(("a", "1")))["NetworkInterfaceId"]
    ec2.delete_tags(Resources=[eni], Tags=[{"Key": "a", "Value": "2"}, {"Key": "absent"}])
    assert tags(make, eni) == {"a": "1"}


def test_an_unknown_thing_cannot_be_tagged(ec2: Any, make: Workshop) -> None:
    """Nor does the other one in the call get the tag."""
    eni = make.eni()["NetworkInterfaceId"]
    code, _ = refused(
        ec2.create_tags,
        Resources=[eni, "eni-0123456789abcdef0"],
        Tags=[{"Key": "a", "Value": "1"}],
    )
    assert code == "InvalidNetworkInterfaceID.NotFound"
    assert tags(make, eni) == {}


def test_what_is_no_id_cannot_be_tagged(ec2: Any) -> None:
    code, text = refused(ec2.create_tags, Resources=["nothing"], Tags=[{"Key": "a", "Value": "1"}])
    assert (code, text) == ("InvalidID", "The ID 'nothing' is not valid")


@pytest.mark.parametrize("key", ["aws:mine", "AWS:mine"])
def test_keys_of_aws_are_refused(ec2: Any, make: Workshop, key: str) -> None:
    eni = make.eni()["NetworkInterfaceId"]
    code, text = refused(ec2.create_tags, Resources=[eni], Tags=[{"Key": key, "Value": "1"}])
    assert code == "InvalidParameterValue"
    assert "reserved for internal use" in text


def test_fifty_tags_are_the_most(ec2: Any, make: Workshop) -> None:
    labels = [(f"key {number}", "v") for number in range(50)]
    eni = make.eni(TagSpecifications=tagged(*labels))["NetworkInterfaceId"]
    ec2.create_tags(Resources=[eni], Tags=[{"Key": "key 0", "Value": "over another"}])
    code, _ = refused(ec2.create_tags, Resources=[eni], Tags=[{"Key": "one more", "Value": "v"}])
    assert code == "TagLimitExceeded"
    assert len(tags(make, eni)) == 50


def test_a_refused_tag_makes_no_interface(ec2: Any, place: Place) -> None:
    before = ec2.describe_subnets(SubnetIds=[place.subnet])["Subnets"][0]["AvailableIpAddressCount"]
    code, _ = refused(
        ec2.create_network_interface,
        SubnetId=place.subnet,
        TagSpecifications=tagged(("aws:x", "1")),
    )
    assert code == "InvalidParameterValue"
    after = ec2.describe_subnets(SubnetIds=[place.subnet])["Subnets"][0]["AvailableIpAddressCount"]
    assert after == before


def test_tags_are_listed_as_things_of_their_own(ec2: Any, make: Workshop) -> None:
    eni = make.eni(TagSpecifications=tagged(("listed", "1")))["NetworkInterfaceId"]
    filters = [{"Name": "resource-id", "Values": [eni]}, {"Name": "key", "Values": ["list*"]}]
    assert ec2.describe_tags(Filters=filters)["Tags"] == [
        {
            "Key": "listed",
            "Value": "1",
            "ResourceId": eni,
            "ResourceType": "network-interface",
        }
    ]


def test_deleted_things_have_no_tags(ec2: Any, make: Workshop) -> None:
    eni = make.eni(TagSpecifications=tagged(("left", "1")))["NetworkInterfaceId"]
    ec2.delete_network_interface(NetworkInterfaceId=eni)
    filters = [{"Name": "resource-id", "Values": [eni]}]
    assert ec2.describe_tags(Filters=filters)["Tags"] == []


def test_a_launch_tags_its_interfaces_too(make: Workshop) -> None:
    labels = [{"Key": "launched", "Value": "yes"}]
    instance = make.instance(
        TagSpecifications=[
            {"ResourceType": "instance", "Tags": labels},
            {"ResourceType": "network-interface", "Tags": labels},
        ]
    )
    assert instance["Tags"] == labels
    first = instance["NetworkInterfaces"][0]["NetworkInterfaceId"]
    assert tags(make, first) == {"launched": "yes"}
