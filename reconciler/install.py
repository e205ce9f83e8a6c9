"""Put the launcher on the host: `aws-cni` and, where paths are not the usual ones, `aws-cni.conf`.

Run as root by an init container or an operator (`vpcledger install`), again at every upgrade: a rename
replaces the executable under running calls without harm. Building the launcher does not belong here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from reconciler import errors
from reconciler import settings as knobs

NAME = "aws-cni"
USUAL_SOCKET = "/var/run/aws-node/vpcledger.sock"
USUAL_SPOOL = "/var/lib/vpcledger/spool"


def launcher(settings: knobs.Settings) -> Iterator[str]:
    """Install into HOST_CNI_BIN_PATH; yields a line for each file written. Refused if there is none."""
    packed = resources.files("cni") / "bin" / NAME
    if not packed.is_file():
        raise errors.Refused("bad_setting", "the launcher is not built: run `python -m cni.build`")
    folder = Path(settings.cni_bin_dir)
    folder.mkdir(parents=True, exist_ok=True)
    usual = (settings.socket_path, settings.spool_dir) == (USUAL_SOCKET, USUAL_SPOOL)
    conf = folder / f"{NAME}.conf"
    if usual:
        conf.unlink(missing_ok=True)
    else:
        socket, spool = (
            os.path.relpath(path, folder) for path in (settings.socket_path, settings.spool_dir)
        )
        yield _write(conf, f"socket={socket}\nspool={spool}\n".encode(), 0o644)
    yield _write(folder / NAME, packed.read_bytes(), 0o755)


def _write(path: Path, content: bytes, mode: int) -> str:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(mode)
    temporary.replace(path)
    return f"installed {path}"
