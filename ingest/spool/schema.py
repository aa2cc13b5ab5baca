"""The tables of one worker's spool, `worker-N/spool.db`.

Conservation is kept by the schema itself: triggers book each group and each dead letter in `ledger`, in
the transaction that stores or deletes it, so that for every tenant and at every instant

    accepted = delivered + dead_lettered + (records of the groups that are still here).

- Inserting a group adds its records to `accepted`.
- Deleting a group adds its records to `delivered`.
- A dead letter moves its record from `delivered` to `dead_lettered` when it is POISON (written in the
  transaction that deletes its group), adds it to both `accepted` and `dead_lettered` when it is
  ACKNOWLEDGED (a malformed payload, which MQTT 3.1.1 can only acknowledge), and changes nothing when it
  is REFUSED or CUT. Replaying one is a new acceptance; the counts are cumulative and never taken back.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final

SCHEMA_VERSION: Final = 1


class Booking(enum.IntEnum):
    """How a dead letter enters the ledger."""

    REFUSED = 0
    """The peer was told; the letter is kept for inspection only."""
    POISON = 1
    """Accepted with its group, and refused for good by the sink."""
    ACKNOWLEDGED = 2
    """Accepted straight into the dead letters."""
    CUT = 3
    """As REFUSED, and only the beginning of the payload is kept, so it cannot be replayed."""


PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # a commit is an fsync: this is what "accepted" means
    "PRAGMA wal_autocheckpoint = 8000",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA busy_timeout = 5000",
)

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS groups (
    number INTEGER PRIMARY KEY,
    records INTEGER NOT NULL,
    committed_ms INTEGER NOT NULL,
    tenants TEXT NOT NULL,           -- JSON object: tenant -> records
    bytes INTEGER NOT NULL,
    body BLOB NOT NULL               -- MessagePack ingest.records.Group
);

CREATE TABLE IF NOT EXISTS ledger (
    tenant TEXT PRIMARY KEY,
    accepted INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    dead_lettered INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS dead_letters (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    received_at_ms INTEGER NOT NULL,
    booking INTEGER NOT NULL,        -- Booking
    replay INTEGER NOT NULL DEFAULT 0,
    payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS dead_letters_to_replay ON dead_letters (number) WHERE replay;

CREATE TABLE IF NOT EXISTS sessions (
    key BLOB PRIMARY KEY,            -- digest of tenant, identity and client id
    expires_s REAL NOT NULL,         -- Unix time
    received BLOB NOT NULL           -- QoS 2 packet ids, 2 bytes each
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS idempotency (
    key BLOB PRIMARY KEY,
    value BLOB NOT NULL,
    expires_s REAL NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS book_accepted AFTER INSERT ON groups BEGIN
    INSERT INTO ledger (tenant, accepted, delivered, dead_lettered)
    SELECT key, value, 0, 0 FROM json_each(NEW.tenants) WHERE true
    ON CONFLICT (tenant) DO UPDATE SET accepted = accepted + excluded.accepted;
END;

CREATE TRIGGER IF NOT EXISTS book_delivered AFTER DELETE ON groups BEGIN
    INSERT INTO ledger (tenant, accepted, delivered, dead_lettered)
    SELECT key, 0, value, 0 FROM json_each(OLD.tenants) WHERE true
    ON CONFLICT (tenant) DO UPDATE SET delivered = delivered + excluded.delivered;
END;

CREATE TRIGGER IF NOT EXISTS book_poison AFTER INSERT ON dead_letters WHEN NEW.booking = 1 BEGIN
    INSERT INTO ledger (tenant, accepted, delivered, dead_lettered) VALUES (NEW.tenant, 0, -1, 1)
    ON CONFLICT (tenant) DO UPDATE SET delivered = delivered - 1, dead_lettered = dead_lettered + 1;
END;

CREATE TRIGGER IF NOT EXISTS book_acknowledged AFTER INSERT ON dead_letters WHEN NEW.booking = 2 BEGIN
    INSERT INTO ledger (tenant, accepted, delivered, dead_lettered) VALUES (NEW.tenant, 1, 0, 1)
    ON CONFLICT (tenant) DO UPDATE SET accepted = accepted + 1, dead_lettered = dead_lettered + 1;
END;
"""

INSERT_GROUP: Final = (
    "INSERT INTO groups (number, records, committed_ms, tenants, bytes, body) VALUES (?, ?, ?, ?, ?, ?)"
)
DELETE_GROUP: Final = "DELETE FROM groups WHERE number = ?"
OLDEST_GROUP: Final = "SELECT committed_ms FROM groups ORDER BY number LIMIT 1"
READ_GROUPS: Final = "SELECT tenants, body FROM groups WHERE number > ? ORDER BY number"
INSERT_DEAD_LETTER: Final = (
    "INSERT INTO dead_letters "
    "(at_ms, tenant, device, stream, reason, detail, received_at_ms, booking, payload) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
PROBE: Final[tuple[str, Sequence[Any]]] = ("INSERT OR REPLACE INTO meta VALUES ('probe', '')", ())
"""A write that means nothing, to find out whether the disk takes any."""
READ_KEYS: Final = "SELECT key, value, expires_s FROM idempotency"
READ_REPLAYS: Final = (
    "SELECT number, tenant, device, stream, received_at_ms, booking, payload FROM dead_letters "
    "WHERE replay ORDER BY number LIMIT ?"
)
COUNT_LETTERS: Final = "SELECT count(*), coalesce(sum(length(payload)), 0) FROM dead_letters"
DELETE_DEAD_LETTER: Final = "DELETE FROM dead_letters WHERE number = ?"
