"""The calls to Kinesis that read a stream; errors are those of the calls that write one."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ingest.delivery.kinesis.service import THROTTLES, KinesisService, ServiceError
from services.feed.kinesis.lineage import Listed

EXPIRED: Final = frozenset({"ExpiredIteratorException"})
BEYOND: Final = frozenset({"InvalidArgumentException"})
"""What is said of a sequence number that the stream does not keep any more."""

__all__ = ["BEYOND", "EXPIRED", "THROTTLES", "Got", "ReadingService", "ServiceError"]


class Got(msgspec.Struct, frozen=True):
    """What one GetRecords gave: (sequence number, data) in order, and where to go on: None at the end."""

    records: list[tuple[str, bytes]]
    iterator: str | None
    behind_ms: int


class ReadingService(KinesisService):
    """One stream, to read. `open` before use, `close` after."""

    async def shards(self) -> list[Listed]:
        """Return the shards that the stream keeps records of; raises `ServiceError`."""
        found: list[Listed] = []
        options: dict[str, Any] = {"StreamName": self._stream}
        while True:
            answer = await self._call("list_shards", **options)
            for each in answer["Shards"]:
                parents = (each.get("ParentShardId"), each.get("AdjacentParentShardId"))
                found.append(Listed(each["ShardId"], tuple(parent for parent in parents if parent)))
            if not answer.get("NextToken"):
                return found
            options = {"NextToken": answer["NextToken"]}

    async def iterator(self, shard_id: str, after: str) -> str:
        """Return an iterator behind a sequence number, or at the oldest record; raises `ServiceError`."""
        where: dict[str, Any] = {"ShardIteratorType": "TRIM_HORIZON"}
        if after:
            where = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": after}
        answer = await self._call("get_shard_iterator", StreamName=self._stream, ShardId=shard_id, **where)
        return str(answer["ShardIterator"])

    async def records(self, iterator: str, limit: int) -> Got:
        """Return up to `limit` records, together at most 10 MiB; raises `ServiceError`."""
        answer = await self._call("get_records", ShardIterator=iterator, Limit=limit)
        return Got(
            [(each["SequenceNumber"], each["Data"]) for each in answer["Records"]],
            answer.get("NextShardIterator"),
            int(answer.get("MillisBehindLatest") or 0),
        )
