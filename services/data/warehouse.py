"""The warehouse: a DuckDB file of all telemetry that is kept (decision 0017). Every call blocks.

- `points` has a row a metric, `records` a row a record as it came, `latest` the newest value of a series.
- A batch, its points and its checkpoint are one transaction, durable when `write` returns.
- One process owns the file, and one thread at a time writes; any number read, each a snapshot.
- Limits: `memory_mib` and `threads` are DuckDB's own, and `SPILL`; `prune` and `shrink` keep the file small.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import msgspec

from services.data.rows import POINT_SHAPE, RECORD_SHAPE, point_rows, record_rows
from services.feed.feed import Record

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS records (
    seq BIGINT NOT NULL, id VARCHAR NOT NULL, tenant VARCHAR NOT NULL, device VARCHAR NOT NULL,
    stream VARCHAR NOT NULL, received_at BIGINT NOT NULL, payload VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS points (
    seq BIGINT NOT NULL, tenant VARCHAR NOT NULL, device VARCHAR NOT NULL, stream VARCHAR NOT NULL,
    metric VARCHAR NOT NULL, ts BIGINT NOT NULL, number DOUBLE, boolean BOOLEAN, text VARCHAR,
    received_at BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS latest (
    tenant VARCHAR, device VARCHAR, stream VARCHAR, metric VARCHAR, ts BIGINT NOT NULL, seq BIGINT NOT NULL,
    number DOUBLE, boolean BOOLEAN, text VARCHAR, received_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, device, stream, metric)
);
CREATE TABLE IF NOT EXISTS checkpoints (shard VARCHAR PRIMARY KEY, checkpoint VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS counter (seq BIGINT NOT NULL);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter);
"""
ADD_RECORDS: Final = f"INSERT INTO records SELECT unnest(from_json(?, '{RECORD_SHAPE}'), recursive := true)"
STAGE_POINTS: Final = (
    f"CREATE OR REPLACE TEMP TABLE staged AS SELECT unnest(from_json(?, '{POINT_SHAPE}'), recursive := true)"
)
ADD_POINTS: Final = "INSERT INTO points SELECT * FROM staged"
ADD_LATEST: Final = """
INSERT INTO latest
SELECT tenant, device, stream, metric, ts, seq, number, boolean, text, received_at FROM staged
QUALIFY row_number() OVER (PARTITION BY tenant, device, stream, metric ORDER BY ts DESC, seq DESC) = 1
ON CONFLICT DO UPDATE SET
    ts = excluded.ts, seq = excluded.seq, number = excluded.number, boolean = excluded.boolean,
    text = excluded.text, received_at = excluded.received_at
WHERE (excluded.ts, excluded.seq) >= (latest.ts, latest.seq)
"""
ADD_CHECKPOINT: Final = (
    "INSERT INTO checkpoints VALUES (?, ?) ON CONFLICT DO UPDATE SET checkpoint = excluded.checkpoint"
)
TABLES: Final = ("records", "points", "latest")
SPILL: Final = "1GiB"
"""What reads may put on disk when they have no memory left."""
SHRINK_SHARE: Final = 0.05
"""So much of the records goes at once when the file is too large."""
UNSTORABLE: Final = (duckdb.ConversionException, duckdb.InvalidInputException)
_ENCODE: Final = msgspec.json.Encoder().encode


class WarehouseError(Exception):
    """The warehouse cannot do it now; the text says why."""


class Broken(Exception):
    """DuckDB has given the open file up, and it has to be opened again."""


class Unstorable(Exception):
    """It is the records that the warehouse cannot take."""


