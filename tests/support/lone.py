"""The order of a node with one worker: everybody is at home there."""

from __future__ import annotations

from ingest.order import Homes, Order, Progress


def lone_order(spool: int = 1) -> Order:
    words = memoryview(bytearray(Homes.size(1, 1))).cast("I")
    progress = Progress(memoryview(bytearray(Progress.size(1))).cast("q"))
    return Order(Homes(words, lock_fd=-1, lock_start=0, worker=0, epoch=1), progress, worker=0, spool=spool)
