"""The calls to Kinesis, through aiobotocore with its own retries off.

The only module that knows botocore. Every call has a deadline and a fresh signature. The body of a PutRecords
is made here, since botocore's serializer takes several times as long for the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any, Final

import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from ingest.delivery.kinesis.shard_map import Shard

THROTTLES: Final = frozenset(
    {"ProvisionedThroughputExceededException", "LimitExceededException", "ThrottlingException", "Throttling"}
)
NEVER: Final = frozenset({"ValidationException", "InvalidArgumentException", "SerializationException"})


class ServiceError(Exception):
    """A call failed. `retriable` is False when the same call can never succeed."""

    def __init__(self, code: str, text: str, *, retriable: bool) -> None:
        super().__init__(f"{code}: {text}"[:500])
        self.code = code
        self.retriable = retriable


class Entry(msgspec.Struct, frozen=True, rename={"partition_key": "PartitionKey", "data": "Data"}):
    """One Kinesis record to put, with the names that it has on the wire, where data is base64."""

    partition_key: str
    data: bytes


class Result(msgspec.Struct, frozen=True):
    """What became of an entry: the shard it is in, or the error code it was refused with."""

    shard_id: str | None
    error: str | None


class _PutRecords(msgspec.Struct, frozen=True, rename="pascal"):
    stream_name: str
    records: Sequence[Entry]


_BODY: ContextVar[bytes] = ContextVar("body")
"""Of the PutRecords that this task calls."""


class KinesisService:
    """One stream. `open` before use, `close` after."""

    def __init__(
        self, *, stream: str, region: str, endpoint: str | None, deadline_s: float, connections_max: int
    ) -> None:
        self._stream = stream
        self._region = region
        self._endpoint = endpoint
        self._deadline_s = deadline_s
        self._connections_max = connections_max
        self._stack = AsyncExitStack()
        self._client: Any = None

    async def open(self) -> None:
        """Make the client; credentials come from the environment, as in every AWS SDK."""
        config = AioConfig(
            retries={"total_max_attempts": 1},
            max_pool_connections=self._connections_max + 1,
            connect_timeout=self._deadline_s,
            read_timeout=self._deadline_s,
            parameter_validation=False,
        )
        self._client = await self._stack.enter_async_context(
            get_session().create_client(
                "kinesis", region_name=self._region, endpoint_url=self._endpoint, config=config
            )
        )
        self._client.meta.events.register("before-call.kinesis.PutRecords", _put_body)

    async def close(self) -> None:
        """Close the connections."""
        await self._stack.aclose()

    async def put_records(self, entries: Sequence[Entry]) -> list[Result]:
        """Put up to 500 entries of together up to 5 MiB; raises `ServiceError` when the call fails."""
        _BODY.set(msgspec.json.encode(_PutRecords(self._stream, entries)))
        answer = await self._call("put_records", StreamName=self._stream, Records=())
        return [Result(each.get("ShardId"), each.get("ErrorCode")) for each in answer["Records"]]

    async def list_shards(self) -> list[Shard]:
        """Return the shards of the stream, closed ones too; raises `ServiceError`."""
        shards: list[Shard] = []
        options: dict[str, Any] = {"StreamName": self._stream}
        while True:
            answer = await self._call("list_shards", **options)
            for each in answer["Shards"]:
                hashes, numbers = each["HashKeyRange"], each["SequenceNumberRange"]
                shards.append(
                    Shard(
                        each["ShardId"],
                        int(hashes["StartingHashKey"]),
                        int(hashes["EndingHashKey"]),
                        "EndingSequenceNumber" in numbers,
                    )
                )
            if not answer.get("NextToken"):
                return shards
            options = {"NextToken": answer["NextToken"]}

    async def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await getattr(self._client, operation)(**arguments)
        except TimeoutError as error:
            raise ServiceError("Timeout", f"no answer in {self._deadline_s} s", retriable=True) from error
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "Unknown"))
            text = str(error.response.get("Error", {}).get("Message", ""))
            raise ServiceError(code, text, retriable=code not in NEVER) from error
        except NoCredentialsError as error:
            raise ServiceError("NoCredentials", "set AWS credentials", retriable=True) from error
        except (BotoCoreError, OSError) as error:
            raise ServiceError(type(error).__name__, str(error), retriable=True) from error


def _put_body(params: dict[str, Any], **_: Any) -> None:
    """Put the body of a PutRecords in the place of botocore's, before it is signed."""
    params["body"] = _BODY.get()
