"""Calls to AWS services, through aiobotocore with its own retries off. Every call has a deadline."""

from __future__ import annotations

import asyncio
import enum
from contextlib import AsyncExitStack
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
)

THROTTLES: Final = frozenset(
    {
        "EC2ThrottledException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
MISSING: Final = frozenset({"NamespaceNotFound", "ResourceNotFoundException", "ServiceNotFound"})
TOO_LARGE: Final = frozenset({"RequestEntityTooLargeException", "RequestTooLargeException"})


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
        self._client: Any = None

    async def open(self) -> None:
        """Make the client, which takes a moment of the event loop; `call` does so too where it must."""
        async with self._opening:
            if self._client is not None:
                return
            config = AioConfig(
                retries={"total_max_attempts": 1},
                max_pool_connections=self._connections_max,
                connect_timeout=5,
                read_timeout=3600,  # the deadline of the call comes first
                parameter_validation=False,
                inject_host_prefix=not self._endpoint,  # `data-` has no place before an address of ours
            )
            self._client = await self._stack.enter_async_context(
                get_session().create_client(
                    self._service,
                    region_name=self._region,
                    endpoint_url=self._endpoint or None,
                    config=config,
                )
            )

    async def call(self, operation: str, *, deadline_s: float, **arguments: Any) -> dict[str, Any]:
        """Call `operation` and return its answer, with a streamed `Payload` read; raises `AwsError`."""
        try:
            async with asyncio.timeout(deadline_s):
                await self.open()
                answer = await getattr(self._client, operation)(**arguments)
                if hasattr(answer.get("Payload"), "read"):
                    async with answer["Payload"] as stream:
                        answer["Payload"] = await stream.read()
                return dict(answer)
        except TimeoutError as error:
            raise AwsError(Failure.TIMEOUT, f"no answer in {deadline_s:.3g} s") from error
        except ClientError as error:
            raise _refusal(error) from error
        except (EndpointConnectionError, ConnectTimeoutError, NoCredentialsError) as error:
            raise AwsError(Failure.CONNECT, type(error).__name__) from error
        except (BotoCoreError, OSError) as error:
            raise AwsError(Failure.SERVICE, type(error).__name__) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._stack.aclose()
        self._client = None


def _refusal(error: ClientError) -> AwsError:
    code = str(error.response.get("Error", {}).get("Code", "Unknown"))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in THROTTLES or status == 429:
        return AwsError(Failure.THROTTLED, code)
    if code in MISSING:
        return AwsError(Failure.MISSING, code)
    if code in TOO_LARGE or status == 413:
        return AwsError(Failure.TOO_LARGE, code)
    return AwsError(Failure.SERVICE if status >= 500 else Failure.REFUSED, code)
