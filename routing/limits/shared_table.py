"""A fixed-size hash table in memory that several processes share.

- Open addressing, linear probing over at most `PROBES_MAX` slots, 16-byte keys, values of one size.
- Locks are POSIX byte-range locks on a file, so the kernel frees them when a holder is killed. A process
  must not open that file a second time: closing any descriptor of it would drop its locks.
- A slot's key is written after its value, so a kill in between leaves no half record.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

KEY_BYTES: Final = 16
PROBES_MAX: Final = 64
STRIPES: Final = 1024
FREE: Final = bytes(KEY_BYTES)
GONE: Final = b"\xff" * KEY_BYTES

Expired = Callable[[bytes], bool]
"""Tells whether a value may be evicted to make room."""


class TableFullError(Exception):
    """No slot is free for a key, and none near it can be evicted."""


class Table(Protocol):
    """What limits, sessions and idempotency keys are kept in. Keys are 16 bytes."""

    @contextmanager
    def locked(self, key: bytes) -> Iterator[None]:
        """Keep every other process from the record of `key`."""
        del key
        yield

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`."""

    def put(self, key: bytes, value: bytes) -> None:
        """Store the value of `key`; raises `TableFullError`."""

    def remove(self, key: bytes) -> None:
        """Forget `key`, if it is there."""

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Return all records; a scan, for start-up only."""


class LocalTable:
    """The same for one process: a dict with a capacity."""

    def __init__(self, *, capacity: int, expired: Expired) -> None:
        self._capacity = capacity
        self._expired = expired
        self._values: dict[bytes, bytes] = {}

    @contextmanager
    def locked(self, key: bytes) -> Iterator[None]:
        """Do nothing: there is nobody else."""
        assert len(key) == KEY_BYTES
        yield

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`."""
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Store the value of `key`; the oldest records make room when they have expired."""
        values = self._values
        if key not in values and len(values) >= self._capacity:
            for oldest in [old for old, _ in zip(values, range(PROBES_MAX), strict=False)]:
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


class SharedTable:
    """The table over `buffer`, which must be zeroed and of `size(...)` bytes."""

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
        assert len(buffer) >= self.size(value_bytes, capacity)
        self._buffer = buffer
        self._value_bytes = value_bytes
        self._slot_bytes = KEY_BYTES + value_bytes
        self._capacity = capacity
        self._lock_fd = lock_fd
        self._lock_start = lock_start
        self._expired = expired

    @staticmethod
    def size(value_bytes: int, capacity: int) -> int:
        """Return the bytes that a table takes."""
        return (KEY_BYTES + value_bytes) * capacity

    @contextmanager
    def locked(self, key: bytes) -> Iterator[None]:
        """Hold the stripe of `key`; slots of neighbouring stripes are guarded by the key-last rule."""
        offset = self._lock_start + (self._home(key) * STRIPES // self._capacity)
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX, 2, offset)
        try:
            yield
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN, 2, offset)

    def _home(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "little") % self._capacity

    def _find(self, key: bytes) -> tuple[int | None, int | None]:
        """Return (offset of `key`, offset of the first slot that can take it)."""
        buffer, step = self._buffer, self._slot_bytes
        home = self._home(key)
        usable = None
        for probe in range(min(PROBES_MAX, self._capacity)):
            offset = (home + probe) % self._capacity * step
            held = bytes(buffer[offset : offset + KEY_BYTES])
            if held == key:
                return offset, offset
            if held == FREE:
                return None, offset if usable is None else usable
            if usable is None and held == GONE:
                usable = offset
        return None, usable

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`."""
        offset, _ = self._find(key)
        if offset is None:
            return None
        start = offset + KEY_BYTES
        return bytes(self._buffer[start : start + self._value_bytes])

    def put(self, key: bytes, value: bytes) -> None:
        """Store the value of `key`, evicting an expired neighbour if it must; raises `TableFullError`."""
        assert len(key) == KEY_BYTES
        assert len(value) == self._value_bytes
        offset, usable = self._find(key)
        if offset is None and usable is None:
            usable = self._evict(key)
        target = offset if offset is not None else usable
        assert target is not None
        start = target + KEY_BYTES
        self._buffer[start : start + self._value_bytes] = value
        if offset is None:
            self._buffer[target:start] = key

    def _evict(self, key: bytes) -> int:
        home = self._home(key)
        for probe in range(min(PROBES_MAX, self._capacity)):
            offset = (home + probe) % self._capacity * self._slot_bytes
            start = offset + KEY_BYTES
            if self._expired(bytes(self._buffer[start : start + self._value_bytes])):
                return offset
        raise TableFullError

    def remove(self, key: bytes) -> None:
        """Forget `key`, if it is there."""
        offset, _ = self._find(key)
        if offset is not None:
            self._buffer[offset : offset + KEY_BYTES] = GONE

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Return all records."""
        for slot in range(self._capacity):
            offset = slot * self._slot_bytes
            key = bytes(self._buffer[offset : offset + KEY_BYTES])
            if key not in (FREE, GONE):
                start = offset + KEY_BYTES
                yield key, bytes(self._buffer[start : start + self._value_bytes])
