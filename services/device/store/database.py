"""The file `device.db`: SQLite in WAL mode; what is answered is on disk (`synchronous = FULL`).

One process of the service owns the file. Statements are point queries or pages, so they run on the event
loop.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS details (
    tenant TEXT NOT NULL, device TEXT NOT NULL, attributes TEXT NOT NULL, version INTEGER NOT NULL,
    updated_s REAL NOT NULL,
    PRIMARY KEY (tenant, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS groups (
    tenant TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL, created_s REAL NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (
    tenant TEXT NOT NULL, name TEXT NOT NULL, device TEXT NOT NULL,
    PRIMARY KEY (tenant, name, device)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS groups_of_device ON members (tenant, device);
CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY, tenant TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    fingerprint TEXT NOT NULL, issued_s REAL NOT NULL, not_after_s REAL NOT NULL,
    revoke_at_s REAL, revoked_s REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS certificates_of ON certificates (tenant, kind, name, serial);
CREATE INDEX IF NOT EXISTS certificates_due ON certificates (revoke_at_s)
    WHERE revoke_at_s IS NOT NULL AND revoked_s IS NULL;
CREATE TABLE IF NOT EXISTS shadows (
    tenant TEXT NOT NULL, device TEXT NOT NULL,
    desired TEXT NOT NULL, desired_version INTEGER NOT NULL, desired_s REAL,
    reported TEXT NOT NULL, reported_version INTEGER NOT NULL, reported_s REAL,
    PRIMARY KEY (tenant, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS imports (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, form TEXT NOT NULL, request_key TEXT NOT NULL,
    actor TEXT NOT NULL, status TEXT NOT NULL, created_s REAL NOT NULL, finished_s REAL,
    position INTEGER NOT NULL, lines INTEGER NOT NULL, done INTEGER NOT NULL, failed INTEGER NOT NULL,
    failures TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS imports_by_key ON imports (tenant, request_key) WHERE request_key <> '';
CREATE INDEX IF NOT EXISTS imports_of_tenant ON imports (tenant, number);
CREATE INDEX IF NOT EXISTS imports_open ON imports (number) WHERE status IN ('waiting', 'running');
CREATE TABLE IF NOT EXISTS claims (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, hash BLOB, devices TEXT NOT NULL, into_group TEXT NOT NULL,
    uses_max INTEGER NOT NULL, uses INTEGER NOT NULL, created_s REAL NOT NULL, expires_s REAL NOT NULL,
    revoked_s REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS claims_of_tenant ON claims (tenant, id);
CREATE TABLE IF NOT EXISTS pseudonyms (
    tenant TEXT NOT NULL, device TEXT NOT NULL, pseudonym TEXT NOT NULL UNIQUE,
    PRIMARY KEY (tenant, device)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tombstones (hash BLOB PRIMARY KEY, erased_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


class StoreError(Exception):
    """The database cannot be used; the text says why."""


class Database:
    """The open file; raises `StoreError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None)
            for pragma in (
                "busy_timeout = 5000",
                "journal_mode = WAL",
                "synchronous = FULL",
                "secure_delete = ON",  # what is erased is not left in free pages
                "journal_size_limit = 67108864",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open {path}: {error}") from error

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return what a query finds."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self._path}: {error}") from error

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Change rows, in the transaction that is open or in one of its own; return how many."""
        try:
            return self._connection.execute(sql, values).rowcount
        except sqlite3.Error as error:
            raise StoreError(f"cannot write {self._path}: {error}") from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the changes within one: all or none. No await inside."""
        self.change("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.change("ROLLBACK")
            raise
        self.change("COMMIT")

    def checkpoint(self) -> None:
        """Bring everything into the main file, so that what was erased is not left in the log either."""
        self.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
