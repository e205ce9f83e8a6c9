"""One scene for the whole suite, and a look after each test at what it has left there.

What a test does does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.whole import Lab
from tests.runtime import containerd, image
from tests.runtime.scene import Scene


@pytest.fixture(scope="package")
def nodes() -> Iterator[Scene]:
    """Daemons and runtimes on two nodes; skipped with a sentence where no containerd can run."""
    reason = containerd.missing()
    if reason:
        pytest.skip(reason)
    with Lab(nodes=2, attach_delay=0.1, throttle=None) as lab:
        archive = image.build(lab.directory)
        scene = Scene(lab, [containerd.Containerd(node, archive) for node in lab.nodes])
        try:
            scene.up()
            yield scene
        finally:
            scene.down()


@pytest.fixture
def scene(nodes: Scene) -> Iterator[Scene]:
    """The scene; after the test neither links, addresses, rules, routes, nft, leases, descriptors,
    namespaces, shims nor cached results may be other than before.
    """
    before = nodes.picture()
    yield nodes
    nodes.await_picture(before)
