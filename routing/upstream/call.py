"""What the gateway asks of an upstream and what it gets: a call, a streamed answer, or an error."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from typing import Final, Protocol

import msgspec
from multidict import CIMultiDict, MultiMapping

from routing.gateway.routes_file import Retries


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request to an upstream.

    `target` is path and query, encoded, and begins with /. `idempotent` is for the caller to decide, by
    method or Idempotency-Key. `hash_key` is what `consistent_hash` is of, and the partition key for Kinesis.
    `timeout_s` is until the answer's head is here, all tries together, and then how long its body may be
    silent. Headers that belong to a connection are not passed in.
    """

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes = b""
    idempotent: bool
    hash_key: str = ""
    retries: Retries = Retries()
    timeout_s: float


class Reason(enum.Enum):
    """Why there is no answer, as problem details and metrics name it."""

    NO_ENDPOINT = "no-endpoint"
    BREAKER_OPEN = "breaker-open"
    OVERFLOW = "overflow"
    TIMEOUT = "timeout"
    CONNECT = "connect"
    RESET = "reset"
    NOT_FOUND = "not-found"
    THROTTLED = "throttled"
    BAD_ANSWER = "bad-answer"
    TOO_LARGE = "too-large"


STATUS: Final = {
    Reason.NO_ENDPOINT: 503,
    Reason.BREAKER_OPEN: 503,
    Reason.OVERFLOW: 503,
    Reason.TIMEOUT: 504,
    Reason.CONNECT: 502,
    Reason.RESET: 502,
    Reason.NOT_FOUND: 502,
    Reason.THROTTLED: 503,
    Reason.BAD_ANSWER: 502,
    Reason.TOO_LARGE: 413,
}
NEVER_SENT: Final = frozenset({Reason.CONNECT, Reason.THROTTLED})
"""Nothing was done, so that any call may be tried again."""
MAYBE_DONE: Final = frozenset({Reason.TIMEOUT, Reason.RESET})
"""The upstream may have done it, so that only idempotent calls may be tried again."""


class UpstreamError(Exception):
    """No answer, or half of one; the text names no address and no payload, so callers may be told."""

    def __init__(self, reason: Reason, detail: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.status = STATUS[reason]
        self.retry_after_s = retry_after_s


class Body(Protocol):
    """The body of an answer, read once."""

    def whole(self) -> bytes | None:
        """Return all of the body when it is here already."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield what is left of the body as it comes; raises `UpstreamError` when it breaks off."""

    def close(self) -> None:
        """Give up what is not read, and what the call holds."""


class Answer:
    """What an upstream said. The body is read by one of `read` and `chunks`, once."""

    __slots__ = ("_body", "attempts", "endpoint", "headers", "status")

    def __init__(self, *, status: int, headers: MultiMapping[str], endpoint: str, body: Body) -> None:
        self.status = status
        self.headers = headers
        self.endpoint = endpoint
        self.attempts = 1
        self._body = body

    async def read(self, bytes_max: int) -> bytes:
        """Return the whole body; raises `UpstreamError` when it breaks off or is longer than `bytes_max`."""
        whole = self._body.whole()
        if whole is not None and len(whole) <= bytes_max:
            return whole
        parts: list[bytes] = []
        size = 0
        async for chunk in self._body.chunks():
            size += len(chunk)
            if size > bytes_max:
                raise UpstreamError(Reason.BAD_ANSWER, f"the answer has more than {bytes_max} bytes")
            parts.append(chunk)
        return b"".join(parts)

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; raises `UpstreamError` when it breaks off."""
        return self._body.chunks()

    def close(self) -> None:
        """Give up what is not read. The connection is used again only if all was."""
        self._body.close()


class WholeBody:
    """A body that is here already."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def whole(self) -> bytes:
        """Return it."""
        return self._body

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield it."""
        if self._body:
            yield self._body

    def close(self) -> None:
        """Nothing is held."""
