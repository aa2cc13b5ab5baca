"""A feed out of the file of the sink `local`, which is polled.

The sink keeps only the newest (decision 0013): a consumer that comes too late has missed records, which is
counted and said. The checkpoint is `{epoch}:{rowid}`: the epoch is of the file, and another file is read
from its start.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from runtime import clock
from services.feed.decoding import Row, record_of_row
from services.feed.feed import Batch, Take
from services.feed.metrics import FeedMetrics, Trouble

SHARD: Final = "local"
RETRY_S: Final = 1.0
COLUMNS: Final = "id, tenant, device, stream, received_at_ms, payload"


class Position(msgspec.Struct, frozen=True):
    """Behind the row `rowid` of the file `epoch`."""

    epoch: int = 0
    rowid: int = 0

    def __str__(self) -> str:
        return f"{self.epoch}:{self.rowid}"

    @staticmethod
    def read(checkpoint: str) -> Position:
        """Return the position that was written as `checkpoint`; what makes no sense is the start."""
        epoch, _, rowid = checkpoint.partition(":")
        try:
            return Position(int(epoch), int(rowid))
        except ValueError:
            return Position()


class Page(msgspec.Struct, frozen=True):
    """Rows behind a position, and how many were gone before they could be read."""

    rows: list[tuple[int, *Row]]
    behind: Position
    missed: int


class LocalFeed:
    """The file at `path`, which need not be there yet."""

    def __init__(
        self, path: Path, *, poll_s: float, records_max: int, metrics: FeedMetrics, log: Any
    ) -> None:
        self._path = path
        self._poll_s = poll_s
        self._records_max = records_max
        self._metrics = metrics
        self._log = log
        self._said = ""

    async def run(self, checkpoints: Mapping[str, str], take: Take) -> None:
        """Give batches until cancelled."""
        position = Position.read(checkpoints.get(SHARD, ""))
        while True:
            try:
                page = await asyncio.to_thread(read, self._path, position, self._records_max)
            except (sqlite3.Error, OSError) as error:
                self._say("feed_file_unreadable", str(error))
                self._metrics.trouble(Trouble.UNAVAILABLE)
                await asyncio.sleep(RETRY_S)
                continue
            if page is not None:
                self._said = ""
                await self._give(page, take)
                position = page.behind
            full = page is not None and len(page.rows) == self._records_max
            self._metrics.behind(SHARD, _lag_s(page) if full and page is not None else 0.0)
            if not full:
                await asyncio.sleep(self._poll_s)

    async def _give(self, page: Page, take: Take) -> None:
        if page.missed:
            self._metrics.missed(page.missed)
            self._log.warning("feed_missed", shard=SHARD, records=page.missed)
        if not page.rows:
            return
        found = [record_of_row(row[1:]) for row in page.rows]
        records = [record for record in found if record is not None]
        if len(records) < len(found):
            self._metrics.malformed(len(found) - len(records))
        await take(Batch(SHARD, records, str(page.behind)))

    def _say(self, event: str, why: str) -> None:
        """Log what is wrong once, and not at each try."""
        if why != self._said:
            self._log.warning(event, path=str(self._path), why=why)
        self._said = why


def _lag_s(page: Page) -> float:
    return max(0.0, clock.unix_s() - page.rows[-1][5] / 1000)


def read(path: Path, position: Position, limit: int) -> Page | None:
    """Return up to `limit` rows behind a position, or None when there is no file yet.

    Raises `sqlite3.Error`.
    """
    if not path.exists():
        return None
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("BEGIN")
        epoch = int(connection.execute("SELECT number FROM epoch").fetchone()[0])
        oldest, newest = connection.execute("SELECT min(rowid), max(rowid) FROM telemetry").fetchone()
        follows = _is_of(position, epoch, newest)
        if not follows:
            position = Position(epoch, 0)
        rows = connection.execute(
            f"SELECT rowid, {COLUMNS} FROM telemetry WHERE rowid > ? ORDER BY rowid LIMIT ?",
            (position.rowid, limit),
        ).fetchall()
    finally:
        connection.close()
    missed = max(0, oldest - position.rowid - 1) if follows and oldest is not None else 0
    return Page(rows, Position(epoch, rows[-1][0] if rows else position.rowid), missed)


def _is_of(position: Position, epoch: int, newest: int | None) -> bool:
    """Return whether a position is one of this file: a file that was restored may be older than it."""
    return position.epoch == epoch and position.rowid <= (newest or 0)
