"""From a stored group to the body of a PutRecords: envelopes, aggregation, and the AWS client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
import uvloop
from aiobotocore.awsrequest import AioAWSResponse

from bench import corpus
from ingest.delivery.envelope import envelopes
from ingest.delivery.kinesis.aggregation import aggregate
from ingest.delivery.kinesis.service import Entry, KinesisService, Result
from ingest.delivery.kinesis.shard_map import Shard
from ingest.delivery.kinesis.sink import KinesisSink
from ingest.limits import KinesisLimits
from ingest.records import Encoding, Group

RECORDS = 100
GROUPS = pytest.mark.parametrize(
    "group",
    [corpus.group(1, RECORDS), corpus.group(RECORDS, 1)],
    ids=["100 records of a device", "1 record of 100 devices"],
)
SHARD = "shardId-000000000000"


def parts_of(group: Group) -> list[tuple[str, list[bytes]]]:
    return [(f"{run.tenant}/{run.device}", made) for run, _, made in envelopes(group)]


@GROUPS
def test_envelopes(benchmark: Any, group: Group) -> None:
    assert sum(len(each) for _, each in benchmark(parts_of, group)) == RECORDS


@pytest.mark.parametrize(
    "group",
    [
        corpus.group(1, 1, Encoding.JSON_LIST),
        corpus.group(1, RECORDS, Encoding.MSGPACK),
        corpus.group(1, 1, Encoding.MSGPACK_LIST),
    ],
    ids=["a JSON list of 100", "100 MessagePack records", "a MessagePack list of 100"],
)
def test_envelopes_of_what_must_be_taken_apart(benchmark: Any, group: Group) -> None:
    assert sum(len(each) for _, each in benchmark(parts_of, group)) == RECORDS


@GROUPS
def test_aggregate(benchmark: Any, group: Group) -> None:
    assert len(benchmark(aggregate, parts_of(group))) > 200 * RECORDS


class EveryShard:
    """A Kinesis of one shard that takes everything."""

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def list_shards(self) -> list[Shard]:
        return [Shard(SHARD, 0, (1 << 128) - 1, closed=False)]

    async def put_records(self, entries: Sequence[Entry]) -> list[Result]:
        return [Result(SHARD, None) for _ in entries]


class Unheard:
    """Events that nobody reads."""

    def sink_called(self, result: str, refused: int = 0) -> None:
        del result, refused

    def sink_trouble(self, event: str, detail: str) -> None:
        del event, detail


@GROUPS
def test_put(benchmark: Any, group: Group) -> None:
    """Through the sink: routed, aggregated, put and settled, without the call itself."""
    loop = uvloop.new_event_loop()
    settled = asyncio.Event()
    sink = KinesisSink(
        EveryShard(),
        settled=lambda _number, _poison: settled.set(),
        events=Unheard(),
        limits=KinesisLimits(
            pending_bytes_max=1 << 30,
            record_bytes_max=256 * 1024,
            concurrency_max=8,
            call_deadline_s=5.0,
            shard_bytes_per_s=1 << 40,
            shard_records_per_s=1 << 40,
            linger_s=0.0,
            map_age_max_s=60.0,
            old_map_retry_s=10.0,
            map_retry_s=1.0,
        ),
        random=lambda: 0.5,
    )

    async def put() -> None:
        settled.clear()
        await sink.put(group)
        await settled.wait()

    running = loop.create_task(sink.run())
    benchmark(lambda: loop.run_until_complete(put()))
    running.cancel()
    loop.run_until_complete(asyncio.gather(running, return_exceptions=True))
    loop.close()


class Answered:
    """The body of an answer that has arrived."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self) -> bytes:
        return self._body


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[uvloop.Loop, KinesisService]]:
    """Give the service as it is, but for the socket: botocore asks here before it sends."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "bench")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "bench")
    loop = uvloop.new_event_loop()
    service = KinesisService(
        stream="bench", region="eu-central-1", endpoint=None, deadline_s=10, connections_max=8
    )
    loop.run_until_complete(service.open())
    service._client.meta.events.register("before-send.kinesis.PutRecords", answer)
    yield loop, service
    loop.run_until_complete(service.close())
    loop.close()


def answer(request: Any, **_: Any) -> AioAWSResponse:
    records = [{"ShardId": SHARD, "SequenceNumber": "1"}] * request.body.count(b"PartitionKey")
    body = msgspec.json.encode({"FailedRecordCount": 0, "Records": records})
    return AioAWSResponse(request.url, 200, {"content-type": "application/x-amz-json-1.1"}, Answered(body))


@pytest.mark.parametrize(
    ("records", "messages"),
    [(500, 0), (1, 200), (16, 200), (4, 1000)],
    ids=["500 plain records", "1 record of 50 KB", "16 records of 50 KB", "4 records of 250 KB"],
)
def test_put_records(
    benchmark: Any, service: tuple[uvloop.Loop, KinesisService], records: int, messages: int
) -> None:
    loop, kinesis = service
    [(key, [plain])] = parts_of(corpus.group(1, 1))
    data = aggregate(parts_of(corpus.group(1, messages))) if messages else plain
    entries = [Entry(key, data)] * records

    def put() -> list[Result]:
        results: list[Result] = loop.run_until_complete(kinesis.put_records(entries))
        return results

    assert benchmark(put) == [Result(SHARD, None)] * records
