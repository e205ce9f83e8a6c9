"""Knobs: upstream's names and parsing, a reading for each, a paragraph under each."""

from __future__ import annotations

import pytest

from reconciler import errors, settings


def one(name: str, raw: str) -> tuple[settings.Settings, settings.Reading]:
    found, readings = settings.load({name: raw})
    return found, next(reading for reading in readings if reading.name == name)


def test_nothing_given_is_all_defaults() -> None:
    found, readings = settings.load({})
    assert found == settings.Settings()
    assert {reading.source for reading in readings} == {"default"}


def test_upstreams_defaults_hold() -> None:
    found = settings.Settings()
    assert (found.warm_eni_target, found.warm_ip_target, found.minimum_ip_target) == (1, 0, 0)
    assert (found.max_eni, found.ip_cooldown_ms, found.eni_mtu) == (None, 30_000, 9001)
    assert (found.mtu, found.veth_prefix) == (9001, "eni")


def test_set_but_empty_counts_as_unset() -> None:
    assert one("WARM_IP_TARGET", "")[1].source == "default"


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("WARM_ENI_TARGET", "many"),
        ("WARM_ENI_TARGET", "-1"),
        ("MAX_ENI", "0"),
        ("ADDITIONAL_ENI_TAGS", "[1]"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "loud"),
        ("VPCLEDGER_FREEZE", "yes"),
        ("HTTP_TIMEOUT", "3"),
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "yes"),
        ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "TrUe"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng "),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0x100000000"),
    ],
)
def test_what_upstream_would_silently_replace_is_replaced_and_said(name: str, raw: str) -> None:
    found, reading = one(name, raw)
    assert found == settings.Settings()
    assert (reading.source, reading.raw) == ("invalid", raw)


def test_of_a_list_of_networks_what_can_be_used_is_used_and_the_rest_said() -> None:
    """Upstream skips bad and IPv6 items; host bits are cut off, as the kernel would."""
    found, reading = one(
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.1.2.3/16, fd00::/8,home,10.9.0.1"
    )
    assert found.exclude_snat_cidrs == ("10.1.0.0/16", "10.9.0.1/32")
    assert reading.source == "invalid"
    found, reading = one("AWS_EXTERNAL_SERVICE_CIDRS", "10.1.0.0/16,")
    assert found.external_service_cidrs == ("10.1.0.0/16",)
    assert reading.source == "environment"


@pytest.mark.parametrize(
    ("raw", "value"), [("128", 128), ("0x80", 0x80), ("0b100", 4), ("0o17", 15)]
)
def test_a_mark_is_read_in_the_base_its_prefix_says(raw: str, value: int) -> None:
    assert one("AWS_VPC_K8S_CNI_CONNMARK", raw)[0].connmark == value


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("IP_COOLDOWN_PERIOD", "-1"),
        ("AWS_VPC_ENI_MTU", "100"),
        ("POD_MTU", "9002"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "toolong"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "eth"),
        ("VPCLEDGER_UID", "root"),
    ],
)
def test_what_upstreams_entry_refuses_is_refused_with_a_sentence(name: str, raw: str) -> None:
    with pytest.raises(errors.Refused, match=f"{name}='{raw}' is not "):
        settings.load({name: raw})


def test_tags_of_the_cnis_own_name_space_are_dropped() -> None:
    found, _ = one("ADDITIONAL_ENI_TAGS", '{"team": "net", "node.k8s.amazonaws.com/x": "y"}')
    assert found.additional_eni_tags == (("team", "net"),)


def test_seconds_become_milliseconds() -> None:
    assert one("IP_COOLDOWN_PERIOD", "7")[0].ip_cooldown_ms == 7_000


def test_every_knob_has_its_paragraph() -> None:
    told = settings.paragraphs()
    assert set(told) == {knob.metadata["env"] for knob in settings.knobs()}
    assert all(len(text) > 20 for text in told.values())
