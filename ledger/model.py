"""The nouns: what the ledger remembers, the planner compares and the providers report.

Everything here is a frozen value without behaviour beyond its own identity (`key`). Times are integer
milliseconds since the Unix epoch, families are the ints 4 and 6, addresses and networks are text in
canonical form. Nothing that reads, decides or acts belongs here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Where = Literal["host", "pod"]
EniState = Literal["created", "attaching", "attached", "usable", "draining", "detaching", "gone"]
AddressState = Literal["assigned", "quarantine", "releasing", "released"]
LeaseState = Literal["waiting", "reserved", "active", "in_doubt", "ended"]
IntentState = Literal["planned", "sent", "done", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Unknown:
    """The answer of somebody who could not be asked: a plan given one may add and must not remove."""

    why: str
    since: int


# --------------------------------------------------------------------------- the node and its cloud


@dataclass(frozen=True, slots=True)
class Node:
    """Who this machine is, as the instance metadata service says (IMDS paths of the AWS guide)."""

    instance_id: str
    instance_type: str
    region: str
    availability_zone: str
    vpc_id: str
    subnet_id: str
    primary_mac: str
    primary_ip: str
    vpc_cidrs: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What the cluster's API says of this node: does it put pods here, and how many fit (None: not said)."""

    schedulable: bool
    max_pods: int | None
    at: int


@dataclass(frozen=True, slots=True)
class Eni:
    """One elastic network interface.

    `device` is the attachment's device index (-1 while unattached), `kind` EC2's InterfaceType.
    `managed` says that pods may use it and that we may change it. The state moves
    created -> attaching -> attached -> usable (wired in the kernel) -> draining -> detaching -> gone.
    """

    eni_id: str
    mac: str
    subnet_id: str
    subnet_cidr: str
    primary_ip: str
    device: int = -1
    card: int = 0
    kind: str = "interface"
    primary: bool = False
    managed: bool = True
    state: EniState = "created"
    attachment_id: str | None = None
    delete_on_termination: bool = False
    attached_at: int | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """A /28 (IPv4) or /80 (IPv6) delegated to an interface; its addresses are addresses rows."""

    cidr: str
    eni_id: str
    state: AddressState = "assigned"


@dataclass(frozen=True, slots=True)
class Address:
    """One address a pod can hold. `cooling_until` bars it from reuse, and so does `absent_since`: EC2's
    picture misses it. `leased` is a join, never a column.
    """

    address: str
    eni_id: str
    family: int = 4
    prefix: str | None = None
    state: AddressState = "assigned"
    rested_since: int = 0
    cooling_until: int = 0
    absent_since: int | None = None
    leased: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """An address held by a sandbox interface; `container_id` and `ifname` are its key while it is open.

    A waiting lease has no address yet. `reason` says why it ended (or what a waiting one waits for).
    `adopted`: another CNI wired it, so the pod's own end is as that one made it.
    """

    id: int
    container_id: str
    ifname: str
    network: str
    netns: str
    state: LeaseState
    address: str | None = None
    eni_id: str | None = None
    family: int = 4
    host_ifname: str = ""
    host_mac: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    boot_id: str = ""
    created_at: int = 0
    ended_at: int | None = None
    reason: str = ""
    adopted: bool = False


# --------------------------------------------------------------------------- the kernel


