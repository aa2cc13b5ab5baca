"""The sessions of a worker that outlive their connections, and the node's directory of who has which.

A session with an expiry is kept in the spool's database with its QoS 2 packet ids, which are written in
the transaction of the publishes they belong to: after a crash, an id is known if and only if its publish is
stored. At most `sessions_max` are kept without a connection; the directory is in shared memory.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from ingest.events import Events
from ingest.node_memory import SESSION_VALUE
from ingest.spool.spool import Spool
from routing.limits.shared_table import Table, TableFullError
from runtime import clock

KEEP_SESSION: Final = (
    "INSERT INTO sessions (key, expires_s, received) VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET expires_s = excluded.expires_s, received = excluded.received"
)
FORGET_SESSION: Final = "DELETE FROM sessions WHERE key = ?"
READ_SESSIONS: Final = "SELECT key, expires_s, received FROM sessions"


class KeptSession(msgspec.Struct, frozen=True):
    """What is left of a session without a connection; `expires_s` is Unix time."""

    expires_s: float
    received: frozenset[int]


class Sessions:
    """One worker's kept sessions, and its entries in the directory."""

    def __init__(
        self, *, worker: int, epoch: int, directory: Table, spool: Spool, events: Events, sessions_max: int
    ) -> None:
        self._worker = worker
        self._epoch = epoch
        self._directory = directory
        self._spool = spool
        self._events = events
        self._sessions_max = sessions_max
        self._kept: dict[bytes, KeptSession] = {}

    def load(self, rows: Sequence[tuple[bytes, float, bytes]]) -> None:
        """Take in the sessions that an earlier run kept; forget those that are over or went elsewhere."""
        now_s = clock.unix_s()
        for key, expires_s, received in rows:
            room = len(self._kept) < self._sessions_max
            if expires_s > now_s and room and not self._went_elsewhere(key, expires_s):
                self._kept[key] = KeptSession(expires_s, frozenset(unpack_ids(received)))
                self.enter(key, expires_s)
            else:
                self._spool.join([(FORGET_SESSION, (key,))])

    def _went_elsewhere(self, key: bytes, expires_s: float) -> bool:
        """Return whether another worker has stored the session since this one did."""
        value = self._directory.get(key)
        if value is None:
            return False
        worker, _, ends_s = SESSION_VALUE.unpack(value)
        return worker != self._worker and (not ends_s or ends_s >= expires_s)

    def enter(self, key: bytes, ends_s: float = 0.0) -> None:
        """Enter a session into the directory; `ends_s` is Unix time, 0 while it is connected.

        A full directory costs take-over between workers only.
        """
        try:
            with self._directory.locked(key):
                self._directory.put(key, SESSION_VALUE.pack(self._worker, self._epoch, ends_s))
        except TableFullError:
            self._events.sink_trouble("session_directory_full", "raise memory.sessions_max")

    def owner(self, key: bytes) -> int | None:
        """Return the worker that has a session, which may be this one."""
        value = self._directory.get(key)
        if value is None:
            return None
        worker, _, ends_s = SESSION_VALUE.unpack(value)
        if ends_s and ends_s < clock.unix_s():
            return None
        return int(worker)

    def keep(self, key: bytes, kept: KeptSession) -> None:
        """Keep a session that has no connection, here and in the spool."""
        if len(self._kept) >= self._sessions_max:
            self.forget(key, stored=True)
            return
        self._kept[key] = kept
        self.enter(key, kept.expires_s)
        self.store(key, kept)

    def store(self, key: bytes, kept: KeptSession) -> None:
        """Write what there is of a session in the transaction of the open group."""
        self._spool.join([(KEEP_SESSION, (key, kept.expires_s, pack_ids(kept.received)))])

    def take(self, key: bytes) -> KeptSession | None:
        """Take back a kept session that is not over; its row stays until it is stored or forgotten."""
        kept = self._kept.pop(key, None)
        if kept is not None and kept.expires_s < clock.unix_s():
            self.forget(key, stored=True)
            return None
        return kept

    def drop(self, key: bytes) -> None:
        """Keep a session no more that another worker has stored, unless its client is back here."""
        if self._kept.pop(key, None) is not None:
            self.forget_row(key)

    def forget(self, key: bytes, *, stored: bool) -> None:
        """End a session; `stored` says that the spool may have a row of it."""
        with self._directory.locked(key):
            value = self._directory.get(key)
            if value is not None and SESSION_VALUE.unpack(value)[0] == self._worker:
                self._directory.remove(key)
        if stored:
            self.forget_row(key)

    def forget_row(self, key: bytes) -> None:
        """Delete the row of a session, in the transaction of the open group."""
        self._spool.join([(FORGET_SESSION, (key,))])

    def expire(self, now_s: float) -> None:
        """Forget the sessions that are over."""
        for key in [key for key, kept in self._kept.items() if kept.expires_s < now_s]:
            del self._kept[key]
            self.forget(key, stored=True)


def introduce(directory: Table, worker: int, rows: Sequence[tuple[bytes, float, bytes]]) -> None:
    """Enter what the spool of a worker keeps, before any worker is asked for a session."""
    for key, expires_s, _ in rows:
        value = directory.get(key)
        # Of two spools that have a session, the one that stored it last has what is true of it.
        if value is None or SESSION_VALUE.unpack(value)[2] < expires_s:
            with directory.locked(key), contextlib.suppress(TableFullError):
                directory.put(key, SESSION_VALUE.pack(worker, 0, expires_s))


def pack_ids(ids: Iterable[int]) -> bytes:
    """Write packet ids, two bytes each."""
    ordered = sorted(ids)
    return struct.pack(f">{len(ordered)}H", *ordered)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """Read packet ids, two bytes each."""
    return struct.unpack(f">{len(packed) // 2}H", packed)
