"""Calls to AWS services: what they are, and a client that loads what makes them when there is a first one."""

from __future__ import annotations

import asyncio
import enum
import importlib
from contextlib import AsyncExitStack
from typing import Any, Final

SDK: Final = "routing.aws_sdk"
"""What calls AWS, which takes a second to load."""


class Failure(enum.Enum):
    """Why a call failed, as far as it matters for what is done next."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    THROTTLED = "throttled"
    MISSING = "missing"
    TOO_LARGE = "too_large"
    SERVICE = "service"
    REFUSED = "refused"


class AwsError(Exception):
    """A call failed; the text is of the service and the code alone, so that callers may be told."""

    def __init__(self, failure: Failure, code: str) -> None:
        super().__init__(code[:200])
        self.failure = failure
        self.code = code


class AwsClient:
    """One service in one region. Credentials come from the environment, as in every AWS SDK."""

    def __init__(self, service: str, *, region: str, endpoint: str, connections_max: int) -> None:
        self._service = service
        self._region = region
        self._endpoint = endpoint
        self._connections_max = connections_max
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._sdk: Any = None
        self._client: Any = None

    async def open(self) -> None:
        """Make the client, which takes a moment of the event loop; `call` does so too where it must."""
        async with self._opening:
            if self._client is not None:
                return
            self._sdk = await asyncio.to_thread(importlib.import_module, SDK)
            opened = self._sdk.opened(
                self._service,
                region=self._region,
                endpoint=self._endpoint,
                connections_max=self._connections_max,
            )
            self._client = await self._stack.enter_async_context(opened)

    async def call(self, operation: str, *, deadline_s: float, **arguments: Any) -> dict[str, Any]:
        """Call `operation` and return its answer, with a streamed `Payload` read; raises `AwsError`."""
        try:
            async with asyncio.timeout(deadline_s):
                await self.open()
                answer: dict[str, Any] = await self._sdk.called(self._client, operation, arguments)
                return answer
        except TimeoutError as error:
            raise AwsError(Failure.TIMEOUT, f"no answer in {deadline_s:.3g} s") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._stack.aclose()
        self._client = None
