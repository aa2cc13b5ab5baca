"""The sink `null`: takes everything and keeps nothing, for benchmarks."""

from __future__ import annotations

import asyncio

from ingest.delivery.sink import Settled, SinkState
from ingest.records import Group


class NullSink:
    """Settles every group at once."""

    def __init__(self, *, settled: Settled) -> None:
        self._settled = settled

    async def put(self, group: Group) -> None:
        """Drop `group`."""
        self._settled(group.number, ())

    async def run(self) -> None:
        """Do nothing until cancelled."""
        await asyncio.Event().wait()

    def state(self) -> SinkState:
        """Return that all is well."""
        return SinkState(ready=True, pending_records=0, pending_bytes=0)
