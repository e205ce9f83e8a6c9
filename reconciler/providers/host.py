"""The host beside its kernel's network: which boot this is, sysctls, and the conflist that says we can serve.

A file is put in place whole: written beside its name, made durable, renamed. When the conflist may
appear is the daemon's business and what it says is `conflist`'s; a pod's inside is not here.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ledger import model
from reconciler import errors
from reconciler import settings as knobs
from reconciler.providers import conflist

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


def publish(settings: knobs.Settings, text: str) -> None:
    """Put the conflist in place; OSError if its folder refuses or a chained plugin is not on the host.

    A list that names a missing plugin would make the node ready and fail every pod.
    """
    absent = _absent(settings)
    if absent:
        raise FileNotFoundError(
            errno.ENOENT,
            f"{' and '.join(absent)} must be there before {Path(settings.conflist_path).name} is"
            " published: install containernetworking's plugins",
            settings.cni_bin_dir,
        )
    place(settings.conflist_path, text)


def _absent(settings: knobs.Settings) -> tuple[str, ...]:
    """Types of the chain without an executable in the host's folder; none if we may not look into it."""
    folder = Path(settings.cni_bin_dir)
    if not os.access(folder, os.R_OK | os.X_OK):
        return ()
    wanted = [str(plugin["type"]) for plugin in conflist.chain(settings)]
    # A link that leads nowhere from here may lead somewhere from the host's root.
    return tuple(name for name in wanted if not os.path.lexists(folder / name))


def place(path: str, text: str) -> None:
    """Put `text` at `path` in one step, whatever was there; OSError if the folder does not let us.

    Everybody may read it (mode 0644), whatever this process's umask is.
    """
    target = Path(path)
    new = target.with_name(f".{target.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    new.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
