"""The analytics service, put together: its operations, the stream it consumes, and what it keeps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from services.analytics.api import rollups, series
from services.analytics.consumer import Consumer
from services.analytics.metrics import AnalyticsMetrics
from services.analytics.rules import Rules, rules_of
from services.analytics.service import AnalyticsService
from services.analytics.store.database import StoreError, opened
from services.analytics.store.reader import Reader
from services.analytics.store.writer import Writer
from services.feed import sources
from services.feed.metrics import FeedMetrics
from services.settings import Settings
from services.web.app import make_app
from services.web.operations import Operations
from services.web.passport import PassportVerifier
from services.web.process import StartError


def operations() -> Operations[AnalyticsService]:
    """Return the operations, of which the document is made too."""
    made: Operations[AnalyticsService] = Operations(
        "Headworks analytics service",
        description="Roll-ups of telemetry in windows, its rate of change, and anomalies.",
    )
    for noun in (rollups, series):
        noun.register(made)
    return made


@contextlib.asynccontextmanager
async def made(
    settings: Settings, passports: PassportVerifier, draining: asyncio.Event, log: Any
) -> AsyncIterator[web.Application]:
    """Open what the service works on, and give its application; raises `StartError`."""
    try:
        rules = rules_of(settings.analytics)
    except ValueError as error:
        raise StartError(str(error)) from error
    if settings.feed.source == "local" and not settings.feed.file:
        raise StartError("feed.file: say where the file of the sink `local` is")
    async with contextlib.AsyncExitStack() as open_:
        registry = CollectorRegistry()
        feed_metrics = FeedMetrics(registry)
        try:
            writer, reader = _store(settings, rules, open_)
        except StoreError as error:
            raise StartError(str(error)) from error
        metrics = AnalyticsMetrics(registry, writer.totals())
        feed = await open_.enter_async_context(sources.opened(settings.feed, feed_metrics, log))
        consumer = Consumer(writer, feed, feed_metrics, metrics, log)
        open_.callback(consumer.close)
        service = AnalyticsService(reader=reader, consumer=consumer, rules=rules)
        app = make_app(operations(), service, passports, draining=draining, log=log, metrics=registry)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(consumer.run())
            yield app
            running.cancel()


def _store(settings: Settings, rules: Rules, open_: contextlib.AsyncExitStack) -> tuple[Writer, Reader]:
    path = Path(settings.service.data_dir) / "analytics.db"
    writer = Writer(
        opened(path),
        windows=rules.windows,
        tolerance=rules.tolerance,
        limits=rules.limits,
        ids_max=settings.feed.duplicates_window,
    )
    open_.callback(writer.close)
    reader = Reader(path)
    open_.callback(reader.close)
    return writer, reader
