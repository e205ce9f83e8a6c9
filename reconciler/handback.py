"""Give a node back to the VPC CNI: its checkpoint up to date, its rules and routes as it makes them.

For a stopped daemon, as root, before the VPC CNI's agent starts. What bears our mark is replaced by the
same without it, made before the old is removed, so packets notice nothing. The ledger is set aside, for
whoever comes back later starts from what is there then. Taking a node over does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ledger import database, integrity, migrate, model, reads, writes
from reconciler import errors, unchain
from reconciler import settings as knobs
from reconciler.planner import actions, nat, takeover, wiring
from reconciler.providers import host, kernel, upstream


def hand_back(settings: knobs.Settings, clock: Callable[[], int]) -> Iterator[str]:
    """Do it; yields a line for each step done.

    Refused without a ledger, ledger.errors.Locked while a daemon runs. TryLater if the kernel does not
    take a change: the command can be repeated.
    """
    path = Path(settings.ledger_path)
    if not path.exists():  # a new one would say that the node has no pods
        raise errors.Refused("bad_setting", f"there is no ledger at {path}: nothing to give back")
    migrate.bring_to_head(path)
    with database.Ledger.open(path) as ledger:
        with ledger.read() as tx:
            desired = reads.desired(tx, clock())
        hands = kernel.Kernel()
        observed = hands.observe()
        if isinstance(observed, model.Unknown):
            raise errors.TryLater("kernel_unreadable", observed.why)
        seen: tuple[model.KernelObject, ...] = (*observed.routes, *observed.rules)
        ours = [thing for thing in seen if wiring.ours(thing)]
        _carry_out(hands, [actions.Put(twin) for twin in takeover.twins(ours)])
        _carry_out(hands, [actions.Remove(thing) for thing in reversed(ours)])
        yield f"{len(ours)} rules and routes are as the VPC CNI makes them"
        files = upstream.checkpoints(settings.checkpoint, desired.leases, desired.enis)
        for name, text in files:
            host.place(name, text)
        held = [lease for lease in desired.leases if lease.address]
        yield f"{settings.checkpoint} names {len(held)} pods"
        with ledger.write(durable=True) as tx:
            writes.hand_back(tx, clock())
    yield f"the ledger is {integrity.set_aside(path, 'handed-back')}; start the VPC CNI now"
    yield f"table ip {nat.TABLE} serves its pods until then: `vpcledger handback --finish` takes it away"


def finish() -> Iterator[str]:
    """The VPC CNI runs and has its own translation: take ours away. Again is no harm."""
    return unchain.ours()


def _carry_out(hands: kernel.Kernel, steps: Sequence[actions.KernelAction]) -> None:
    failed = [outcome for outcome in hands.apply(steps) if outcome.error] if steps else []
    if failed:
        raise errors.TryLater("kernel_error", f"{failed[0].error}: {failed[0].text}")
