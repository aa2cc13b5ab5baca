"""Reads a spool beside its writer, on a connection of its own that cannot write."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from ingest.records import DECODE_GROUP, Spooled
from ingest.spool import schema
from ingest.spool.store import SpoolError

_TENANTS: Final = msgspec.json.Decoder(dict[str, int])


class Replay(msgspec.Struct, frozen=True):
    """A dead letter that an operator wants accepted again."""

    number: int
    tenant: str
    device: str
    stream: str
    received_at_ms: int
    booking: int
    payload: bytes


class Reader:
    """A snapshot reader of one spool file; blocking, so for a thread. Raises `SpoolError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = sqlite3.connect(
                f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA busy_timeout = 5000")
        except sqlite3.Error as error:
            raise SpoolError(f"cannot read {path}: {error}") from error

    def read_after(self, number: int, bytes_max: int) -> list[Spooled]:
        """Return the groups after `number` in order: at least one if there is one, up to `bytes_max`."""
        groups: list[Spooled] = []
        size = 0
        try:
            cursor = self._connection.execute(schema.READ_GROUPS, (number,))
            for tenants, body in cursor:
                records = _TENANTS.decode(tenants)
                groups.append(Spooled(DECODE_GROUP.decode(body), len(body), records))
                size += len(body)
                if size >= bytes_max:
                    break
            cursor.close()
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise SpoolError(f"cannot read {self._path}: {error}") from error
        return groups

    def oldest_ms(self) -> int | None:
        """Return when the oldest group was committed (Unix ms), or None when nothing is stored."""
        row = self._one(schema.OLDEST_GROUP)
        return None if row is None else int(row[0])

    def letters(self) -> tuple[int, int]:
        """Return how many dead letters are kept, and their bytes."""
        row = self._one(schema.COUNT_LETTERS)
        return (0, 0) if row is None else (row[0], row[1])

    def keys(self) -> list[tuple[bytes, bytes, float]]:
        """Return the idempotency keys with their records and when they expire."""
        try:
            rows: list[tuple[bytes, bytes, float]] = self._connection.execute(schema.READ_KEYS).fetchall()
        except sqlite3.Error as error:
            raise SpoolError(f"cannot read {self._path}: {error}") from error
        return rows

    def rows(self, sql: str) -> list[Any]:
        """Return the rows of a query."""
        try:
            return self._connection.execute(sql).fetchall()
        except sqlite3.Error as error:
            raise SpoolError(f"cannot read {self._path}: {error}") from error

    def replays(self, letters_max: int) -> list[Replay]:
        """Return the dead letters that wait to be accepted again."""
        try:
            rows = self._connection.execute(schema.READ_REPLAYS, (letters_max,)).fetchall()
        except sqlite3.Error as error:
            raise SpoolError(f"cannot read {self._path}: {error}") from error
        return [Replay(*row) for row in rows]

    def _one(self, sql: str) -> tuple[int, ...] | None:
        try:
            row: tuple[int, ...] | None = self._connection.execute(sql).fetchone()
        except sqlite3.Error as error:
            raise SpoolError(f"cannot read {self._path}: {error}") from error
        return row

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
