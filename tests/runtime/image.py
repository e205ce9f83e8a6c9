"""A container image made here, of one static executable, as a tar that `ctr images import` takes.

The layout is that of the OCI image specification (image-layout.md): an index, a manifest, a config and
one layer, each named by its digest. What the executable does is `container.c`'s.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path
from typing import Any

NAME = "local.test/container:1"
"""A name no registry has: whatever is not imported fails at once."""
PROGRAM = "/container"

_OCI = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def build(folder: Path) -> Path:
    """Compile the program and write the image's tar into `folder`; CalledProcessError if gcc refuses."""
    program = folder / "container"
    source = Path(__file__).with_name("container.c")
    options = ["-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["musl-gcc", *options, "-o", program, source], check=True)
    path = folder / "container.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in _files(program.read_bytes()).items():
            _add(tar, name, content)
    return path


def _files(program: bytes) -> dict[str, bytes]:
    """Every file of the layout by its path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, PROGRAM.lstrip("/"), program, mode=0o755)
    blobs: dict[str, bytes] = {}
    layer = _blob(blobs, f"{_OCI}.layer.v1.tar", buffer.getvalue())
    config = _blob(
        blobs,
        f"{_OCI}.config.v1+json",
        {
            "architecture": _ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Entrypoint": [PROGRAM], "Cmd": ["pause"]},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        },
    )
    manifest = _blob(
        blobs,
        f"{_OCI}.manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": config,
            "layers": [layer],
        },
    )
    manifest["annotations"] = {"io.containerd.image.name": NAME}
    index = {"schemaVersion": 2, "manifests": [manifest]}
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        **blobs,
    }


def _blob(blobs: dict[str, bytes], kind: str, content: bytes | dict[str, Any]) -> dict[str, Any]:
    """Keep a blob and return its descriptor."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    digest = hashlib.sha256(raw).hexdigest()
    blobs[f"blobs/sha256/{digest}"] = raw
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(raw)}


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
