"""The closed set of verbs a plan may contain, and the plan itself.

Kernel verbs are `Put` and `Remove` of a model noun, `Retire` and `Rename` of a pod's link; each is idempotent:
already there and already gone are success. Cloud verbs name one EC2 mutation each. Whoever decides on or carries out an action
lives elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ledger import model
from reconciler.planner import ruleset

Lane = Literal["pod", "warm", "tidy"]
"""Who waits for a cloud call: a pod, the warm pool, or nobody (housekeeping). Served in this order."""


@dataclass(frozen=True, slots=True)
class Put:
    """Make the kernel object so."""

    thing: model.KernelObject


@dataclass(frozen=True, slots=True)
class Remove:
    """Unmake the kernel object."""

    thing: model.KernelObject


@dataclass(frozen=True, slots=True)
class ReplaceTable:
    """Make our nftables table so, whole and in one transaction of the kernel's."""

    table: ruleset.Table


@dataclass(frozen=True, slots=True)
class RemoveTable:
    """Unmake a table of the family ip; already gone is success."""

    name: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Take a pod's veth pair out of service at once: the host's end down and named `name`, no routes left.

    The kernel takes 20 ms to remove a link, for one as for forty; a retired one is removed later
    together with others, and meanwhile the name it had is free for the pod's next sandbox.
    """

    thing: model.Link
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """Give a pod's link, which somebody has called `name`, its own name back."""

    thing: model.Link
    name: str


@dataclass(frozen=True, slots=True)
class CreateEni:
    """EC2 CreateNetworkInterface with `secondaries` automatic secondary IPv4 addresses or `prefixes` /28s.

    The ClientToken is the intent's token (made by who records the intent, never by the planner).
    """

    subnet_id: str
    security_groups: tuple[str, ...]
    description: str
    secondaries: int
    tags: tuple[tuple[str, str], ...] = ()
    prefixes: int = 0
    card: int = 0
    """The network card it is meant for; EC2 hears of it when it is attached."""


@dataclass(frozen=True, slots=True)
class AttachEni:
    """EC2 AttachNetworkInterface."""

    eni_id: str
    instance_id: str
    device: int
    card: int = 0


@dataclass(frozen=True, slots=True)
class SetDeleteOnTermination:
    """EC2 ModifyNetworkInterfaceAttribute: the attachment dies with the instance."""

    eni_id: str
    attachment_id: str


@dataclass(frozen=True, slots=True)
class AssignAddresses:
    """EC2 AssignPrivateIpAddresses: `count` automatic secondaries."""

    eni_id: str
    count: int


@dataclass(frozen=True, slots=True)
class UnassignAddresses:
    """EC2 UnassignPrivateIpAddresses of exactly these secondaries."""

    eni_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AssignPrefixes:
    """EC2 AssignPrivateIpAddresses: `count` automatic /28 prefixes."""

    eni_id: str
    count: int


@dataclass(frozen=True, slots=True)
class RegainAddresses:
    """EC2 AssignPrivateIpAddresses of exactly these secondaries, which no other interface loses by it."""

    eni_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RegainPrefixes:
    """EC2 AssignPrivateIpAddresses of exactly these /28 prefixes."""

    eni_id: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnassignPrefixes:
    """EC2 UnassignPrivateIpAddresses of exactly these /28 prefixes."""

    eni_id: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetSecurityGroups:
    """EC2 ModifyNetworkInterfaceAttribute: exactly these groups."""

    eni_id: str
    security_groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TagEni:
    """EC2 CreateTags: these keys have these values; other tags stay.

    A value of tags.CREATED is in milliseconds since the epoch, as in a CreateEni.
    """

    eni_id: str
    tags: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DetachEni:
    """EC2 DetachNetworkInterface."""

    eni_id: str
    attachment_id: str


@dataclass(frozen=True, slots=True)
class DeleteEni:
    """EC2 DeleteNetworkInterface; not found is success."""

    eni_id: str


KernelAction = Put | Remove | Retire | Rename
NatAction = ReplaceTable | RemoveTable
CloudAction = (
    CreateEni
    | AttachEni
    | SetDeleteOnTermination
    | AssignAddresses
    | UnassignAddresses
    | AssignPrefixes
    | UnassignPrefixes
    | RegainAddresses
    | RegainPrefixes
    | SetSecurityGroups
    | TagEni
    | DetachEni
    | DeleteEni
)
Action = KernelAction | NatAction | CloudAction


@dataclass(frozen=True, slots=True)
class CloudStep:
    """A cloud action with the lane it is served in and the cause that the api_calls row will carry."""

    action: CloudAction
    lane: Lane
    cause: str


@dataclass(frozen=True, slots=True)
class Note:
    """Why the plan did or did not do something: a stable code and a sentence."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, in order, and why."""

    kernel: tuple[KernelAction, ...] = ()
    cloud: tuple[CloudStep, ...] = ()
    notes: tuple[Note, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one action. `error` is empty on success, else a code ('EEXIST', 'RequestLimitExceeded').

    `unknown` means the call may or may not have been carried out (a lost reply): never retry blindly.
    `result` is the reply's part that the ledger records (see the provider's docstring).
    """

    action: Action
    error: str = ""
    text: str = ""
    unknown: bool = False
    result: dict[str, object] = field(default_factory=dict)
