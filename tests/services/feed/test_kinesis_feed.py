"""A Kinesis that is scripted call by call, over HTTP; that of others is in test_kinesis_doubles.py."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from runtime.logs import make_log
from services.feed.kinesis import feed as under_test
from services.feed.kinesis.feed import KinesisFeed
from services.feed.kinesis.lineage import END
from services.feed.kinesis.service import ReadingService
from tests.support.feeds import Consumer, Counted, aggregated, group, payload, running

PAGE = 2


class Shard:
    def __init__(self, *parents: str) -> None:
        self.parents = parents
        self.records: list[bytes] = []
        self.oldest = 0
        self.closed = False


class ScriptedKinesis:
    """Sequence numbers are indices; iterators are `shard:index:version`, and an older version has expired."""

    def __init__(self) -> None:
        self.shards: dict[str, Shard] = {}
        self.version = 0
        self.errors: list[str] = []
        self.calls: Counter[str] = Counter()
        self.reads: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        name = request.headers["X-Amz-Target"].rpartition(".")[2]
        body = json.loads(await request.read())
        self.calls[name] += 1
        if self.errors:
            return _said({"__type": self.errors.pop(0), "message": "as asked"}, 400)
        found: web.Response = getattr(self, f"_{name}")(body)
        return found

    def _ListShards(self, _: Any) -> web.Response:  # noqa: N802  # the service's name
        described = []
        for name, shard in self.shards.items():
            names = ("ParentShardId", "AdjacentParentShardId")
            described.append({"ShardId": name, **dict(zip(names, shard.parents, strict=False))})
        return _said({"Shards": described})

    def _GetShardIterator(self, body: Any) -> web.Response:  # noqa: N802  # the same
        shard = self.shards.get(body["ShardId"])
        if shard is None:
            return _said({"__type": "ResourceNotFoundException", "message": "no shard"}, 400)
        index = shard.oldest
        if body["ShardIteratorType"] == "AFTER_SEQUENCE_NUMBER":
            index = int(body["StartingSequenceNumber"]) + 1
            if index < shard.oldest:
                return _said({"__type": "InvalidArgumentException", "message": "trimmed"}, 400)
        return _said({"ShardIterator": f"{body['ShardId']}:{index}:{self.version}"})

    def _GetRecords(self, body: Any) -> web.Response:  # noqa: N802  # the same
        name, index, version = body["ShardIterator"].split(":")
        if int(version) < self.version:
            return _said({"__type": "ExpiredIteratorException", "message": "old"}, 400)
        if name not in self.shards:
            return _said({"__type": "ResourceNotFoundException", "message": "no shard"}, 400)
        shard, first = self.shards[name], int(index)
        self.reads.append(name)
        given = shard.records[first : first + min(PAGE, body["Limit"])]
        records = [
            {"SequenceNumber": str(first + n), "PartitionKey": "k", "Data": base64.b64encode(data).decode()}
            for n, data in enumerate(given)
        ]
        behind = len(shard.records) - first - len(given)
        following = f"{name}:{first + len(given)}:{self.version}"
        over = shard.closed and not behind
        return _said(
            {
                "Records": records,
                "MillisBehindLatest": behind * 1000,
                "NextShardIterator": None if over else following,
            }
        )


def _said(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(body), status=status, content_type="application/x-amz-json-1.1")


class Rig:
    def __init__(self, kinesis: ScriptedKinesis, service: ReadingService, consumer: Consumer) -> None:
        self.kinesis = kinesis
        self.consumer = consumer
        self.counted = Counted()
        self._service = service
        self._number = 0

    def feed(self) -> KinesisFeed:
        return KinesisFeed(
            self._service,
            poll_s=0.002,
            records_max=1000,
            metrics=self.counted.metrics,
            random=lambda: 0.01,
            log=make_log("error", "json"),
        )

    def put(self, shard: str, count: int = 1) -> list[str]:
        """Put a Kinesis record of `count` user records into a shard; return their ids."""
        self._number += 1
        _, data = aggregated(group(self._number, [payload(n) for n in range(count)]))
        self.kinesis.shards[shard].records.append(data)
        return [f"n1-b1-{self._number}-{n}" for n in range(count)]

    async def has(self, count: int) -> None:
        await self.consumer.until(lambda: len(self.consumer.ids) >= count)
        assert len(self.consumer.ids) == count


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(under_test, "LIST_S", 0.05)
    monkeypatch.setattr(under_test, "LIST_AGAIN_S", 0.005)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    kinesis = ScriptedKinesis()
    app = web.Application()
    app.router.add_post("/", kinesis.answer)
    async with TestServer(app) as server:
        service = ReadingService(
            stream="telemetry",
            region="eu-central-1",
            endpoint=f"http://127.0.0.1:{server.port}",
            deadline_s=5,
            connections_max=4,
        )
        await service.open()
        with contextlib.closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as connection:
            yield Rig(kinesis, service, Consumer(connection))
        await service.close()


async def test_each_record_takes_effect_once_over_restarts(rig: Rig) -> None:
    rig.kinesis.shards = {"a": Shard(), "b": Shard()}
    expected = rig.put("a", 3) + rig.put("b", 2) + rig.put("a") + rig.put("a", 4)
    async with running(rig.feed(), rig.consumer):
        await rig.has(10)
    expected += rig.put("b", 5)
    rig.kinesis.shards["b"].records.append(rig.kinesis.shards["b"].records[-1])  # a producer that tried again
    expected += rig.put("b")
    async with running(rig.feed(), rig.consumer):
        await rig.has(16)
    assert sorted(rig.consumer.ids) == sorted(expected)
    of_a = [each for each in rig.consumer.ids if each.split("-")[2] in {"1", "3", "4"}]
    assert of_a == expected[:3] + expected[5:10]
    assert rig.consumer.progress.checkpoints() == {"a": "2", "b": "3"}


async def test_children_of_a_split_and_of_a_merge_come_after_their_parents(rig: Rig) -> None:
    shards = rig.kinesis.shards = {"m": Shard("a", "b"), "b": Shard("p"), "a": Shard("p"), "p": Shard()}
    for name in "pppppabbm":
        rig.put(name, 2)
    for name in "pab":
        shards[name].closed = True
    async with running(rig.feed(), rig.consumer):
        await rig.has(18)
        order = "".join(dict.fromkeys(batch.shard for batch in rig.consumer.batches))
        assert order in {"pabm", "pbam"}
        shards["p2"] = Shard("m")  # a reshard while it runs
        rig.put("p2")
        shards["m"].closed = True
        await rig.has(19)
    checkpoints = rig.consumer.progress.checkpoints()
    assert checkpoints == {"p": END, "a": END, "b": END, "m": END, "p2": "0"}
    del shards["p"]
    rig.kinesis.reads.clear()
    rig.put("p2")
    async with running(rig.feed(), rig.consumer):
        await rig.has(20)
    assert set(rig.kinesis.reads) == {"p2"}


async def test_iterators_that_expire_are_asked_for_again(rig: Rig) -> None:
    rig.kinesis.shards = {"a": Shard()}
    rig.put("a")
    async with running(rig.feed(), rig.consumer):
        await rig.has(1)
        rig.kinesis.version += 1
        rig.put("a")
        await rig.has(2)
    assert rig.counted("troubles_total", trouble="expired") == 1


async def test_what_is_throttled_or_fails_is_tried_again(rig: Rig) -> None:
    rig.kinesis.shards = {"a": Shard()}
    rig.put("a")
    rig.kinesis.errors = [
        "LimitExceededException",
        "InternalFailure",
        "ProvisionedThroughputExceededException",
    ]
    async with running(rig.feed(), rig.consumer):
        await rig.has(1)
        rig.kinesis.errors = ["ProvisionedThroughputExceededException"] * 3
        rig.put("a")
        await rig.has(2)
    assert rig.counted("troubles_total", trouble="throttled") >= 3
    assert rig.counted("troubles_total", trouble="unavailable") == 1


async def test_a_checkpoint_from_before_what_is_kept_goes_on_with_the_oldest_and_is_counted(rig: Rig) -> None:
    rig.kinesis.shards = {"a": Shard()}
    rig.put("a")
    async with running(rig.feed(), rig.consumer):
        await rig.has(1)
    for _ in range(5):
        rig.put("a")
    rig.kinesis.shards["a"].oldest = 4
    async with running(rig.feed(), rig.consumer):
        await rig.has(3)
    assert rig.counted("gaps_total") == 1


async def test_a_shard_that_vanishes_is_let_go_and_its_children_are_read(rig: Rig) -> None:
    rig.kinesis.shards = {"p": Shard(), "a": Shard("p")}
    rig.put("p")
    async with running(rig.feed(), rig.consumer):
        await rig.has(1)
        rig.put("a")
        del rig.kinesis.shards["p"]
        await rig.has(2)


async def test_what_is_not_ours_is_dropped_counted_and_passed_by(rig: Rig) -> None:
    rig.kinesis.shards = {"a": Shard()}
    rig.kinesis.shards["a"].records = [b"rubbish", b"{}"]
    async with running(rig.feed(), rig.consumer):
        await rig.consumer.until(lambda: bool(rig.consumer.batches))
        assert rig.consumer.progress.checkpoints() == {"a": "1"}
        rig.put("a")
        await rig.has(1)
    assert rig.counted("malformed_total") == 2


async def test_lag_is_that_of_the_shard_which_is_furthest_behind(rig: Rig) -> None:
    rig.kinesis.shards = {"a": Shard(), "b": Shard()}
    for _ in range(5):
        rig.put("a")
    lags: list[float] = []
    take = rig.consumer.take

    async def watched(batch: Any) -> None:
        lags.append(rig.counted("lag_seconds"))
        await take(batch)

    rig.consumer.take = watched  # type: ignore[method-assign]
    async with running(rig.feed(), rig.consumer):
        await rig.has(5)
        assert lags == [3.0, 1.0, 0.0]
        assert rig.counted("shards") == 2


async def test_a_consumer_that_fails_ends_the_feed(rig: Rig) -> None:
    rig.kinesis.shards = {"a": Shard()}
    rig.put("a")

    async def take(_: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(10):
            await rig.feed().run({}, take)
    assert raised.value.subgroup(OSError)
