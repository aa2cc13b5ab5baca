"""The memory that the processes of a node share: counters, gauges, limits, sessions, mailboxes.

The supervisor makes it before it forks; it is anonymous and goes with the last process. A worker writes
its own blocks only; tables that all write are guarded by byte-range locks (`routing.limits.shared_table`).
"""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
import socket
import struct
from pathlib import Path
from typing import Final

import msgspec

from ingest import counters
from ingest.order import Homes, Progress
from ingest.routes import NAME, NAME_CHARACTERS_MAX
from routing.limits.allowance import row_bytes, row_expired
from routing.limits.shared_table import STRIPES, LocalTable, SharedTable, Table
from runtime import clock

TENANT_NAME_BYTES: Final = -(-(2 + NAME_CHARACTERS_MAX) // 8) * 8
"""A length of two bytes and a name, in whole words: the tables behind them are aligned."""
SESSION_VALUE: Final = struct.Struct("<IId")
"""Worker, epoch of that worker, Unix time at which the session ends (0: while connected)."""
IDEMPOTENCY_BYTES: Final = 64
IDEMPOTENCY_ENDS_S: Final = struct.Struct("<56xd")
"""A record of a key ends with the Unix time after which it means nothing."""
MESSAGE_BYTES_MAX: Final = 200_000
"""Of one worker to another; the largest is the packet ids of a session."""
WORKERS_MAX: Final = 256
LOCK_TABLES: Final = 5
"""The lock file has the names, then four tables, then the homes."""
OTHER_TENANTS: Final = 0
"""The tenant index of all tenants beyond `tenants_max`."""


class Gauge(enum.IntEnum):
    """The gauges of a worker, as 64-bit floats."""

    PID = 0
    EPOCH = 1
    STATE = 2
    HEARTBEAT_S = 3
    LOOP_LAG_S = 4
    CONNECTIONS = 5
    SPOOL_BYTES = 6
    SPOOL_GROUPS = 7
    SPOOL_OLDEST_S = 8
    SPOOL_STATE = 9
    SINK_READY = 10
    SINK_PENDING_RECORDS = 11
    SINK_PENDING_BYTES = 12
    SINK_OPEN_CIRCUITS = 13
    TLS_NOT_AFTER_S = 14
    TLS_CRL_NEXT_UPDATE_S = 15
    TLS_RELOAD_FAILED = 16
    DEAD_LETTERS = 17
    DEAD_LETTERS_BYTES = 18


GONE_WITH_THE_PROCESS: Final = (
    Gauge.PID,
    Gauge.STATE,
    Gauge.HEARTBEAT_S,
    Gauge.LOOP_LAG_S,
    Gauge.CONNECTIONS,
    Gauge.SINK_READY,
    Gauge.SINK_PENDING_RECORDS,
    Gauge.SINK_PENDING_BYTES,
    Gauge.SINK_OPEN_CIRCUITS,
)
"""What is no longer true of a worker that died; its spool and its certificates are as it left them."""


class WorkerState(enum.IntEnum):
    """Where a worker is in its life."""

    ABSENT = 0
    STARTING = 1
    READY = 2
    DRAINING = 3
    DRAINED = 4


class MemoryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each the tables have room for."""

    tenants_max: int
    devices_max: int
    sessions_max: int
    idempotency_keys_max: int


class Figures(msgspec.Struct, frozen=True):
    """A copy of one worker's block."""

    counters: list[int]
    gauges: list[float]


def _limits_expired(value: bytes) -> bool:
    return row_expired(value, clock.monotonic_s())


def _idempotency_expired(value: bytes) -> bool:
    (ends_s,) = IDEMPOTENCY_ENDS_S.unpack(value)
    return bool(ends_s < clock.unix_s())


class NodeMemory:
    """One mapping for the counters and the tables, one lock file, one mailbox a worker."""

    def __init__(self, workers: int, limits: MemoryLimits, lock_path: Path) -> None:
        assert 1 <= workers <= WORKERS_MAX
        self.workers = workers
        self.limits = limits
        self._lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._counters = counters.GLOBAL_COUNTERS + limits.tenants_max * counters.TENANT_STRIDE
        counter_bytes = 8 * self._counters * workers
        gauge_bytes = 8 * len(Gauge) * workers
        name_bytes = TENANT_NAME_BYTES * limits.tenants_max
        tables = {
            "tenants": (row_bytes(workers), limits.tenants_max * 2),
            "devices": (row_bytes(workers), limits.devices_max),
            "sessions": (SESSION_VALUE.size, limits.sessions_max),
            "idempotency": (IDEMPOTENCY_BYTES, limits.idempotency_keys_max),
        }
        self._gauge_start = counter_bytes
        self._progress_start = counter_bytes + gauge_bytes
        self._name_start = self._progress_start + Progress.size(workers)
        self._home_start = -(-(self._name_start + name_bytes) // 8) * 8
        self._home_bytes = Homes.size(limits.devices_max, workers)
        start = self._home_start + -(-self._home_bytes // 8) * 8
        shared = sum(SharedTable.size(*table) for table in tables.values()) if workers > 1 else 0
        self._map = mmap.mmap(-1, start + shared)
        self._view = memoryview(self._map)
        self._names: dict[str, int] = {}
        expired = {
            "tenants": _limits_expired,
            "devices": _limits_expired,
            "sessions": self._session_expired,
            "idempotency": _idempotency_expired,
        }
        made: dict[str, Table] = {}
        for position, (name, (value_bytes, capacity)) in enumerate(tables.items(), start=1):
            if workers == 1:
                made[name] = LocalTable(capacity=capacity, expired=expired[name])
                continue
            size = SharedTable.size(value_bytes, capacity)
            made[name] = SharedTable(
                self._view[start : start + size],
                value_bytes=value_bytes,
                capacity=capacity,
                lock_fd=self._lock_fd,
                lock_start=position * (STRIPES + 2),
                expired=expired[name],
            )
            start += size
        self.tenants = made["tenants"]
        self.devices = made["devices"]
        self.sessions = made["sessions"]
        self.idempotency = made["idempotency"]
        self.mailboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(workers)]
        for receiver, sender in self.mailboxes:
            receiver.setblocking(False)
            sender.setblocking(False)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES_MAX)

    def _session_expired(self, value: bytes) -> bool:
        worker, epoch, ends_s = SESSION_VALUE.unpack(value)
        if ends_s:
            return bool(ends_s < clock.unix_s())
        return bool(self.gauges(worker)[Gauge.EPOCH] != epoch)

    def counters(self, worker: int) -> memoryview[int]:
        """Return the counters of a worker, to write or to read."""
        size = 8 * self._counters
        return self._view[size * worker : size * (worker + 1)].cast("q")

    def gauges(self, worker: int) -> memoryview[float]:
        """Return the gauges of a worker, to write or to read; indexed by `Gauge`."""
        size = 8 * len(Gauge)
        start = self._gauge_start + size * worker
        return self._view[start : start + size].cast("d")

    def progress(self) -> Progress:
        """Return how far each worker is with what it was given."""
        size = Progress.size(self.workers)
        return Progress(self._view[self._progress_start : self._progress_start + size].cast("q"))

    def homes(self, worker: int) -> Homes:
        """Return where devices are at home, as `worker` sees it."""
        words = self._view[self._home_start : self._home_start + self._home_bytes].cast("I")
        epoch = int(self.gauges(worker)[Gauge.EPOCH])
        lock_start = LOCK_TABLES * (STRIPES + 2)
        return Homes(words, lock_fd=self._lock_fd, lock_start=lock_start, worker=worker, epoch=epoch)

    def worker_gone(self, worker: int) -> None:
        """Take back what a worker that died said of itself."""
        gauges = self.gauges(worker)
        for gauge in GONE_WITH_THE_PROCESS:
            gauges[gauge] = 0.0

    def unsettled(self, worker: int, epoch: int) -> bool:
        """Tell whether what `worker` began in `epoch` may still turn out to be in its spool.

        So it is while it lives, and after that until its successor has read the spool and is READY.
        """
        if worker >= self.workers:
            return False
        gauges = self.gauges(worker)
        return gauges[Gauge.EPOCH] == epoch or gauges[Gauge.STATE] < WorkerState.READY

    def tenant_index(self, tenant: str) -> int:
        """Return where the counters of `tenant` stand; the same in every worker."""
        index = self._names.get(tenant)
        if index is not None:
            return index
        if len(self._names) + 1 >= self.limits.tenants_max:
            return OTHER_TENANTS
        if not NAME.fullmatch(tenant):
            return OTHER_TENANTS  # above all "", of who has no identity: a length of 0 ends the directory
        fcntl.lockf(self._lock_fd, fcntl.LOCK_EX, 1, 0)
        try:
            self._read_names()
            index = self._names.get(tenant)
            return self._enter_name(tenant) if index is None else index
        finally:
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN, 1, 0)

    def _read_names(self) -> None:
        """Take in what the directory has more than this process knows; entries are only ever added."""
        for index in range(len(self._names) + 1, self.limits.tenants_max):
            start = self._name_start + index * TENANT_NAME_BYTES
            length = int.from_bytes(self._view[start : start + 2], "little")
            if not length:
                return
            self._names[str(self._view[start + 2 : start + 2 + length], "utf-8")] = index

    def _enter_name(self, tenant: str) -> int:
        index = len(self._names) + 1
        if index >= self.limits.tenants_max:
            return OTHER_TENANTS
        name = tenant.encode()
        start = self._name_start + index * TENANT_NAME_BYTES
        self._view[start + 2 : start + 2 + len(name)] = name
        # The length is what makes it an entry: a process killed before here has entered nothing.
        self._view[start : start + 2] = len(name).to_bytes(2, "little")
        self._names[tenant] = index
        return index

    def tenant_names(self) -> dict[int, str]:
        """Return the tenants that have counters, by index; all beyond `tenants_max` are "(other)"."""
        self._read_names()
        return {OTHER_TENANTS: "(other)"} | {index: name for name, index in self._names.items()}

    def figures(self, worker: int) -> Figures:
        """Return a copy of what a worker has counted."""
        gauges: list[float] = [float(value) for value in self.gauges(worker)]
        return Figures(self.counters(worker).tolist(), gauges)

    def post(self, worker: int, message: bytes) -> bool:
        """Put a message into the mailbox of `worker`; False when that is full, or the message too long."""
        if len(message) > MESSAGE_BYTES_MAX:
            return False
        try:
            self.mailboxes[worker][1].send(message)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            return False
        return True
