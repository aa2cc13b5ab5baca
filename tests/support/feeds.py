"""What tests of feeds and of their consumers share: records in every source, a consumer that remembers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from ingest.delivery.envelope import envelopes
from ingest.delivery.kinesis.aggregation import aggregate
from ingest.delivery.local import INSERT, open_local, rows
from ingest.records import Encoding, Group, Run
from services.feed.feed import Batch, Feed
from services.feed.metrics import FeedMetrics
from services.feed.progress import Progress


def payload(seq: int, **metrics: Any) -> bytes:
    return json.dumps({"ts": 1000 + seq, "seq": seq, "metrics": metrics or {"temperature": seq / 2}}).encode()


def group(
    number: int,
    payloads: list[bytes],
    *,
    tenant: str = "acme",
    device: str = "pump-1",
    stream: str = "main",
    encoding: Encoding = Encoding.JSON,
    received_at_ms: int = 1_764_000_000_000,
) -> Group:
    """Return a group of one run."""
    run = Run(tenant, device, stream, encoding, received_at_ms, len(payloads), payloads)
    return Group("n1", "b1", number, [run])


def write_local(path: Path, *groups: Group) -> None:
    """Write groups as the sink `local` does."""
    with contextlib.closing(open_local(path)) as connection:
        for each in groups:
            connection.executemany(INSERT, rows(each))


def aggregated(*groups: Group) -> tuple[str, bytes]:
    """Return groups of one device as a record of Kinesis: partition key and data."""
    run = groups[0].runs[0]
    key = f"{run.tenant}/{run.device}"
    return key, aggregate([(key, texts) for each in groups for _, _, texts in envelopes(each)])


class Counted:
    """Metrics of a feed, to be asked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = FeedMetrics(self.registry)

    def __call__(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"headworks_feed_{name}", labels) or 0.0


class Consumer:
    """Takes batches into a SQLite file with `Progress`; `values` are what took effect, by id."""

    def __init__(self, connection: Any, *, ids_max: int = 1000) -> None:
        self.connection = connection
        self.progress = Progress(connection, ids_max=ids_max)
        self.batches: list[Batch] = []
        self.ids: list[str] = []
        self.changed = asyncio.Event()

    async def take(self, batch: Batch) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.ids += [record.id for record in self.progress.begin(batch)]
        self.connection.execute("COMMIT")
        self.batches.append(batch)
        self.changed.set()

    async def until(self, holds: Callable[[], bool], deadline_s: float = 20.0) -> None:
        """Wait until something holds, which is looked at after each batch."""
        async with asyncio.timeout(deadline_s):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    async def until_counted(self, counted: Counted, name: str, **labels: str) -> None:
        """Wait until a counter is not 0."""
        async with asyncio.timeout(20):
            while not counted(name, **labels):
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(
    feed: Feed, consumer: Consumer, checkpoints: Mapping[str, str] | None = None
) -> AsyncIterator[None]:
    """Run a feed into a consumer, from its checkpoints."""
    found = consumer.progress.checkpoints() if checkpoints is None else checkpoints
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(feed.run(found, consumer.take))
        try:
            yield
        finally:
            task.cancel()
