"""The ledger: what devices sent and were acknowledged, held against what was delivered. Pure, and streaming.

It takes a bit a message: a row for each device says up to which number it sent, and the few numbers that were
not acknowledged, and one bit for each remembers that it came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

EXAMPLES_MAX: Final = 5
Device = tuple[str, str]
"""(tenant, device)."""


class Row(msgspec.Struct, frozen=True, array_like=True):
    """What one device says: it sent 1 to `sent`, and all but these were acknowledged."""

    tenant: str
    device: str
    sent: int
    unanswered: list[int]
    """Nobody can know whether these were accepted."""
    refused: dict[int, str]
    """These must not arrive."""
    repeated: list[int]
    """These were sent more than once, and may arrive more than once."""

    @property
    def acknowledged(self) -> int:
        """Return how many messages it was promised."""
        open_ones = {*self.unanswered, *self.refused}
        return self.sent - sum(1 for seq in open_ones if seq <= self.sent)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger proves."""

    devices: int
    sent: int
    acknowledged: int
    refused: dict[str, int]
    unanswered: int
    repeated: int
    delivered: int
    """Messages, each once."""
    lost: int
    """Acknowledged, and not delivered."""
    out_of_order: int
    """Delivered for the first time after a later one of the same device."""
    duplicates: int
    """Delivered again, of what its device had sent again."""
    unexplained: int
    """Delivered again, of what its device had sent once."""
    uninvited: int
    """Delivered though refused, or never sent."""
    examples: dict[str, list[str]]


class _Account:
    """What is known of one device."""

    __slots__ = ("latest", "row", "seen")

    def __init__(self, row: Row) -> None:
        self.row = row
        self.seen = bytearray(row.sent // 8 + 1)
        self.latest = 0


class Ledger:
    """Takes what was delivered, in order of arrival."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._accounts = {(row.tenant, row.device): _Account(row) for row in rows}
        self._delivered = self._out_of_order = self._duplicates = self._unexplained = self._uninvited = 0
        self._examples: dict[str, list[str]] = {}

    def deliver(self, device: Device, seq: int) -> None:
        """Book the arrival of a message."""
        account = self._accounts.get(device)
        if account is None or not 0 < seq <= account.row.sent or seq in account.row.refused:
            self._uninvited += 1
            self._example("uninvited", device, seq)
            return
        index, bit = seq >> 3, 1 << (seq & 7)
        if account.seen[index] & bit:
            if seq in account.row.repeated:
                self._duplicates += 1
            else:
                self._unexplained += 1
                self._example("unexplained", device, seq)
            return
        account.seen[index] |= bit
        self._delivered += 1
        if seq < account.latest:
            self._out_of_order += 1
            self._example("out_of_order", device, seq)
        else:
            account.latest = seq

    def close(self) -> Verdict:
        """Return what all of it proves."""
        lost = 0
        refused: dict[str, int] = {}
        for device, account in self._accounts.items():
            row = account.row
            for reason in row.refused.values():
                refused[reason] = refused.get(reason, 0) + 1
            excused = {*row.unanswered, *row.refused}
            for seq in range(1, row.sent + 1):
                if not account.seen[seq >> 3] & 1 << (seq & 7) and seq not in excused:
                    lost += 1
                    self._example("lost", device, seq)
        rows = [account.row for account in self._accounts.values()]
        return Verdict(
            devices=len(rows),
            sent=sum(row.sent for row in rows),
            acknowledged=sum(row.acknowledged for row in rows),
            refused=refused,
            unanswered=sum(len(row.unanswered) for row in rows),
            repeated=sum(len(row.repeated) for row in rows),
            delivered=self._delivered,
            lost=lost,
            out_of_order=self._out_of_order,
            duplicates=self._duplicates,
            unexplained=self._unexplained,
            uninvited=self._uninvited,
            examples=self._examples,
        )

    def _example(self, what: str, device: Device, seq: int) -> None:
        examples = self._examples.setdefault(what, [])
        if len(examples) < EXAMPLES_MAX:
            examples.append(f"{'/'.join(device)} {seq}")
