"""The stories can fail: each mistake here, made on purpose, breaks the invariant that is there for it.

Mistakes are those of the CNIs this one replaces, and those its own parts are built against.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger import database, model, writes
from ledger.writes import adoption, choice
from reconciler import record, recovery
from reconciler.planner import actions, budget, notation, release, stock
from reconciler.providers import ec2
from tests.stories import story, truths

SEEDS = range(80)
"""Enough for each mistake to have its chance; most show within ten."""


def broken_until(expected: set[str]) -> set[str]:
    """What stories find broken, until one of the expected is among it."""
    found: set[str] = set()
    for seed in SEEDS:
        if found & expected:
            break
        try:
            story.tell(seed)
        except truths.Broken as broken:
            found.add(broken.invariant)
        except Exception as error:  # noqa: BLE001 - a mistake may show as any besides
            found.add(type(error).__name__)
    return found


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
    patch.setitem(story.EVENTS, "_replies_are_lost", 80)


def lost_replies_are_repeated_blindly(patch: pytest.MonkeyPatch) -> None:
    """What asks for a number of addresses is sent again, as botocore would."""

    def again(intent: model.Intent) -> actions.CloudStep:
        return actions.CloudStep(notation.action(intent), "warm", intent.cause)

    patch.setattr(record, "repeatable", again)
    patch.setattr(record, "settle", lambda *_: None)
    patch.setattr(adoption, "_adopt_address", lambda *_: False)
    patch.setitem(story.EVENTS, "_replies_are_lost", 80)


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


MISTAKES: dict[Callable[[pytest.MonkeyPatch], None], set[str]] = {
    leased_addresses_are_given_back: {"I1"},
    unknown_is_taken_for_failed: {"I3", "I5", "I1"},
    lost_replies_are_repeated_blindly: {"I5"},
    a_repeated_interface_gets_a_new_token: {"I5", "tokens"},
    released_addresses_are_believed_back: {"I3", "I1"},
    two_pods_get_one_address: {"I2"},
    a_dead_daemons_calls_stay_open: {"I5"},
    the_bucket_has_no_bottom: {"I6"},
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: str(mistake.__name__))
def test_a_mistake_breaks_an_invariant(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    assert broken_until(MISTAKES[mistake]) & MISTAKES[mistake]
