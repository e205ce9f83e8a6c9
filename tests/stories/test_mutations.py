"""The stories can fail: each mistake here, made on purpose, breaks the invariant that is there for it.

Mistakes are those of the CNIs this one replaces, and those its own parts are built against.
"""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cni import spec
from ledger import database, model, reads, writes
from ledger.writes import adoption, choice
from reconciler import cloud_loop, jobs, record, recovery
from reconciler import settings as knobs
from reconciler.planner import actions, budget, notation, plan, release, stock, targets, upkeep
from reconciler.providers import ec2
from tests.stories import agreement, events, runtime, story, truths, verdict

SEEDS = range(80)
"""Enough for each mistake to have its chance; most show within ten."""


def told(seed: int) -> str:
    """The invariant that the story breaks, the name of any other error, or nothing."""
    try:
        story.tell(seed)
    except truths.Broken as broken:
        return broken.invariant
    except Exception as error:  # noqa: BLE001 - a mistake may show as any
        return type(error).__name__
    return ""


def broken_until(expected: set[str]) -> set[str]:
    """What stories find broken, until one of the expected is among it."""
    found: set[str] = set()
    for seed in SEEDS:
        found.add(told(seed))
        if found & expected:
            break
    return found


def seen_by_it_alone(invariant: str, patch: pytest.MonkeyPatch) -> bool:
    """Is there a story that breaks it and, with its checks silent, comes to a good end?"""
    loud = verdict.check

    def quiet(which: str, holds: bool, what: str) -> None:
        loud(which, holds or which == invariant, what)

    for seed in SEEDS:
        if told(seed) != invariant:
            continue
        with patch.context() as silence:
            for room in (agreement, runtime, truths):
                silence.setattr(room, "check", quiet)
            if not told(seed):
                return True
    return False


def leased_addresses_are_given_back(patch: pytest.MonkeyPatch) -> None:
    """What is given back is chosen without a look at the leases, and no schema stops it."""
    surplus = release.surplus

    def blind(held: stock.Stock, *rest: Any, **named: Any) -> Iterator[actions.CloudStep]:
        bare = [dataclasses.replace(h, leased=frozenset(), busy=False) for h in held.holdings]
        yield from surplus(dataclasses.replace(held, holdings=tuple(bare)), *rest, **named)

    patch.setattr(release, "surplus", blind)
    patch.setattr(writes, "addresses_releasing", lambda *_: None)


def unknown_is_taken_for_failed(patch: pytest.MonkeyPatch) -> None:
    """A lost reply is written down as a refusal, and what it did is never looked for.

    With the looks alone left in place the mistake heals: what EC2 shows of it is adopted.
    """
    cloud_ = record.cloud

    def hasty(tx: Any, intent: Any, step: Any, done: Any, now: int) -> None:
        sure = dataclasses.replace(done.outcome, unknown=False)
        cloud_(tx, intent, step, dataclasses.replace(done, outcome=sure), now)

    patch.setattr(record, "cloud", hasty)
    patch.setattr(adoption, "_adopt_address", lambda *_: False)
    patch.setitem(events.EVENTS, "_replies_are_lost", 80)


def lost_replies_are_repeated_blindly(patch: pytest.MonkeyPatch) -> None:
    """What asks for a number of addresses is sent again, as botocore would."""

    def again(intent: model.Intent) -> actions.CloudStep:
        return actions.CloudStep(notation.action(intent), "warm", intent.cause)

    patch.setattr(record, "repeatable", again)
    patch.setattr(record, "settle", lambda *_: None)
    patch.setattr(adoption, "_adopt_address", lambda *_: False)
    patch.setitem(events.EVENTS, "_replies_are_lost", 80)


def a_repeated_interface_gets_a_new_token(patch: pytest.MonkeyPatch) -> None:
    """CreateNetworkInterface sent again under another name makes a second one."""
    apply = ec2.Ec2.apply

    def fresh(self: ec2.Ec2, action: actions.CloudAction, token: str) -> actions.Outcome:
        return apply(self, action, uuid.uuid4().hex)

    patch.setattr(ec2.Ec2, "apply", fresh)
    patch.setattr(adoption, "_adopt_eni", lambda *_: False)


