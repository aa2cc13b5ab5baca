"""What a node with one worker needs of a node: everybody is at home there, and nobody reads its log."""

from __future__ import annotations

from collections.abc import Callable

from ingest import counters
from ingest.events import Events
from ingest.order import Homes, Order, Progress


def lone_order(spool: int = 1) -> Order:
    words = memoryview(bytearray(Homes.size(1, 1))).cast("I")
    progress = Progress(memoryview(bytearray(Progress.size(1))).cast("q"))
    return Order(Homes(words, lock_fd=-1, lock_start=0, worker=0, epoch=1), progress, worker=0, spool=spool)


class NoLog:
    """A log that nobody reads."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_args, **_fields: None


def silent_events() -> Events:
    return Events(memoryview(bytearray(8 * (counters.GLOBAL_COUNTERS + 64))).cast("q"), NoLog())
