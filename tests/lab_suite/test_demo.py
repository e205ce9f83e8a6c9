"""The tour: it ends with 0 when all was seen, and with 1 when a claim does not hold."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.lab import spaces

pytestmark = pytest.mark.skipif(not spaces.inside(), reason=str(spaces.missing()))


def tour(before: str) -> subprocess.CompletedProcess[str]:
    """Run it in this session, `before` being what is said to Python first."""
    program = (
        "import sys; from tests.lab import demo, spaces; spaces.is_main = lambda: True; "
        f"{before}; sys.exit(demo.main([]))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.slow
def test_the_tour_shows_all_it_claims() -> None:
    done = tour("pass")

    assert done.returncode == 0, done.stdout
    assert "all of it was seen" in done.stdout
    for seen in ("CAP_NET_ADMIN", "0 packets dropped", "vpcledger sql", "no link, rule, route"):
        assert seen in done.stdout


@pytest.mark.slow
def test_a_claim_that_does_not_hold_ends_the_tour_with_1() -> None:
    """More pods than the type carries: some get no address, and the tour says so."""
    done = tour("demo.PODS = 28; demo.Kubelet.start.__kwdefaults__['patience'] = 2.0")

    assert done.returncode == 1
    assert "NOT SEEN" in done.stdout
    assert "node_full" in done.stdout
