"""`Idempotency-Key`: the same request twice is one message, on any worker and after a crash.

A key belongs to an identity: its tenant, its kind and its name. What is the same request is said by a
digest of where the message goes and of the message. The record of a key is in the node's shared memory
while the node runs, and in the spool, in the transaction of its group, for when it does not
(draft-ietf-httpapi-idempotency-key-header-07).
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import struct
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from ingest.spool.store import Statement
from routing.limits.allowance import table_key
from routing.limits.shared_table import Table, TableFullError
from routing.tenancy.identity import Identity

KEY_CHARACTERS_MAX: Final = 255
KEEP: Final = "INSERT OR REPLACE INTO idempotency (key, value, expires_s) VALUES (?, ?, ?)"
EXPIRE: Final = "DELETE FROM idempotency WHERE expires_s < ?"
_RECORD: Final = struct.Struct("<BxHI8sQII24sd")
"""State, worker, epoch, digest, group number, first index, count, boot, when it expires."""
assert _RECORD.size <= 64


Row = tuple[bytes, bytes, float]
"""A key as a spool keeps it: its record's key, its record, when it expires."""


class State(enum.IntEnum):
    """Where a request with a key is."""

    VOID = 0
    UNDER_WAY = 1
    DONE = 2


class Known(enum.Enum):
    """What is known of a key."""

    NEW = "new"
    UNDER_WAY = "under_way"
    DONE = "done"
    OTHER_REQUEST = "other_request"


class Answered(msgspec.Struct, frozen=True):
    """The answer that a key was given: the records of a group."""

    group: str
    first_index: int
    count: int


def digest_of(names: tuple[str, str, str], body: bytes) -> bytes:
    """Return what tells a request from others: its target (tenant, device, stream) and its body."""
    digest = hashlib.blake2b("\0".join((*names, "")).encode(errors="surrogatepass"), digest_size=8)
    digest.update(body)
    return digest.digest()


class Idempotency:
    """One worker's view of the node's keys.

    `unsettled(worker, epoch)` says whether what a worker claimed in an epoch may still turn out to be stored;
    `full()` hears that there was no room for a key, so that its request may be stored twice.
    """

    def __init__(
        self,
        directory: Table,
        *,
        node: str,
        worker: int,
        epoch: int,
        boot: str,
        unsettled: Callable[[int, int], bool],
        full: Callable[[], None],
        keep_s: float,
    ) -> None:
        self._directory = directory
        self._node = node
        self._worker = worker
        self._epoch = epoch
        self._boot = boot
        self._unsettled = unsettled
        self._full = full
        self._keep_s = keep_s

    def begin(
        self, identity: Identity, key: str, digest: bytes, now_s: float
    ) -> tuple[Known, Answered | None, bytes]:
        """Claim a key; return what is known of it, its answer if it has one, and its record's key."""
        record_key = table_key("idempotency", identity.tenant, identity.kind.value, identity.name, key)
        with self._directory.locked(record_key):
            held = self._directory.get(record_key)
            if held is not None:
                state, worker, epoch, old, number, first, count, boot, expires_s = _RECORD.unpack_from(held)
                if state == State.DONE and expires_s > now_s:
                    if old != digest:
                        return Known.OTHER_REQUEST, None, record_key
                    group = f"{self._node}-{boot.rstrip(bytes(1)).decode()}-{number}"
                    return Known.DONE, Answered(group, first, count), record_key
                if state == State.UNDER_WAY and self._unsettled(worker, epoch):
                    return Known.UNDER_WAY if old == digest else Known.OTHER_REQUEST, None, record_key
            self._put(record_key, State.UNDER_WAY, digest, (0, 0, 0), now_s)
        return Known.NEW, None, record_key

    def _put(
        self, record_key: bytes, state: State, digest: bytes, where: tuple[int, int, int], now_s: float
    ) -> bytes:
        value = _RECORD.pack(
            state, self._worker, self._epoch, digest, *where, self._boot.encode(), now_s + self._keep_s
        ).ljust(64, b"\0")
        try:
            self._directory.put(record_key, value)
        except TableFullError:
            # Beyond the limit a key is not remembered in memory; its row in the spool still is.
            self._full()
        return value

    def statement(
        self, record_key: bytes, digest: bytes, where: tuple[int, int, int], now_s: float
    ) -> Statement:
        """Return the row that goes with the group (number, first index, count) of the answer."""
        value = _RECORD.pack(
            State.DONE, self._worker, self._epoch, digest, *where, self._boot.encode(), now_s + self._keep_s
        ).ljust(64, b"\0")
        return (KEEP, (record_key, value, now_s + self._keep_s))

    def done(self, record_key: bytes, statement: Statement) -> None:
        """Note that the answer is durable."""
        with self._directory.locked(record_key), contextlib.suppress(TableFullError):
            self._directory.put(record_key, statement[1][1])

    def abandon(self, record_key: bytes) -> None:
        """Free a key whose request was refused."""
        with self._directory.locked(record_key):
            self._directory.remove(record_key)


def load(directory: Table, rows: Iterable[Row], now_s: float) -> None:
    """Take the keys of a spool into a directory, before anybody is served who could ask for them."""
    for record_key, value, expires_s in rows:
        if expires_s > now_s:
            # A full directory takes no new key, and still all that are in it as claims.
            with directory.locked(record_key), contextlib.suppress(TableFullError):
                directory.put(record_key, value)
