"""Takes the batches of the feed into the warehouse, and keeps that small.

A batch that cannot be written now is tried again until it can; one with a record that cannot be written ever
goes in record by record, and what is left over is counted and dropped.

Limits: records are kept `retention_days`, and fewer when the file takes up more than `bytes_max`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from runtime import clock
from services.data.metrics import DataMetrics
from services.data.recent import Recent
from services.data.warehouse import Unstorable, Warehouse, WarehouseError
from services.feed.feed import Batch, Feed, Record
from services.feed.metrics import FeedMetrics
from services.feed.seen import Seen

RETRY_S: Final = 1.0
KEEP_HOUSE_S: Final = 60.0
DAY_MS: Final = 86_400_000


class Consumer:
    """The one writer of the warehouse. `run` must be running."""

    def __init__(
        self,
        warehouse: Warehouse,
        recent: Recent,
        *,
        duplicates_window: int,
        retention_days: int,
        bytes_max: int,
        metrics: DataMetrics,
        feed_metrics: FeedMetrics,
        log: Any,
    ) -> None:
        self._warehouse = warehouse
        self._recent = recent
        self._seen = Seen(warehouse.newest_ids(duplicates_window), ids_max=duplicates_window)
        self._retention_days = retention_days
        self._bytes_max = bytes_max
        self._metrics = metrics
        self._feed_metrics = feed_metrics
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writing = asyncio.Lock()
        self._changed = asyncio.Condition()

    async def run(self, feed: Feed) -> None:
        """Take what the feed gives until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_house())
            await feed.run(self._warehouse.checkpoints(), self.take)

    async def take(self, batch: Batch) -> None:
        """Store a batch with its checkpoint; when this returns, both are durable."""
        fresh = self._seen.fresh(batch.records)
        async with self._writing:
            try:
                first = await self._write(fresh, batch)
            except Unstorable as error:
                self._log.error("data_batch_unstorable", shard=batch.shard, why=str(error))
                for record in fresh:
                    await self._write_alone(record, batch)
                await self._write([], batch)
            else:
                self._recent.add(fresh, first)
        self._seen.add(record.id for record in fresh)
        self._feed_metrics.taken(len(fresh), len(batch.records) - len(fresh))
        async with self._changed:
            self._changed.notify_all()

    async def _write(self, records: list[Record], batch: Batch, checkpoint: str | None = None) -> int:
        """Write until it succeeds; return the `seq` of the first record."""
        loop = asyncio.get_running_loop()
        behind = batch.checkpoint if checkpoint is None else checkpoint
        said = False
        while True:
            try:
                return await loop.run_in_executor(
                    self._thread, self._warehouse.write, records, batch.shard, behind
                )
            except WarehouseError as error:
                self._metrics.write_failed()
                if not said:
                    self._log.error("data_write_failed", why=str(error))
                said = True
                await asyncio.sleep(RETRY_S)

    async def _write_alone(self, record: Record, batch: Batch) -> None:
        """Write one record of a batch, with the checkpoint from before it."""
        before = self._warehouse.checkpoints().get(batch.shard, "")
        try:
            first = await self._write([record], batch, before)
        except Unstorable:
            self._metrics.unstorable(1)
            self._log.error(
                "data_record_unstorable", tenant=record.tenant, device=record.device, id=record.id
            )
            return
        self._seen.add([record.id])
        self._recent.add([record], first)

    async def beyond(self, seq: int) -> None:
        """Wait until there is a record behind a place."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._recent.newest > seq)

    async def erase(self, tenant: str, device: str) -> int:
        """Delete all of a device; return how many records. Raises `WarehouseError`."""
        async with self._writing:
            self._recent.forget_device(tenant, device)
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._warehouse.erase, tenant, device
            )

    async def _keep_house(self) -> None:
        """Once a minute: let go of what is too old, or too much."""
        loop = asyncio.get_running_loop()
        while True:
            before_ms = clock.unix_ms() - self._retention_days * DAY_MS
            try:
                async with self._writing:
                    gone, used = await loop.run_in_executor(self._thread, self._make_room, before_ms)
            except WarehouseError as error:
                self._log.error("data_housekeeping_failed", why=str(error))
            else:
                self._metrics.pruned(gone)
                self._metrics.bytes.set(used)
            await asyncio.sleep(KEEP_HOUSE_S)

    def _make_room(self, before_ms: int) -> tuple[int, int]:
        """Delete on the writer's thread; return how many records, and the bytes that are used now."""
        gone = self._warehouse.prune(before_ms)
        used = self._warehouse.used_bytes()
        if used > self._bytes_max:
            gone += self._warehouse.shrink()
            used = self._warehouse.used_bytes()
        return gone, used

    def close(self) -> None:
        """Wait for the write that is under way."""
        self._thread.shutdown(wait=True)
