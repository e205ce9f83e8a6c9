"""Where every EC2 call enters the lab, whichever mount it came through.

Signature -> who; request -> params; throttle; faults; the cloud; reply; journal. The order is
EC2's as far as a caller can tell: what cannot be read is not throttled, what is throttled is not
done. What a call means does not belong here.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from tests.lab import accounting, buckets, faults, wire
from tests.lab.cloud import Cloud
from tests.lab.errors import ApiError
from tests.lab.reply import Reply


@dataclass(slots=True)
class _Call:
    """What is known so far about one call."""

    at: float
    who: str
    action: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    cause: str = "request"
    lost: bool = False


class FrontDoor:
    """One cloud with its journal, buckets and faults. Safe to call from many threads.

    `throttle` scales the published buckets (None: off). `settled` is called after every call,
    without the lock: a call may have set the cloud's timers.
    """

    def __init__(self, cloud: Cloud, *, throttle: float | None = 1.0, seed: int = 0) -> None:
        self.cloud = cloud
        self.journal = accounting.Journal()
        self.buckets = buckets.Buckets(throttle)
        self.faults = faults.Faults(seed)
        self.settled: Callable[[], None] = lambda: None
        self._wire = wire.ec2()
        self._request_ids = random.Random(f"request ids {seed}")

    def answer(self, form: str, authorization: str | None) -> Reply | None:
        """Answer a form-encoded EC2 query; None means that the reply is lost.

        EC2's refusals are replies. Whatever else is raised is a bug in the lab.
        """
        who = accounting.who_signed(authorization)
        call = _Call(self.cloud.clock.now(), who or "nobody")
        try:
            self._read(call, form, signed=who is not None)
            self._meet_faults(call)
            with self.cloud.lock:
                body = self._carry_out(call)
                reply = self._end(call, "ok", 200, body)
        except ApiError as error:
            with self.cloud.lock:
                request_id = self._request_id()
                body = wire.error(error.code, error.message, request_id)
                reply = self._end(call, error.code, error.status, body)
        self.settled()
        return reply

    def _read(self, call: _Call, form: str, *, signed: bool) -> None:
        call.action = parse_qs(form).get("Action", [""])[0]
        if not signed:
            # What an unsigned query got when it was last seen in public; not verified.
            raise ApiError(
                "MissingParameter", "The request must contain the parameter AWSAccessKeyId"
            )
        call.params = self._wire.parse(form).params

    def _meet_faults(self, call: _Call) -> None:
        with self.cloud.lock:
            if not self.buckets.take(call.action, call.params, call.at):
                call.cause = "throttle"
                raise ApiError("RequestLimitExceeded", "Request limit exceeded.", 503)
            fault = self.faults.meet(call.action, call.who)
        call.lost = fault.drop
        if fault.delay:
            self.cloud.clock.sleep(fault.delay)
        if fault.error is not None:
            call.cause = "fault"
            raise fault.error
        call.cause = "cloud"

    def _carry_out(self, call: _Call) -> bytes:
        # Rendered under the lock: a result may be the cloud's own state.
        self.cloud.run_due()
        result = self.cloud.call(call.action, call.params, call.who)
        return self._wire.render(call.action, result, self._request_id())

    def _end(self, call: _Call, outcome: str, status: int, body: bytes) -> Reply | None:
        self.journal.add(
            accounting.Row(
                call.at, call.who, call.action, outcome, call.cause, call.lost, call.params
            )
        )
        if call.lost:
            return None
        return Reply(status, body, {"Content-Type": "text/xml;charset=UTF-8"})

    def _request_id(self) -> str:
        return str(uuid.UUID(int=self._request_ids.getrandbits(128), version=4))
