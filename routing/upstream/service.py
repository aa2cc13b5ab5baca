"""An upstream that is an AWS service: the same retries, budget and breaker as for servers, and one client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from routing.aws import AwsClient, AwsError, Failure
from routing.balancing.policy import Random
from routing.gateway.routes_file import Upstream
from routing.resilience.breaker import State
from routing.upstream.attempts import Attempts
from routing.upstream.call import Answer, Call, Reason, UpstreamError
from routing.upstream.events import UpstreamEvents
from routing.upstream.terms import breaker_of, budget_of
from runtime import clock

Ask = Callable[[AwsClient, Call, float], Awaitable[Answer]]
"""Makes one call to the service within so many seconds; raises `AwsError` and `UpstreamError`."""
REASONS: Final = {
    Failure.CONNECT: Reason.CONNECT,
    Failure.TIMEOUT: Reason.TIMEOUT,
    Failure.THROTTLED: Reason.THROTTLED,
    Failure.MISSING: Reason.NOT_FOUND,
    Failure.TOO_LARGE: Reason.TOO_LARGE,
    Failure.SERVICE: Reason.RESET,
    Failure.REFUSED: Reason.BAD_ANSWER,
}
TROUBLE: Final = frozenset({Failure.CONNECT, Failure.TIMEOUT, Failure.SERVICE})
"""What counts for the breaker: the service is ill. Who is throttled is told to come later, not cut off."""


class Service:
    """The driver of one Lambda function or Kinesis stream."""

    def __init__(
        self,
        name: str,
        terms: Upstream,
        client: AwsClient,
        ask: Ask,
        *,
        events: UpstreamEvents,
        random: Random,
    ) -> None:
        self._name = name
        self._kind = terms.kind
        self._client = client
        self._ask = ask
        self._events = events
        self._breaker = breaker_of(terms.breaker)
        self._attempts = Attempts(
            name,
            self._attempt,
            budget=budget_of(terms, clock.monotonic_s()),
            events=events,
            random=random,
        )

    async def call(self, call: Call) -> Answer:
        """Return the answer; raises `UpstreamError`."""
        return await self._attempts.run(call)

    async def _attempt(self, call: Call, timeout_s: float, asked: list[Any]) -> Answer:
        del asked
        now_s = clock.monotonic_s()
        if not self._breaker.allows(now_s):
            wait_s = max(1.0, self._breaker.due_s(now_s))
            raise UpstreamError(Reason.BREAKER_OPEN, "the upstream failed too often", retry_after_s=wait_s)
        probe = self._breaker.state is State.HALF_OPEN
        try:
            answer = await self._ask(self._client, call, timeout_s)
        except AwsError as error:
            reason = REASONS[error.failure]
            if error.failure in TROUBLE:
                self._breaker.failed(clock.monotonic_s())
            else:
                self._breaker.succeeded()
            self._events.tried(self._name, reason)
            wait_s = 1.0 if reason is Reason.THROTTLED else 0.0
            raise UpstreamError(reason, f"the upstream: {error}", retry_after_s=wait_s) from error
        except UpstreamError as error:
            self._breaker.succeeded()  # the service works, what it runs does not
            self._events.tried(self._name, error.reason)
            raise
        except BaseException:
            if probe:
                self._breaker.failed(clock.monotonic_s())  # else nobody would ever probe again
            raise
        self._breaker.succeeded()
        self._events.tried(self._name, None)
        return answer

    async def run(self) -> None:
        """Make the client before the first call needs it."""
        await self._client.open()

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to see."""
        return {"kind": self._kind, "breaker": self._breaker.state.value, "endpoints": []}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
