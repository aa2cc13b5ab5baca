"""The order of a device's messages over the workers of a node (decision 0011).

Each worker has a spool of its own, and the kernel gives a connection to any of them. So that what a device
sends after it was acknowledged on one worker is not delivered before that by another:

- *Homes*, in shared memory, say which worker a device's last message went to. A worker that is given one of
  a device that is not at home with it becomes its home, and
- its open group then comes *after* what every other worker has committed and not yet had delivered. The
  group is stored with that, and its shipper waits for it.

A bucket that has a free home has never given one up. So a device that is not in it is new to this run of the
node, and comes after what earlier runs left only: else the first messages of a whole fleet would wait for
each other.

Groups only ever wait for groups that were durable before them, so nobody waits in a circle. What was not
durable was not acknowledged, and is sent again by its client.

A bucket has `WAYS` homes, found by the hash of the device: when all are taken the oldest makes room, which
costs its device a wait, never its order.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Sequence
from typing import Final

from ingest.records import After

WAYS: Final = 4
BUCKETS_A_DEVICE: Final = 2
"""Room for eight homes a device, so that a bucket hardly ever overflows."""
WORD_BYTES: Final = 4
LOCKS: Final = 64
"""Bytes of the lock file that homes need."""
UNKNOWN: Final = 0
WORDS: Final = 4
"""Of a worker: its spool, its last durable group, the last delivered, and the last that earlier runs left."""


class Progress:
    """How far each worker is, in shared memory: `WORDS` 64-bit integers a worker, written by it alone."""

    def __init__(self, words: memoryview[int]) -> None:
        self._words = words

    @staticmethod
    def size(workers: int) -> int:
        """Return the bytes that `workers` take."""
        return WORDS * 8 * workers

    @property
    def workers(self) -> int:
        """The number of workers."""
        return len(self._words) // WORDS

    def start(self, worker: int, spool: int, committed: int, settled: int) -> None:
        """Say where a worker begins: the last group of its spool, and the last before those still in it."""
        words, at = self._words, WORDS * worker
        words[at + 2] = settled
        words[at + 1] = committed
        words[at] = spool

    def introduce(self, worker: int, spool: int, committed: int, settled: int) -> None:
        """Say what earlier runs left in the spool of a worker, before any worker starts."""
        self.start(worker, spool, committed, settled)
        self._words[WORDS * worker + 3] = committed

    def left(self, worker: int) -> After:
        """Return the last group that earlier runs left in the spool of `worker`."""
        words, at = self._words, WORDS * worker
        return After(worker, words[at], words[at + 3])

    def committed(self, worker: int, group: int) -> None:
        """Say that `group` is durable, before anybody is told that it is."""
        self._words[WORDS * worker + 1] = group

    def settled(self, worker: int, group: int) -> None:
        """Say that `group` and all before it are delivered, or will never be."""
        self._words[WORDS * worker + 2] = group

    def unsettled(self, worker: int) -> After | None:
        """Return the last group of `worker` that is durable, if it is not delivered yet."""
        words, at = self._words, WORDS * worker
        group = words[at + 1]
        return After(worker, words[at], group) if words[at + 2] < group else None

    def is_over(self, after: After) -> bool:
        """Return whether what is to come first is delivered, or its spool is no longer there."""
        if after.worker >= self.workers:
            return True
        words, at = self._words, WORDS * after.worker
        return words[at] != after.spool or words[at + 2] >= after.group


class Homes:
    """Where each device's last message went, as one worker sees it.

    `words` is zeroed at first; a word has 16 bits of the device's hash, 8 of the start of a worker and 8 of
    the worker. It is read without a lock and changed under one of `LOCKS` of a lock file.
    """

    def __init__(
        self, words: memoryview[int], *, lock_fd: int, lock_start: int, worker: int, epoch: int
    ) -> None:
        self.words = words
        self._buckets = max(1, len(words) // WAYS)
        self._lock_fd = lock_fd
        self._lock_start = lock_start
        self._own = (epoch % 255 + 1) << 8 | worker
        self._alone = len(words) < WAYS

    @staticmethod
    def size(devices_max: int, workers: int) -> int:
        """Return the bytes that the homes of `devices_max` devices take; of one worker it is one word."""
        return WORD_BYTES * (WAYS * BUCKETS_A_DEVICE * devices_max if workers > 1 else 1)

    def come_home(self, tenant: str, device: str) -> tuple[int, int, bool]:
        """Make this worker the home of a device; return (index, word, whether it may have had another).

        While `words[index]` is that word, it still is.
        """
        if self._alone:
            self.words[0] = self._own
            return 0, self._own, False
        digest = hashlib.blake2b(f"{tenant}/{device}".encode(), digest_size=8).digest()
        tag = int.from_bytes(digest[:2], "little") << 16
        bucket = int.from_bytes(digest[2:], "little") % self._buckets
        mine = tag | self._own
        start = bucket * WAYS
        lock = self._lock_start + bucket % LOCKS
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX, 1, lock)
        try:
            index, known = self._find(start, tag)
            self.words[index] = mine
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN, 1, lock)
        return index, mine, known

    def _find(self, start: int, tag: int) -> tuple[int, bool]:
        """Return the index of a tag in its bucket, else of a free word, else of one that makes room.

        With it, return whether the tag may have been there: it was not where a word is free.
        """
        words = self.words
        free = None
        for index in range(start, start + WAYS):
            word = words[index]
            if word & 0xFFFF0000 == tag and word != UNKNOWN:
                return index, True
            if word == UNKNOWN and free is None:
                free = index
        if free is not None:
            return free, False
        for index in range(start, start + WAYS - 1):
            words[index] = words[index + 1]
        return start + WAYS - 1, True


class Order:
    """One worker's part in the order of a node's devices."""

    def __init__(self, homes: Homes, progress: Progress, *, worker: int, spool: int) -> None:
        self.homes = homes
        self._progress = progress
        self._worker = worker
        self._others = [other for other in range(progress.workers) if other != worker]
        self._spool = spool
        self._left = [progress.left(other) for other in self._others]

    def start(self, committed: int, settled: int) -> None:
        """Say where this worker begins."""
        self._progress.start(self._worker, self._spool, committed, settled)

    def come_home(self, tenant: str, device: str) -> tuple[int, int, Sequence[After]]:
        """Make this worker the home of a device; return (index, word, what its next group comes after)."""
        index, word, known = self.homes.come_home(tenant, device)
        if not known:
            self._left = self.waits_for(self._left)
            return index, word, self._left
        unsettled = [self._progress.unsettled(other) for other in self._others]
        return index, word, [after for after in unsettled if after is not None]

    def committed(self, group: int) -> None:
        """Hear that a group is durable; call it before any of its answers goes out."""
        self._progress.committed(self._worker, group)

    def settled(self, group: int) -> None:
        """Hear that a group and all before it are delivered."""
        self._progress.settled(self._worker, group)

    def waits_for(self, afters: Sequence[After]) -> list[After]:
        """Return those of `afters` that are not over yet."""
        return [after for after in afters if not self._progress.is_over(after)]
