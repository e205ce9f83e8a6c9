"""The Kubernetes API's hands: may pods be put on this node, and how many.

One GET of one Node object, with the service account's token or a kubeconfig. No answer, a refusal and an
answer that cannot be read are all Unknown, never a default. The client's transport is used without its
typed models, which would take another 18 MB for two fields. What a cordon means for the warm pool does
not belong here.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ledger import model
from reconciler import settings as knobs

if TYPE_CHECKING:
    from kubernetes.client.configuration import Configuration

TIMEOUT_S: Final = (1.0, 3.0)
"""How long connecting and answering may take: a pod may be waiting for what is decided on it."""
CORDONED: Final = ("node.kubernetes.io/unschedulable", "NoSchedule")
"""The taint that Kubernetes' node controller puts on a cordoned node, by key and effect."""


class Cluster:
    """One API server, found when it is first needed; its connection is kept."""

    def __init__(self, settings: knobs.Settings) -> None:
        """Nothing is imported, read or asked before `observe`."""
        self._settings = settings
        self._found: tuple[Configuration, Any] | None = None
        """How to authenticate, and the connection."""

    def observe(self) -> model.Scheduling | model.Unknown:
        """What the Node object of MY_NODE_NAME says; Unknown with a sentence if there is no answer."""
        at = time.time_ns() // 1_000_000
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config import ConfigException
        from urllib3.exceptions import HTTPError

        path = f"/api/v1/nodes/{quote(self._settings.node_name, safe='')}"
        try:
            status, text = self._get(path)
            if status != 200:
                return model.Unknown(_why(path, status, text), at)
            return _scheduling(json.loads(text), at)
        except (HTTPError, ApiException) as error:
            return model.Unknown(f"the Kubernetes API could not be reached: {error}", at)
        except (ConfigException, OSError) as error:
            self._found = None  # a token or a kubeconfig may come later
            return model.Unknown(f"no way to the Kubernetes API: {error}", at)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            return model.Unknown(f"{path} cannot be read: {error}", at)

    def _get(self, path: str) -> tuple[int, bytes]:
        config, connection = self._found = self._found or self._find()
        token = config.auth_settings().get("BearerToken", {}).get("value")
        # A refreshed token resets the configuration, so what replaces its host is not kept in it.
        host = self._settings.cluster_endpoint or config.host
        reply = connection.request(
            "GET",
            host.rstrip("/") + path,
            headers={"Accept": "application/json"} | ({"authorization": token} if token else {}),
            _request_timeout=TIMEOUT_S,
        )
        return reply.status, reply.read()

    def _find(self) -> tuple[Configuration, Any]:
        from kubernetes import config as loading
        from kubernetes.client import configuration, rest

        found = configuration.Configuration()
        if self._settings.kubeconfig:
            loading.load_kube_config(self._settings.kubeconfig, client_configuration=found)
        else:
            loading.load_incluster_config(client_configuration=found)
        found.retries = 0  # the caller asks again, after a pause of its own
        return found, rest.RESTClientObject(found)


def _why(path: str, status: int, text: bytes) -> str:
    """With what to do about it, where that is known."""
    hint = {
        401: ": the token is not accepted",
        403: ": let the service account get nodes",
        404: ": MY_NODE_NAME names no node",
    }.get(status, f": {text[:200].decode(errors='replace')}")
    return f"the Kubernetes API answered {path} with HTTP {status}{hint}"


def _scheduling(node: dict[str, Any], at: int) -> model.Scheduling:
    """From a Node (Kubernetes API reference, core/v1, NodeSpec and NodeStatus)."""
    if node["kind"] != "Node":
        raise ValueError(f"it is a {node['kind']}")
    spec = node.get("spec") or {}
    taints = {(taint.get("key"), taint.get("effect")) for taint in spec.get("taints") or ()}
    pods = ((node.get("status") or {}).get("capacity") or {}).get("pods")
    return model.Scheduling(
        schedulable=not spec.get("unschedulable") and CORDONED not in taints,
        max_pods=None if pods is None else int(pods),
        at=at,
    )
