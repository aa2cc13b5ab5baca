"""The sink `local`: a SQLite table that `headworks query` and the data service read.

Exactly once: the id is the primary key and a second record of the same id is ignored. All workers of a
node write to the one file; a transaction takes all groups that wait.

Limits: the file holds `bytes_max`, and beyond it what one transaction writes. The oldest records make room
for new ones, as they do in a stream (decision 0013).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from ingest.delivery.envelope import payloads_as_json
from ingest.delivery.sink import Settled, SinkState
from ingest.records import Encoding, Group, record_id

PRAGMAS: Final = (
    "busy_timeout = 10000",
    "journal_mode = WAL",
    "synchronous = FULL",
    "journal_size_limit = 67108864",
)
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS telemetry (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    received_at_ms INTEGER NOT NULL,
    node TEXT NOT NULL,
    payload TEXT NOT NULL            -- JSON; base64 text for raw streams
);
CREATE INDEX IF NOT EXISTS telemetry_by_stream ON telemetry (tenant, device, stream, received_at_ms);
CREATE TABLE IF NOT EXISTS epoch (number INTEGER NOT NULL);  -- of this file: who follows it by rowid knows it
INSERT INTO epoch SELECT abs(random() >> 1) WHERE NOT EXISTS (SELECT 1 FROM epoch);
"""
OLDEST: Final = (
    "DELETE FROM telemetry WHERE rowid IN (SELECT rowid FROM telemetry "
    "WHERE rowid < (SELECT max(rowid) FROM telemetry) ORDER BY rowid LIMIT ?)"
)
"""Never the newest: its rowid is not to be given to another record."""
EXPIRED_AT_ONCE: Final = 256
EXPIRED_A_RECORD: Final = 4
"""So many old records go for each new one at most: a limit that was lowered is reached step by step."""
INSERT: Final = "INSERT OR IGNORE INTO telemetry VALUES (?, ?, ?, ?, ?, ?, ?)"
RETRY_S: Final = 0.5
Row = tuple[str, str, str, str, int, str, str]


class LocalSink:
    """Writes groups to the file at `path`; holds at most `pending_bytes_max` of them.

    `expired(count)` hears of records that were deleted to make room.
    """

    def __init__(
        self,
        path: Path,
        *,
        settled: Settled,
        bytes_max: int,
        pending_bytes_max: int,
        trouble: Callable[[str, str], None],
        expired: Callable[[int], None],
    ) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._expired = expired
        self._full = False
        self._settled = settled
        self._pending_bytes_max = pending_bytes_max
        self._trouble = trouble
        self._waiting: list[Group] = []
        self._pending_bytes = 0
        self._pending_records = 0
        self._ready = True
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="local-sink")

    async def put(self, group: Group) -> None:
        """Take `group`; wait while too much is pending."""
        while self._pending_bytes >= self._pending_bytes_max:
            self._room.clear()
            await self._room.wait()
        self._waiting.append(group)
        self._pending_bytes += _size(group)
        self._pending_records += sum(run.count for run in group.runs)
        self._arrived.set()

    async def run(self) -> None:
        """Write what waits, in one transaction at a time, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                groups, self._waiting = self._waiting, []
                while not await self._try(loop, groups):  # noqa: ASYNC110  # a retry, not a poll
                    await asyncio.sleep(RETRY_S)
                for group in groups:
                    self._pending_bytes -= _size(group)
                    self._pending_records -= sum(run.count for run in group.runs)
                    self._settled(group.number, ())
                self._room.set()
        finally:
            self._thread.shutdown(wait=True)
            if self._connection is not None:
                self._connection.close()

    async def _try(self, loop: asyncio.AbstractEventLoop, groups: list[Group]) -> bool:
        try:
            expired = await loop.run_in_executor(self._thread, self._write, groups)
        except sqlite3.Error as error:
            if self._ready:
                self._trouble("local_sink_refuses", f"{self._path}: {error}")
            self._ready = False
            return False
        self._ready = True
        if expired:
            self._expired(expired)
            if not self._full:
                self._full = True
                self._trouble("local_sink_full", f"{self._path}: the oldest records make room for new ones")
        return True

    def _write(self, groups: list[Group]) -> int:
        """Run on the sink's own thread: store all records of `groups`, or none; return how many expired."""
        if self._connection is None:
            self._connection = open_local(self._path)
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            before = connection.total_changes
            for group in groups:
                connection.executemany(INSERT, rows(group))
            expired = self._expire(connection, connection.total_changes - before)
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return expired

    def _expire(self, connection: sqlite3.Connection, written: int) -> int:
        """Delete the oldest records while the file holds too much; return how many."""
        expired = 0
        while expired <= written * EXPIRED_A_RECORD and used_bytes(connection) > self._bytes_max:
            deleted = connection.execute(OLDEST, (EXPIRED_AT_ONCE,)).rowcount
            if not deleted:
                break
            expired += deleted
        return expired

    def state(self) -> SinkState:
        """Return whether the file takes writes, and what waits."""
        return SinkState(
            ready=self._ready, pending_records=self._pending_records, pending_bytes=self._pending_bytes
        )


def open_local(path: Path) -> sqlite3.Connection:
    """Open or make the file; raises `sqlite3.Error`."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    connection.executescript(SCHEMA)
    return connection


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return what the records take up in the file, but for pages that are free."""
    size, pages, free = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_size", "page_count", "freelist_count")
    )
    return size * (pages - free)


def rows(group: Group) -> Iterator[Row]:
    """Yield the rows of a group in order."""
    index = 0
    for run in group.runs:
        for payload in payloads_as_json(run):
            text = payload.decode()
            if run.encoding is Encoding.RAW:
                text = text.strip('"')
            yield (
                record_id(group, index),
                run.tenant,
                run.device,
                run.stream,
                run.received_at_ms,
                group.node,
                text,
            )
            index += 1


def _size(group: Group) -> int:
    return sum(len(payload) for run in group.runs for payload in run.payloads)


class Found(msgspec.Struct, frozen=True):
    """One record of the local sink."""

    id: str
    tenant: str
    device: str
    stream: str
    received_at: int
    node: str
    payload: msgspec.Raw | str


def query(
    path: Path,
    *,
    tenant: str | None = None,
    device: str | None = None,
    stream: str | None = None,
    since_ms: int | None = None,
    limit: int,
) -> list[Found]:
    """Return the newest `limit` records that match, in order of arrival; raises `sqlite3.Error`."""
    conditions: list[str] = []
    values: list[str | int] = []
    for column, value in (("tenant", tenant), ("device", device), ("stream", stream)):
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    if since_ms is not None:
        conditions.append("received_at_ms >= ?")
        values.append(since_ms)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        found = connection.execute(
            f"SELECT * FROM telemetry {where} ORDER BY rowid DESC LIMIT ?", (*values, limit)
        ).fetchall()
    finally:
        connection.close()
    return [
        Found(
            id=row[0],
            tenant=row[1],
            device=row[2],
            stream=row[3],
            received_at=row[4],
            node=row[5],
            payload=msgspec.Raw(row[6].encode()) if row[6][:1] == "{" else row[6],
        )
        for row in reversed(found)
    ]
