"""A look while the kernel's links change: what was interrupted is asked for again, and nothing is missing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from ledger import model
from reconciler.providers import channel, kernel
from tests.lab import spaces

pytestmark = pytest.mark.netns

STAYING, COMING, ROUNDS = 60, 150, 8
DUMPS = 4
"""Of links, addresses, routes and rules."""


def pairs(name: str, count: int) -> str:
    """Lines for `ip -batch` that make so many veth pairs."""
    return "\n".join(f"link add {name}{n} type veth peer name {name}{n}p" for n in range(count))


@pytest.fixture
def node() -> Iterator[spaces.Netns]:
    with spaces.Netns() as made:
        made.command("ip", "-batch", "-", stdin=pairs("stay", STAYING))
        yield made


def test_dumps_that_the_kernel_interrupts_are_asked_for_again_until_one_is_whole(
    node: spaces.Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes links all the while; the kernel itself says NLM_F_DUMP_INTR."""
    read, told = channel.Channel._read_dump, []

    def listening(self: channel.Channel, seq: int) -> tuple[list[bytes], bool]:
        datagrams, whole = read(self, seq)
        told.append(whole)
        return datagrams, whole

    monkeypatch.setattr(channel.Channel, "_read_dump", listening)
    hands: kernel.Kernel = node.run(kernel.Kernel)
    stay = {f"stay{n}{end}" for n in range(STAYING) for end in ("", "p")}
    interrupted = 0
    for number in range(ROUNDS):
        maker = node.run(subprocess.Popen, ["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True)
        assert maker.stdin is not None
        maker.stdin.write(pairs(f"come{number}x", COMING))
        maker.stdin.close()
        while maker.poll() is None:
            told.clear()
            seen = hands.observe()
            if isinstance(
                seen, model.Unknown
            ):  # it changed at each of the tries; the next look tells
                assert told[-1] is False
                continue
            assert told.count(True) == DUMPS
            assert stay <= {link.name for link in seen.links}
            interrupted += told.count(False)
        assert maker.returncode == 0
        if interrupted:
            break
    hands.close()
    assert interrupted, "the kernel has interrupted none of the dumps"
