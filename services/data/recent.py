"""The newest records of all tenants, in memory, for those who follow them live.

Limits: `bytes_max` of payloads, with `RECORD_BYTES` for each record; the oldest go.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from services.feed.feed import Record

RECORD_BYTES: Final = 500
COMPACT_AT: Final = 1024


class Numbered(msgspec.Struct, frozen=True, gc=False):
    """A record with its place in the order of all."""

    seq: int
    record: Record


class _OfTenant:
    """Records of one tenant by `seq`; those before `start` are gone."""

    __slots__ = ("records", "seqs", "start")

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.records: list[Record] = []
        self.start = 0


class Recent:
    """A window over the records; `behind` is the `seq` before its first."""

    def __init__(self, *, behind: int, bytes_max: int) -> None:
        self.behind = behind
        self.newest = behind
        self._bytes_max = bytes_max
        self._bytes = 0
        self._order: deque[tuple[int, str, int]] = deque()
        self._tenants: dict[str, _OfTenant] = {}

    def add(self, records: Sequence[Record], first_seq: int) -> None:
        """Take records that are stored, numbered from `first_seq`."""
        for seq, record in enumerate(records, first_seq):
            kept = self._tenants.get(record.tenant)
            if kept is None:
                kept = self._tenants[record.tenant] = _OfTenant()
            kept.seqs.append(seq)
            kept.records.append(record)
            size = len(record.payload) + RECORD_BYTES
            self._order.append((seq, record.tenant, size))
            self._bytes += size
            self.newest = seq
        while self._bytes > self._bytes_max:
            self._forget_one()

    def _forget_one(self) -> None:
        seq, tenant, size = self._order.popleft()
        self._bytes -= size
        self.behind = seq
        kept = self._tenants[tenant]
        kept.start += 1
        if kept.start == len(kept.seqs):
            del self._tenants[tenant]
        elif kept.start >= COMPACT_AT and kept.start * 2 >= len(kept.seqs):
            del kept.seqs[: kept.start], kept.records[: kept.start]
            kept.start = 0

    def after(self, tenant: str, seq: int, limit: int) -> list[Numbered] | None:
        """Return up to `limit` records of a tenant behind `seq`, or None when some may be gone from here."""
        if seq < self.behind:
            return None
        kept = self._tenants.get(tenant)
        if kept is None:
            return []
        first = bisect.bisect_right(kept.seqs, seq, lo=kept.start)
        last = first + limit
        pairs = zip(kept.seqs[first:last], kept.records[first:last], strict=True)
        return [Numbered(number, record) for number, record in pairs]

    def forget_device(self, tenant: str, device: str) -> None:
        """Blank the records of a device that is erased."""
        kept = self._tenants.get(tenant)
        if kept is None:
            return
        keep = [
            (seq, record)
            for seq, record in zip(kept.seqs[kept.start :], kept.records[kept.start :], strict=True)
            if record.device != device
        ]
        gone = {seq for seq, record in zip(kept.seqs, kept.records, strict=True) if record.device == device}
        self._bytes -= sum(size for seq, _, size in self._order if seq in gone)
        self._order = deque(each for each in self._order if each[0] not in gone)
        kept.seqs, kept.records, kept.start = [s for s, _ in keep], [r for _, r in keep], 0
        if not keep:
            del self._tenants[tenant]

    def seq_of(self, tenant: str, identity: str) -> int | None:
        """Return the place of a record by its id, if it is here."""
        kept = self._tenants.get(tenant)
        if kept is None:
            return None
        for position in range(len(kept.records) - 1, kept.start - 1, -1):
            if kept.records[position].id == identity:
                return kept.seqs[position]
        return None
