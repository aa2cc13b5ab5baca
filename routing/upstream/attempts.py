"""Tries a call until an answer is good, or until attempts, deadline or budget end: retries and hedges.

What may be tried again: an idempotent call, after a time-out, a reset or one of `retries.statuses`; any call
when nothing was sent or the upstream says that it did nothing. The last bad answer is passed on as it is. No
try begins after the deadline of the call, and each ends with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from routing.balancing.policy import Random
from routing.resilience.backoff import full_jitter_s
from routing.resilience.budget import Budget
from routing.upstream.call import MAYBE_DONE, NEVER_SENT, Answer, Call, Reason, UpstreamError
from routing.upstream.events import Again, UpstreamEvents
from runtime import clock

Attempt = Callable[[Call, float, list[Any]], Awaitable[Answer]]
"""Makes one try within so many seconds and adds whom it asked to the list; raises `UpstreamError`."""


class Attempts:
    """The driver between a call and the tries of it, for one upstream."""

    def __init__(
        self, upstream: str, attempt: Attempt, *, budget: Budget, events: UpstreamEvents, random: Random
    ) -> None:
        self._upstream = upstream
        self._attempt = attempt
        self._budget = budget
        self._events = events
        self._random = random

    async def run(self, call: Call) -> Answer:
        """Return the answer, which the caller closes; raises `UpstreamError`."""
        now_s = clock.monotonic_s()
        deadline_s = now_s + call.timeout_s
        self._budget.asked(now_s)
        asked: list[Any] = []
        made = 0
        while True:
            outcome, tries = await self._round(call, asked, deadline_s, made)
            made += tries
            pause_s = self._pause_s(call, outcome, made, deadline_s)
            if pause_s is None:
                if isinstance(outcome, UpstreamError):
                    raise outcome
                outcome.attempts = made
                return outcome
            if isinstance(outcome, Answer):
                outcome.close()
            self._events.tried_again(self._upstream, Again.RETRY)
            await asyncio.sleep(pause_s)

    def _pause_s(
        self, call: Call, outcome: Answer | UpstreamError, made: int, deadline_s: float
    ) -> float | None:
        """Return how long to wait before the next try, or None when `outcome` is final."""
        if not may_retry(call, outcome) or made >= call.retries.attempts_max:
            return None
        terms = call.retries
        pause_s = full_jitter_s(
            made, base_s=terms.backoff_base_s, cap_s=terms.backoff_max_s, random=self._random
        )
        now_s = clock.monotonic_s()
        if now_s + pause_s >= deadline_s:
            return None
        if not self._budget.take(now_s):
            self._events.over_budget(self._upstream)
            return None
        return pause_s

    async def _round(
        self, call: Call, asked: list[Any], deadline_s: float, made: int
    ) -> tuple[Answer | UpstreamError, int]:
        """Make one try, or two where the first is slow and hedged; return the better and their number."""
        if not (call.retries.hedge_after_s and call.idempotent and made + 1 < call.retries.attempts_max):
            return await self._once(call, asked, deadline_s), 1
        tasks: list[asyncio.Task[Answer | UpstreamError]] = []
        best: Answer | UpstreamError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks.append(group.create_task(self._once(call, asked, deadline_s)))
                await asyncio.wait(tasks, timeout=call.retries.hedge_after_s)
                if not tasks[0].done() and self._may_hedge(deadline_s):
                    tasks.append(group.create_task(self._once(call, asked, deadline_s)))
                good = await _first_good(call, tasks)
                for task in tasks:
                    task.cancel()
            best = good  # only now, since a cancellation until here gives up every answer
        finally:
            for task in tasks:
                if task.done() and not task.cancelled() and task.exception() is None:
                    outcome = task.result()
                    if outcome is not best and isinstance(outcome, Answer):
                        outcome.close()
        assert best is not None
        return best, len(tasks)

    def _may_hedge(self, deadline_s: float) -> bool:
        now_s = clock.monotonic_s()
        if now_s >= deadline_s:
            return False
        if not self._budget.take(now_s):
            self._events.over_budget(self._upstream)
            return False
        self._events.tried_again(self._upstream, Again.HEDGE)
        return True

    async def _once(self, call: Call, asked: list[Any], deadline_s: float) -> Answer | UpstreamError:
        left_s = deadline_s - clock.monotonic_s()
        if left_s <= 0:
            return UpstreamError(Reason.TIMEOUT, f"no answer in {call.timeout_s:g} s")
        # Who may not be tried again is given all the time that there is.
        again = call.idempotent and call.retries.attempts_max > 1
        try:
            return await self._attempt(
                call, min(left_s, call.retries.try_timeout_s) if again else left_s, asked
            )
        except UpstreamError as error:
            return error


def may_retry(call: Call, outcome: Answer | UpstreamError) -> bool:
    """Return whether the same call may be made again after `outcome`."""
    if isinstance(outcome, Answer):
        return call.idempotent and outcome.status in call.retries.statuses
    return outcome.reason in NEVER_SENT or (call.idempotent and outcome.reason in MAYBE_DONE)


async def _first_good(
    call: Call, tasks: list[asyncio.Task[Answer | UpstreamError]]
) -> Answer | UpstreamError:
    """Return the first outcome that needs no retry, or else the last one."""
    pending = set(tasks)
    outcome: Answer | UpstreamError | None = None
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            outcome = task.result()
            if not may_retry(call, outcome):
                return outcome
    assert outcome is not None
    return outcome
