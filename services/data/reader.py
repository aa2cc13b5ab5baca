"""Reads the warehouse for requests, off the event loop.

Limits: `reads_max` at once, `waiting_max` that wait for their turn (503), `deadline_s` for each (503, and the
read is interrupted).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import duckdb

from services.data.metrics import DataMetrics, ReadOutcome
from services.data.selection import Asked
from services.data.warehouse import Warehouse
from services.web.refusal import Refused

FoundT = TypeVar("FoundT")
Cursor = duckdb.DuckDBPyConnection
RETRY_S: Final = 1.0
INTERRUPT_S: Final = 0.05


class Reader:
    """Reads within limits; raises `Refused`."""

    def __init__(
        self,
        warehouse: Warehouse,
        *,
        reads_max: int,
        waiting_max: int,
        deadline_s: float,
        metrics: DataMetrics,
    ) -> None:
        self._warehouse = warehouse
        self._threads = ThreadPoolExecutor(reads_max, thread_name_prefix="reader")
        self._turns = asyncio.Semaphore(reads_max)
        self._admitted = 0
        self._admitted_max = reads_max + waiting_max
        self._deadline_s = deadline_s
        self._metrics = metrics

    async def rows(self, asked: Asked) -> list[tuple[Any, ...]]:
        """Return what is found."""
        return await self.read(lambda cursor: cursor.execute(*asked).fetchall())

    async def read(self, step: Callable[[Cursor], FoundT]) -> FoundT:
        """Return what a step finds, which has a cursor of its own and runs on a thread."""
        if self._admitted >= self._admitted_max:
            self._metrics.read(ReadOutcome.REFUSED)
            raise Refused(503, "busy", "too many reads wait already", retry_after_s=RETRY_S)
        self._admitted += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                async with self._turns:
                    found = await self._on_thread(step)
        except TimeoutError as error:
            self._metrics.read(ReadOutcome.LATE)
            detail = f"the read took more than {self._deadline_s:g} s; ask for less at once"
            raise Refused(503, "too-slow", detail, retry_after_s=RETRY_S) from error
        except duckdb.Error as error:
            self._metrics.read(ReadOutcome.FAILED)
            raise Refused(
                503, "unavailable", "the warehouse cannot be read now", retry_after_s=RETRY_S
            ) from error
        finally:
            self._admitted -= 1
        self._metrics.read(ReadOutcome.OK)
        return found

    async def _on_thread(self, step: Callable[[Cursor], FoundT]) -> FoundT:
        """Run a step; one that is not wanted any more is interrupted, and its thread waited for."""
        cursor = self._warehouse.cursor()
        running = asyncio.get_running_loop().run_in_executor(self._threads, step, cursor)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                cursor.interrupt()  # which one that has not begun yet would not notice
                await asyncio.wait([running], timeout=INTERRUPT_S)
            raise
        finally:
            if not running.cancelled():
                running.exception()
            cursor.close()

    def close(self) -> None:
        """Wait for the reads that are under way."""
        self._threads.shutdown(wait=True)
