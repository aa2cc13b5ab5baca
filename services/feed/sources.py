"""Opens the feed that the settings name."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from services.feed.feed import Feed
from services.feed.kinesis.feed import KinesisFeed
from services.feed.kinesis.service import ReadingService
from services.feed.local import LocalFeed
from services.feed.metrics import FeedMetrics
from services.settings import Feed as FeedSettings

CONNECTIONS_MAX: Final = 64
SHARD_POLL_S: Final = 0.45
"""Kinesis takes five reads a second of a shard, and two services of ours read it."""


@contextlib.asynccontextmanager
async def opened(settings: FeedSettings, metrics: FeedMetrics, log: Any) -> AsyncIterator[Feed]:
    """Open the feed, which is to be run inside."""
    if settings.source == "local":
        yield LocalFeed(
            Path(settings.file),
            poll_s=settings.poll_s,
            records_max=settings.records_max,
            metrics=metrics,
            log=log,
        )
        return
    service = ReadingService(
        stream=settings.stream,
        region=settings.region,
        endpoint=settings.endpoint or None,
        deadline_s=settings.deadline_s,
        connections_max=CONNECTIONS_MAX,
    )
    await service.open()
    try:
        yield KinesisFeed(
            service,
            poll_s=max(settings.poll_s, SHARD_POLL_S),
            records_max=settings.records_max,
            metrics=metrics,
            random=random.random,
            log=log,
        )
    finally:
        await service.close()
