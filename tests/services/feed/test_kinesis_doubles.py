"""The feed on Kinesis as others have written it: records, restarts, a split and a merge."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ingest.delivery.kinesis.shard_map import hash_of
from runtime.logs import make_log
from services.feed.kinesis.lineage import END
from services.feed.metrics import FeedMetrics
from services.feed.sources import opened
from services.settings import Feed
from tests.support.feeds import Consumer, Counted, aggregated, group, payload, running
from tests.support.kinesis_servers import STREAM, client_of, kinesis_local, make_stream, moto

DEVICES = [f"pump-{n}" for n in range(8)]


@contextlib.asynccontextmanager
async def feeding(port: int, consumer: Consumer, metrics: FeedMetrics) -> Any:
    settings = Feed(
        source="kinesis",
        stream=STREAM,
        region="eu-central-1",
        endpoint=f"http://127.0.0.1:{port}",
        poll_s=0.2,
    )
    async with opened(settings, metrics, make_log("error", "json")) as feed, running(feed, consumer):
        yield


def put(client: Any, number: int) -> None:
    """Put four records of each device, aggregated by device."""
    for position, device in enumerate(DEVICES):
        name = number * len(DEVICES) + position
        made = group(name, [payload(number * 4 + n) for n in range(4)], device=device)
        key, data = aggregated(made)
        client.put_record(StreamName=STREAM, PartitionKey=key, Data=data)


def wait_until_active(client: Any) -> None:
    client.get_waiter("stream_exists").wait(StreamName=STREAM, WaiterConfig={"Delay": 1, "MaxAttempts": 30})


def split(client: Any) -> None:
    shard = next(
        each
        for each in client.list_shards(StreamName=STREAM)["Shards"]
        if "EndingSequenceNumber" not in each["SequenceNumberRange"]
    )
    middle = sorted(hash_of(f"acme/{device}") for device in DEVICES)[len(DEVICES) // 2]
    client.split_shard(StreamName=STREAM, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(middle))
    wait_until_active(client)


def merge(client: Any) -> None:
    left, right = [
        each["ShardId"]
        for each in client.list_shards(StreamName=STREAM)["Shards"]
        if "EndingSequenceNumber" not in each["SequenceNumberRange"]
    ]
    client.merge_shards(StreamName=STREAM, ShardToMerge=left, AdjacentShardToMerge=right)
    wait_until_active(client)


@pytest.mark.parametrize(("double", "reshards"), [(moto, False), (kinesis_local, True)])
async def test_records_come_once_and_in_order_over_restarts_and_reshards(
    tmp_path: Path, double: Any, reshards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moto moves the records of a shard that is split, and never ends it, so it is not asked to."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    counted = Counted()
    with (
        double(tmp_path) as port,
        contextlib.closing(sqlite3.connect(tmp_path / "consumer.db", isolation_level=None)) as connection,
    ):
        client = client_of(port)
        consumer = Consumer(connection)
        await asyncio.to_thread(make_stream, client, 1 if reshards else 3)
        async with feeding(port, consumer, counted.metrics):
            await asyncio.to_thread(put, client, 0)
            await consumer.until(lambda: len(consumer.ids) == 32)
            if reshards:
                await asyncio.to_thread(split, client)
            await asyncio.to_thread(put, client, 1)
            await consumer.until(lambda: len(consumer.ids) == 64)
        await asyncio.to_thread(put, client, 2)
        if reshards:
            await asyncio.to_thread(merge, client)
        await asyncio.to_thread(put, client, 3)
        async with feeding(port, consumer, counted.metrics):
            await consumer.until(lambda: len(consumer.ids) == 128)
        ends = [checkpoint == END for checkpoint in consumer.progress.checkpoints().values()]
    assert len(set(consumer.ids)) == 128
    sequences: dict[str, list[int]] = {}
    for batch in consumer.batches:
        for record in batch.records:
            assert record.telemetry is not None
            sequences.setdefault(record.device, []).append(record.telemetry.seq or 0)
    assert sequences == {device: list(range(16)) for device in DEVICES}
    assert sorted(ends) == ([False, True, True, True] if reshards else [False] * 3)
    assert counted("malformed_total") == 0
