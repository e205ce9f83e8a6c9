"""One story: a seed decides the node, its settings, what happens to it, and when it dies.

A story is events, each followed by time and the lanes' work and by the check of every invariant; at its
end faults stop, time passes, and all must agree. Equal seeds give equal stories. How the parts are made
does not belong here.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.stories import agreement, events, scene, truths

TYPES: Final = {
    "t3.nano": 4,
    "t3.small": 5,
    "t3.medium": 4,
    "m5.large": 4,
    "m4.large": 1,
    "g4dn.8xlarge": 1,
}
"""How often each. 2 interfaces of 1 secondary address, 3 of 3, 3 of 5, 3 of 9; 2 of 9 without prefixes, as it
is no Nitro; 4 of 14, which may be EFAs."""
STEPS: Final = (10, 32)
AN_HOUR_S: Final = 3_700
"""After so long EC2 is looked at in any case."""


class Story(events.Events):
    """Everything of one story. `told` are its events so far, for whoever reads of its failure."""

    def __init__(self, seed: int, folder: Path, *, aloud: bool = False) -> None:
        rng = random.Random(f"node {seed}")
        super().__init__(
            seed,
            folder,
            instance_type=rng.choices([*TYPES], [*TYPES.values()])[0],
            settings=events.settings(rng),
            delay=rng.choice((0, 1.5, 8)),
        )
        self.aloud = aloud
        self.runtime.forgetful = rng.choice((0, 0, 0.5))
        self.intrusive = rng.choice((0, 0.05, 0.2))
        self.counts: dict[str, int] = {}
        self._intruding = False

    def _happened(self) -> dict[str, int]:
        """How much of what there was in this story."""
        rows = self.ec2.journal.rows(who=self.ec2.node)
        return {
            "stories": 1,
            "events": len(self.told),
            "deaths": self.machine.crashes,
            "EC2 calls": len(rows),
            "lost replies": sum(row.lost for row in rows),
            "refused EC2 calls": sum(row.outcome != "ok" for row in rows),
            "pods served": len(self.machine.rows("SELECT id FROM v_leases WHERE address <> ''")),
            "refused pods": len(self.runtime.refusals),
        }

    # ------------------------------------------------------------------ telling

    def tell(self) -> None:
        """All of it. Broken if an invariant does not hold; any other exception is a bug as well."""
        with self.opened():
            self.say(events.briefly(self.machine.settings))
            self.start()
            self.check()
            for _ in range(self.rng.randint(*STEPS)):
                self._step(self._event())
            self.say("faults stop")
            self._calm()
            if self.machine.running and self.rng.random() < 0.3:
                self.machine.fuse = self.rng.randrange(40)
            if self.news:
                self.pass_(AN_HOUR_S)
            self.settle()
            self._starts_anew()
            truths.budget_kept(self.machine, slack=self.machine.crashes + 24 * self.jumps)
            self.counts = self._happened()

    def _step(self, event: Callable[[], str]) -> None:
        self.say(event())
        self.work()
        self.check()
        self.pass_(self.rng.choice((0, 0.2, 1, 5, 20, 61)))
        if self.rng.random() < 0.7:
            self.start()
        self.runtime.reconcile()
        self.work()
        self.check()

    def _starts_anew(self) -> None:
        """I7, at rest: a daemon that dies and starts leaves all as it was."""
        before, made = agreement.state(self.machine), len(self.calls())
        self.kill()
        self.start()
        self.pass_(1)
        changes = [call for call in self.calls()[made:] if not call.startswith("Describe")]
        agreement.unchanged(before, agreement.state(self.machine), changes)

    def _calm(self) -> None:
        self._end_faults()
        self.cloud.api_lag = self.cloud.imds_lag = 0
        self.intrusive, self.machine.fuse, self.runtime.forgetful = 0, None, 0
        now = self.machine.settings
        if now.freeze != "none" or now.no_provisioning:
            self.kill()
            self._set(dataclasses.replace(now, freeze="none", no_provisioning=False))

    def _event(self) -> Callable[[], str]:
        name = self.rng.choices([*events.EVENTS], [*events.EVENTS.values()])[0]
        event: Callable[[], str] = getattr(self, name)
        return event

    # ------------------------------------------------------------------ particulars

    def arrives(self, action: str, params: dict[str, Any]) -> None:
        """Watched, and perhaps with a pod that comes or goes meanwhile."""
        super().arrives(action, params)
        self._intrude()

    def leaves(self, action: str) -> None:
        """Likewise."""
        self._intrude()
        super().leaves(action)

    def _intrude(self) -> None:
        """A pod comes or goes while a call is under way."""
        if self._intruding or self.rng.random() >= self.intrusive:
            return
        self._intruding = True
        try:
            if self.rng.random() < 0.5:
                self.runtime.want(1)
            else:
                self.runtime.drop(1)
        finally:
            self._intruding = False


def tell(seed: int) -> dict[str, int]:
    """What happened in the story of this seed, told to its end in a folder of its own."""
    with scene.folder() as folder:
        story = Story(seed, folder)
        try:
            story.tell()
        except Exception as error:
            error.add_note("\n".join(story.told))
            raise
        return story.counts
