"""The CNI specification's words: a call as the runtime made it, checked; an error as it must be told.

Rules are those of the CNI specification 1.1.0, sections 1 and 2; where it leaves room, what its
reference library does is done (https://github.com/containernetworking/cni, pkg/skel, pkg/utils).
Whatever the runtime sends, `parse` returns an `Invocation` or raises `CniError` and nothing else.
How a call travels, and what is done about it, does not belong here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NoReturn

from cni import untrusted

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The specification versions spoken, oldest first (the same list stands in launcher.c)."""
FALLBACK_VERSION: Final = "1.0.0"
"""What an error carries when the caller's own version is not known."""

# Section 2, "Error": the well-known codes, and the ones its library adds.
INCOMPATIBLE_VERSION: Final = 1
UNSUPPORTED_FIELD: Final = 2
UNKNOWN_CONTAINER: Final = 3
INVALID_ENVIRONMENT: Final = 4
IO_FAILURE: Final = 5
DECODING_FAILURE: Final = 6
INVALID_CONFIG: Final = 7
INVALID_NETNS: Final = 8
TRY_AGAIN_LATER: Final = 11
NOT_AVAILABLE: Final = 50
LIMITED_CONNECTIVITY: Final = 51
INTERNAL: Final = 999

MAX_STDIN: Final = 1 << 20
"""Bytes of standard input the launcher carries; more is refused with DECODING_FAILURE."""

ATTACHMENTS_KEY: Final = "cni.dev/valid-attachments"

_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}
VERBS: Final = tuple(_REQUIRED)
"""What a call may ask for. (VERSION never gets here: the launcher answers it by itself.)"""
_SINCE: Final = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

_KEPT_BYTES = 4096
"""Configurations up to this size are loaded once; one with an earlier result in it is another each time."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_IFNAME_MAX = 15  # IFNAMSIZ less its NUL


class CniError(Exception):
    """What the runtime is told: a code of the specification, a sentence, and what to do about it."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        self.code = code
        self.msg = msg
        self.details = details
        super().__init__(f"CNI error {code}: {msg}")

    def render(self, cni_version: str = FALLBACK_VERSION) -> bytes:
        """The error object of section 2, for standard output of a call that ends with status 1."""
        error: dict[str, Any] = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        if self.details:
            error["details"] = self.details
        return json.dumps(error).encode()


@dataclass(frozen=True, slots=True)
class Config:
    """A plugin's configuration (section 1): the checked keys, and `raw` with all of them."""

    cni_version: str
    name: str
    prev_result: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the plugin (section 2): verb, parameters, configuration.

    A parameter that the verb does not need is "" when the runtime left it out. `args` is CNI_ARGS
    taken apart. `attachments` is GC's list of (container id, interface name) pairs that are in use,
    None for every other verb.
    """

    verb: str
    config: Config
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    path: str = ""
    args: Mapping[str, str] = field(default_factory=dict)
    attachments: frozenset[tuple[str, str]] | None = None

    @property
    def pod(self) -> tuple[str, str]:
        """(namespace, name) of the Kubernetes pod, from CNI_ARGS; empty strings where not told."""
        return self.args.get("K8S_POD_NAMESPACE", ""), self.args.get("K8S_POD_NAME", "")

    @property
    def pod_uid(self) -> str:
        """The pod's UID from CNI_ARGS, "" when the runtime does not tell it (podman)."""
        return self.args.get("K8S_POD_UID", "")


def parse(env: Mapping[str, str], stdin: bytes) -> Invocation:
    """The call that environment and standard input describe; CniError if they break the rules."""
    verb = env.get("CNI_COMMAND", "")
    if verb not in _REQUIRED:
        _bad_environment(
            f"CNI_COMMAND is {_quoted(verb)}" if verb else "CNI_COMMAND is not set",
            f"Set it to one of {', '.join(VERBS)}.",
        )
    missing = [name for name in _REQUIRED[verb] if not env.get(name)]
    if missing:
        _bad_environment(
            f"{verb} needs {', '.join(missing)}",
            "The container runtime must set them (CNI specification, section 2).",
        )
    container_id, ifname = env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", "")
    if container_id:
        check_container_id(container_id)
    if ifname:
        check_ifname(ifname)
    args = parse_args(env.get("CNI_ARGS", ""))
    raw = _load(stdin)
    return Invocation(
        verb=verb,
        config=_config(verb, raw),
        container_id=container_id,
        netns=env.get("CNI_NETNS", ""),
        ifname=ifname,
        path=env.get("CNI_PATH", ""),
        args=args,
        attachments=_attachments(raw) if verb == "GC" else None,
    )


def version_of(stdin: bytes) -> str:
    """The caller's version if it can be made out and is spoken, else FALLBACK_VERSION; never raises.

    For the answer to a call that `parse` refused.
    """
    try:
        version = _load(stdin).get("cniVersion")
    except CniError:
        return FALLBACK_VERSION
    return version if isinstance(version, str) and version in VERSIONS else FALLBACK_VERSION


