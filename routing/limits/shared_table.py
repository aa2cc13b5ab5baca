"""A fixed-size hash table in memory that several processes share.

- Open addressing: a key is in one of the `PROBES` slots from its home on. Two slots are there for each
  record of the capacity, so that a window that is full before the table is stays a rarity.
- A slot holds its value twice, and its state word, written last and at once, says which of them counts.
  So a process that is killed in the middle of a `put` leaves the old value or the new one, never a mixture,
  and `get` needs no lock.
- Locks are POSIX byte-range locks on a file, which the kernel frees when their holder is killed. They are
  per process: a process must not open that file a second time (closing any descriptor of it would drop
  its locks), must not nest them, and must take them from one thread only.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

KEY_BYTES: Final = 16
PROBES: Final = 64
STRIPES_MAX: Final = 1024
SLOTS_A_RECORD: Final = 2
STRIPES: Final = STRIPES_MAX + 1
"""Bytes of the lock file that a table needs at most: a holder has its stripe and the next."""

WORD_BYTES: Final = 8
HEAD_WORDS: Final = 3
"""The state, then the key as two words; the values follow."""
KIND: Final = 3
"""The two lowest bits of a state; above them the slot counts its changes."""
FREE: Final = 0
"""No search passes here: nothing behind is of a home before."""
GONE: Final = 1
"""Empty, but searches pass."""
LIVE: Final = 2
"""The first value counts; LIVE + 1: the second does."""

Expired = Callable[[bytes], bool]
"""Tells whether a value may be evicted to make room."""


class TableFullError(Exception):
    """No slot is free for a key, and none near it can be evicted."""


class Table(Protocol):
    """What limits, sessions and idempotency keys are kept in. Keys are 16 bytes of a hash."""

    def locked(self, key: bytes) -> AbstractContextManager[None]:
        """Keep every other process from changing the record of `key`; do not nest."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`."""

    def put(self, key: bytes, value: bytes) -> None:
        """Store the value of `key`, whose lock the caller holds; raises `TableFullError`."""

    def remove(self, key: bytes) -> None:
        """Forget `key`, whose lock the caller holds, if it is there."""

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Return all records; a scan, for start-up only."""


class LocalTable:
    """The same for one process: a dict with a capacity."""

    def __init__(self, *, capacity: int, expired: Expired) -> None:
        self._capacity = capacity
        self._expired = expired
        self._values: dict[bytes, bytes] = {}
        self._nobody_else: AbstractContextManager[None] = nullcontext()

    def locked(self, key: bytes) -> AbstractContextManager[None]:
        """Do nothing: there is nobody else."""
        assert len(key) == KEY_BYTES
        return self._nobody_else

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`."""
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Store the value of `key`; the oldest records make room when they have expired."""
        values = self._values
        if key not in values and len(values) >= self._capacity:
            for oldest in [old for old, _ in zip(values, range(PROBES), strict=False)]:
                held = values.pop(oldest)
                if self._expired(held):
                    break
                values[oldest] = held  # to the end: looked at again last
            else:
                raise TableFullError
        values[key] = value

    def remove(self, key: bytes) -> None:
        """Forget `key`, if it is there."""
        self._values.pop(key, None)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Return all records."""
        return iter(list(self._values.items()))


class _Stripe:
    """The lock of one stripe; it reaches over the next, into which windows of this one extend."""

    __slots__ = ("_fd", "_start")

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        self._start = start

    def __enter__(self) -> None:
        # Both bytes in one call: nobody waits for the second while holding the first.
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 2, self._start)

    def __exit__(self, *exception: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 2, self._start)


