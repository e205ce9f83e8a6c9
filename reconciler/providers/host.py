"""The host beside its kernel's network: which boot this is, sysctls, and the conflist that says we can serve.

The conflist is rendered here and put in place whole: written beside its name, made durable, renamed.
When it may appear is the daemon's business; how a network is configured inside a pod is not here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ledger import model
from reconciler import errors
from reconciler import settings as knobs

NETWORK = "aws-cni"
"""Name of the network and of the plugin: upstream's, for the runtime's caches are kept by it."""
CNI_VERSION = "1.0.0"
"""What every containerd in use reads; 1.6 fails an ADD answered at 1.1.0."""


SYSCTLS = Path("/proc/sys/net")
"""Where the kernel shows a namespace's own sysctls."""


def boot_id(path: str) -> str:
    """The id of this boot (random(4)); Refused if the file cannot tell."""
    try:
        found = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as failed:
        raise errors.Refused("bad_setting", f"no boot id in {path}: {failed}") from failed
    if not found:
        raise errors.Refused("bad_setting", f"no boot id in {path}: it is empty")
    return found


def conflist(settings: knobs.Settings) -> str:
    """The network configuration list of the CNI specification, section 1, for this node."""
    plugin: dict[str, Any] = {
        "name": NETWORK,
        "type": NETWORK,
        "vethPrefix": settings.veth_prefix,
        "mtu": str(settings.mtu),
        "pluginLogFile": settings.plugin_log_file,
        "pluginLogLevel": settings.plugin_log_level,
        "capabilities": {"io.kubernetes.cri.pod-annotations": True},
    }
    network = {
        "cniVersion": CNI_VERSION,
        "name": NETWORK,
        "disableCheck": False,
        "plugins": [plugin],
    }
    return json.dumps(network, indent=2) + "\n"


def sysctl(path: str) -> str | None:
    """The value below /proc/sys/net of this process's namespace; None if there is no such file."""
    try:
        return (SYSCTLS / path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def set_sysctl(wanted: model.Sysctl) -> str:
    """Write it, which CAP_NET_ADMIN allows unless /proc/sys is read-only; what stood in the way, or ""."""
    try:
        (SYSCTLS / wanted.path).write_text(wanted.value, encoding="ascii")
    except OSError as failed:
        return str(failed)
    return ""


def place(path: str, text: str) -> None:
    """Put `text` at `path` in one step, whatever was there; OSError if the folder does not let us."""
    target = Path(path)
    new = target.with_name(f".{target.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
