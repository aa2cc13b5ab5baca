"""What a connection may still send: a device's and its tenant's tokens, for messages and for bytes.

The truth is one row a device and one a tenant in a table that the workers of a node share. A worker
draws a *lease* from it and spends that locally, so that a read costs no table operation. Over all
workers and any time t at most

    rate * t + burst + workers * lease,   lease = burst / (LEASE_SHARE * workers)

is let through, and a lease that is not spent within `LEASE_S` is void. What is larger than the whole burst
passes when the bucket is full, and goes into debt: else it never could.

A device that is *at home* with a worker had its last message accepted there (`ingest.order`). So that worker
knows when the row is full, and may then draw a lease of at least one message without a look at it, which it
books when it next writes the row: a device that sends seldom costs no table operation. When it moves at such
a moment, that one lease comes on top; what other workers refuse for its content while it is at home, too.

A table that is full costs this bound only: who finds no room there is limited by each worker for itself.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from routing.limits.shared_table import Table, TableFullError
from routing.limits.terms import NOBODY, Over, Policy, Rates, Terms

LEASE_SHARE: Final = 8
LEASE_S: Final = 1.0
UNLIMITED: Final = float("inf")
NEVER: Final = float("-inf")
TOKENS: Final = struct.Struct("<ddd")
"""A row: tokens for messages, tokens for bytes, when they were counted; then connections a worker."""
COUNT_BYTES: Final = 4
DEBT_KEPT_S: Final = 3600.0
"""A debt of somebody who was silent for so long is forgotten if the table needs the room."""
ROUNDING: Final = 1e-6
"""Tokens that a sum of fractions may be short of."""


def table_key(kind: str, *names: str) -> bytes:
    """Return the 16-byte key of a record."""
    text = "\0".join((kind, *names)).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


class Bounds:
    """What a limit means to one of `workers` workers: the same for all devices of a plan."""

    __slots__ = (
        "borrowed",
        "borrowed_bytes",
        "burst",
        "burst_bytes",
        "bytes_per_s",
        "connections_max",
        "messages_per_s",
        "refill_s",
        "share",
        "unlimited",
        "workers",
    )

    def __init__(self, rates: Rates, workers: int) -> None:
        self.messages_per_s = rates.messages_per_s
        self.bytes_per_s = rates.bytes_per_s
        self.connections_max = rates.connections_max
        self.workers = workers
        self.share = 1 / (LEASE_SHARE * workers)
        self.burst = max(1.0, rates.messages_per_s * rates.burst_s) if rates.messages_per_s else UNLIMITED
        self.burst_bytes = max(1.0, rates.bytes_per_s * rates.burst_s) if rates.bytes_per_s else UNLIMITED
        self.unlimited = not (rates.messages_per_s or rates.bytes_per_s)
        # What a device at home may borrow, and how long its bucket takes to be full again.
        self.borrowed = max(1.0, self.burst * self.share)
        self.borrowed_bytes = self.burst_bytes * self.share
        self.refill_s = self.borrowed / rates.messages_per_s if rates.messages_per_s else 0.0
        if rates.bytes_per_s:
            self.refill_s = max(self.refill_s, self.borrowed_bytes / rates.bytes_per_s)


class Meter:
    """One row of the table as one worker uses it."""

    __slots__ = (
        "_bounds",
        "_bytes",
        "_full_s",
        "_key",
        "_messages",
        "_owed_s",
        "_own_row",
        "_table",
        "_void_s",
    )

    def __init__(self, table: Table, key: bytes, bounds: Bounds) -> None:
        self._table = table
        self._key = key
        self._own_row: bytes | None = None
        self.set_bounds(bounds)

    def set_bounds(self, bounds: Bounds) -> None:
        """Change the limits; what is leased is void."""
        self._bounds = bounds
        self._messages = 0.0 if bounds.messages_per_s else UNLIMITED
        self._bytes = 0.0 if bounds.bytes_per_s else UNLIMITED
        # Who is not limited never has to look at the table.
        self._void_s = UNLIMITED if self.unlimited else 0.0
        self._full_s = UNLIMITED
        self._owed_s = NEVER

    @property
    def unlimited(self) -> bool:
        """Return whether nothing is ever charged."""
        return self._bounds.unlimited

    def _spend(self, messages: int, size: int, now_s: float) -> bool:
        """Charge the lease, if it is good and covers all of it."""
        if now_s < self._void_s and messages <= self._messages and size <= self._bytes:
            self._messages -= messages
            self._bytes -= size
            return True
        return False

    def _borrow(self, messages: int, size: int, now_s: float) -> bool:
        """Draw a lease when the row is full, as far as one knows who alone draws from it, and charge that."""
        if now_s < self._full_s:
            return False
        bounds = self._bounds
        if messages > bounds.borrowed or size > bounds.borrowed_bytes:
            return False
        self._messages = bounds.borrowed - messages
        self._bytes = bounds.borrowed_bytes - size
        self._void_s = now_s + LEASE_S
        self._owed_s = now_s
        self._full_s = now_s + bounds.refill_s
        return True

    def take(self, messages: int, size: int, now_s: float, *, at_home: bool = False) -> float:
        """Charge, into debt if need be, and return the pause in seconds that pays it."""
        if self._spend(messages, size, now_s) or (at_home and self._borrow(messages, size, now_s)):
            return 0.0
        with self._table.locked(self._key):
            row, tokens, tokens_bytes = self._read(now_s)
            tokens -= messages
            tokens_bytes -= size
            self._write(row, tokens, tokens_bytes, now_s)
        return self._until(0, 0, tokens, tokens_bytes)

    def take_what_fits(
        self, messages: int, size: int, now_s: float, *, at_home: bool = False
    ) -> tuple[int, float]:
        """Charge as many of `messages` (of together `size` bytes) as are within the limit.

        Return how many, and in how many seconds the next one fits.
        """
        if self._spend(messages, size, now_s) or (at_home and self._borrow(messages, size, now_s)):
            return messages, 0.0
        with self._table.locked(self._key):
            row, tokens, tokens_bytes = self._read(now_s)
            fit = self._fitting(messages, size, tokens, tokens_bytes)
            if fit:
                tokens -= fit
                tokens_bytes -= size * fit // messages
                self._write(row, tokens, tokens_bytes, now_s)
        if fit == messages:
            return messages, 0.0
        return fit, self._until(1, min(size // messages, self._bounds.burst_bytes), tokens, tokens_bytes)

    def _fitting(self, messages: int, size: int, tokens: float, tokens_bytes: float) -> int:
        fit = messages
        if tokens < messages:
            fit = int(tokens + ROUNDING)
        if tokens_bytes < size:
            by_size = int(messages * tokens_bytes / size) if size else 0
            if by_size < 1 and tokens_bytes >= self._bounds.burst_bytes:
                by_size = 1
            fit = min(fit, by_size)
        return max(0, fit)

    def take_whole(self, messages: int, size: int, now_s: float, paid: int = 0) -> float:
        """Charge all of it and return 0.0, or nothing and return in how many seconds all of it fits.

        What this read has `paid` for is not held against it: to it, a bucket that lacks only that is full.
        """
        if self._spend(messages, size, now_s):
            return 0.0
        with self._table.locked(self._key):
            row, tokens, tokens_bytes = self._read(now_s)
            wait_s = self._wait_s(messages, size, tokens, tokens_bytes, paid)
            if not wait_s:
                self._write(row, tokens - messages, tokens_bytes - size, now_s)
            elif now_s < self._void_s:
                # The lease goes back, so that it cannot become void while this one waits for it.
                self._write(row, tokens, tokens_bytes, now_s, share=0.0)
                self._void_s = 0.0
        return wait_s

    def wait_s(self, messages: int, size: int, now_s: float, paid: int = 0) -> float:
        """Return how long until `take_whole` charges this; 0.0 when it would now."""
        if self.unlimited:
            return 0.0
        _, tokens, tokens_bytes = self._read(now_s)
        return self._wait_s(messages, size, tokens, tokens_bytes, paid)

    def _wait_s(self, messages: int, size: int, tokens: float, tokens_bytes: float, paid: int) -> float:
        burst, burst_bytes = self._bounds.burst - paid, self._bounds.burst_bytes
        return self._until(min(messages, burst), min(size, burst_bytes), tokens, tokens_bytes)

    def give_back(self, messages: int, size: int, now_s: float) -> None:
        """Take back a charge of just now."""
        if self.unlimited:
            return
        with self._table.locked(self._key):
            row, tokens, tokens_bytes = self._read(now_s)
            self._write(row, tokens + messages, tokens_bytes + size, now_s)

    def _until(self, messages: float, size: float, tokens: float, tokens_bytes: float) -> float:
        """Return how long until there are tokens for `messages` and for `size` bytes."""
        wait_s = 0.0
        if messages - tokens > ROUNDING:
            wait_s = (messages - tokens) / self._bounds.messages_per_s
        if size - tokens_bytes > ROUNDING:
            wait_s = max(wait_s, (size - tokens_bytes) / self._bounds.bytes_per_s)
        return wait_s

    def count_connection(self, worker: int, change: int) -> bool:
        """Count a connection of `worker` in or out; return False when the cap refuses it.

        Connections are counted without a cap too: a new plan may bring one while they are open.
        """
        bounds = self._bounds
        cap, workers = bounds.connections_max, bounds.workers
        with self._table.locked(self._key):
            row = self._row()
            counts = _counts(row) if row is not None else array("I", bytes(COUNT_BYTES * workers))
            if change > 0 and cap and sum(counts) >= cap:
                return False
            counts[worker] = max(0, counts[worker] + change)
            tokens = TOKENS.unpack_from(row) if row else (bounds.burst, bounds.burst_bytes, 0.0)
            self._put(TOKENS.pack(*tokens) + counts.tobytes())
        return True

    def _row(self) -> bytes | None:
        row = self._table.get(self._key)
        if self._own_row is None:
            return row
        if row is None:
            return self._own_row
        # Another worker found room meanwhile: to its row belong the connections that we counted.
        counts = map(sum, zip(_counts(row), _counts(self._own_row), strict=True))
        return row[: TOKENS.size] + array("I", counts).tobytes()

    def _read(self, now_s: float) -> tuple[bytes | None, float, float]:
        """Return the row, and its tokens with those of the lease that is still good."""
        bounds = self._bounds
        row = self._row()
        if row is None:
            tokens, tokens_bytes, counted_s = bounds.burst, bounds.burst_bytes, now_s
        else:
            tokens, tokens_bytes, counted_s = TOKENS.unpack_from(row)
        elapsed_s = max(0.0, now_s - counted_s)
        owed_s = now_s - self._owed_s
        leased = now_s < self._void_s
        if bounds.messages_per_s:
            tokens = min(bounds.burst, tokens + elapsed_s * bounds.messages_per_s)
            owed = bounds.borrowed - owed_s * bounds.messages_per_s
            tokens = min(bounds.burst, tokens - max(0.0, owed) + (self._messages if leased else 0.0))
        else:
            tokens = UNLIMITED
        if bounds.bytes_per_s:
            tokens_bytes = min(bounds.burst_bytes, tokens_bytes + elapsed_s * bounds.bytes_per_s)
            owed = bounds.borrowed_bytes - owed_s * bounds.bytes_per_s
            tokens_bytes = min(
                bounds.burst_bytes, tokens_bytes - max(0.0, owed) + (self._bytes if leased else 0.0)
            )
        else:
            tokens_bytes = UNLIMITED
        return row, tokens, tokens_bytes

    def _write(
        self, row: bytes | None, tokens: float, tokens_bytes: float, now_s: float, share: float | None = None
    ) -> None:
        """Store what is left, but for a lease that this worker keeps: `share` of the burst."""
        bounds = self._bounds
        if share is None:
            share = bounds.share
        refill_s = 0.0
        if bounds.messages_per_s:
            self._messages = lease = max(0.0, min(bounds.burst * share, tokens))
            tokens = min(bounds.burst, tokens) - lease
            refill_s = (bounds.burst - tokens) / bounds.messages_per_s
        if bounds.bytes_per_s:
            self._bytes = lease = max(0.0, min(bounds.burst_bytes * share, tokens_bytes))
            tokens_bytes = min(bounds.burst_bytes, tokens_bytes) - lease
            refill_s = max(refill_s, (bounds.burst_bytes - tokens_bytes) / bounds.bytes_per_s)
        self._full_s = now_s + refill_s
        self._owed_s = NEVER
        self._void_s = now_s + LEASE_S
        counts = bytes(COUNT_BYTES * bounds.workers) if row is None else row[TOKENS.size :]
        self._put(TOKENS.pack(tokens, tokens_bytes, now_s) + counts)

    def _put(self, row: bytes) -> None:
        try:
            self._table.put(self._key, row)
            self._own_row = None
        except TableFullError:
            # More devices than the table has room for: this one is limited by its worker alone.
            self._own_row = row


def _counts(row: bytes) -> array[int]:
    """Return the connections a worker of a row."""
    return array("I", row[TOKENS.size :])


def row_bytes(workers: int) -> int:
    """Return the size of a row for `workers` workers."""
    return TOKENS.size + COUNT_BYTES * workers


def row_expired(row: bytes, now_s: float) -> bool:
    """Return whether a row says nothing any more: no connection, and no debt or an old one."""
    tokens, tokens_bytes, counted_s = TOKENS.unpack_from(row)
    return not any(row[TOKENS.size :]) and (min(tokens, tokens_bytes) >= 0 or now_s - counted_s > DEBT_KEPT_S)


class Allowance:
    """A device's meter with its tenant's: what one read is charged to."""

    __slots__ = ("_device", "_free", "_tenant", "policy", "users")

    def __init__(self, device: Meter, tenant: Meter, policy: Policy) -> None:
        self._device = device
        self._tenant = tenant
        self.policy = policy
        self._free = device.unlimited and tenant.unlimited
        self.users = 0

    def agree(self, device: Bounds, tenant: Meter, policy: Policy) -> None:
        """Change the limits of the device."""
        self._device.set_bounds(device)
        self._tenant = tenant
        self.policy = policy
        self._free = device.unlimited and tenant.unlimited

    def charge(
        self, messages: int, size: int, now_s: float, *, refuse: bool, at_home: bool = False
    ) -> tuple[int, float, Over]:
        """Charge one read; return (messages allowed, pause in s, whose limit).

        Hot: guarded by bench/test_limits.py::test_charge. With `refuse` only what fits is charged, and the
        pause is when to try again; else everything is, and the pause pays the debt. `at_home` says that this
        worker was the last to accept something of the device.
        """
        if self._free:
            return messages, 0.0, NOBODY
        device, tenant = self._device, self._tenant
        if (
            now_s < device._void_s
            and now_s < tenant._void_s
            and messages <= device._messages
            and size <= device._bytes
            and messages <= tenant._messages
            and size <= tenant._bytes
        ):
            # Both leases cover it, which is nearly always: no call, no look at the table.
            device._messages -= messages
            device._bytes -= size
            tenant._messages -= messages
            tenant._bytes -= size
            return messages, 0.0, NOBODY
        if refuse:
            return self._charge_what_fits(messages, size, now_s, at_home=at_home)
        pause_s = device.take(messages, size, now_s, at_home=at_home)
        tenant_s = tenant.take(messages, size, now_s)
        if tenant_s > pause_s:
            return messages, tenant_s, Over.TENANT
        return messages, pause_s, Over.DEVICE if pause_s else Over.NOBODY

    def _charge_what_fits(
        self, messages: int, size: int, now_s: float, *, at_home: bool
    ) -> tuple[int, float, Over]:
        allowed, wait_s = self._device.take_what_fits(messages, size, now_s, at_home=at_home)
        if not allowed:
            return 0, wait_s, Over.DEVICE
        share = size * allowed // messages
        of_tenant, tenant_s = self._tenant.take_what_fits(allowed, share, now_s)
        if of_tenant < allowed:
            self._device.give_back(allowed - of_tenant, share - share * of_tenant // allowed, now_s)
            return of_tenant, tenant_s, Over.TENANT
        return allowed, wait_s, Over.NOBODY if allowed == messages else Over.DEVICE

    def charge_whole(self, messages: int, size: int, now_s: float, *, paid: int = 0) -> tuple[float, Over]:
        """Charge all of it or nothing; return (seconds until all of it fits, whose limit).

        `paid` is the number of messages that the same read was charged for already.
        """
        if self._free:
            return 0.0, Over.NOBODY
        wait_s = self._device.take_whole(messages, size, now_s, paid)
        if wait_s:
            return max(wait_s, self._tenant.wait_s(messages, size, now_s, paid)), Over.DEVICE
        wait_s = self._tenant.take_whole(messages, size, now_s, paid)
        if wait_s:
            self._device.give_back(messages, size, now_s)
            return wait_s, Over.TENANT
        return 0.0, Over.NOBODY

    def owed(self, now_s: float) -> tuple[float, Over]:
        """Return how long it takes to pay what is owed, and to whose limit."""
        if self._free:
            return 0.0, Over.NOBODY
        device_s = self._device.wait_s(0, 0, now_s)
        tenant_s = self._tenant.wait_s(0, 0, now_s)
        if tenant_s > device_s:
            return tenant_s, Over.TENANT
        return device_s, Over.DEVICE if device_s else Over.NOBODY


class _Agreed:
    """What a tenant agreed to: its own meter, and the bounds of each of its devices."""

    __slots__ = ("device", "meter", "policy")

    def __init__(self, meter: Meter, device: Bounds, policy: Policy) -> None:
        self.meter = meter
        self.device = device
        self.policy = policy


class Allowances:
    """All allowances of one worker; at most `idle_max` that no connection uses are kept."""

    def __init__(
        self,
        *,
        devices: Table,
        tenants: Table,
        terms: Callable[[str], Terms],
        worker: int,
        workers: int,
        idle_max: int,
    ) -> None:
        self._devices = devices
        self._tenants = tenants
        self._terms = terms
        self._worker = worker
        self._workers = workers
        self._idle_max = idle_max
        self._of_tenant: dict[str, _Agreed] = {}
        self._of_device: OrderedDict[tuple[str, str], Allowance] = OrderedDict()

    def _tenant(self, tenant: str) -> _Agreed:
        agreed = self._of_tenant.get(tenant)
        if agreed is None:
            if len(self._of_tenant) >= self._idle_max:
                self._of_tenant.clear()
            terms = self._terms(tenant)
            meter = Meter(self._tenants, table_key("tenant", tenant), Bounds(terms.tenant, self._workers))
            agreed = _Agreed(meter, Bounds(terms.device, self._workers), terms.policy)
            self._of_tenant[tenant] = agreed
        return agreed

    def get(self, tenant: str, device: str) -> Allowance:
        """Return the allowance of a device."""
        name = (tenant, device)
        allowance = self._of_device.get(name)
        if allowance is None:
            agreed = self._tenant(tenant)
            meter = Meter(self._devices, table_key("device", tenant, device), agreed.device)
            allowance = self._of_device[name] = Allowance(meter, agreed.meter, agreed.policy)
            if len(self._of_device) > self._idle_max:
                oldest, held = self._of_device.popitem(last=False)
                if held.users:
                    self._of_device[oldest] = held
        return allowance

    def open_connection(self, tenant: str, device: str) -> Over:
        """Count a connection in; return whose cap refuses it, or NOBODY."""
        allowance = self.get(tenant, device)
        if not allowance._device.count_connection(self._worker, 1):
            return Over.DEVICE
        if not self._tenant(tenant).meter.count_connection(self._worker, 1):
            allowance._device.count_connection(self._worker, -1)
            return Over.TENANT
        allowance.users += 1
        return Over.NOBODY

    def close_connection(self, tenant: str, device: str) -> None:
        """Count a connection out."""
        allowance = self.get(tenant, device)
        allowance.users -= 1
        allowance._device.count_connection(self._worker, -1)
        self._tenant(tenant).meter.count_connection(self._worker, -1)

    def replan(self) -> None:
        """Read the terms of everybody again."""
        for tenant, agreed in self._of_tenant.items():
            terms = self._terms(tenant)
            agreed.meter.set_bounds(Bounds(terms.tenant, self._workers))
            agreed.device = Bounds(terms.device, self._workers)
            agreed.policy = terms.policy
        for (tenant, _), allowance in self._of_device.items():
            agreed = self._tenant(tenant)
            allowance.agree(agreed.device, agreed.meter, agreed.policy)


def forget_worker(table: Table, worker: int) -> None:
    """Take the connections of a worker that died out of every row; its successor calls this first."""
    for key, seen in table.items():
        if not _counts(seen)[worker]:
            continue
        with table.locked(key):
            row = table.get(key)  # again: until now, other workers may have written it
            if row is not None:
                counts = _counts(row)
                counts[worker] = 0
                table.put(key, row[: TOKENS.size] + counts.tobytes())
