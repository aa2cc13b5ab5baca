"""The file `analytics.db`: SQLite in WAL mode, written on one thread and read on others.

`synchronous = NORMAL`: after a power failure the last transactions may be missing, with the checkpoints in
them, so that their records are read again.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from services.analytics.rollup import merged

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS devices (
    tenant TEXT NOT NULL, name TEXT NOT NULL, high_ms INTEGER NOT NULL, dropped TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS series (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL, device TEXT NOT NULL, stream TEXT NOT NULL, metric TEXT NOT NULL,
    last_ms INTEGER NOT NULL, last REAL,
    readings INTEGER NOT NULL, mean REAL NOT NULL, variance REAL NOT NULL,
    sigma REAL, anomalies INTEGER NOT NULL, anomaly_ms INTEGER, anomaly_value REAL, anomaly_sigma REAL,
    UNIQUE (tenant, device, metric, stream)
);
CREATE INDEX IF NOT EXISTS series_with_anomalies ON series (tenant, anomaly_ms, number)
    WHERE anomaly_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS rollups (
    series INTEGER NOT NULL, size_s INTEGER NOT NULL, start_s INTEGER NOT NULL, rollup BLOB NOT NULL,
    PRIMARY KEY (series, size_s, start_s)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rollups_by_age ON rollups (size_s, start_s);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
"""


class StoreError(Exception):
    """The database cannot be used; the text says why."""


def opened(path: Path) -> sqlite3.Connection:
    """Open the file to write to it, from any thread but one at a time; raises `StoreError`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in (
            "busy_timeout = 5000",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "journal_size_limit = 67108864",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.executescript(SCHEMA)
        connection.create_function("merged", 2, merged, deterministic=True)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot open {path}: {error}") from error
    return connection