def released_addresses_are_believed_back(patch: pytest.MonkeyPatch) -> None:
    """A picture older than the release brings the address back (aws/amazon-vpc-cni-k8s 3887)."""
    patch.setattr(adoption, "_believed", lambda *_: True)
    for event in ("_lag", "_the_daemon_dies", "_pods_go"):
        patch.setitem(events.EVENTS, event, 50)


def two_pods_get_one_address(patch: pytest.MonkeyPatch) -> None:
    """The choice forgets who holds an address, and the index that would refuse it is dropped."""
    open_ = database.Ledger.open.__func__  # type: ignore[attr-defined]  # of a classmethod

    def opened(kind: type[database.Ledger], /, path: Path, **how: bool) -> database.Ledger:
        book: database.Ledger = open_(kind, path, **how)
        if book._writer is not None:
            book._writer.execute("DROP INDEX IF EXISTS one_open_lease_per_address")
        return book

    def careless(tx: database.Write, *_: object) -> tuple[str | None, str | None]:
        rows = tx.dicts("SELECT address, eni_id FROM addresses WHERE state = 'assigned'", {})
        return (rows[0]["address"], rows[0]["eni_id"]) if rows else (None, None)

    patch.setattr(database.Ledger, "open", classmethod(opened))
    patch.setattr(choice, "longest_rested", careless)
    patch.setattr(writes, "plan_installed", lambda *_: ())  # it has an index of its own


def a_dead_daemons_calls_stay_open(patch: pytest.MonkeyPatch) -> None:
    """Recovery takes in no deletion that was spooled, and ends no call that was cut short."""
    patch.setattr(recovery, "_finish_interrupted", lambda *_: None)
    patch.setattr(recovery, "take_spools_in", lambda *_: frozenset())


def the_bucket_has_no_bottom(patch: pytest.MonkeyPatch) -> None:
    """Every call may be made at once."""
    patch.setattr(budget, "free_at", lambda _operation, _lane, _calls, now: now)
    patch.setattr(record, "BACKOFF_DEFAULT_MS", 10)
    patch.setattr(record, "BACKOFF_MOST_MS", 10)


def everybody_has_prefixes(patch: pytest.MonkeyPatch, **more: Any) -> None:
    """Not a mistake: stories with prefix delegation alone, and with these settings."""
    any_ = events.settings

    def settings(rng: random.Random) -> knobs.Settings:
        return dataclasses.replace(any_(rng), prefix_delegation=True, **more)

    patch.setattr(events, "settings", settings)
    patch.setitem(events.EVENTS, "_prefixes_are_switched", 0)


def a_prefix_is_given_back_under_a_pod(patch: pytest.MonkeyPatch) -> None:
    """One free address makes its whole /28 free, and no schema stops it."""
    everybody_has_prefixes(patch)

    def careless(some: tuple[model.Address, ...], _of: object) -> tuple[str, ...]:
        return tuple(sorted({a.prefix for a in some if a.prefix}))

    patch.setattr(stock, "whole", careless)
    patch.setattr(writes, "prefixes_releasing", lambda *_: None)


def a_prefix_is_counted_twice(patch: pytest.MonkeyPatch) -> None:
    """The planner takes a free /28 for thirty-two addresses, and is content with half of what it should hold."""
    two = {"warm_prefix_target": 2, "max_pods": None, "max_eni": None}
    everybody_has_prefixes(patch, warm_ip_target=0, minimum_ip_target=0, **two)
    count = stock.count

    def twice(*what: Any, **how: Any) -> stock.Stock:
        held = count(*what, **how)
        return dataclasses.replace(
            held,
            total=held.total + 16 * held.free_prefixes,
            ready=held.ready + 16 * held.free_prefixes,
        )

    patch.setattr(stock, "count", twice)


def addresses_of_prefixes_do_not_cool(patch: pytest.MonkeyPatch) -> None:
    """A pod's address is another's at once if it is out of a /28."""
    everybody_has_prefixes(patch)
    end = writes.end

    def hot(tx: database.Write, lease_id: int, reason: str, now: int, cooling_ms: int) -> Any:
        del cooling_ms
        return end(tx, lease_id, reason, now, 0)

    patch.setattr(writes, "end", hot)