@dataclass(frozen=True, slots=True)
class Link:
    """A network link. Only a veth is ever made or removed by us; an ENI's link is found by its MAC.

    For a veth the pod's end is `peer` (made inside the pod's namespace, with `peer_mac` if given).
    `alias` is our mark (IFLA_IFALIAS). `index` 0 means the kernel chooses.
    """

    name: str
    kind: str = "veth"
    mac: str = ""
    mtu: int = 9001
    up: bool = True
    alias: str = ""
    peer: str = ""
    peer_mac: str = ""
    index: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """A link is its name."""
        return ("link", "host", self.name)


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address configured on a link, `cidr` as address/length."""

    link: str
    cidr: str
    where: Where = "host"

    @property
    def key(self) -> tuple[str, ...]:
        """The kernel tells addresses apart by link and address with length."""
        return ("address", self.where, self.link, self.cidr)


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route; `via` None means scope link. `protocol` is ours unless observed otherwise."""

    dst: str
    link: str
    table: int = 254
    via: str | None = None
    family: int = 4
    where: Where = "host"
    protocol: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """The kernel tells IPv4 routes apart by table, destination and device."""
        return ("route", self.where, str(self.family), str(self.table), self.dst, self.link)


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy routing rule: `src`/`dst` networks (None = all) look up `table`."""

    priority: int
    table: int
    src: str | None = None
    dst: str | None = None
    family: int = 4
    fwmark: int = 0
    fwmask: int = 0
    protocol: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """The kernel tells rules apart by priority, selectors and table."""
        selectors = (self.src or "all", self.dst or "all", f"{self.fwmark:#x}/{self.fwmask:#x}")
        return ("rule", "host", str(self.family), str(self.priority), *selectors, str(self.table))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour entry (stands for ARP: dataplane rule 'gateway is the host veth')."""

    link: str
    ip: str
    mac: str
    where: Where = "pod"

    @property
    def key(self) -> tuple[str, ...]:
        """A neighbour is its link and address."""
        return ("neighbour", self.where, self.link, self.ip)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A value below /proc/sys/net; written by the launcher (host or pod namespace), see decision 14."""

    path: str
    value: str
    where: Where = "host"

    @property
    def key(self) -> tuple[str, ...]:
        """A sysctl is its path."""
        return ("sysctl", self.where, self.path)


KernelObject = Link | InterfaceAddress | Route | Rule | Neighbour | Sysctl
OwnerKind = Literal["lease", "eni", "host"]
InstalledState = Literal["pending", "present", "removing"]


@dataclass(frozen=True, slots=True)
class Installed:
    """A kernel object the ledger says is there (or is about to be, or to go), and for whose sake."""

    id: int
    owner_kind: OwnerKind
    owner: str
    thing: KernelObject
    state: InstalledState = "pending"


# --------------------------------------------------------------------------- what another CNI left


@dataclass(frozen=True, slots=True)
class Allocation:
    """An address that another CNI's records give to a sandbox interface.

    `cached`: the runtime keeps the result of its ADD and will DEL it. What the records leave out is
    empty, `allocated_at` (ms) 0.
    """

    container_id: str
    ifname: str
    network: str
    address: str
    pod_namespace: str = ""
    pod_name: str = ""
    netns: str = ""
    allocated_at: int = 0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Inheritance:
    """The records another CNI left on this host: allocations, and a sentence for each unreadable file."""

    checkpoint: str
    allocations: tuple[Allocation, ...] = ()
    faults: tuple[str, ...] = ()


# --------------------------------------------------------------------------- the two sides of a plan


@dataclass(frozen=True, slots=True)
class Intent:
    """A recorded EC2 mutation: row first, call after, outcome last; `unknown` until observation tells."""

    id: int
    operation: str
    subject: str
    arguments: dict[str, object]
    state: IntentState
    token: str
    cause: str
    created_at: int
    retry_at: int = 0
    attempts: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Desired:
    """All a plan needs of the ledger, read in one snapshot: open rows only.

    `took_over`: another CNI ran this node, and what it made beside what we want is ours to clear away.
    `excluded` are subnets that their tags keep pods out of.
    """

    node: Node | None
    enis: tuple[Eni, ...] = ()
    prefixes: tuple[Prefix, ...] = ()
    addresses: tuple[Address, ...] = ()
    leases: tuple[Lease, ...] = ()
    installed: tuple[Installed, ...] = ()
    intents: tuple[Intent, ...] = ()
    took_over: bool = False
    scheduling: Scheduling | None = None
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ObservedEni:
    """An interface as EC2 or IMDS shows it; `addresses` are secondaries, without the primary.

    IMDS shows neither tags nor groups nor the description. `created_at` is what its tag says, in ms; None
    if no tag says so, or none that can be read.
    """

    eni: Eni
    addresses: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    security_groups: tuple[str, ...] = ()
    description: str = ""
    created_at: int | None = None


@dataclass(frozen=True, slots=True)
class ObservedSubnet:
    """A subnet's tags as EC2 shows them."""

    subnet_id: str
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObservedCloud:
    """What EC2 (`source` 'ec2') or IMDS ('imds') showed at `at`.

    `subnets` are the node's and its interfaces', None if they were not asked for or not told.
    """

    at: int
    source: Literal["ec2", "imds"]
    enis: tuple[ObservedEni, ...] = ()
    subnets: tuple[ObservedSubnet, ...] | None = None


@dataclass(frozen=True, slots=True)
class ObservedKernel:
    """One network namespace at `at`: the node's own, or the pod's that a CHECK was handed.

    Other pods' namespaces are not looked into (decision 14). `peers` tells for each veth whether its
    other end still lives (name -> True/False); `neighbours` are the permanent ones, read in pods only.
    """

    at: int
    links: tuple[Link, ...] = ()
    addresses: tuple[InterfaceAddress, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    peers: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod's sandbox as the runtime lists it; `ready` is False once it was stopped or has died."""

    id: str
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    ready: bool = True
    created_at: int = 0


@dataclass(frozen=True, slots=True)
class ObservedRuntime:
    """All sandboxes the container runtime knew at `at`."""

    at: int
    sandboxes: tuple[Sandbox, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """One look outside; a side nobody asked or that could not answer is Unknown."""

    cloud: ObservedCloud | Unknown
    kernel: ObservedKernel | Unknown
