"""A node's rows for the tests: interfaces with addresses, pods that ask. Assertions do not belong here."""

from __future__ import annotations

from ledger import database, model, writes

SUBNET = "subnet-0a1b2c3d"
BOOT = "6f1c3c3e-0001"


def eni(device: int, *, primary: bool = False, managed: bool = True) -> model.Eni:
    """An attached interface of the subnet 10.0.<device>.0/24."""
    return model.Eni(
        eni_id=f"eni-{device:017x}",
        mac=f"0e:00:00:00:00:{device:02x}",
        subnet_id=SUBNET,
        subnet_cidr=f"10.0.{device}.0/24",
        primary_ip=f"10.0.{device}.4",
        device=device,
        primary=primary,
        managed=managed,
        state="attached",
        attachment_id=f"eni-attach-{device:017x}",
        attached_at=1,
    )


def addresses(device: int, count: int) -> tuple[str, ...]:
    """The first `count` secondaries of an interface."""
    return tuple(f"10.0.{device}.{host}" for host in range(10, 10 + count))


def add_eni(ledger: database.Ledger, device: int, count: int, now: int = 1) -> model.Eni:
    """A usable interface with `count` addresses, by the changes the reconciler makes."""
    made = eni(device)
    with ledger.write(durable=True) as tx:
        writes.eni_created(tx, made, addresses(device, count), now)
        writes.eni_state(tx, made.eni_id, "usable", now)
    return made


def claim(
    tx: database.Write, container: str, now: int, pod: str = "web-0", *, prefixes: bool = False
) -> model.Lease:
    """What ADD claims for a sandbox."""
    return writes.claim(
        tx,
        container_id=container,
        ifname="eth0",
        network="aws-cni",
        netns=f"/var/run/netns/{container}",
        pod_namespace="default",
        pod_name=pod,
        pod_uid="",
        boot_id=BOOT,
        host_ifname=f"eni{container[:11]}",
        host_mac="0a:00:00:00:00:01",
        prefixes=prefixes,
        now=now,
    )


def wiring(lease: model.Lease) -> tuple[model.KernelObject, ...]:
    """Objects of every kind, as many as a pod gets."""
    assert lease.address is not None
    link = lease.host_ifname
    return (
        model.Link(link, peer="eth0"),
        model.Route(f"{lease.address}/32", link),
        model.Rule(512, 254, dst=f"{lease.address}/32"),
        model.Rule(1536, 2, src=f"{lease.address}/32"),
        model.Route("169.254.1.1/32", "eth0", where="pod"),
        model.Route("0.0.0.0/0", "eth0", via="169.254.1.1", where="pod"),
        model.Neighbour("eth0", "169.254.1.1", lease.host_mac),
        model.InterfaceAddress("eth0", f"{lease.address}/32", where="pod"),
        model.Sysctl(f"/proc/sys/net/ipv4/conf/{link}/rp_filter", "2"),
    )