def one_address_too_few_is_enough(patch: pytest.MonkeyPatch) -> None:
    """The planner is at rest one short of its target: it agrees with itself, and with nobody's settings."""
    short = targets.short

    def fewer(held: stock.Stock, *rest: Any) -> int:
        return max(short(held, *rest) - 1, held.unserved)

    patch.setattr(targets, "short", fewer)


def a_marked_interface_loses_its_table(patch: pytest.MonkeyPatch) -> None:
    """Somebody says no_manage, and the pods on it have no way out."""
    patch.setattr(plan, "_wired", lambda desired: [e for e in desired.enis if e.managed])
    patch.setitem(events.EVENTS, "_somebody_is_at_the_instance", 60)


def one_message_for_a_dozen_causes(patch: pytest.MonkeyPatch) -> None:
    """The VPC CNI's: the runtime hears that it failed, and not why."""

    def bare(code: int, _text: str, _more: str) -> spec.CniError:
        return spec.CniError(code, "failed to assign an IP address to container", "")

    patch.setattr(jobs, "spec", SimpleNamespace(CniError=bare))


def tags_are_written_at_every_start(patch: pytest.MonkeyPatch) -> None:
    """A harmless call that every restart makes: forty nodes of them are a storm."""
    planned = cloud_loop.CloudLoop._planned
    done: set[int] = set()

    def eager(self: cloud_loop.CloudLoop) -> actions.Plan:
        wanted = planned(self)
        with self.ledger.read() as tx:
            primary = [eni.eni_id for eni in reads.enis(tx) if eni.primary]
        if id(self.ledger) in done or not primary:
            return wanted
        done.add(id(self.ledger))
        again = actions.CloudStep(actions.TagEni(primary[0], (("team", "net"),)), "tidy", "start")
        return dataclasses.replace(wanted, cloud=(*wanted.cloud, again))

    patch.setattr(cloud_loop.CloudLoop, "_planned", eager)


def somebody_elses_interface_is_kept_right(patch: pytest.MonkeyPatch) -> None:
    """Tags and security groups of an interface that another controller attached."""
    keep = upkeep.upkeep

    def every(held: stock.Stock, desired: model.Desired, *rest: Any) -> Iterator[actions.CloudStep]:
        taken = tuple(dataclasses.replace(eni, managed=True) for eni in desired.enis)
        return keep(held, dataclasses.replace(desired, enis=taken), *rest)

    patch.setattr(upkeep, "upkeep", every)
    patch.setitem(events.EVENTS, "_somebody_is_at_the_instance", 60)


MISTAKES: dict[Callable[[pytest.MonkeyPatch], None], set[str]] = {
    leased_addresses_are_given_back: {"I1"},
    a_prefix_is_given_back_under_a_pod: {"I1"},
    unknown_is_taken_for_failed: {"I3", "I5", "I1"},
    lost_replies_are_repeated_blindly: {"I5"},
    a_repeated_interface_gets_a_new_token: {"I5", "tokens"},
    released_addresses_are_believed_back: {"I3", "I1"},
    two_pods_get_one_address: {"I2"},
    a_dead_daemons_calls_stay_open: {"I5"},
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: str(mistake.__name__))
def test_a_mistake_breaks_an_invariant(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    assert broken_until(MISTAKES[mistake]) & MISTAKES[mistake]


ALONE: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    somebody_elses_interface_is_kept_right: "I1",
    two_pods_get_one_address: "I2",
    released_addresses_are_believed_back: "I3",
    one_message_for_a_dozen_causes: "I4",
    a_prefix_is_counted_twice: "I5",
    one_address_too_few_is_enough: "I5",
    a_marked_interface_loses_its_table: "I5",
    the_bucket_has_no_bottom: "I6",
    tags_are_written_at_every_start: "I7",
    addresses_of_prefixes_do_not_cool: "cooldown",
}
"""For each invariant a mistake, and for prefixes theirs, that no other invariant's checks see in some story."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mistake", ALONE, ids=lambda mistake: str(mistake.__name__))
def test_a_mistake_that_only_one_invariant_sees(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    assert seen_by_it_alone(ALONE[mistake], monkeypatch)
