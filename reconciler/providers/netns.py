"""Network namespaces by the names the runtime gave them: is there one of this name?

A name is a file on which the runtime mounts the namespace (nsfs), for as long as the sandbox lives. That
a file is not there says something only of a folder in which namespaces have been seen: a daemon that was
not given the host's folder would find all of them gone. What a missing name means does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class Names:
    """Remembers in which folders namespaces have been seen since the start."""

    def __init__(self) -> None:
        """No folder is believed yet."""
        self._nsfs = Path("/proc/self/ns/net").stat().st_dev
        self._believed: set[Path] = set()

    def observe(self, paths: Iterable[str]) -> dict[str, bool | None]:
        """For each path: True if a namespace is there, False if none is, None if that cannot be said."""
        asked = [path for path in paths if path]
        found = {path: self._is_there(path) for path in asked}
        for path, there in found.items():
            if there:
                self._believed.add(Path(path).parent)
        return {
            path: None if not there and Path(path).parent not in self._believed else there
            for path, there in found.items()
        }

    def _is_there(self, path: str) -> bool | None:
        try:
            where = Path(path).stat()
        except FileNotFoundError:
            return False
        except OSError:
            return None
        # A plain file is what the mount leaves behind, or its shadow in another mount namespace.
        return True if where.st_dev == self._nsfs else None
