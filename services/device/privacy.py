"""What the law gives a data subject: everything about a device in one answer, and an end of it.

An export is streamed. What cannot be read any more once it has begun is said in it: `complete` is false.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

PAGE: Final = 500
Piece = tuple[str, bytes]
"""What it is, and it as JSON: `device`, `shadow`, `certificates`, `keys`, `audit`, `telemetry`."""


class TelemetryError(Exception):
    """Telemetry cannot be read; the text says why."""


class Telemetry(Protocol):
    """Where the telemetry of a device is."""

    def records(self, tenant: str, device: str) -> AsyncIterator[bytes]:
        """Yield its records as JSON, the oldest first; raises `TelemetryError`."""


class NoTelemetry:
    """For a node whose telemetry is elsewhere, where it is exported from."""

    async def records(self, tenant: str, device: str) -> AsyncIterator[bytes]:
        """Yield nothing."""
        del tenant, device
        return
        yield b""


class LocalTelemetry:
    """The table of the sink `local`, read only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def records(self, tenant: str, device: str) -> AsyncIterator[bytes]:
        """Yield the records in pages, each read off the event loop."""
        after = 0
        while rows := await asyncio.to_thread(self._page, tenant, device, after):
            for row in rows:
                names = ("id", "stream", "received_at_ms", "payload")
                yield msgspec.json.encode(dict(zip(names, row[1:], strict=True)))
            after = rows[-1][0]

    def _page(self, tenant: str, device: str, after: int) -> list[Any]:
        try:
            connection = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)
            try:
                return connection.execute(
                    "SELECT rowid, id, stream, received_at_ms, payload FROM telemetry "
                    "WHERE tenant = ? AND device = ? AND rowid > ? ORDER BY rowid LIMIT ?",
                    (tenant, device, after, PAGE),
                ).fetchall()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise TelemetryError(f"telemetry cannot be read: {error}") from error


async def as_lines(pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    """Write an export as NDJSON: `{"kind": ..., "value": ...}`, and last whether it is complete."""
    complete = True
    try:
        async for kind, value in pieces:
            yield b'{"kind":"%s","value":%s}\n' % (kind.encode(), value)
    except TelemetryError:
        complete = False
    yield msgspec.json.encode({"kind": "complete", "value": complete}) + b"\n"


async def as_object(pieces: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
    """Write an export as one JSON object, of what comes in a row of one kind a list."""
    yield b"{"
    last, complete = "", True
    try:
        async for kind, value in pieces:
            start = b"," if kind == last else (b"]," if last else b"") + b'"%s":[' % kind.encode()
            yield start + value
            last = kind
    except TelemetryError:
        complete = False
    yield (b"]," if last else b"") + b'"complete":' + msgspec.json.encode(complete) + b"}"
