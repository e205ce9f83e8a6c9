"""Every knob in one frozen value, each with its paragraph; upstream's variable names and parsing.

`load(environ)` returns the settings and one `Reading` per knob: what was given, what it became and
why. A value that upstream would silently replace by its default is replaced here too, but the reading
says so and becomes a row of the ledger's settings table; a value upstream's entry point refuses is
refused with a sentence. Behaviour that depends on a knob does not belong here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reconciler import errors, parse


def knob(env: str, default: Any, parser: Callable[[str], Any], *, strict: bool = False) -> Any:
    """A field read from `env`; strict ones stop the start when they are bad (upstream's entry does)."""
    return field(default=default, metadata={"env": env, "parse": parser, "strict": strict})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one start. The string under each field is its documentation."""

    warm_eni_target: int = knob("WARM_ENI_TARGET", 1, parse.integer(0))
    """How many whole interfaces' worth of free addresses to keep. Used only while WARM_IP_TARGET and
    MINIMUM_IP_TARGET are both 0. 0 grows only when nothing is free."""

    warm_ip_target: int = knob("WARM_IP_TARGET", 0, parse.integer(0))
    """How many free addresses to keep; above 0 it replaces WARM_ENI_TARGET. 0 leaves it undefined."""

    minimum_ip_target: int = knob("MINIMUM_IP_TARGET", 0, parse.integer(0))
    """How many addresses to hold in all, leased or free; above 0 it replaces WARM_ENI_TARGET."""

    prefix_delegation: bool = knob("ENABLE_PREFIX_DELEGATION", False, parse.boolean)
    """Whether interfaces get /28 prefixes, 16 addresses in the place of one, instead of single secondary
    addresses. Only on Nitro and metal instance types; others go on with single addresses. What the node
    holds of the other kind stays while pods use it and is given back after."""

    warm_prefix_target: int = knob("WARM_PREFIX_TARGET", 0, parse.integer(0))
    """With prefix delegation, how many whole prefixes to keep free. WARM_IP_TARGET and MINIMUM_IP_TARGET
    replace it. One of the three has to be above 0 for prefix delegation."""

    max_eni: int | None = knob("MAX_ENI", None, parse.integer(1))
    """The most interfaces to use; the instance type's limit holds in any case. Unset means no limit of
    its own."""

    max_pods: int | None = knob("VPCLEDGER_MAX_PODS", None, parse.integer(1))
    """The most pods the kubelet runs on this node (its maxPods). At so many addresses nothing is asked for
    to keep warm; a pod that waits is served in any case. Unset means what the cluster's API says of the
    node, and while that is not known only the instance type's limit holds."""

    ip_cooldown_ms: int = knob("IP_COOLDOWN_PERIOD", 30_000, parse.seconds_as_ms, strict=True)
    """Seconds a released address rests before another pod may have it, so that late packets and stale
    neighbour entries of its last holder die first."""

    eni_mtu: int = knob("AWS_VPC_ENI_MTU", 9001, parse.integer(576, 9001), strict=True)
    """MTU in bytes of the interfaces, 576 to 9001."""

    pod_mtu: int = knob("POD_MTU", 0, parse.integer(576, 9001), strict=True)
    """MTU in bytes of the pods' links; unset means that of the interfaces."""

    veth_prefix: str = knob("AWS_VPC_K8S_CNI_VETHPREFIX", "eni", parse.prefix, strict=True)
    """First letters of the host end of a pod's veth pair; at most four."""

    external_snat: bool = knob("AWS_VPC_K8S_CNI_EXTERNALSNAT", False, parse.boolean)
    """Does somebody else (a NAT gateway, say) translate what pods send off the VPC? True: pods' packets
    leave by their own interface with their own address. Connections opened before keep their way."""

    exclude_snat_cidrs: tuple[str, ...] = knob(
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", (), parse.networks
    )
    """IPv4 networks off the VPC (peered, on premises) that pods reach with their own address, between
    commas. Items that are none are left out."""

    random_snat: Literal["prng", "hashrandom", "none"] = knob(
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng", parse.random_snat
    )
    """How source ports of translated connections are chosen: `prng` at random each, `hashrandom` by a
    keyed hash of the connection, `none` keeps the pod's port where it is free."""

    external_service_cidrs: tuple[str, ...] = knob("AWS_EXTERNAL_SERVICE_CIDRS", (), parse.networks)
    """IPv4 networks that are reached through the main table, that is by the primary interface, whatever
    interface the pod is on; between commas. Items that are none are left out."""

    node_port_support: bool = knob("AWS_VPC_CNI_NODE_PORT_SUPPORT", True, parse.boolean)
    """Are answers to what comes in by the primary interface (NodePorts) sent out by it again, whatever
    interface the pod is on?"""

    connmark: int = knob("AWS_VPC_K8S_CNI_CONNMARK", 0x80, parse.mark)
    """The bits of connection and packet marks that mean `by the primary interface`; other bits are never
    touched. Connections with earlier bits keep their way until the next boot."""

    manage_untagged: bool = knob("MANAGE_UNTAGGED_ENI", False, parse.boolean)
    """Whether interfaces that somebody else attached, without this instance's tag and without the no_manage
    tag, are taken for ours: pods are put on them, they are tagged, and detached and deleted once idle. False
    leaves them to their owner, unlike the VPC CNI, which takes them unless this is set to false there."""

    disable_tcp_early_demux: bool = knob("DISABLE_TCP_EARLY_DEMUX", False, parse.boolean)
    """True sets net.ipv4.tcp_early_demux to 0, False to 1, as the VPC CNI's init container does. Off, a
    packet for one of the node's own connections is routed before it finds its socket: what comes in by
    another link than the one it is expected from (probes of pods behind branch interfaces) needs that."""

    multi_nic: bool = knob("ENABLE_MULTI_NIC", False, parse.boolean)
    """Whether interfaces on network cards after the first are used, on instance types that have several. Each
    such card then has a pool of its own that keeps one address free, and a pod that finds none on the first
    card gets one there. False leaves those cards to others. A pod has one interface in either case."""

    subnet_tags: bool = knob("VPCLEDGER_SUBNET_TAGS", False, parse.boolean)
    """Whether a subnet's tags can keep pods out of it, as with the VPC CNI's subnet discovery: those with
    kubernetes.io/role/cni=0, and those with that tag and other clusters' cni.networking.k8s.aws/cluster/ tags
    but not CLUSTER_NAME's. No interface is made there; one that is there gets no new pod, and what no pod
    uses is given back. Costs one more EC2 call at each look. Further subnets are not searched for."""

    cluster_name: str = knob("CLUSTER_NAME", "", parse.as_it_is)
    """The cluster's name, written as a tag on the interfaces we make."""

    no_provisioning: bool = knob("DISABLE_NETWORK_RESOURCE_PROVISIONING", False, parse.boolean)
    """True if somebody else makes and changes interfaces and addresses: nothing is asked of EC2 but what
    it shows, and pods are served from that."""

    imds_only: bool = knob("ENABLE_IMDS_ONLY_MODE", False, parse.boolean)
    """True if EC2 is never to be called, for nodes that cannot reach it: interfaces and addresses are what
    instance metadata shows, and nothing is changed. Pods are put on the primary interface and on those
    that have secondary addresses or prefixes."""

    no_leak_cleanup: bool = knob("DISABLE_LEAKED_ENI_CLEANUP", False, parse.boolean)
    """True if interfaces that nodes of this cluster left behind, attached to nothing, are not to be
    deleted. They are only looked for if CLUSTER_NAME is set: nothing else tells whose they are."""

    sweep_interval_s: int = knob("VPCLEDGER_SWEEP_INTERVAL", 3600, parse.integer(1))
    """Seconds between two searches for interfaces that nodes of this cluster left behind."""

    additional_eni_tags: tuple[tuple[str, str], ...] = knob("ADDITIONAL_ENI_TAGS", (), parse.tags)
    """More tags for the interfaces we make, as a JSON object. Keys with k8s.amazonaws.com are dropped."""

    node_name: str = knob("MY_NODE_NAME", "", parse.as_it_is)
    """The Kubernetes node's name. The cluster's API is asked about this node: whether it is cordoned, and
    how many pods fit. Unset, it is not asked."""

    manage_unschedulable: bool = knob("AWS_MANAGE_ENIS_NON_SCHEDULABLE", False, parse.boolean)
    """Whether the warm pool goes on while the node is cordoned or has the taint
    node.kubernetes.io/unschedulable. False: nothing is added and no interface detached meanwhile;
    addresses and prefixes are still given back."""

    kubernetes_host: str = knob("KUBERNETES_SERVICE_HOST", "", parse.as_it_is)
    """Set by Kubernetes in every pod; with the service account it leads to the cluster's API. Unset, and
    without KUBECONFIG, the API is not asked."""

    kubeconfig: str = knob("KUBECONFIG", "", parse.as_it_is)
    """Path of a kubeconfig file, for a daemon that does not run in a pod."""

    cluster_endpoint: str = knob("CLUSTER_ENDPOINT", "", parse.as_it_is)
    """URL of the cluster's API in place of the one that the service account or kubeconfig names."""

    ec2_endpoint: str = knob("AWS_EC2_ENDPOINT", "", parse.as_it_is)
    """URL of the EC2 API; empty means AWS's own for the region."""

    imds_endpoint: str = knob(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254", parse.as_it_is
    )
    """URL of the instance metadata service; a path prefix is allowed."""

    http_timeout_s: int = knob("HTTP_TIMEOUT", 10, parse.integer(10))
    """Seconds one HTTP request to EC2 may take, at least 10."""

    log_level: str = knob("AWS_VPC_K8S_CNI_LOGLEVEL", "debug", parse.level)
    """Least level of the daemon's log lines: debug, info, warn, error or fatal."""

    log_file: str = knob(
        "AWS_VPC_K8S_CNI_LOG_FILE", "/host/var/log/aws-routed-eni/ipamd.log", parse.as_it_is
    )
    """Where the daemon writes its JSON log lines: a path, `stdout` or `stderr`."""

    plugin_log_file: str = knob(
        "AWS_VPC_K8S_PLUGIN_LOG_FILE",
        "/var/log/aws-routed-eni/plugin.log",
        parse.plugin_log,
        strict=True,
    )
    """Written into the conflist as upstream does; anything but `stdout`. The launcher itself writes no
    log: each request is a row of the ledger."""

    plugin_log_level: str = knob("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "Debug", parse.as_it_is)
    """Written into the conflist as upstream does."""

    bandwidth_plugin: bool = knob("ENABLE_BANDWIDTH_PLUGIN", False, parse.boolean)
    """Chain the stock `bandwidth` plugin, which obeys a pod's kubernetes.io/ingress-bandwidth and
    egress-bandwidth annotations. It must be in the host's folder of CNI executables."""

    disable_pod_v6: bool = knob("DISABLE_POD_V6", False, parse.boolean)
    """Chain the stock `tuning` plugin, which switches IPv6 off inside pods. It must be in the host's
    folder of CNI executables."""

    pod_sg_enforcing_mode: str = knob(
        "POD_SECURITY_GROUP_ENFORCING_MODE", "strict", parse.enforcing_mode
    )
    """Written into the conflist as upstream does: `strict` or `standard`. Nothing reads it yet, for pods
    have no security groups of their own so far."""

    cni_version: str = knob("VPCLEDGER_CNI_VERSION", "0.4.0", parse.cni_version, strict=True)
    """CNI version written into the conflist: 0.4.0 as upstream writes it, 1.0.0 or 1.1.0. Only at 1.1.0
    does a runtime ask STATUS and GC, and then it and every chained plugin must speak that version;
    containerd 1.6 fails each pod at 1.1.0."""

    cni_bin_dir: str = knob("HOST_CNI_BIN_PATH", "/host/opt/cni/bin", parse.as_it_is)
    """Folder of the host's CNI executables, where `vpcledger install` puts the launcher `aws-cni`."""

    cni_conf_dir: str = knob("HOST_CNI_CONFDIR_PATH", "/host/etc/cni/net.d", parse.as_it_is)
    """Folder of the host's CNI configuration, where 10-aws.conflist appears once pods can be served."""

    state_dir: str = knob("VPCLEDGER_STATE_DIR", "/var/lib/vpcledger", parse.as_it_is)
    """Folder of the ledger (ledger.db), its copies and the spool of deletions; it must survive reboots."""

    run_dir: str = knob("VPCLEDGER_RUN_DIR", "/var/run/aws-node", parse.as_it_is)
    """Folder of the socket vpcledger.sock that the launcher calls, and of deletions that it could not
    write to the state folder; in memory, as /run is."""

    checkpoint: str = knob(
        "AWS_VPC_K8S_CNI_BACKING_STORE", "/var/run/aws-node/ipam.json", parse.as_it_is
    )
    """File in which the VPC CNI keeps its allocations. It is read when a node is taken over, and written
    from then on, so that the VPC CNI can take the node back."""

    cni_cache_dir: str = knob("VPCLEDGER_CNI_CACHE_DIR", "/var/lib/cni/results", parse.as_it_is)
    """Folder of the container runtime's cached CNI results, read when a node is taken over."""

    uid: int = knob("VPCLEDGER_UID", 65532, parse.integer(0), strict=True)
    """User the daemon becomes after its start as root; it keeps CAP_NET_ADMIN and nothing else. 0 keeps
    the user and still drops all other capabilities."""

    boot_id_path: str = knob(
        "VPCLEDGER_BOOT_ID_PATH", "/proc/sys/kernel/random/boot_id", parse.as_it_is
    )
    """File whose content changes with every boot."""

    cri_socket: str = knob(
        "VPCLEDGER_CRI_SOCKET", "/run/containerd/containerd.sock", parse.as_it_is
    )
    """The container runtime's CRI socket, of which only the list of sandboxes is asked. Without it, links
    and the names of network namespaces have to tell which sandboxes live."""

    sandbox_interval_s: int = knob("VPCLEDGER_SANDBOX_INTERVAL", 15, parse.integer(1))
    """Seconds between two looks for sandboxes that ended without a deletion. Two of them, at least five
    seconds apart, have to agree before a lease ends."""

    add_wait_ms: int = knob("VPCLEDGER_ADD_WAIT", 5_000, parse.seconds_as_ms)
    """Seconds an ADD that finds no address is held while EC2 is asked for more, before it is answered
    with error 11 and its reason. 0 answers at once."""

    freeze: Literal["none", "release", "cloud"] = knob("VPCLEDGER_FREEZE", "none", parse.freeze)
    """What must not be done to EC2: `release` gives nothing back, `cloud` makes no call at all while
    pods are served from what is held. While EC2 fails most calls nothing is given back in any case."""

    kernel_interval_s: int = knob("VPCLEDGER_KERNEL_INTERVAL", 30, parse.integer(1))
    """Seconds between two full comparisons with the kernel. Changes the kernel reports are looked at at
    once."""

    cloud_interval_s: int = knob("VPCLEDGER_CLOUD_INTERVAL", 60, parse.integer(1))
    """Seconds between two looks at the warm pool when nothing happens. A pod that waits, a pod added or
    deleted are looked at at once."""

    @property
    def in_cluster(self) -> bool:
        """Is there an API server that can be asked about this node?"""
        return bool(self.node_name and (self.kubeconfig or self.kubernetes_host))

    @property
    def ledger_path(self) -> str:
        """The ledger's file."""
        return f"{self.state_dir}/ledger.db"

    @property
    def spool_dir(self) -> str:
        """Where the launcher leaves deletions while the daemon is away."""
        return f"{self.state_dir}/spool"

    @property
    def spool_dirs(self) -> tuple[str, str]:
        """All places where deletions may wait: the usual one, and the one for a disk that takes nothing."""
        return self.spool_dir, f"{self.run_dir}/spool"

    @property
    def socket_path(self) -> str:
        """The daemon's socket."""
        return f"{self.run_dir}/vpcledger.sock"

    @property
    def conflist_path(self) -> str:
        """Where the runtime looks for our network configuration."""
        return f"{self.cni_conf_dir}/10-aws.conflist"

    @property
    def mtu(self) -> int:
        """MTU in bytes of a pod's link."""
        return self.pod_mtu or self.eni_mtu


@dataclass(frozen=True, slots=True)
class Reading:
    """How one knob got its value; a row of the ledger's settings table."""

    name: str
    raw: str | None
    value: str
    source: Literal["environment", "default", "invalid"]


def knobs() -> tuple[dataclasses.Field[Any], ...]:
    """The fields that are read from the environment, in order."""
    return tuple(f for f in dataclasses.fields(Settings) if "env" in f.metadata)


def load(environ: Mapping[str, str]) -> tuple[Settings, tuple[Reading, ...]]:
    """Read all knobs. Set but empty counts as unset; Refused names the first bad strict knob."""
    values: dict[str, Any] = {}
    readings: list[Reading] = []
    for each in knobs():
        name, raw = each.metadata["env"], environ.get(each.metadata["env"])
        source: Literal["environment", "default", "invalid"] = "default"
        value = each.default
        if raw:
            try:
                value, source = each.metadata["parse"](raw), "environment"
            except parse.Invalid as bad:
                if each.metadata["strict"]:
                    raise errors.Refused(
                        "bad_setting", f"{name}={raw!r} is not {bad}; correct it and start again"
                    ) from None
                value = each.default if bad.usable is None else bad.usable
                source = "invalid"
        values[each.name] = value
        readings.append(Reading(name, raw, str(value), source))
    settings = Settings(**values)
    if settings.prefix_delegation and not (
        settings.warm_ip_target or settings.minimum_ip_target or settings.warm_prefix_target
    ):
        raise errors.Refused(
            "bad_setting",
            "ENABLE_PREFIX_DELEGATION needs WARM_PREFIX_TARGET, WARM_IP_TARGET or MINIMUM_IP_TARGET"
            " above 0; set one and start again",
        )
    return settings, tuple(readings)


def paragraphs() -> dict[str, str]:
    """The documentation under each knob, by variable name (read from this file's source)."""
    import ast
    import inspect

    body = ast.parse(inspect.getsource(Settings)).body[0]
    assert isinstance(body, ast.ClassDef)
    environment = {each.name: each.metadata["env"] for each in knobs()}
    found: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.target.id in environment
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            words = " ".join(str(following.value.value).split())
            found[environment[statement.target.id]] = words
    return found
