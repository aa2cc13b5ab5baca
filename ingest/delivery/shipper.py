"""Ships groups from the spool to the sink in order, and deletes what is settled.

What it holds in memory is bounded by the sink's `pending_bytes_max` and one read of the spool; it keeps only
counts of a group that the sink has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ingest.delivery.sink import Poison, Sink
from ingest.events import Events
from ingest.order import Order
from ingest.records import Group, Spooled
from ingest.spool.reader import Reader
from ingest.spool.schema import Booking
from ingest.spool.spool import Spool, dead_letter
from ingest.spool.store import SpoolError
from runtime import clock

READ_BYTES = 4 << 20
READ_AGAIN_S = 1.0
TURN_S = 0.01
"""How often to look whether another worker has delivered what comes first."""
WAITS_UNTIL_SAID = 1000
Delivered = Callable[[dict[str, int], Sequence[Poison]], None]
"""Told of each settled group: records a tenant, and those of them that are poison."""


class Shipper:
    """The driver between one spool and one sink."""

    def __init__(
        self, spool: Spool, reader: Reader, *, order: Order, after: int, delivered: Delivered, events: Events
    ) -> None:
        self._spool = spool
        self._reader = reader
        self._order = order
        self._after = after
        self._delivered = delivered
        self._events = events
        self._under_way: dict[int, tuple[dict[str, int], int]] = {}

    @property
    def behind(self) -> bool:
        """Return whether something stored is not settled yet."""
        return bool(self._under_way) or self._after < self._spool.last_committed

    async def run(self, sink: Sink) -> None:
        """Feed `sink` until cancelled; what it has not settled stays stored."""
        while True:
            fresh = self._spool.take_fresh(self._after)
            if fresh is not None:
                await self._put(sink, fresh)
            elif self._after < self._spool.last_committed:
                await self._catch_up(sink)
            else:
                self._spool.grew.clear()
                await self._spool.grew.wait()

    async def _catch_up(self, sink: Sink) -> None:
        committed = self._spool.last_committed  # what comes while we read may not be in what we read
        try:
            groups = await asyncio.to_thread(self._reader.read_after, self._after, READ_BYTES)
        except SpoolError:
            # The writer sees the same disk and reports it; here only the pace matters.
            await asyncio.sleep(READ_AGAIN_S)
            return
        if not groups:
            self._after = committed
            self._say_settled()
        for read in groups:
            await self._put(sink, read)

    async def _put(self, sink: Sink, spooled: Spooled) -> None:
        group = spooled.group
        # Numbers leap at a restart: nothing else comes before this group, so nobody may wait for it to.
        self._after = group.number - 1
        self._say_settled()
        await self._in_turn(group)
        self._under_way[group.number] = (spooled.tenants, spooled.bytes)
        self._after = group.number
        await sink.put(group)

    async def _in_turn(self, group: Group) -> None:
        """Wait until what other workers have of this group's devices is delivered."""
        waits = 0
        afters = self._order.waits_for(group.after)
        while afters:
            waits += 1
            if waits % WAITS_UNTIL_SAID == 0:
                workers = ", ".join(str(after.worker) for after in afters)
                self._events.sink_trouble("delivery_waits", f"for the spool of worker {workers}")
            await asyncio.sleep(TURN_S)
            afters = self._order.waits_for(afters)

    def _say_settled(self) -> None:
        """Let the other workers know up to where everything of this one is delivered."""
        self._order.settled(next(iter(self._under_way), self._after + 1) - 1)

    def settled(self, number: int, poison: Sequence[Poison]) -> None:
        """Hear from the sink that every record of group `number` is delivered or in `poison`."""
        tenants, size = self._under_way.pop(number)
        self._say_settled()
        letters = [
            dead_letter(
                at_ms=clock.unix_ms(),
                tenant=letter.tenant,
                device=letter.device,
                stream=letter.stream,
                reason=letter.reason,
                detail=f"record {letter.index} of group {number}",
                received_at_ms=letter.received_at_ms,
                booking=Booking.POISON,
                payload=letter.envelope,
            )
            for letter in poison
        ]
        self._spool.settled(number, size, letters)
        self._delivered(tenants, poison)
