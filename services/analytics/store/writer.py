"""Stores what batches come to: roll-ups, baselines, counts and the checkpoint in one transaction.

A batch takes effect once, however often it is given: either all of it is stored with its checkpoint and the
ids of its records, or nothing is. Coarser windows are merged from the finer ones of the batch, so that they
are right at once, and a late reading corrects all of them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from services.analytics.fold import Fold, FoldLimits
from services.analytics.rollup import encoded
from services.analytics.series import Series
from services.analytics.store.known import StoredSeries
from services.analytics.watermark import Dropped, Tolerance
from services.analytics.windows import Window, coarser
from services.feed.feed import Batch
from services.feed.progress import Progress

STORE: Final = (
    "INSERT INTO rollups VALUES (?, ?, ?, ?) "
    "ON CONFLICT DO UPDATE SET rollup = merged(rollup, excluded.rollup)"
)
SWEPT_AT_ONCE: Final = 2000
Row = tuple[int, int, int, bytes]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch came to, or all of them have: records that were new, and what became of their values."""

    records: int = 0
    duplicates: int = 0
    folded: int = 0
    anomalies: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is in the file."""

    devices: int = 0
    series: int = 0
    bytes: int = 0


class Writer:
    """The one who writes to the file. Raises `sqlite3.Error`, and then nothing is stored."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        windows: Sequence[Window],
        tolerance: Tolerance,
        limits: FoldLimits,
        ids_max: int,
    ) -> None:
        self._connection = connection
        self._windows = windows
        self._tolerance = tolerance
        self._limits = limits
        self._progress = Progress(connection, ids_max=ids_max)
        self._known = StoredSeries(connection)

    def checkpoints(self) -> dict[str, str]:
        """Return where each shard goes on."""
        return self._progress.checkpoints()

    def take(self, batch: Batch) -> Stored:
        """Store what a batch comes to, and return that.

        Hot: guarded by bench/test_rollups.py::test_store_a_batch.
        """
        with self._transaction():
            fresh = self._progress.begin(batch)
            fold = Fold(self._known, self._limits, self._windows, self._tolerance)
            now_ms = 0
            for record in fresh:
                now_ms = max(now_ms, record.received_at)
                if record.telemetry is None:
                    fold.drop(Dropped.NOT_TELEMETRY, None)
                else:
                    fold.take(
                        record.tenant, record.device, record.stream, record.received_at, record.telemetry
                    )
            changed = fold.series
            self._known.put_devices(fold.devices)
            self._known.put_series(changed)
            self._connection.executemany(STORE, self._rows(changed, now_ms))
            stored = Stored(
                records=len(fresh),
                duplicates=len(batch.records) - len(fresh),
                folded=fold.folded,
                anomalies=fold.anomalies,
                dropped={reason.value: count for reason, count in fold.dropped.items()},
            )
            self._count(stored)
        return stored

    def _rows(self, changed: Sequence[Series], now_ms: int) -> Iterator[Row]:
        """Yield the windows of all sizes that are kept."""
        for series in changed:
            rollups = series.windows
            for window in self._windows:
                if window is not self._windows[0]:
                    rollups = coarser(rollups, window)
                for start_s, rollup in rollups.items():
                    if window.is_kept(start_s, now_ms):
                        yield series.number, window.size_s, start_s, encoded(rollup)

    def _count(self, stored: Stored) -> None:
        counts = msgspec.structs.asdict(stored) | {f"dropped.{why}": n for why, n in stored.dropped.items()}
        counts.pop("dropped")
        self._connection.executemany(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
            counts.items(),
        )

    def totals(self) -> Stored:
        """Return what all batches have come to since there is a file."""
        counts = dict(self._connection.execute("SELECT name, count FROM totals"))
        dropped = {
            name.partition(".")[2]: count for name, count in counts.items() if name.startswith("dropped.")
        }
        return Stored(**{name: n for name, n in counts.items() if "." not in name}, dropped=dropped)

    def sizes(self) -> Sizes:
        """Return how much there is."""
        devices, series, size, pages, free = (
            int(self._connection.execute(sql).fetchone()[0])
            for sql in (
                "SELECT count(*) FROM devices",
                "SELECT count(*) FROM series",
                "PRAGMA page_size",
                "PRAGMA page_count",
                "PRAGMA freelist_count",
            )
        )
        return Sizes(devices=devices, series=series, bytes=size * (pages - free))

    def sweep(self, now_ms: int) -> int:
        """Let go of some of what is past its time; return how many rows, 0 when there is no more."""
        swept = 0
        with self._transaction():
            for window in self._windows:
                before_s = now_ms // 1000 - window.keep_s - window.size_s
                swept += self._connection.execute(
                    "DELETE FROM rollups WHERE (series, size_s, start_s) IN (SELECT series, size_s, start_s "
                    "FROM rollups WHERE size_s = ? AND start_s <= ? LIMIT ?)",
                    (window.size_s, before_s, SWEPT_AT_ONCE),
                ).rowcount
            coarsest = self._windows[-1]
            before_ms = now_ms - (coarsest.keep_s + coarsest.size_s) * 1000
            for table, key, column in (
                ("series", "number", "last_ms"),
                ("devices", "tenant, name", "high_ms"),
            ):
                swept += self._connection.execute(
                    f"DELETE FROM {table} WHERE ({key}) IN "
                    f"(SELECT {key} FROM {table} WHERE {column} <= ? LIMIT ?)",
                    (before_ms, SWEPT_AT_ONCE),
                ).rowcount
        return swept

    def forget(self, tenant: str, device: str) -> int:
        """Delete all that is of one device and no other; return how many roll-ups.

        What it has added to the roll-ups of all devices stays: nobody can tell it from that of others.
        """
        with self._transaction():
            erased = self._connection.execute(
                "DELETE FROM rollups WHERE series IN "
                "(SELECT number FROM series WHERE tenant = ? AND device = ?)",
                (tenant, device),
            ).rowcount
            self._connection.execute("DELETE FROM series WHERE tenant = ? AND device = ?", (tenant, device))
            self._connection.execute("DELETE FROM devices WHERE tenant = ? AND name = ?", (tenant, device))
        return erased

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
