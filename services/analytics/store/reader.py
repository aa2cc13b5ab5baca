"""Reads roll-ups and series for those who ask, on a connection that cannot write.

Statements are point queries or pages of series, so they run on the event loop. Pages of windows, which take
tens of milliseconds to merge and describe, are for other threads: SQLite serialises what they ask.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec

from services.analytics.rollup import Rollup, decoded
from services.analytics.series import EVERY_DEVICE, Device, Series
from services.analytics.store.database import StoreError
from services.analytics.store.known import COLUMNS, StoredSeries, series_of

FIRST: Final = ("", "")
LATEST: Final = (2**62, 0)
"""The key before the newest anomaly."""


class Reader:
    """What is stored. Opening it raises `StoreError`, reading `sqlite3.Error`."""

    def __init__(self, path: Path) -> None:
        try:
            self._connection = sqlite3.connect(
                f"file:{path}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA busy_timeout = 5000")
        except sqlite3.Error as error:
            raise StoreError(f"cannot open {path}: {error}") from error
        self._known = StoredSeries(self._connection)

    def device(self, tenant: str, name: str) -> Device | None:
        """Return a device, or None."""
        return self._known.device(tenant, name)

    def series_page(self, tenant: str, device: str, after: tuple[str, str], limit: int) -> list[Series]:
        """Return up to `limit` series of a device by metric and stream, after one."""
        return self._series(
            "tenant = ? AND device = ? AND (metric, stream) > (?, ?) ORDER BY metric, stream LIMIT ?",
            (tenant, device, *after, limit),
        )

    def metrics_page(self, tenant: str, after: tuple[str, str], limit: int) -> list[Series]:
        """Return up to `limit` series of all devices of a tenant by metric and stream, after one."""
        return self.series_page(tenant, EVERY_DEVICE, after, limit)

    def series_of(self, tenant: str, device: str, metric: str, stream: str) -> list[Series]:
        """Return the series of a metric: of one stream, or of all when it is empty."""
        which = "AND stream = ?" if stream else ""
        return self._series(
            f"tenant = ? AND device = ? AND metric = ? {which} ORDER BY stream",
            (tenant, device, metric, *((stream,) if stream else ())),
        )

    def anomalies_page(
        self, tenant: str, *, since_ms: int, sigma_min: float, before: tuple[int, int], limit: int
    ) -> list[Series]:
        """Return up to `limit` series with an anomaly since then, the newest first, before one."""
        return self._series(
            "tenant = ? AND anomaly_ms IS NOT NULL AND anomaly_ms >= ? AND (anomaly_ms, number) < (?, ?) "
            "AND abs(anomaly_sigma) >= ? ORDER BY anomaly_ms DESC, number DESC LIMIT ?",
            (tenant, since_ms, *before, sigma_min, limit),
        )

    def windows(
        self, series: Sequence[Series], size_s: int, from_s: int, to_s: int, limit: int
    ) -> list[tuple[int, Rollup]]:
        """Return up to `limit` windows that begin in [from_s, to_s), of several series merged into one."""
        # Each start has at most a row a series, so these are enough rows for `limit` whole windows.
        rows = self._rows(
            "SELECT start_s, rollup FROM rollups WHERE series IN (SELECT value FROM json_each(?)) "
            "AND size_s = ? AND start_s >= ? AND start_s < ? ORDER BY start_s LIMIT ?",
            (
                msgspec.json.encode([each.number for each in series]).decode(),
                size_s,
                from_s,
                to_s,
                limit * len(series),
            ),
        )
        found = []
        for start_s, of_start in itertools.groupby(rows, itemgetter(0)):
            rollup = Rollup()
            for _, stored in of_start:
                rollup.merge(decoded(stored))
            found.append((start_s, rollup))
        return found[:limit]

    def _series(self, where: str, values: tuple[object, ...]) -> list[Series]:
        return [series_of(row) for row in self._rows(f"SELECT {COLUMNS} FROM series WHERE {where}", values)]

    def _rows(self, sql: str, values: tuple[object, ...]) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
