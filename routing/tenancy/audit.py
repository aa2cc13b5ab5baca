"""The audit log: who did what to what, each entry sealed with a hash over itself and the entry before.

- An entry that is changed, removed or put in later breaks the chain at its place, and `verify` names it.
- Somebody who may write the file could make a whole new chain: compare `head` with one that was noted
  elsewhere.
- Several processes may append to one file. An entry is durable when `append` returns.
- What is older than the retention goes from the front; the seal before the first entry that is left is kept.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    number INTEGER PRIMARY KEY, at_s REAL NOT NULL, tenant TEXT NOT NULL, actor TEXT NOT NULL,
    action TEXT NOT NULL, subject TEXT NOT NULL, seal TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_of_tenant ON entries (tenant, number);
CREATE INDEX IF NOT EXISTS entries_of_subject ON entries (tenant, subject, number);
CREATE TABLE IF NOT EXISTS pruned (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER, seal TEXT);
INSERT OR IGNORE INTO pruned VALUES (1, 0, '');
"""
FIELD_CHARACTERS_MAX: Final = 512
LAST: Final = "SELECT number, seal FROM entries ORDER BY number DESC LIMIT 1"
COLUMNS: Final = "number, at_s, tenant, actor, action, subject, seal"
VERIFIED_AT_ONCE: Final = 10_000


class AuditError(Exception):
    """The log cannot be read or written; the text says why."""


class Entry(msgspec.Struct, frozen=True):
    """One thing that was done. `seal` is a SHA-256 in hex."""

    number: int
    at_s: float
    tenant: str
    actor: str
    action: str
    subject: str
    seal: str


class AuditLog:
    """One process's view of the file; raises `AuditError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("busy_timeout = 5000", "journal_mode = WAL", "synchronous = FULL"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise AuditError(f"cannot open {path}: {error}") from error

    def append(self, *, actor: str, tenant: str, action: str, subject: str, now_s: float) -> Entry:
        """Write an entry; longer fields are cut."""
        cut = FIELD_CHARACTERS_MAX
        fields = tenant[:cut], actor[:cut], action[:cut], subject[:cut]
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            number, before = self._last()
            seal = seal_of(before, number + 1, now_s, *fields)
            entry = Entry(number + 1, now_s, *fields, seal)
            connection.execute(
                f"INSERT INTO entries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                msgspec.structs.astuple(entry),
            )
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise AuditError(f"cannot write {self._path}: {error}") from error
        return entry

    def head(self) -> tuple[int, str]:
        """Return the number and the seal of the last entry, to be noted where nobody can write here."""
        try:
            return self._last()
        except sqlite3.Error as error:
            raise AuditError(f"cannot read {self._path}: {error}") from error

    def page(
        self, tenant: str, *, before: int | None, limit: int, subjects: Sequence[str] = ()
    ) -> list[Entry]:
        """Return up to `limit` entries of a tenant, the newest first, before a number.

        With `subjects`, only those of them, and of what is below them (`subject/...`).
        """
        where, values = "tenant = ?1 AND (?2 IS NULL OR number < ?2)", [tenant, before, limit]
        if subjects:
            tests = []
            for place, subject in enumerate(subjects, start=4):
                tests.append(
                    f"subject = ?{place} OR (subject > ?{place} || '/' AND subject < ?{place} || '0')"
                )
                values.append(subject)
            where += f" AND ({' OR '.join(tests)})"
        return self._entries(f"{where} ORDER BY number DESC LIMIT ?3", values)

    def verify(self) -> int | None:
        """Return the number of the first entry that is not as it was written, or None when all are."""
        try:
            number, seal = self._connection.execute("SELECT number, seal FROM pruned").fetchone()
        except sqlite3.Error as error:
            raise AuditError(f"cannot read {self._path}: {error}") from error
        while entries := self._entries("number > ? ORDER BY number LIMIT ?", (number, VERIFIED_AT_ONCE)):
            for entry in entries:
                fields = (entry.at_s, entry.tenant, entry.actor, entry.action, entry.subject)
                if entry.number != number + 1 or entry.seal != seal_of(seal, entry.number, *fields):
                    return int(number) + 1
                number, seal = entry.number, entry.seal
        return None

    def prune(self, before_s: float) -> int:
        """Let go of the entries before a time; return how many. The last one always stays."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute(
                "SELECT number, seal FROM entries WHERE at_s < ? AND number < (SELECT max(number) "
                "FROM entries) "
                "ORDER BY number DESC LIMIT 1",
                (before_s,),
            ).fetchall()
            pruned = 0
            if rows:
                connection.execute("UPDATE pruned SET number = ?, seal = ?", rows[0])
                pruned = connection.execute("DELETE FROM entries WHERE number <= ?", rows[0][:1]).rowcount
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise AuditError(f"cannot write {self._path}: {error}") from error
        return pruned

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _last(self) -> tuple[int, str]:
        row = self._connection.execute(LAST).fetchone()
        row = row or self._connection.execute("SELECT number, seal FROM pruned").fetchone()
        return int(row[0]), str(row[1])

    def _entries(self, where: str, values: Sequence[Any]) -> list[Entry]:
        try:
            rows = self._connection.execute(f"SELECT {COLUMNS} FROM entries WHERE {where}", values).fetchall()
        except sqlite3.Error as error:
            raise AuditError(f"cannot read {self._path}: {error}") from error
        return [Entry(*row) for row in rows]


def seal_of(before: str, number: int, at_s: float, *fields: str) -> str:
    """Return the seal of an entry: a hash over all of it, and the seal before."""
    return hashlib.sha256(msgspec.json.encode([before, number, at_s, *fields])).hexdigest()
