"""What a connection may still send: a device's and its tenant's tokens, for messages and for bytes.

The truth is one row a device and one a tenant in a table that the workers of a node share. A worker
draws a *lease* from it and spends that locally, so that a read costs no table operation. Over all
workers and any time t at most

    rate * t + burst + workers * lease,   lease = burst / (LEASE_SHARE * workers)

is let through, and a lease that is not spent within `LEASE_S` is void.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from routing.limits.shared_table import Table, TableFullError

LEASE_SHARE: Final = 8
LEASE_S: Final = 1.0
UNLIMITED: Final = float("inf")
TOKENS: Final = struct.Struct("<ddd")
"""A row: tokens for messages, tokens for bytes, when they were counted; then connections a worker."""


class Policy(enum.Enum):
    """What happens to messages over a limit."""

    PAUSE = "pause"
    """Taken, and reading pauses until the debt is paid."""
    REFUSE = "refuse"
    """Refused: 0x97 in MQTT 5, 429 in HTTP; MQTT 3.1.1 cannot refuse, so it pauses."""
    SHED = "shed"
    """QoS 0 is dropped and counted; QoS 1 and 2 pause."""


class Over(enum.IntEnum):
    """Whose limit a charge went over."""

    NOBODY = 0
    DEVICE = 1
    TENANT = 2


NOBODY: Final = Over.NOBODY


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one device, or of one tenant; 0 means unlimited. `burst_s` is seconds of rate."""

    messages_per_s: float
    bytes_per_s: float
    burst_s: float
    connections_max: int


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant agreed to."""

    tenant: Rates
    device: Rates
    policy: Policy


def table_key(kind: str, *names: str) -> bytes:
    """Return the 16-byte key of a record."""
    text = "\0".join((kind, *names)).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


class Meter:
    """One row of the table as one worker uses it."""

    __slots__ = (
        "_burst",
        "_burst_bytes",
        "_bytes",
        "_key",
        "_messages",
        "_rates",
        "_table",
        "_void_s",
        "_workers",
    )

    def __init__(self, table: Table, key: bytes, rates: Rates, *, workers: int) -> None:
        self._table = table
        self._key = key
        self._workers = workers
        self._void_s = 0.0
        self.set_rates(rates)

    def set_rates(self, rates: Rates) -> None:
        """Change the limits; what is leased is void."""
        self._rates = rates
        self._messages = 0.0 if rates.messages_per_s else UNLIMITED
        self._bytes = 0.0 if rates.bytes_per_s else UNLIMITED
        self._burst = max(1.0, rates.messages_per_s * rates.burst_s)
        self._burst_bytes = max(1.0, rates.bytes_per_s * rates.burst_s)

    @property
    def unlimited(self) -> bool:
        """Return whether nothing is ever charged."""
        return not (self._rates.messages_per_s or self._rates.bytes_per_s)

    def take(self, messages: int, size: int, now_s: float) -> float:
        """Charge, into debt if need be, and return the pause in seconds that pays it."""
        if now_s < self._void_s and messages <= self._messages and size <= self._bytes:
            self._messages -= messages
            self._bytes -= size
            return 0.0
        with self._table.locked(self._key):
            tokens, tokens_bytes = self._refilled(now_s)
            tokens -= messages
            tokens_bytes -= size
            lease = self._lease(tokens, self._burst)
            lease_bytes = self._lease(tokens_bytes, self._burst_bytes)
            self._write(tokens - lease, tokens_bytes - lease_bytes, now_s)
        self._keep(lease, lease_bytes, now_s)
        rates = self._rates
        pause_s = 0.0
        if tokens < 0 and rates.messages_per_s:
            pause_s = -tokens / rates.messages_per_s
        if tokens_bytes < 0 and rates.bytes_per_s:
            pause_s = max(pause_s, -tokens_bytes / rates.bytes_per_s)
        return pause_s

    def fit(self, messages: int, size: int, now_s: float) -> int:
        """Return how many of `messages` (of together `size` bytes) are within the limit now."""
        if now_s < self._void_s and messages <= self._messages and size <= self._bytes:
            return messages
        tokens, tokens_bytes = self._refilled(now_s)
        fit = messages
        if self._rates.messages_per_s:
            fit = min(fit, int(tokens + 1e-9))
        if self._rates.bytes_per_s and tokens_bytes < size:
            # One message larger than the whole burst passes when the bucket is full, else never would.
            if messages == 1 and tokens_bytes >= self._burst_bytes:
                return fit
            fit = min(fit, int(messages * tokens_bytes / size))
        return max(0, fit)

    def wait_s(self, now_s: float) -> float:
        """Return how long until one more message fits."""
        tokens, tokens_bytes = self._refilled(now_s)
        rates = self._rates
        wait_s = 0.0
        if rates.messages_per_s:
            wait_s = (1 - tokens) / rates.messages_per_s
        if rates.bytes_per_s and tokens_bytes < 0:
            wait_s = max(wait_s, -tokens_bytes / rates.bytes_per_s)
        return max(wait_s, 0.001)

    def count_connection(self, worker: int, change: int) -> bool:
        """Count a connection of `worker` in or out; return False when the cap refuses it."""
        if not self._rates.connections_max:
            return True
        with self._table.locked(self._key):
            row = self._table.get(self._key)
            counts = self._counts(row)
            if change > 0 and sum(counts) >= self._rates.connections_max:
                return False
            counts[worker] = max(0, counts[worker] + change)
            tokens = TOKENS.unpack_from(row) if row else (self._burst, self._burst_bytes, 0.0)
            self._put(TOKENS.pack(*tokens) + struct.pack(f"<{self._workers}H", *counts))
        return True

    def _counts(self, row: bytes | None) -> list[int]:
        if row is None:
            return [0] * self._workers
        return list(struct.unpack_from(f"<{self._workers}H", row, TOKENS.size))

    def _refilled(self, now_s: float) -> tuple[float, float]:
        """Return the tokens of the row and of the lease that is still good."""
        row = self._table.get(self._key)
        rates = self._rates
        if row is None:
            tokens, tokens_bytes, counted_s = self._burst, self._burst_bytes, now_s
        else:
            tokens, tokens_bytes, counted_s = TOKENS.unpack_from(row)
        elapsed_s = max(0.0, now_s - counted_s)
        tokens += elapsed_s * rates.messages_per_s
        tokens_bytes += elapsed_s * rates.bytes_per_s
        if now_s < self._void_s:
            if rates.messages_per_s:
                tokens += self._messages
            if rates.bytes_per_s:
                tokens_bytes += self._bytes
        return min(self._burst, tokens), min(self._burst_bytes, tokens_bytes)

    def _lease(self, tokens: float, burst: float) -> float:
        return max(0.0, min(burst / (LEASE_SHARE * self._workers), tokens))

    def _write(self, tokens: float, tokens_bytes: float, now_s: float) -> None:
        row = self._table.get(self._key)
        counts = bytes(2 * self._workers) if row is None else row[TOKENS.size :]
        self._put(TOKENS.pack(tokens, tokens_bytes, now_s) + counts)

    def _put(self, row: bytes) -> None:
        try:
            self._table.put(self._key, row)
        except TableFullError:
            # More devices than the table has room for: this one is limited by its worker alone.
            self._messages = self._bytes = 0.0

    def _keep(self, lease: float, lease_bytes: float, now_s: float) -> None:
        if self._rates.messages_per_s:
            self._messages = lease
        if self._rates.bytes_per_s:
            self._bytes = lease_bytes
        self._void_s = now_s + LEASE_S


def row_bytes(workers: int) -> int:
    """Return the size of a row for `workers` workers."""
    return TOKENS.size + 2 * workers


def row_expired(row: bytes) -> bool:
    """Return whether a row says nothing: no connection and no debt."""
    return not any(row[TOKENS.size :]) and min(TOKENS.unpack_from(row)[:2]) >= 0


class Allowance:
    """A device's meter with its tenant's: what one read is charged to."""

    __slots__ = ("_device", "_free", "_tenant", "policy", "users")

    def __init__(self, device: Meter, tenant: Meter, policy: Policy) -> None:
        self._device = device
        self._tenant = tenant
        self.policy = policy
        self._free = device.unlimited and tenant.unlimited
        self.users = 0

    def charge(self, messages: int, size: int, now_s: float, *, refuse: bool) -> tuple[int, float, Over]:
        """Charge one read; return (messages allowed, pause in s, whose limit).

        Hot: guarded by bench/test_limits.py::test_charge. With `refuse` only what fits is charged, and the
        pause is when to try again; else everything is, and the pause pays the debt.
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
            return self._charge_what_fits(messages, size, now_s)
        pause_s = device.take(messages, size, now_s)
        tenant_s = tenant.take(messages, size, now_s)
        if tenant_s > pause_s:
            return messages, tenant_s, Over.TENANT
        return messages, pause_s, Over.DEVICE if pause_s else Over.NOBODY

    def _charge_what_fits(self, messages: int, size: int, now_s: float) -> tuple[int, float, Over]:
        of_device = self._device.fit(messages, size, now_s)
        of_tenant = self._tenant.fit(messages, size, now_s)
        allowed = min(of_device, of_tenant)
        if allowed:
            share = size * allowed // messages
            self._device.take(allowed, share, now_s)
            self._tenant.take(allowed, share, now_s)
        if allowed == messages:
            return messages, 0.0, Over.NOBODY
        if of_tenant < of_device:
            return allowed, self._tenant.wait_s(now_s), Over.TENANT
        return allowed, self._device.wait_s(now_s), Over.DEVICE


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
        self._of_tenant: dict[str, Meter] = {}
        self._of_device: OrderedDict[tuple[str, str], tuple[Allowance, Meter]] = OrderedDict()

    def _tenant(self, tenant: str) -> Meter:
        meter = self._of_tenant.get(tenant)
        if meter is None:
            if len(self._of_tenant) >= self._idle_max:
                self._of_tenant.clear()
            meter = self._of_tenant[tenant] = Meter(
                self._tenants, table_key("tenant", tenant), self._terms(tenant).tenant, workers=self._workers
            )
        return meter

    def get(self, tenant: str, device: str) -> Allowance:
        """Return the allowance of a device."""
        return self._entry(tenant, device)[0]

    def _entry(self, tenant: str, device: str) -> tuple[Allowance, Meter]:
        name = (tenant, device)
        entry = self._of_device.get(name)
        if entry is None:
            terms = self._terms(tenant)
            meter = Meter(
                self._devices, table_key("device", tenant, device), terms.device, workers=self._workers
            )
            entry = self._of_device[name] = (Allowance(meter, self._tenant(tenant), terms.policy), meter)
            if len(self._of_device) > self._idle_max:
                oldest, held = self._of_device.popitem(last=False)
                if held[0].users:
                    self._of_device[oldest] = held
        return entry

    def open_connection(self, tenant: str, device: str) -> Over:
        """Count a connection in; return whose cap refuses it, or NOBODY."""
        allowance, meter = self._entry(tenant, device)
        if not meter.count_connection(self._worker, 1):
            return Over.DEVICE
        if not self._tenant(tenant).count_connection(self._worker, 1):
            meter.count_connection(self._worker, -1)
            return Over.TENANT
        allowance.users += 1
        return Over.NOBODY

    def close_connection(self, tenant: str, device: str) -> None:
        """Count a connection out."""
        allowance, meter = self._entry(tenant, device)
        allowance.users -= 1
        meter.count_connection(self._worker, -1)
        self._tenant(tenant).count_connection(self._worker, -1)

    def replan(self) -> None:
        """Read the terms of everybody again."""
        for tenant, meter in self._of_tenant.items():
            meter.set_rates(self._terms(tenant).tenant)
        for (tenant, _), (allowance, meter) in self._of_device.items():
            terms = self._terms(tenant)
            meter.set_rates(terms.device)
            allowance.policy = terms.policy
            allowance._free = meter.unlimited and self._tenant(tenant).unlimited


def forget_worker(table: Table, worker: int, workers: int) -> None:
    """Take the connections of a worker that died out of every row; its successor calls this first."""
    for key, row in table.items():
        counts = list(struct.unpack_from(f"<{workers}H", row, TOKENS.size))
        if counts[worker]:
            counts[worker] = 0
            with table.locked(key):
                table.put(key, row[: TOKENS.size] + struct.pack(f"<{workers}H", *counts))
