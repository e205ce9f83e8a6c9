"""Rows as the planner gets them, in few words, and what it makes of them.

Stories over time do not belong here: see `reconciler.ideal.World`.
"""

from __future__ import annotations

import dataclasses

from ledger import model
from reconciler import settings as knobs
from reconciler.planner import actions, limits, pool

NODE = model.Node(
    instance_id="i-1",
    instance_type="m5.large",
    region="eu-west-1",
    availability_zone="eu-west-1a",
    vpc_id="vpc-1",
    subnet_id="subnet-1",
    primary_mac="02:00:00:00:00:01",
    primary_ip="10.0.0.10",
    security_groups=("sg-1",),
)
START = 1_000_000_000


def small(enis: int = 3, slots: int = 3) -> limits.Limits:
    """Limits of a type that takes `enis` interfaces of `slots` pod addresses each."""
    return limits.Limits(enis, slots + 1, (enis,), "nitro")


def eni(number: int, **changes: object) -> model.Eni:
    """Interface `eni-<number>`, usable at that device index since long ago; number 0 is primary."""
    plain = model.Eni(
        eni_id=f"eni-{number}",
        mac=f"02:00:00:00:01:{number:02x}",
        subnet_id="subnet-1",
        subnet_cidr="10.0.0.0/16",
        primary_ip=f"10.0.255.{number + 1}",
        device=number,
        primary=number == 0,
        state="usable",
        attachment_id=f"attach-{number}",
        delete_on_termination=True,
        attached_at=START - 3_600_000,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]  # fields by name


def addresses(number: int, count: int, leased: int = 0, **changes: object) -> list[model.Address]:
    """`count` addresses of `eni-<number>`, the first `leased` of them leased, rested since long ago."""
    plain = [
        model.Address(f"10.0.{number}.{last}", f"eni-{number}", leased=last < leased)
        for last in range(count)
    ]
    return [dataclasses.replace(each, **changes) for each in plain]  # type: ignore[arg-type]  # fields by name


def waiting(count: int, first: int = 1000) -> list[model.Lease]:
    """Leases of pods that wait for an address."""
    return [
        model.Lease(first + n, f"c{first + n}", "eth0", "net", "/ns", "waiting")
        for n in range(count)
    ]


def shown(desired: model.Desired, at: int = START) -> model.ObservedCloud:
    """EC2's picture where it agrees with the rows."""
    return model.ObservedCloud(
        at,
        "ec2",
        tuple(
            model.ObservedEni(
                each,
                tuple(a.address for a in desired.addresses if a.eni_id == each.eni_id),
            )
            for each in desired.enis
        ),
    )


BY_IP = knobs.Settings(warm_ip_target=1, minimum_ip_target=1)
BY_ENI = knobs.Settings(warm_eni_target=1)
UNKNOWN = model.Unknown("not asked", START)
MINUTE = 60_000


def desired(
    enis: list[model.Eni] | None = None,
    rows: list[model.Address] | None = None,
    leases: list[model.Lease] | None = None,
    intents: list[model.Intent] | None = None,
    node: model.Node | None = NODE,
) -> model.Desired:
    return model.Desired(
        node,
        enis=tuple([eni(0)] if enis is None else enis),
        addresses=tuple(rows or ()),
        leases=tuple(leases or ()),
        intents=tuple(intents or ()),
    )


def intent(
    action: actions.CloudAction,
    state: model.IntentState,
    error: str = "",
    retry_at: int = START + MINUTE,
) -> model.Intent:
    subject = action.subnet_id if isinstance(action, actions.CreateEni) else action.eni_id
    return model.Intent(
        id=1,
        operation=type(action).__name__,
        subject=subject,
        arguments=dataclasses.asdict(action),
        state=state,
        token="t",
        cause="",
        created_at=START,
        retry_at=retry_at,
        error=error,
    )


def steps(
    rows: model.Desired,
    settings: knobs.Settings = BY_IP,
    limit: limits.Limits | None = None,
    look: model.ObservedCloud | model.Unknown | None = None,
    now: int = START,
) -> list[actions.CloudStep]:
    look = shown(rows, now) if look is None else look
    planned, _ = pool.cloud_steps(rows, look, settings, limit or small(), now)
    return list(planned)


def verbs(planned: list[actions.CloudStep]) -> list[actions.CloudAction]:
    return [step.action for step in planned]


def notes(rows: model.Desired, settings: knobs.Settings = BY_IP) -> dict[str, str]:
    _, said = pool.cloud_steps(rows, UNKNOWN, settings, small(), START)
    return {note.code: note.text for note in said}


CREATED = eni(5, device=-1, state="created", attachment_id=None, attached_at=None)
