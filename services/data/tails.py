"""Live streams: the records of a tenant as they are stored, a line each.

A stream reads from memory what is recent, and from the warehouse what is not any more. An empty line is sent
every `QUIET_S` when there is nothing else to say, so that a stream that is silent for a minute is broken.

Limits: `tails_max` at once; a page of `PAGE` records is in memory, and a reader that takes none of it for
`UNREAD_S` is put out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

import msgspec

from services.data.consumer import Consumer
from services.data.metrics import DataMetrics
from services.data.reader import Reader
from services.data.recent import Recent
from services.data.selection import records_after, seq_of
from services.web.refusal import Refused

PAGE: Final = 500
QUIET_S: Final = 15.0
UNREAD_S: Final = 30.0
EMPTY_LINE: Final = b"\n"
_ENCODE: Final = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True):
    """A record as the stream has it; the payload of a raw stream is base64 text."""

    id: str
    tenant: str
    device: str
    stream: str
    received_at: int
    payload: msgspec.Raw


class Tails:
    """All live streams of this process."""

    def __init__(
        self, consumer: Consumer, recent: Recent, reader: Reader, *, tails_max: int, metrics: DataMetrics
    ) -> None:
        self._consumer = consumer
        self._recent = recent
        self._reader = reader
        self._tails_max = tails_max
        self._metrics = metrics
        self._open = 0

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a stream while it is open; raises `Refused`."""
        if self._open >= self._tails_max:
            raise Refused(503, "too-many-streams", "too many live streams are open", retry_after_s=1)
        self._open += 1
        self._metrics.tails.set(self._open)
        try:
            yield
        finally:
            self._open -= 1
            self._metrics.tails.set(self._open)

    async def start_of(self, tenant: str, after: str) -> int:
        """Return the place behind the record `after`; of one that is not known any more, the place of now."""
        newest = self._recent.newest
        if not after:
            return newest
        found = self._recent.seq_of(tenant, after)
        if found is None:
            rows = await self._reader.rows(seq_of(tenant, after))
            found = int(rows[0][0]) if rows else newest
        return found

    async def chunks(self, tenant: str, seq: int) -> AsyncIterator[bytes]:
        """Yield lines behind a place, for ever."""
        while True:
            chunk, seq = await self._page(tenant, seq)
            if chunk:
                yield chunk
                continue
            try:
                async with asyncio.timeout(QUIET_S):
                    await self._more(tenant, seq)
            except TimeoutError:
                yield EMPTY_LINE

    async def _more(self, tenant: str, seq: int) -> None:
        """Wait until there is something behind a place, or what was there may be gone."""
        while True:
            looked = self._recent.newest
            if self._recent.after(tenant, seq, 1) != []:
                return
            await self._consumer.beyond(looked)

    async def _page(self, tenant: str, seq: int) -> tuple[bytes, int]:
        """Return lines behind a place, and the place behind them."""
        found = self._recent.after(tenant, seq, PAGE)
        if found is not None:
            lines = [
                line_of(
                    each.record.id,
                    tenant,
                    each.record.device,
                    each.record.stream,
                    each.record.received_at,
                    each.record.payload,
                )
                for each in found
            ]
            return b"".join(lines), found[-1].seq if found else max(seq, self._recent.behind)
        behind = self._recent.behind
        rows = await self._reader.rows(records_after(tenant, seq, PAGE))
        lines = [line_of(row[1], tenant, *row[2:]) for row in rows]
        return b"".join(lines), rows[-1][0] if rows else max(seq, behind)


def line_of(identity: str, tenant: str, device: str, stream: str, received_at: int, payload: str) -> bytes:
    """Return a record as a line."""
    raw = payload.encode() if payload.startswith("{") else _ENCODE(payload)
    return _ENCODE(Line(identity, tenant, device, stream, received_at, msgspec.Raw(raw))) + b"\n"
