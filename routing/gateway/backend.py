"""What WebSockets ask of upstream services; `app` makes it of the upstreams and the passport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from routing.tenancy.principal import Principal


class BackendDown(Exception):
    """There is no usable answer; `status` is what an HTTP caller would hear (502, 503, 504)."""

    def __init__(self, why: str, *, status: int = 502) -> None:
        super().__init__(why)
        self.status = status


class BackendCall(msgspec.Struct, frozen=True, kw_only=True):
    """One request to an upstream, on behalf of `principal`, for whom the passport is made out.

    `timeout_s` is for all of the answer. Only an `idempotent` one may be tried twice.
    """

    upstream: str
    method: str
    target: str
    principal: Principal
    timeout_s: float
    body: bytes = b""
    headers: dict[str, str] = {}
    idempotent: bool = False


class Reply(Protocol):
    """An answer whose head has come; reading it raises nothing but `BackendDown`."""

    @property
    def status(self) -> int:
        """Return the status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers."""

    async def read(self, bytes_max: int) -> bytes:
        """Return the body; raises `BackendDown` when it is longer than `bytes_max`."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes."""


class Backend(Protocol):
    """Who calls upstream services; entering what `call` returns raises nothing but `BackendDown`."""

    def call(self, call: BackendCall) -> AbstractAsyncContextManager[Reply]:
        """Return the answer, which is let go of at the end of the `async with`."""
