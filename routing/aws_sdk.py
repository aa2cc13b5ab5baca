"""Calls to AWS services through aiobotocore, with its own retries off; `routing.aws` loads it when needed."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiohttp import ClientPayloadError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
)
from botocore.parsers import ResponseParserError

from routing.aws import AwsError, Failure

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

UNREADABLE: Final = (ResponseParserError, ClientPayloadError, AttributeError, KeyError, TypeError, ValueError)
"""An answer that is cut short or makes no sense, on which botocore's parsers fail in ways of their own."""


def opened(
    service: str, *, region: str, endpoint: str, connections_max: int
) -> AbstractAsyncContextManager[Any]:
    """Return a client of a service to enter."""
    config = AioConfig(
        retries={"total_max_attempts": 1},
        max_pool_connections=connections_max,
        connect_timeout=5,
        read_timeout=3600,  # the deadline of the call comes first
        parameter_validation=False,
        inject_host_prefix=not endpoint,  # `data-` has no place before an address of ours
    )
    made: AbstractAsyncContextManager[Any] = get_session().create_client(
        service, region_name=region, endpoint_url=endpoint or None, config=config
    )
    return made


async def called(client: Any, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call an operation and return its answer; raises `AwsError`, and `TimeoutError` of its caller.

    What is in the answer is as the service made it: who reads it looks whether it is there.
    """
    try:
        answer = await getattr(client, operation)(**arguments)
        if hasattr(answer.get("Payload"), "read"):
            async with answer["Payload"] as stream:
                answer["Payload"] = await stream.read()
        return dict(answer)
    except TimeoutError:
        raise
    except UNREADABLE as error:
        raise AwsError(Failure.SERVICE, "UnreadableAnswer") from error
    except ClientError as error:
        raise _refusal(error) from error
    except (EndpointConnectionError, ConnectTimeoutError, NoCredentialsError) as error:
        raise AwsError(Failure.CONNECT, type(error).__name__) from error
    except (BotoCoreError, OSError) as error:
        raise AwsError(Failure.SERVICE, type(error).__name__) from error


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