def check_container_id(value: str) -> None:
    """Raise CniError unless the id begins with an alphanumeric and goes on with those, _ . or -."""
    if not _IDENTIFIER.fullmatch(value):
        _bad_environment(
            f"CNI_CONTAINERID {_quoted(value)} is not a container id",
            "It must start with a letter or digit, followed by letters, digits, '_', '.' or '-'.",
        )


def check_ifname(value: str) -> None:
    """Raise CniError unless the kernel takes the name for an interface (dev_valid_name)."""
    if len(value.encode(errors="replace")) > _IFNAME_MAX:
        _bad_environment(
            f"CNI_IFNAME {_quoted(value)} is too long",
            f"An interface name has at most {_IFNAME_MAX} bytes.",
        )
    if value in {".", ".."} or any(c in "/:\0" or c.isspace() for c in value):
        _bad_environment(
            f"CNI_IFNAME {_quoted(value)} is not an interface name",
            "It must not be '.' or '..', nor contain '/', ':' or white space.",
        )


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS ("KEY=VALUE;KEY=VALUE", any order) as a dictionary."""
    args: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            _bad_environment(
                f"CNI_ARGS holds {_quoted(pair)}", "It must be KEY=VALUE pairs joined by ';'."
            )
        if key in args:
            _bad_environment(f"CNI_ARGS names {_quoted(key)} twice", "Pass each key once.")
        args[key] = value
    return args


def _load(stdin: bytes) -> Mapping[str, Any]:
    return _load_again(stdin) if len(stdin) <= _KEPT_BYTES else _load_new(stdin)


@lru_cache(maxsize=32)
def _load_again(stdin: bytes) -> Mapping[str, Any]:
    """What was loaded before, for a runtime passes the same bytes with every pod; nobody changes it."""
    return _load_new(stdin)


def _load_new(stdin: bytes) -> Mapping[str, Any]:
    try:
        return untrusted.load_object(stdin, largest=MAX_STDIN)
    except ValueError as error:
        raise CniError(
            DECODING_FAILURE,
            f"the network configuration could not be decoded: {error}",
            "Pass one JSON object, UTF-8, on standard input.",
        ) from None


def _config(verb: str, raw: Mapping[str, Any]) -> Config:
    version = _version(raw)
    if VERSIONS.index(version) < VERSIONS.index(_SINCE.get(verb, VERSIONS[0])):
        raise CniError(
            INCOMPATIBLE_VERSION,
            f"cniVersion {version} has no {verb}",
            f"Write the configuration at cniVersion {_SINCE[verb]} or later to use {verb}.",
        )
    name = raw.get("name")
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        _bad_config(
            f"the network name is {_quoted(name)}" if "name" in raw else "the name is missing",
            "Set name: a letter or digit, followed by letters, digits, '_', '.' or '-'.",
        )
    previous = raw.get("prevResult")
    if previous is not None and not isinstance(previous, dict):
        _bad_config("prevResult is not an object", "It must be the result of the last ADD.")
    if verb == "CHECK" and previous is None:
        _bad_config("CHECK came without prevResult", "Pass the result of the last ADD.")
    return Config(version, name, previous, raw)


def _version(raw: Mapping[str, Any]) -> str:
    version = raw.get("cniVersion")
    if isinstance(version, str) and version in VERSIONS:
        return version
    raise CniError(
        INCOMPATIBLE_VERSION,
        f"cniVersion {_quoted(version)} is not supported"
        if "cniVersion" in raw
        else "the configuration has no cniVersion",
        f"Set it to one of {', '.join(VERSIONS)}.",
    )


def _attachments(raw: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """GC's list. A list that is absent or null is refused: "none" and "not told" must not meet."""
    entries = raw.get(ATTACHMENTS_KEY)
    if not isinstance(entries, list):
        _bad_config(
            f"{ATTACHMENTS_KEY} is not a list",
            "GC must name the attachments still in use; an empty list says that there are none.",
        )
    pairs = set()
    for entry in entries:
        pair = entry if isinstance(entry, dict) else {}
        container_id, ifname = pair.get("containerID"), pair.get("ifname")
        if not (isinstance(container_id, str) and container_id and isinstance(ifname, str)):
            _bad_config(
                f"{ATTACHMENTS_KEY} holds {_quoted(entry)}",
                'Each entry must be {"containerID": text, "ifname": text}.',
            )
        pairs.add((container_id, ifname))
    return frozenset(pairs)


def _quoted(value: object) -> str:
    """The value as a reader may be shown it: JSON, ASCII, and short."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _bad_environment(msg: str, details: str) -> NoReturn:
    raise CniError(INVALID_ENVIRONMENT, msg, details)


def _bad_config(msg: str, details: str) -> NoReturn:
    raise CniError(INVALID_CONFIG, msg, details)