class SharedTable:
    """The table over `buffer`, which must be zeroed, word-aligned and of `size(...)` bytes.

    It takes `STRIPES` bytes of the lock file from `lock_start` on. Stores become visible in their order, as
    x86 has it; elsewhere the system calls of the lock order them, and only an unlocked `get` may be early.
    """

    def __init__(
        self,
        buffer: memoryview,
        *,
        value_bytes: int,
        capacity: int,
        lock_fd: int,
        lock_start: int,
        expired: Expired,
    ) -> None:
        size = self.size(value_bytes, capacity)
        assert len(buffer) >= size
        self._buffer = buffer[:size]
        self._words: memoryview[int] = buffer[:size].cast("Q")
        self._value_bytes = value_bytes
        self._step = _slot_words(value_bytes)
        self._homes = SLOTS_A_RECORD * capacity
        self._expired = expired
        # A stripe is no shorter than a window, so that a window lies in its stripe and the next.
        self._stripe_slots = max(PROBES, -(-self._homes // STRIPES_MAX))
        stripes = -(-self._homes // self._stripe_slots)
        self._stripes = [_Stripe(lock_fd, lock_start + stripe) for stripe in range(stripes)]

    @staticmethod
    def size(value_bytes: int, capacity: int) -> int:
        """Return the bytes that a table takes."""
        # The last homes have their windows too: no window wraps around, and so no lock does.
        return WORD_BYTES * _slot_words(value_bytes) * (SLOTS_A_RECORD * capacity + PROBES)

    def locked(self, key: bytes) -> AbstractContextManager[None]:
        """Hold every slot in which `key` can be."""
        assert len(key) == KEY_BYTES
        return self._stripes[int.from_bytes(key[:8], "little") % self._homes // self._stripe_slots]

    def _find(self, key: bytes) -> tuple[int | None, int | None]:
        """Return (slot of `key`, else the first slot that can take it), as positions of words."""
        words, step = self._words, self._step
        low = int.from_bytes(key[:8], "little")
        high = int.from_bytes(key[8:], "little")
        home = low % self._homes * step
        usable = None
        for slot in range(home, home + PROBES * step, step):
            kind = words[slot] & KIND
            if kind == FREE:
                return None, slot if usable is None else usable
            if kind == GONE:
                if usable is None:
                    usable = slot
            elif words[slot + 1] == low and words[slot + 2] == high:
                return slot, None
        return None, usable

    def _value(self, slot: int, state: int) -> bytes:
        start = WORD_BYTES * (slot + HEAD_WORDS) + (state & 1) * self._value_bytes
        return bytes(self._buffer[start : start + self._value_bytes])

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`."""
        while True:
            slot, _ = self._find(key)
            if slot is None:
                return None
            state = self._words[slot]
            if state & KIND < LIVE:
                continue
            value = self._value(slot, state)
            # Without the lock, writers may have come, or the slot may have changed hands.
            if self._key(slot) == key and self._words[slot] == state:
                return value

    def _key(self, slot: int) -> bytes:
        start = WORD_BYTES * (slot + 1)
        return bytes(self._buffer[start : start + KEY_BYTES])

    def _become(self, slot: int, kind: int) -> None:
        """Change the kind of a slot: one store of one word."""
        self._words[slot] = (self._words[slot] | KIND) + 1 + kind

    def put(self, key: bytes, value: bytes) -> None:
        """Store the value of `key`, evicting an expired neighbour if it must; raises `TableFullError`."""
        assert len(value) == self._value_bytes
        slot, usable = self._find(key)
        if slot is None:
            slot = self._evict(key) if usable is None else usable
            start = WORD_BYTES * (slot + 1)
            self._buffer[start : start + KEY_BYTES] = key
            kind = LIVE
        else:
            kind = (self._words[slot] & KIND) ^ 1
        start = WORD_BYTES * (slot + HEAD_WORDS) + (kind & 1) * self._value_bytes
        self._buffer[start : start + self._value_bytes] = value
        self._become(slot, kind)  # from here on the record is there

    def _evict(self, key: bytes) -> int:
        """Empty the first slot of the window of `key` whose value has expired."""
        words, step = self._words, self._step
        home = int.from_bytes(key[:8], "little") % self._homes * step
        for slot in range(home, home + PROBES * step, step):
            if self._expired(self._value(slot, words[slot])):
                self._become(slot, GONE)
                return slot
        raise TableFullError

    def remove(self, key: bytes) -> None:
        """Forget `key`, if it is there; slots that no search needs to pass become free again."""
        words, step = self._words, self._step
        slot, _ = self._find(key)
        if slot is None:
            return
        self._become(slot, GONE)
        # The lock covers the stripe of the home and the next, and so also the slot after a window.
        first = int.from_bytes(key[:8], "little") % self._homes // self._stripe_slots
        first *= self._stripe_slots * step
        last = len(words) - step
        while (
            slot >= first
            and words[slot] & KIND == GONE
            and (slot == last or words[slot + step] & KIND == FREE)
        ):
            self._become(slot, FREE)
            slot -= step

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Return all records that stay as they are during the scan."""
        for index, state in enumerate(self._words[:: self._step].tolist()):
            slot = index * self._step
            if state & KIND >= LIVE:
                key = self._key(slot)
                value = self.get(key)
                if value is not None:
                    yield key, value


def _slot_words(value_bytes: int) -> int:
    return HEAD_WORDS + -(-2 * value_bytes // WORD_BYTES)
