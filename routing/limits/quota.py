"""Calls of a day or a month, counted in SQLite so that a restart forgets none.

Counts are reserved ahead, in blocks, each durable before its first call is admitted:

- A crash, kill -9 and loss of power included, counts at most `ahead_max(limit)` calls too many: 1 % of the
  quota, no less than 1 and no more than 1,000. It never counts too few.
- What is reserved and not used is given back at `close`, so that an orderly restart is exact.
- Several processes may share the file. They never admit more than the quota together; near its end one
  may refuse what another still has reserved, as much as above.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS quota (
    period TEXT NOT NULL, subject TEXT NOT NULL, reserved INTEGER NOT NULL, PRIMARY KEY (period, subject)
) WITHOUT ROWID;
"""
AHEAD_SHARE: Final = 100
AHEAD_MAX: Final = 1000
RESERVE_EVERY_S: Final = 0.05
"""How often blocks are reserved beside requests: in one transaction, for who has used half of the last."""
BUSY_S: Final = 5.0


class QuotaError(Exception):
    """Counts cannot be read or written; the text says why."""


def ahead_max(limit: int) -> int:
    """Return how many calls of a quota may be counted before they come."""
    return max(1, min(AHEAD_MAX, limit // AHEAD_SHARE))


class Counts(Protocol):
    """Where calls are counted: on this node (`Quota`), or over nodes (`valkey_lease`)."""

    def used(self, subject: str, period: str) -> int:
        """Return how many calls are counted."""

    def holds(self, subject: str, period: str, limit: int) -> bool:
        """Return whether one more call may be counted."""

    def spend(self, subject: str, period: str) -> None:
        """Count a call that is `held`."""

    async def prepare(self, subject: str, period: str, limit: int) -> None:
        """Make room for what comes next, if that takes asking somebody."""


class Counter(msgspec.Struct):
    """What this process knows of one count. `ahead` is what it has reserved and not used."""

    subject: str
    period: str
    reserved: int
    ahead: int = 0
    limit: int = 0
    ahead_max: int = 1
    asked: bool = False

    @property
    def used(self) -> int:
        """What is counted, without what this process has reserved only."""
        return self.reserved - self.ahead

    @property
    def block(self) -> int:
        """How many are reserved at once: half of what may be, since two may be under way."""
        return max(1, self.ahead_max // 2)


class Quota:
    """The counts of a node. `counters_max` of them are kept in memory."""

    def __init__(self, path: Path, *, counters_max: int) -> None:
        self._path = path
        self._counters_max = counters_max
        self._counters: dict[tuple[str, str], Counter] = {}
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection, self._beside = self._open(), self._open()
        except (OSError, sqlite3.Error) as error:
            raise QuotaError(f"cannot open {path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=BUSY_S
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(SCHEMA)
        return connection

    def used(self, subject: str, period: str) -> int:
        """Return how many calls are counted."""
        return self._counter(subject, period).used

    def holds(self, subject: str, period: str, limit: int, *, quota: int = 0) -> bool:
        """Return whether one more call is within the limit, after making that durable.

        `quota` is the whole one, where `limit` is only this node's part of it.
        """
        counter = self._counter(subject, period)
        counter.limit, counter.ahead_max = limit, ahead_max(quota or limit)
        if counter.used >= limit:
            return False
        if counter.ahead == 0:
            [(granted, counter.reserved)] = self._reserve(self._connection, [counter])
            counter.ahead += granted
        return counter.ahead > 0

    def spend(self, subject: str, period: str) -> None:
        """Count a call that is `held`."""
        counter = self._counter(subject, period)
        assert counter.ahead > 0
        counter.ahead -= 1

    async def prepare(self, subject: str, period: str, limit: int) -> None:
        """Nobody has to be asked."""

    async def run(self) -> None:
        """Reserve blocks beside requests, so that these seldom wait for the disk, until cancelled."""
        while True:
            await asyncio.sleep(RESERVE_EVERY_S)
            short = [each for each in self._counters.values() if self._is_short(each)]
            if not short:
                continue
            for counter in short:
                counter.asked = True
            try:
                await self._reserve_beside(short)
            except QuotaError:
                continue  # `holds` tries again, and tells its caller
            finally:
                for counter in short:
                    counter.asked = False

    async def _reserve_beside(self, counters: list[Counter]) -> None:
        reserving = asyncio.ensure_future(asyncio.to_thread(self._reserve, self._beside, counters))
        try:
            await asyncio.shield(reserving)
        finally:
            # When cancelled too, within BUSY_S: `close` gives back what is reserved, so it must be known.
            await asyncio.wait([reserving])
            if reserving.exception() is None:
                for counter, (granted, reserved) in zip(counters, reserving.result(), strict=True):
                    counter.ahead += granted
                    counter.reserved = max(counter.reserved, reserved)

    @staticmethod
    def _is_short(counter: Counter) -> bool:
        """Return whether a counter in use has little ahead; a quota that is reserved one by one never has."""
        block = counter.block
        return block > 1 and 0 < counter.ahead <= block // 2 and counter.used < counter.limit

    def _reserve(self, connection: sqlite3.Connection, counters: list[Counter]) -> list[tuple[int, int]]:
        """Reserve a block of each; return how much of it was granted, and what is reserved in all."""
        grants = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for counter in counters:
                reserved = _read(connection, counter.subject, counter.period)
                granted = max(0, min(counter.block, counter.limit - reserved))
                connection.execute(
                    "INSERT INTO quota VALUES (?, ?, ?) "
                    "ON CONFLICT (period, subject) DO UPDATE SET reserved = excluded.reserved",
                    (counter.period, counter.subject, reserved + granted),
                )
                grants.append((granted, reserved + granted))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise QuotaError(f"cannot write {self._path}: {error}") from error
        return grants

    def _counter(self, subject: str, period: str) -> Counter:
        """Return a count, now the one used last."""
        key = (period, subject)
        counter = self._counters.pop(key, None)
        if counter is None:
            self._make_room()
            try:
                counter = Counter(subject, period, _read(self._connection, subject, period))
            except sqlite3.Error as error:
                raise QuotaError(f"cannot read {self._path}: {error}") from error
        self._counters[key] = counter
        return counter

    def _make_room(self) -> None:
        while len(self._counters) >= self._counters_max:
            counter = next((each for each in self._counters.values() if not each.asked), None)
            if counter is None:
                return
            self._give_back([counter])
            del self._counters[counter.period, counter.subject]

    def _give_back(self, counters: Iterable[Counter]) -> None:
        rows = [(each.ahead, each.period, each.subject) for each in counters if each.ahead]
        if not rows:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "UPDATE quota SET reserved = reserved - ? WHERE period = ? AND subject = ?", rows
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise QuotaError(f"cannot write {self._path}: {error}") from error

    def forget_before(self, day: str, month: str) -> int:
        """Forget the counts of days before `day` and of months before `month`; return how many."""
        try:
            gone = self._connection.execute(
                "DELETE FROM quota WHERE (length(period) = 10 AND period < ?) "
                "OR (length(period) = 7 AND period < ?)",
                (day, month),
            ).rowcount
        except sqlite3.Error as error:
            raise QuotaError(f"cannot write {self._path}: {error}") from error
        old = [key for key in self._counters if key[0] < (day if len(key[0]) == 10 else month)]
        for key in old:
            del self._counters[key]
        return gone

    def close(self) -> None:
        """Give back what was reserved and not used, and close the file."""
        self._give_back(self._counters.values())
        self._counters.clear()
        self._connection.close()
        self._beside.close()


def _read(connection: sqlite3.Connection, subject: str, period: str) -> int:
    row = connection.execute(
        "SELECT reserved FROM quota WHERE period = ? AND subject = ?", (period, subject)
    ).fetchone()
    return 0 if row is None else int(row[0])
