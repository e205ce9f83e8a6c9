"""The rendered conflist, whole, for each setting that shapes it; and when it may not be published."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from reconciler import errors
from reconciler import settings as knobs
from reconciler.providers import conflist, host

USUAL = """\
{
  "cniVersion": "0.4.0",
  "name": "aws-cni",
  "disableCheck": true,
  "plugins": [
    {
      "name": "aws-cni",
      "type": "aws-cni",
      "vethPrefix": "eni",
      "mtu": "9001",
      "podSGEnforcingMode": "strict",
      "pluginLogFile": "/var/log/aws-routed-eni/plugin.log",
      "pluginLogLevel": "Debug",
      "capabilities": {
        "io.kubernetes.cri.pod-annotations": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      },
      "snat": true
    }
  ]
}
"""
"""What the VPC CNI's template renders to without settings, but for its egress-cni."""

CHAIN_ENDS = """
    }
  ]
}
"""
BANDWIDTH = """
    },
    {
      "type": "bandwidth",
      "capabilities": {
        "bandwidth": true
      }"""
TUNING = """
    },
    {
      "type": "tuning",
      "sysctl": {
        "net.ipv6.conf.all.disable_ipv6": "1",
        "net.ipv6.conf.default.disable_ipv6": "1",
        "net.ipv6.conf.lo.disable_ipv6": "1"
      }"""


def rendered(**environment: str) -> str:
    settings, _ = knobs.load(environment)
    return conflist.render(settings)


def test_without_settings_it_is_the_vpc_cnis() -> None:
    assert rendered() == USUAL


@pytest.mark.parametrize(
    ("name", "value", "before", "after"),
    [
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "pod", '"vethPrefix": "eni"', '"vethPrefix": "pod"'),
        ("AWS_VPC_ENI_MTU", "1500", '"mtu": "9001"', '"mtu": "1500"'),
        ("POD_MTU", "1400", '"mtu": "9001"', '"mtu": "1400"'),
        (
            "POD_SECURITY_GROUP_ENFORCING_MODE",
            "standard",
            '"podSGEnforcingMode": "strict"',
            '"podSGEnforcingMode": "standard"',
        ),
        (
            "AWS_VPC_K8S_PLUGIN_LOG_FILE",
            'stderr "and" \\ more',
            '"/var/log/aws-routed-eni/plugin.log"',
            r'"stderr \"and\" \\ more"',
        ),
        ("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "INFO", '"Debug"', '"INFO"'),
        ("VPCLEDGER_CNI_VERSION", "1.1.0", '"cniVersion": "0.4.0"', '"cniVersion": "1.1.0"'),
        ("ENABLE_BANDWIDTH_PLUGIN", "true", CHAIN_ENDS, BANDWIDTH + CHAIN_ENDS),
        ("DISABLE_POD_V6", "1", CHAIN_ENDS, TUNING + CHAIN_ENDS),
        ("ENABLE_BANDWIDTH_PLUGIN", "perhaps", "", ""),
        ("POD_SECURITY_GROUP_ENFORCING_MODE", "lax", "", ""),
    ],
)
def test_a_setting_changes_its_own_place_and_nothing_else(
    name: str, value: str, before: str, after: str
) -> None:
    assert rendered(**{name: value}) == (USUAL.replace(before, after) if before else USUAL)


def test_bandwidth_comes_before_tuning_and_portmap_keeps_its_snat() -> None:
    """The VPC CNI loses `snat` as soon as it appends, and then depends on what portmap presumes."""
    both = rendered(ENABLE_BANDWIDTH_PLUGIN="true", DISABLE_POD_V6="true")

    assert both == USUAL.replace(CHAIN_ENDS, BANDWIDTH + TUNING + CHAIN_ENDS)
    assert json.loads(both)["plugins"][1]["snat"] is True


def test_the_pods_mtu_goes_before_the_interfaces() -> None:
    assert '"mtu": "1300"' in rendered(POD_MTU="1300", AWS_VPC_ENI_MTU="1500")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_VPC_K8S_PLUGIN_LOG_FILE", "stdout"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "ethernet"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "vlan"),
        ("AWS_VPC_ENI_MTU", "9002"),
        ("POD_MTU", "575"),
        ("VPCLEDGER_CNI_VERSION", "2.0.0"),
    ],
)
def test_what_would_break_every_pod_is_refused_at_the_start(name: str, value: str) -> None:
    with pytest.raises(errors.Refused, match=f"{name}='{value}' is not"):
        knobs.load({name: value})


def on_a_host(tmp_path: Path, *plugins: str, **environment: str) -> knobs.Settings:
    """Settings whose folders are the host's, with these executables."""
    binaries, configuration = tmp_path / "bin", tmp_path / "net.d"
    binaries.mkdir()
    configuration.mkdir()
    for name in plugins:
        (binaries / name).touch(mode=0o755)
    folders = {"HOST_CNI_BIN_PATH": str(binaries), "HOST_CNI_CONFDIR_PATH": str(configuration)}
    return knobs.load(folders | environment)[0]


def test_it_is_published_under_the_usual_name_for_everybody_to_read(tmp_path: Path) -> None:
    """Runtimes and Multus look for this name; a daemon's umask hides it from nobody."""
    settings = on_a_host(tmp_path, "aws-cni", "portmap")
    usual = os.umask(0o077)
    try:
        host.publish(settings, conflist.render(settings))
    finally:
        os.umask(usual)

    path = tmp_path / "net.d" / "10-aws.conflist"
    assert path.read_text(encoding="utf-8") == USUAL
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_chain_that_is_not_on_the_host_is_not_published(tmp_path: Path) -> None:
    """A published list makes the node ready; each of its pods would then fail."""
    settings = on_a_host(
        tmp_path, "aws-cni", "portmap", ENABLE_BANDWIDTH_PLUGIN="true", DISABLE_POD_V6="true"
    )
    text = conflist.render(settings)

    with pytest.raises(FileNotFoundError, match="bandwidth and tuning must be there") as told:
        host.publish(settings, text)
    assert told.value.filename == settings.cni_bin_dir
    assert not Path(settings.conflist_path).exists()

    (tmp_path / "bin" / "bandwidth").touch()
    (tmp_path / "bin" / "tuning").symlink_to("/opt/elsewhere/on/the/host/tuning")
    host.publish(settings, text)
    assert Path(settings.conflist_path).read_text(encoding="utf-8") == text


def test_a_folder_of_executables_that_cannot_be_seen_is_no_reason(tmp_path: Path) -> None:
    """The init container alone mounts it in some manifests; what cannot be seen is not missing."""
    settings = on_a_host(tmp_path, HOST_CNI_BIN_PATH=str(tmp_path / "not mounted"))

    host.publish(settings, conflist.render(settings))

    assert Path(settings.conflist_path).exists()
