"""A Kinesis that fails as the real one does: refusals, 500s, writes whose answer never comes, reshards.

It speaks the JSON protocol of PutRecords and ListShards, and keeps what it has taken, shard by shard, as a
consumer would see it: user records outside of their shard's hash range are dropped, as the KCL does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web
from aws_kinesis_agg.deaggregator import deaggregate_records

from ingest.delivery.kinesis.shard_map import hash_of
from tests.support.ledger import Arrived

HASHES = 1 << 128


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities of each fault, and after how many calls a reshard comes (0: never).

    A call with `poison` in any of its records is refused as a whole, for good.
    """

    refuse: float = 0.0
    fail: float = 0.0
    hang_after_write: float = 0.0
    hang_s: float = 0.0
    reshard_every: int = 0
    poison: bytes = b""


class _Shard:
    def __init__(self, number: int, first: int, last: int) -> None:
        self.shard_id = f"shardId-{number:012d}"
        self.first, self.last = first, last
        self.closed = False


class FaultKinesis:
    """Runs on the test's own loop; `async with` starts and stops it."""

    def __init__(self, *, shards: int, faults: Faults, seed: int = 0) -> None:
        step = HASHES // shards
        self.shards = [
            _Shard(n, n * step, HASHES - 1 if n == shards - 1 else (n + 1) * step - 1) for n in range(shards)
        ]
        self.faults = faults
        self.refusing: set[str] = set()
        """Shards that refuse whatever comes."""
        self.lists = True
        """Whether ListShards is answered."""
        self._random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.taken: list[tuple[_Shard, str, bytes]] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def faults_met(self) -> int:
        """How many kinds of fault have happened."""
        return sum(1 for kind in ("refused", "failed", "hung", "reshards") if self.counts[kind])

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=32 << 20)
        app.router.add_post("/", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        target = request.headers["X-Amz-Target"].rpartition(".")[2]
        body = json.loads(await request.read())
        self.counts[target] += 1
        if target == "ListShards":
            if not self.lists:
                return _json({"__type": "LimitExceededException", "message": "as asked"}, 400)
            return _json({"Shards": [_described(shard) for shard in self.shards]})
        assert target == "PutRecords", target
        if self._random.random() < self.faults.fail:
            self.counts["failed"] += 1
            return _json({"__type": "InternalFailure", "message": "as asked"}, 500)
        if not all(map(self._valid, body["Records"])):
            self.counts["invalid"] += 1
            return _json({"__type": "ValidationException", "message": "as the service has it"}, 400)
        results = [self._put(record) for record in body["Records"]]
        if self.faults.reshard_every and self.counts["PutRecords"] % self.faults.reshard_every == 0:
            self.reshard()
        if self._random.random() < self.faults.hang_after_write:
            self.counts["hung"] += 1
            await asyncio.sleep(self.faults.hang_s)
        failed = sum(1 for result in results if "ErrorCode" in result)
        return _json({"FailedRecordCount": failed, "Records": results})

    def _valid(self, record: dict[str, Any]) -> bool:
        """Return whether the service would look at a call with this record at all."""
        key, data = record["PartitionKey"], base64.b64decode(record["Data"], validate=True)
        poison = self.faults.poison
        return 1 <= len(key) <= 256 and len(key) + len(data) <= 1 << 20 and not (poison and poison in data)

    def _put(self, record: dict[str, Any]) -> dict[str, str]:
        if self._random.random() < self.faults.refuse:
            self.counts["refused"] += 1
            return {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "as asked"}
        hashed = hash_of(record["PartitionKey"])
        shard = next(s for s in self.shards if not s.closed and s.first <= hashed <= s.last)
        if shard.shard_id in self.refusing:
            self.counts["throttled"] += 1
            return {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "as asked"}
        self.taken.append((shard, record["PartitionKey"], base64.b64decode(record["Data"])))
        return {"ShardId": shard.shard_id, "SequenceNumber": str(len(self.taken))}

    def reshard(self) -> None:
        """Split the first open shard in two."""
        self.counts["reshards"] += 1
        shard = next(s for s in self.shards if not s.closed)
        shard.closed = True
        middle = (shard.first + shard.last) // 2
        number = len(self.shards)
        self.shards.append(_Shard(number, shard.first, middle))
        self.shards.append(_Shard(number + 1, middle + 1, shard.last))

    def records(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (partition key, envelope) of every user record that a consumer sees, in order."""
        seen = []
        for shard, key, data in self.taken:
            raw = {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "approximateArrivalTimestamp": 0,
                    "data": base64.b64encode(data).decode(),
                    "partitionKey": key,
                    "sequenceNumber": "1",
                }
            }
            for user in deaggregate_records([raw]):
                user_key = user["kinesis"]["partitionKey"]
                if shard.first <= hash_of(user_key) <= shard.last:
                    seen.append((user_key, json.loads(base64.b64decode(user["kinesis"]["data"]))))
        return seen

    def arrived(self) -> list[Arrived]:
        """Return what arrived, for the ledger."""
        return [
            (envelope["id"], envelope["device"], envelope["payload"]["seq"]) for _, envelope in self.records()
        ]


def _described(shard: _Shard) -> dict[str, Any]:
    numbers = {"StartingSequenceNumber": "1"}
    if shard.closed:
        numbers["EndingSequenceNumber"] = "2"
    return {
        "ShardId": shard.shard_id,
        "HashKeyRange": {"StartingHashKey": str(shard.first), "EndingHashKey": str(shard.last)},
        "SequenceNumberRange": numbers,
    }


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(body), status=status, content_type="application/x-amz-json-1.1")
