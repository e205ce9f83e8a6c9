"""The network configuration list of this node, as text: what `10-aws.conflist` says.

Keys, spellings (numbers and switches as strings) and order are those of the VPC CNI's file, so that
whoever reads or compares that file finds what it knows. Its egress-cni is left out: that plugin is not
ours to call before pods have a second family. Putting the text in its place does not belong here.
"""

from __future__ import annotations

import json
from typing import Any

from reconciler import settings as knobs

NETWORK = "aws-cni"
"""Name of the network and of the plugin: upstream's, for the runtime's caches are kept by it."""


def render(settings: knobs.Settings) -> str:
    """The list of the CNI specification, section 1."""
    network = {
        "cniVersion": settings.cni_version,
        "name": NETWORK,
        "disableCheck": True,
        "plugins": chain(settings),
    }
    return json.dumps(network, indent=2) + "\n"


def chain(settings: knobs.Settings) -> list[dict[str, Any]]:
    """The plugins in the order in which the runtime calls them for an ADD."""
    plugins: list[dict[str, Any]] = [
        {
            "name": NETWORK,
            "type": NETWORK,
            "vethPrefix": settings.veth_prefix,
            "mtu": str(settings.mtu),
            "podSGEnforcingMode": settings.pod_sg_enforcing_mode,
            "pluginLogFile": settings.plugin_log_file,
            "pluginLogLevel": settings.plugin_log_level,
            "capabilities": {"io.kubernetes.cri.pod-annotations": True},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ]
    if settings.bandwidth_plugin:
        plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    if settings.disable_pod_v6:
        sysctls = {f"net.ipv6.conf.{link}.disable_ipv6": "1" for link in ("all", "default", "lo")}
        plugins.append({"type": "tuning", "sysctl": sysctls})
    return plugins
