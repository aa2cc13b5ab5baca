"""The data service, put together: its operations, and what they work on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from services import settings as files
from services.data.api import records, series, tail, values
from services.data.consumer import Consumer
from services.data.metrics import DataMetrics
from services.data.reader import Reader
from services.data.recent import Recent
from services.data.service import DataLimits, DataService
from services.data.tails import Tails
from services.data.warehouse import Warehouse, WarehouseError
from services.feed import sources
from services.feed.metrics import FeedMetrics
from services.settings import Settings
from services.web.app import make_app
from services.web.operations import Operations
from services.web.passport import PassportVerifier
from services.web.process import StartError


def operations() -> Operations[DataService]:
    """Return the operations, of which the document is made too."""
    made: Operations[DataService] = Operations(
        "Headworks data service",
        description="Telemetry, read back by device, stream, metric and time; times are Unix time in ms.",
    )
    for noun in (records, values, series, tail):
        noun.register(made)
    return made


@contextlib.asynccontextmanager
async def made(
    settings: Settings, passports: PassportVerifier, draining: asyncio.Event, log: Any
) -> AsyncIterator[web.Application]:
    """Open what the service works on, and give its application; raises `StartError`."""
    feed_settings = settings.feed
    if feed_settings.source == "local" and not feed_settings.file:
        raise StartError("feed.file: say where the file of the sink `local` is (local.db)")
    registry = CollectorRegistry()
    feed_metrics = FeedMetrics(registry)
    async with contextlib.AsyncExitStack() as open_:
        feed = await open_.enter_async_context(sources.opened(feed_settings, feed_metrics, log))
        try:
            consumer, service = _service(settings, registry, feed_metrics, draining, log, open_)
        except WarehouseError as error:
            raise StartError(str(error)) from error
        app = make_app(operations(), service, passports, draining=draining, log=log, metrics=registry)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(consumer.run(feed))
            yield app
            running.cancel()


def _service(
    settings: Settings,
    registry: CollectorRegistry,
    feed_metrics: FeedMetrics,
    draining: asyncio.Event,
    log: Any,
    open_: contextlib.AsyncExitStack,
) -> tuple[Consumer, DataService]:
    limits: files.Data = settings.data
    metrics = DataMetrics(registry)
    warehouse = Warehouse(
        Path(settings.service.data_dir) / "warehouse.duckdb",
        memory_mib=limits.memory_mib,
        threads=limits.threads,
    )
    open_.callback(warehouse.close)
    recent = Recent(behind=warehouse.seq, bytes_max=limits.recent_bytes_max)
    consumer = Consumer(
        warehouse,
        recent,
        duplicates_window=settings.feed.duplicates_window,
        retention_days=limits.retention_days,
        bytes_max=limits.bytes_max,
        metrics=metrics,
        feed_metrics=feed_metrics,
        log=log,
    )
    open_.callback(consumer.close)
    reader = Reader(
        warehouse,
        reads_max=limits.reads_max,
        waiting_max=limits.reads_waiting_max,
        deadline_s=limits.read_deadline_s,
        metrics=metrics,
    )
    open_.callback(reader.close)
    return consumer, DataService(
        reader=reader,
        consumer=consumer,
        tails=Tails(consumer, recent, reader, tails_max=limits.tails_max, metrics=metrics),
        sink=Path(settings.feed.file) if settings.feed.source == "local" else None,
        draining=draining,
        limits=DataLimits(stream_deadline_s=limits.stream_deadline_s),
    )