class Warehouse:
    """The open file; raises `WarehouseError`."""

    def __init__(self, path: Path, *, memory_mib: int, threads: int) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = duckdb.connect(
                str(path),
                config={
                    "memory_limit": f"{memory_mib}MiB",
                    "threads": threads,
                    "max_temp_directory_size": SPILL,
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                    "enable_external_access": False,
                },
            )
            self._connection.execute("SET lock_configuration = true")
            self._connection.execute(SCHEMA)
            self._writer = self._connection.cursor()
            self.seq = int(self._one("SELECT seq FROM counter"))
        except (duckdb.Error, OSError) as error:
            raise WarehouseError(f"cannot open {path}: {error}") from error
        path.chmod(0o600)

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        found = self._connection.cursor().execute(sql, values).fetchone()
        assert found is not None
        return found[0]

    def checkpoints(self) -> dict[str, str]:
        """Return the last checkpoint of each shard of the feed."""
        return dict(self._connection.cursor().execute("SELECT shard, checkpoint FROM checkpoints").fetchall())

    def newest_ids(self, count: int) -> list[str]:
        """Return the ids of the newest records, the oldest of them first."""
        rows = self._connection.cursor().execute(
            "SELECT id FROM records WHERE seq > ? ORDER BY seq", (self.seq - count,)
        )
        return [row[0] for row in rows.fetchall()]

    def write(self, records: Sequence[Record], shard: str, checkpoint: str) -> int:
        """Store records with the checkpoint behind them; return the `seq` of the first.

        Raises `Unstorable` and `WarehouseError`; then nothing is stored.
        """
        first = self.seq + 1
        with self._transaction() as writer:
            if records:
                writer.execute(ADD_RECORDS, (_ENCODE(record_rows(records, first)).decode(),))
                points = point_rows(records, first)
                if points:
                    writer.execute(STAGE_POINTS, (_ENCODE(points).decode(),))
                    writer.execute(ADD_POINTS)
                    writer.execute(ADD_LATEST)
                writer.execute("UPDATE counter SET seq = ?", (first + len(records) - 1,))
            writer.execute(ADD_CHECKPOINT, (shard, checkpoint))
        self.seq += len(records)
        return first

    def erase(self, tenant: str, device: str) -> int:
        """Delete all of a device; return how many records."""
        with self._transaction() as writer:
            count = writer.execute(
                "SELECT count(*) FROM records WHERE tenant = ? AND device = ?", (tenant, device)
            ).fetchone()
            for table in TABLES:
                writer.execute(f"DELETE FROM {table} WHERE tenant = ? AND device = ?", (tenant, device))
        self._checkpoint()
        return int(count[0]) if count else 0

    def prune(self, before_ms: int) -> int:
        """Delete what was received before a time; return how many records."""
        with self._transaction() as writer:
            count = writer.execute(
                "SELECT count(*) FROM records WHERE received_at < ?", (before_ms,)
            ).fetchone()
            for table in TABLES:
                writer.execute(f"DELETE FROM {table} WHERE received_at < ?", (before_ms,))
        removed = int(count[0]) if count else 0
        if removed:
            self._checkpoint()
        return removed

    def shrink(self) -> int:
        """Delete the oldest records, a share of all; return how many."""
        with self._transaction() as writer:
            cut = writer.execute(
                "SELECT min(seq) + CAST(ceil(count(*) * ?) AS BIGINT), count(*) FROM records", (SHRINK_SHARE,)
            ).fetchone()
            if cut is None or cut[0] is None:
                return 0
            count = writer.execute("SELECT count(*) FROM records WHERE seq < ?", (cut[0],)).fetchone()
            for table in TABLES:
                writer.execute(f"DELETE FROM {table} WHERE seq < ?", (cut[0],))
        self._checkpoint()
        return int(count[0]) if count else 0

    def used_bytes(self) -> int:
        """Return what the tables and the log take up on disk, but for blocks that are free."""
        try:
            used = int(self._one("SELECT used_blocks * block_size FROM pragma_database_size()"))
            log = self._path.with_name(f"{self._path.name}.wal")
            return used + (log.stat().st_size if log.exists() else 0)
        except (duckdb.Error, OSError) as error:
            raise WarehouseError(f"cannot read {self._path}: {error}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        writer = self._writer
        try:
            writer.execute("BEGIN")
            try:
                yield writer
            except BaseException:
                writer.execute("ROLLBACK")
                raise
            writer.execute("COMMIT")
        except (
            duckdb.ConversionException,
            duckdb.InvalidInputException,
            duckdb.ConstraintException,
        ) as error:
            raise Unstorable(str(error)[:500]) from error
        except duckdb.FatalException as error:
            raise Broken(str(error)[:500]) from error
        except duckdb.Error as error:
            raise WarehouseError(f"cannot write {self._path}: {str(error)[:500]}") from error

    def _checkpoint(self) -> None:
        """Give back what was deleted; readers of now keep it for a later time."""
        with contextlib.suppress(duckdb.Error):
            self._writer.execute("CHECKPOINT")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return what one thread may read with, and another interrupt."""
        return self._connection.cursor()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
        self._connection.close()
