"""Resources in one SQLite file: WAL, and `synchronous = FULL`, so that what was answered survives a crash.

Tokens are kept for `TOKENS_S`, and `TOKENS_MAX` of them at most.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from routing.mesh.api.store import TOKENS_S, Answered, Record, StoreError

TOKENS_MAX: Final = 10_000
BUSY_S: Final = 5.0
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS resources (
    path TEXT PRIMARY KEY, parent TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL,
    version INTEGER NOT NULL, created_s REAL NOT NULL, updated_s REAL NOT NULL,
    spec BLOB NOT NULL, tags BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS resources_by_name ON resources (parent, name);
CREATE TABLE IF NOT EXISTS referring (
    target TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (target, path)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS referring_by_path ON referring (path);
CREATE TABLE IF NOT EXISTS tokens (
    number INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, digest TEXT NOT NULL,
    answer BLOB NOT NULL, at_s REAL NOT NULL
);
"""
COLUMNS: Final = "path, parent, name, uid, version, created_s, updated_s, spec, tags"
USER: Final = """
SELECT path FROM referring WHERE target = ?
UNION ALL SELECT path FROM resources WHERE parent >= ? AND parent < ? LIMIT 1
"""


class SqliteStore:
    """A `Store` in a file. Raises `StoreError`."""

    def __init__(self, path: Path) -> None:
        try:
            self._open = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._open.execute("PRAGMA journal_mode = WAL")
            self._open.execute("PRAGMA synchronous = FULL")
            self._open.executescript(SCHEMA)
            path.chmod(0o600)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open {path}: {error}") from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is done in it, or nothing."""
        try:
            self._open.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._open.execute("COMMIT")
            finally:
                if self._open.in_transaction:
                    self._open.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error

    def revision(self) -> int:
        """Return the same number each time: one process has the file."""
        return 0

    def get(self, path: str) -> Record | None:
        """Return a resource."""
        found = self._open.execute(f"SELECT {COLUMNS} FROM resources WHERE path = ?", (path,)).fetchone()
        return None if found is None else _record(found)

    def put(self, record: Record, refers_to: frozenset[str]) -> None:
        """Keep a resource, new or changed, and the paths that it refers to."""
        *plain, spec, tags = msgspec.structs.astuple(record)
        self._open.execute(
            f"INSERT OR REPLACE INTO resources ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*plain, msgspec.json.encode(spec), msgspec.json.encode(tags)),
        )
        self._open.execute("DELETE FROM referring WHERE path = ?", (record.path,))
        self._open.executemany(
            "INSERT INTO referring VALUES (?, ?)", [(target, record.path) for target in refers_to]
        )

    def delete(self, path: str) -> None:
        """Forget a resource."""
        self._open.execute("DELETE FROM resources WHERE path = ?", (path,))
        self._open.execute("DELETE FROM referring WHERE path = ?", (path,))

    def page(self, parent: str, after: str, limit: int) -> list[Record]:
        """Return resources of a collection by name, from the one after `after` on."""
        rows = self._open.execute(
            f"SELECT {COLUMNS} FROM resources WHERE parent = ? AND name > ? ORDER BY name LIMIT ?",
            (parent, after, limit),
        )
        return [_record(row) for row in rows]

    def all(self) -> list[Record]:
        """Return all resources."""
        return [_record(row) for row in self._open.execute(f"SELECT {COLUMNS} FROM resources ORDER BY path")]

    def count(self, parent: str) -> int:
        """Return how many a collection has."""
        [number] = self._open.execute("SELECT COUNT(*) FROM resources WHERE parent = ?", (parent,)).fetchone()
        return int(number)

    def user_of(self, path: str) -> str | None:
        """Return something that is below a resource, or refers to it."""
        found = self._open.execute(USER, (path, f"{path}/", f"{path}0")).fetchone()  # 0 follows /
        return None if found is None else str(found[0])

    def answered(self, token: str, now_s: float) -> Answered | None:
        """Return what a token was used for."""
        found = self._open.execute(
            "SELECT digest, answer FROM tokens WHERE token = ? AND at_s >= ?", (token, now_s - TOKENS_S)
        ).fetchone()
        return None if found is None else Answered(found[0], msgspec.json.decode(found[1]))

    def remember(self, token: str, answered: Answered, now_s: float) -> None:
        """Keep what a token was used for, for some time."""
        made = self._open.execute(
            "INSERT OR REPLACE INTO tokens (token, digest, answer, at_s) VALUES (?, ?, ?, ?)",
            (token, answered.digest, msgspec.json.encode(answered.answer), now_s),
        )
        self._open.execute(
            "DELETE FROM tokens WHERE number <= ? OR at_s < ?",
            ((made.lastrowid or 0) - TOKENS_MAX, now_s - TOKENS_S),
        )

    def close(self) -> None:
        """Let go of it."""
        self._open.close()


def _record(row: tuple[Any, ...]) -> Record:
    *plain, spec, tags = row
    path, parent, name, uid, version, created_s, updated_s = plain
    return Record(
        path=path,
        parent=parent,
        name=name,
        uid=uid,
        version=version,
        created_s=created_s,
        updated_s=updated_s,
        spec=msgspec.json.decode(spec),
        tags=msgspec.json.decode(tags, type=dict[str, str]),
    )
