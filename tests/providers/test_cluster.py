"""The cluster provider against an API server over TLS: what a node says, and who answers nothing."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger import model
from reconciler import settings as knobs
from reconciler.providers import cluster
from tests.lab import apiserver, spaces
from tests.lab.server import loopback

SERVICE_ACCOUNT = Path("/run/secrets/kubernetes.io/serviceaccount")


@pytest.fixture
def api() -> apiserver.ApiServer:
    made = apiserver.ApiServer()
    made.join("node1", max_pods=29)
    return made


@pytest.fixture
def served(api: apiserver.ApiServer, tmp_path: Path) -> Iterator[apiserver.Secured]:
    with apiserver.Secured(api, loopback(), tmp_path) as secured:
        yield secured


def settings(served: apiserver.Secured, **more: Any) -> knobs.Settings:
    given = {"node_name": "node1", "kubeconfig": str(served.kubeconfig)} | more
    return knobs.Settings(**given)


def unknown(seen: object) -> str:
    assert isinstance(seen, model.Unknown), seen
    return seen.why


def test_a_node_says_whether_pods_may_come_and_how_many(
    api: apiserver.ApiServer, served: apiserver.Secured
) -> None:
    asks = cluster.Cluster(settings(served))

    def seen() -> tuple[bool, int | None]:
        found = asks.observe()
        assert isinstance(found, model.Scheduling), found
        return found.schedulable, found.max_pods

    assert seen() == (True, 29)
    api.cordon("node1")
    assert seen() == (False, 29)
    api.taint("node1")
    assert seen() == (False, 29), "the taint alone counts, as it does for upstream"
    api.uncordon("node1")
    assert seen() == (True, 29)
    del api.nodes["node1"]["status"]
    assert seen() == (True, None), "no capacity yet is no capacity of 0"


def test_an_api_server_that_is_down_is_unknown_and_found_again(
    api: apiserver.ApiServer, served: apiserver.Secured
) -> None:
    asks = cluster.Cluster(settings(served))
    assert isinstance(asks.observe(), model.Scheduling)
    api.down = True
    before = api.asked
    assert "could not be reached" in unknown(asks.observe())
    assert api.asked == before + 1, "who asks again, and when, is the caller's business"
    api.down = False
    assert isinstance(asks.observe(), model.Scheduling)


def test_nobody_listening_and_a_stranger_with_the_address_are_unknown(
    api: apiserver.ApiServer, served: apiserver.Secured, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with apiserver.Secured(api, loopback(), other) as stranger:
        elsewhere = settings(served, cluster_endpoint=f"https://127.0.0.1:{stranger.port}/")
        assert "certificate verify failed" in unknown(cluster.Cluster(elsewhere).observe())
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = f"https://127.0.0.1:{gone.getsockname()[1]}"
    asks = cluster.Cluster(settings(served, cluster_endpoint=nobody))
    assert "refused" in unknown(asks.observe())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"node_name": "nobody"}, "MY_NODE_NAME names no node"),
        ({"node_name": "../pods"}, "MY_NODE_NAME names no node"),
        ({"kubeconfig": "/nonexistent/kubeconfig"}, "no way to the Kubernetes API"),
    ],
)
def test_what_is_set_wrong_is_said(
    served: apiserver.Secured, changed: dict[str, str], told: str
) -> None:
    assert told in unknown(cluster.Cluster(settings(served, **changed)).observe())


def test_a_refused_token_and_an_object_that_is_no_node_are_unknown(
    api: apiserver.ApiServer, served: apiserver.Secured
) -> None:
    text = served.kubeconfig.read_text()
    served.kubeconfig.write_text(text.replace(apiserver.TOKEN, "another"))
    assert "the token is not accepted" in unknown(cluster.Cluster(settings(served)).observe())
    served.kubeconfig.write_text(text)
    api.nodes["node1"] = {"kind": "Status", "spec": None}
    assert "cannot be read" in unknown(cluster.Cluster(settings(served)).observe())
    api.nodes["node1"] = {"kind": "Node", "spec": {"taints": "all"}}
    assert "cannot be read" in unknown(cluster.Cluster(settings(served)).observe())


@pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))
def test_in_a_pod_the_service_account_leads_to_the_api_server(
    served: apiserver.Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes' own two variables, and the token and certificate it mounts; /run is this session's."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", served.address)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(served.port))
    inside = settings(served, kubeconfig="")
    asks = cluster.Cluster(inside)
    assert "token file does not exist" in unknown(asks.observe())
    SERVICE_ACCOUNT.mkdir(parents=True)
    try:
        (SERVICE_ACCOUNT / "token").write_text(apiserver.TOKEN)
        shutil.copy(served.certificate, SERVICE_ACCOUNT / "ca.crt")
        found = asks.observe()
        assert isinstance(found, model.Scheduling), "a token that comes later is found"
    finally:
        shutil.rmtree(SERVICE_ACCOUNT)


def test_a_silent_api_server_costs_no_more_than_its_time(served: apiserver.Secured) -> None:
    """It takes the connection and says nothing: not one answer, not a hang."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        asks = cluster.Cluster(settings(served, cluster_endpoint=url))
        assert "could not be reached" in unknown(asks.observe())
