"""What WebSockets ask of services, asked through the upstreams and with a passport like any request."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from multidict import CIMultiDict

from routing.gateway.backend import BackendCall, BackendDown, Reply
from routing.gateway.passport import HEADER, Passports
from routing.gateway.routes_file import Retries
from routing.upstream.call import Answer, Call, UpstreamError
from routing.upstream.upstreams import Upstreams

ONCE: Final = Retries(attempts_max=1, try_timeout_s=3600.0)
AGAIN: Final = Retries(try_timeout_s=3600.0)


class _Read:
    """An answer whose reading raises nothing but `BackendDown`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._answer.headers

    async def read(self, bytes_max: int) -> bytes:
        try:
            return await self._answer.read(bytes_max)
        except UpstreamError as error:
            raise BackendDown(str(error), status=error.status) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer.chunks():
                yield chunk
        except UpstreamError as error:
            raise BackendDown(str(error), status=error.status) from error


class UpstreamBackend:
    """A `Backend` of the gateway's upstreams; only what is idempotent is tried twice."""

    def __init__(self, upstreams: Upstreams, passports: Passports, *, unix_s: Callable[[], float]) -> None:
        self._upstreams = upstreams
        self._passports = passports
        self._unix_s = unix_s

    @contextlib.asynccontextmanager
    async def call(self, call: BackendCall) -> AsyncIterator[Reply]:
        """Return the answer of an upstream; raises `BackendDown`."""
        headers = CIMultiDict(call.headers)
        headers[HEADER] = self._passports.issue(call.principal, call.upstream, self._unix_s())
        asked = Call(
            method=call.method,
            target=call.target,
            headers=headers,
            body=call.body,
            idempotent=call.idempotent,
            retries=AGAIN if call.idempotent else ONCE,
            timeout_s=call.timeout_s,
        )
        try:
            async with self._upstreams.call(call.upstream, asked) as answer:
                yield _Read(answer)
        except UpstreamError as error:
            raise BackendDown(str(error), status=error.status) from error
