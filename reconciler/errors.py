"""Errors named by who must act, and their way to a CNI error code.

    VpcledgerError
      TryLater   nobody has to act: ask again (throttle, growth under way, a dependency is down)
      Full       an operator or EC2 must give room (node full, subnet full)
      Refused    the caller must change the request or the settings (BadNamespace: CNI_NETNS)
      Gone       the thing is no longer there: for a removal that is success
      Bug        we must act

Each carries a stable reason code from REASONS and a sentence that says what to do. The mapping from
EC2's codes and from errno is here; retry and back-off policy is not.
"""

from __future__ import annotations

REASONS: dict[str, str] = {
    "growing": "No free address yet; EC2 has been asked for more. The runtime's next try will get one.",
    "cooling": "All free addresses are cooling down after a release; the oldest is usable again soon.",
    "starting": "The node has not been described yet: instance metadata or EC2 did not answer so far.",
    "node_full": "Every address this instance type can carry is in use. Use a larger type or fewer pods.",
    "subnet_full": "The subnet has no free address left. Add subnets or free addresses.",
    "address_lost": "EC2 took a live pod's address away and gave it to another interface, so it can not be asked"
    " back: delete the pod, for it gets no packets.",
    "subnet_excluded": "The node's subnet has tags that keep pods out of it (kubernetes.io/role/cni=0, or another"
    " cluster's); change them, or unset VPCLEDGER_SUBNET_TAGS.",
    "throttled": "EC2 is throttling the account; the call will be retried after its back-off.",
    "ec2_denied": "EC2 refused for lack of an IAM permission. Add it to the node's role.",
    "ec2_error": "EC2 answered with an error; see the api_calls view for its code and text.",
    "ec2_down": "EC2 could not be reached; it is asked again after a back-off.",
    "imds_down": "Instance metadata could not be reached; check hop limit and 169.254.169.254.",
    "api_server_down": "The Kubernetes API did not say whether this node is cordoned and how many pods fit;"
    " no interface is detached until it does. The text says what to mend.",
    "node_unschedulable": "No address is free, and none is added while the node is cordoned: uncordon it, or"
    " set AWS_MANAGE_ENIS_NON_SCHEDULABLE=true.",
    "frozen": "Calls to EC2 are frozen, by VPCLEDGER_FREEZE or because EC2 fails most of them.",
    "kernel_error": "The kernel refused a network change; the text names it. The next try sets it right.",
    "netns_missing": "CNI_NETNS could not be opened. The sandbox is gone or the path is wrong.",
    "netns_is_host": "CNI_NETNS is the node's own namespace; a pod needs one of its own.",
    "ifname_taken": "An interface of that name exists in the sandbox already.",
    "bad_request": "The request broke the CNI specification; the text says where.",
    "unknown_container": "No open lease for this container and interface.",
    "drift": "The kernel differs from what the ledger says; the text names what is missing.",
    "ledger_lost": "Pods live here that the ledger does not know: put a newer copy of it back and start"
    " again, or drain the node and reboot it. Nothing is removed or given out meanwhile.",
    "takeover_unreadable": "A record of the CNI that ran this node could not be read; the text says which."
    " Addresses that its pods show in the kernel are kept from other pods all the same.",
    "checkpoint_unwritable": "The VPC CNI's checkpoint could not be written; without it that CNI could"
    " not take this node back. Check the folder's permissions and space.",
    "ledger_damaged": "A damaged ledger was set aside at a start and a new one begun; keep the file for an"
    " inquiry or remove it, and look at the disk.",
    "kernel_unreadable": "The kernel's tables could not be read; they are read again at the next look.",
    "nat_failed": "Our nftables table could not be read or replaced; the text is the kernel's. It is tried"
    " again at the next look; until then pods' way off the VPC is as it was.",
    "sysctl_unwritable": "The daemon may not write a sysctl of the node (/proc/sys is read-only for it);"
    " the launcher writes it with the next ADD.",
    "lane_failed": "A background lane failed and is tried again after a pause; the text is its error.",
    "conflist_unwritable": "The conflist could not be put in place; the text says why: its folder refuses,"
    " or a plugin it chains is not in the host's folder of CNI executables.",
    "gc_disagrees": "GC left out a sandbox whose link is alive; its lease stays until both agree.",
    "sandbox_doubtful": "One witness says that this sandbox is gone and not two: its lease is in doubt and"
    " keeps the address until they agree, or its deletion comes.",
    "runtime_silent": "The container runtime's socket gave no list of sandboxes; links and the names of"
    " network namespaces have to do meanwhile.",
    "stopping": "The daemon is being stopped; the next one serves the runtime's next try.",
    "spool_unreadable": "A spooled deletion could not be read; it was set aside for inspection.",
    "bad_setting": "A setting's value cannot be used; the text says what could stand there.",
    "internal": "The daemon met an error of its own; report the traceback in its log. The call may be"
    " tried again.",
    "ledger_error": "The ledger could not be written; see the daemon's log and disk space.",
    "deleted": "The runtime deleted the sandbox.",
    "deleted_late": "A deletion spooled while the daemon was away was taken in.",
    "gc": "The runtime's GC did not name the attachment and no live sandbox contradicted it.",
    "setup_failed": "The sandbox could not be wired; its address was given back.",
    "gave_up_waiting": "The sandbox was deleted while it waited for an address.",
    "reboot": "The node was rebooted; the sandbox did not survive it.",
    "takeover_stale": "The pod was gone already when this node was taken over.",
    "swept": "The sandbox was gone though no deletion arrived; two sources agreed.",
}
"""Every reason code with its sentence; documented in deploy/docs/reasons.md, held there by a test."""


