"""One worker's spool on disk: synchronous SQLite, used by one thread at a time.

Limits: one process writes (a lock on `spool.lock` keeps a second one out); readers of other processes
(`headworks spool status`) see a consistent snapshot, as WAL gives it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from ingest.records import START_BITS
from ingest.spool import schema

Statement = tuple[str, Sequence[Any]]
"""SQL with its values, run in the transaction of a group."""

WHAT_TO_DO: Final = "check that the folder exists, is writable, and has free space"


class SpoolError(Exception):
    """The disk refuses; `retriable` is true, since disks are emptied and repaired."""

    retriable = True


class StoredGroup(msgspec.Struct, frozen=True):
    """A group ready to be written: its row but for the time."""

    number: int
    records: int
    tenants: dict[str, int]
    body: bytes


class Committed(msgspec.Struct, frozen=True):
    """One commit, for observers: how much, how long the disk took, how long the first record waited."""

    records: int
    bytes: int
    seconds: float
    waited_s: float
    tenants: dict[str, int]


class Figures(msgspec.Struct, frozen=True):
    """What is in a spool now. Times are Unix milliseconds."""

    groups: int
    records: int
    bytes: int
    oldest_ms: int | None
    last_number: int
    dead_letters: int
    dead_letter_bytes: int


class Store:
    """The spool file of one worker. Methods raise `SpoolError` when the disk refuses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._lock)
                raise SpoolError(f"{path} is in use by another process") from error
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in schema.PRAGMAS:
                self._connection.execute(pragma)
            self._connection.executescript(schema.SCHEMA)
            self.id, self.starts = self._next_start()
            self.boot = f"{self.id:010x}.{self.starts}"
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"cannot open {path}: {error}; {WHAT_TO_DO}") from error

    def _next_start(self) -> tuple[int, int]:
        """Count this start, so that ids are unique for ever without trusting a clock.

        Return the random number of the file, and how often it was opened.
        """
        connection = self._connection
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('uid', ?)", (secrets.token_hex(5),))
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('boots', '0')")
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'boots'")
        stored = dict(connection.execute("SELECT name, value FROM meta"))
        version = stored.setdefault("schema", str(schema.SCHEMA_VERSION))
        if version != str(schema.SCHEMA_VERSION):
            raise SpoolError(f"{self._path} has schema {version}; this program reads {schema.SCHEMA_VERSION}")
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (version,))
        return int(stored["uid"], 16), int(stored["boots"])

    def commit(
        self,
        group: StoredGroup | None,
        statements: Sequence[Statement],
        now_ms: int,
    ) -> None:
        """Make `group` and what belongs with it durable: on return it is on the disk.

        A lone group is one statement, so that the writer gives up the interpreter lock only once.
        """
        connection = self._connection
        try:
            if not statements:
                if group is not None:
                    connection.execute(schema.INSERT_GROUP, _row(group, now_ms))
                return
            connection.execute("BEGIN IMMEDIATE")
            if group is not None:
                connection.execute(schema.INSERT_GROUP, _row(group, now_ms))
            for sql, values in statements:
                connection.execute(sql, values)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.roll_back()
            raise SpoolError(f"cannot write {self._path}: {error}; {WHAT_TO_DO}") from error

    def roll_back(self) -> None:
        """Undo a transaction that failed half-way; harmless when there is none."""
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise SpoolError(f"cannot read {self._path}: {error}") from error

    def figures(self) -> Figures:
        """Return what is in the spool; reads every row's header, so not for the hot path."""
        [(groups, records, size, oldest, last)] = self.rows(
            "SELECT count(*), coalesce(sum(records), 0), coalesce(sum(bytes), 0), min(committed_ms), "
            "coalesce(max(number), 0) FROM groups"
        )
        [(letters, letter_bytes)] = self.rows(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM dead_letters"
        )
        # Numbers only ever grow, also when all that an earlier start had is gone.
        last = max(last, self.starts << START_BITS)
        return Figures(groups, records, size, oldest, last, letters, letter_bytes)

    def settled(self) -> int:
        """Return the number of the last group before those that are still here."""
        [(first,)] = self.rows("SELECT min(number) FROM groups")
        return self.starts << START_BITS if first is None else int(first) - 1

    def close(self) -> None:
        """Close the file; a clean close leaves no WAL behind."""
        self._connection.close()
        os.close(self._lock)


def place(path: Path) -> tuple[int, int, int]:
    """Return (id, last group, last group before those still here) of a spool that nobody has open."""
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            stored = dict(connection.execute("SELECT name, value FROM meta"))
            first, last = connection.execute("SELECT min(number), max(number) FROM groups").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise SpoolError(f"cannot read {path}: {error}") from error
    starts = int(stored["boots"]) << START_BITS
    return int(stored["uid"], 16), max(last or 0, starts), starts if first is None else first - 1


def _row(group: StoredGroup, now_ms: int) -> tuple[int, int, int, str, int, bytes]:
    tenants = msgspec.json.encode(group.tenants).decode()
    return (group.number, group.records, now_ms, tenants, len(group.body), group.body)


def settle(numbers: Iterable[int]) -> list[Statement]:
    """Return the statements that delete delivered groups, which books their records as delivered."""
    return [(schema.DELETE_GROUP, (number,)) for number in numbers]
