"""Brings the stream into the roll-ups: a batch at a time, on the thread that writes.

When the file does not take a batch it is tried again, and the feed waits; nothing is skipped.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from runtime import clock
from services.analytics.metrics import AnalyticsMetrics
from services.analytics.store.writer import Writer
from services.feed.feed import Batch, Feed
from services.feed.metrics import FeedMetrics

RETRY_S: Final = 1.0
SWEEP_S: Final = 600.0
ResultT = TypeVar("ResultT")


class Consumer:
    """Has the writer to itself; `close` when nothing runs any more."""

    def __init__(
        self, writer: Writer, feed: Feed, feed_metrics: FeedMetrics, metrics: AnalyticsMetrics, log: Any
    ) -> None:
        self._writer = writer
        self._feed = feed
        self._feed_metrics = feed_metrics
        self._metrics = metrics
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="analytics")
        self._is_well = True

    async def run(self) -> None:
        """Take batches, and let go of what is past its time, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._feed.run(self._writer.checkpoints(), self.take))
            tasks.create_task(self._keep_house())

    async def take(self, batch: Batch) -> None:
        """Store what a batch comes to; return when it is stored."""
        while True:
            try:
                stored = await self._on_thread(lambda: self._writer.take(batch))
            except sqlite3.Error as error:
                self._troubled(error)
                await asyncio.sleep(RETRY_S)
            else:
                break
        self._is_well = True
        self._metrics.taken(stored)
        self._feed_metrics.taken(stored.records, stored.duplicates)

    async def forget(self, tenant: str, device: str) -> int:
        """Delete what is of one device; return how many roll-ups. Raises `sqlite3.Error`."""
        return await self._on_thread(lambda: self._writer.forget(tenant, device))

    async def _keep_house(self) -> None:
        while True:
            try:
                while await self._on_thread(lambda: self._writer.sweep(clock.unix_ms())):
                    pass
                self._metrics.measured(await self._on_thread(self._writer.sizes))
            except sqlite3.Error as error:
                self._troubled(error)
            await asyncio.sleep(SWEEP_S)

    def _troubled(self, error: sqlite3.Error) -> None:
        """Count, and log what is wrong once."""
        self._metrics.trouble()
        if self._is_well:
            self._log.error("analytics_store_refuses", why=str(error))
        self._is_well = False

    async def _on_thread(self, work: Callable[[], ResultT]) -> ResultT:
        """Do what is done whole even when nobody waits for it any more."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown(wait=True)