class VpcledgerError(Exception):
    """An error with a stable reason code, a sentence and optional detail."""

    cni_code = 999

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise KeyError(reason)
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail or REASONS[reason]}")


class TryLater(VpcledgerError):
    """Ask again; nothing has to change (CNI code 11)."""

    cni_code = 11


class Full(VpcledgerError):
    """No room until somebody makes some (CNI code 11: retrying is what a runtime can do)."""

    cni_code = 11


class Refused(VpcledgerError):
    """The request or a setting must change (CNI code 7, or the caller's more exact one)."""

    cni_code = 7


class BadNamespace(Refused):
    """CNI_NETNS names nothing that can be entered (CNI code 4: an invalid variable)."""

    cni_code = 4


class Gone(VpcledgerError):
    """The thing is not there any more (CNI code 3)."""

    cni_code = 3


class Bug(VpcledgerError):
    """Ours to mend (CNI code 999)."""


_FULL = {
    "InsufficientFreeAddressesInSubnet": "subnet_full",
    "InsufficientCidrBlocks": "subnet_full",
    "PrivateIpAddressLimitExceeded": "node_full",
    "AttachmentLimitExceeded": "node_full",
}
_THROTTLED = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "RequestThrottled"}
_DENIED = {"UnauthorizedOperation", "AccessDenied", "AuthFailure", "OptInRequired"}
_SUBNET_FULL_TEXT = "There aren't sufficient free Ipv4 addresses or prefixes"


_UNREACHABLE = {"EndpointConnectionError", "ReadTimeout", "ConnectTimeout", "ConnectionClosed"}
_SICK = _THROTTLED | _UNREACHABLE | {"InternalError", "InternalFailure", "Unavailable"}
_SICK |= {"ServiceUnavailable", "LostReply"}


def is_trouble(code: str) -> bool:
    """Does this code speak of EC2's own health, and not of what was asked?"""
    return code in _SICK


def from_ec2(code: str, text: str) -> VpcledgerError:
    """The error for an EC2 error code and text (both count: a full subnet hides in InvalidParameterValue)."""
    if code in _FULL:
        return Full(_FULL[code], text)
    if code == "InvalidParameterValue" and _SUBNET_FULL_TEXT.lower() in text.lower():
        return Full("subnet_full", text)
    if code in _THROTTLED:
        return TryLater("throttled", text)
    if code in _DENIED:
        return Refused("ec2_denied", text)
    if code.endswith(".NotFound"):
        return Gone("ec2_error", f"{code}: {text}")
    if code in _UNREACHABLE:
        return TryLater("ec2_down", text)
    return TryLater("ec2_error", f"{code}: {text}")
