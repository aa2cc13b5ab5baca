"""How far a consumer with a SQLite file of its own has come: checkpoints and ids, in its own transaction.

    connection.execute("BEGIN IMMEDIATE")
    for record in progress.begin(batch):
        ...                                    # what the consumer makes of it
    connection.execute("COMMIT")

Limits: the newest `ids_max` ids are kept, and a checkpoint a shard.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from services.feed.feed import Batch, Record

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS feed_checkpoints (shard TEXT PRIMARY KEY, checkpoint TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feed_ids (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE);
"""


class Progress:
    """The tables `feed_checkpoints` and `feed_ids` in the consumer's file."""

    def __init__(self, connection: sqlite3.Connection, *, ids_max: int) -> None:
        self._connection = connection
        self._ids_max = ids_max
        connection.executescript(SCHEMA)

    def checkpoints(self) -> dict[str, str]:
        """Return the last checkpoint of each shard."""
        return dict(self._connection.execute("SELECT shard, checkpoint FROM feed_checkpoints"))

    def begin(self, batch: Batch) -> list[Record]:
        """Note the batch in the transaction that is open, and return those of its records that are new."""
        connection = self._connection
        assert connection.in_transaction
        fresh = [
            record
            for record in batch.records
            if connection.execute("INSERT OR IGNORE INTO feed_ids (id) VALUES (?)", (record.id,)).rowcount
        ]
        connection.execute(
            "DELETE FROM feed_ids WHERE number <= (SELECT max(number) FROM feed_ids) - ?", (self._ids_max,)
        )
        connection.execute(
            "INSERT INTO feed_checkpoints VALUES (?, ?) "
            "ON CONFLICT (shard) DO UPDATE SET checkpoint = excluded.checkpoint",
            (batch.shard, batch.checkpoint),
        )
        return fresh
