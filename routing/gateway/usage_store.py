"""The use of the API in SQLite: tallies of minutes, hours and days, each kept for its time.

What is written is added to all three at once, in one transaction, so that nothing has to be rolled up later
and a crash leaves them in agreement. A minute, hour or day has at most `keys_max` keys, and then `(other)`.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from routing.gateway.histogram import Counts

MINUTE_S: Final = 60
HOUR_S: Final = 3_600
DAY_S: Final = 86_400
STEPS: Final = {"minute": MINUTE_S, "hour": HOUR_S, "day": DAY_S}
OTHER: Final = "(other)"
"""What is not told apart any more; the name of no route, tenant or key."""
Key = tuple[int, str, str, str]
"""Unix time of the beginning, route, tenant, fingerprint of the credential."""
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS usage (
    step_s INTEGER NOT NULL, at_s INTEGER NOT NULL,
    tenant TEXT NOT NULL, route TEXT NOT NULL, fingerprint TEXT NOT NULL,
    tally BLOB NOT NULL, PRIMARY KEY (step_s, at_s, tenant, route, fingerprint)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deprecated_use (
    day_s INTEGER NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, fingerprint TEXT NOT NULL,
    calls INTEGER NOT NULL, last_s REAL NOT NULL, agent TEXT NOT NULL,
    PRIMARY KEY (day_s, tenant, route, fingerprint)
) WITHOUT ROWID;
"""
DEPRECATED: Final = """
SELECT route, tenant, fingerprint, SUM(calls), MAX(last_s), agent FROM deprecated_use
WHERE day_s >= ? AND day_s < ? AND (? = '' OR tenant = ?) AND (route, tenant, fingerprint) > (?, ?, ?)
GROUP BY route, tenant, fingerprint ORDER BY route, tenant, fingerprint LIMIT ?
"""


class UsageStoreError(Exception):
    """The file cannot be read or written."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long tallies are kept: minutes, hours, and days with the use of deprecated routes."""

    minutes_s: int = 2 * DAY_S
    hours_s: int = 90 * DAY_S
    days_s: int = 730 * DAY_S

    def of(self, step_s: int) -> int:
        """Return how long tallies of a step are kept."""
        return {MINUTE_S: self.minutes_s, HOUR_S: self.hours_s, DAY_S: self.days_s}[step_s]


class Tally(msgspec.Struct, gc=False):
    """What was counted for one key."""

    calls: int = 0
    client_errors: int = 0
    server_errors: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    elapsed_s: float = 0.0
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    latencies: Counts = msgspec.field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Add what another one counted."""
        self.calls += other.calls
        self.client_errors += other.client_errors
        self.server_errors += other.server_errors
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        self.elapsed_s += other.elapsed_s
        for reason, count in other.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        for number, count in other.latencies.items():
            self.latencies[number] = self.latencies.get(number, 0) + count


class DeprecatedUse(msgspec.Struct, frozen=True, kw_only=True):
    """The use of a deprecated route by a key."""

    route: str
    tenant: str
    fingerprint: str
    calls: int
    last_s: float
    agent: str


ENCODER: Final = msgspec.msgpack.Encoder()
DECODER: Final = msgspec.msgpack.Decoder(Tally)


class UsageStore:
    """The file; threads take turns, so that a write whose caller was cancelled is not met by the next."""

    def __init__(self, path: Path, *, keys_max: int, retention: Retention) -> None:
        """Open the file or make it; raises `UsageStoreError`."""
        self._path = path
        self._keys_max = keys_max
        self._retention = retention
        self._turn = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("busy_timeout = 5000", "journal_mode = WAL", "synchronous = NORMAL"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UsageStoreError(f"cannot open {path}: {error}") from error

    def add(
        self, tallies: Mapping[Key, Tally], deprecated: Mapping[Key, tuple[int, float, str]], now_s: float
    ) -> None:
        """Add what was counted, and forget what is old, all or nothing; raises `UsageStoreError`."""
        with self._turn:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    self._add(tallies, deprecated, int(now_s))
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise UsageStoreError(f"cannot write {self._path}: {error}") from error

    def _add(
        self, tallies: Mapping[Key, Tally], deprecated: Mapping[Key, tuple[int, float, str]], now_s: int
    ) -> None:
        for step_s in STEPS.values():
            self._add_step(step_s, tallies)
            oldest_s = now_s - self._retention.of(step_s) - step_s
            self._connection.execute("DELETE FROM usage WHERE step_s = ? AND at_s < ?", (step_s, oldest_s))
        self._add_deprecated(deprecated)
        oldest_s = now_s - self._retention.days_s - DAY_S
        self._connection.execute("DELETE FROM deprecated_use WHERE day_s < ?", (oldest_s,))

    def _add_step(self, step_s: int, tallies: Mapping[Key, Tally]) -> None:
        """Add to the tallies of a step; keys above the limit of one are added to `(other)` of their route."""
        sums: dict[tuple[int, str, str, str], Tally] = {}
        counts: dict[int, int] = {}
        for (minute_s, route, tenant, fingerprint), tally in tallies.items():
            at_s = minute_s // step_s * step_s
            place = (at_s, tenant, route, fingerprint)
            if place not in sums:
                before = self._read(step_s, place)
                if before is None:
                    place = self._place(step_s, place, counts)
                if place not in sums:
                    sums[place] = before or self._read(step_s, place) or Tally()
            sums[place].add(tally)
        self._connection.executemany(
            "INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?, ?)",
            [(step_s, *place, ENCODER.encode(tally)) for place, tally in sums.items()],
        )

    def _read(self, step_s: int, place: tuple[int, str, str, str]) -> Tally | None:
        row = self._connection.execute(
            "SELECT tally FROM usage "
            "WHERE step_s = ? AND at_s = ? AND tenant = ? AND route = ? AND fingerprint = ?",
            (step_s, *place),
        ).fetchone()
        return DECODER.decode(row[0]) if row else None

    def _place(
        self, step_s: int, place: tuple[int, str, str, str], counts: dict[int, int]
    ) -> tuple[int, str, str, str]:
        """Return where a new key goes: to a row of its own while there are fewer than `keys_max`."""
        at_s, _, route, _ = place
        if at_s not in counts:
            counts[at_s] = self._connection.execute(
                "SELECT COUNT(*) FROM usage WHERE step_s = ? AND at_s = ?", (step_s, at_s)
            ).fetchone()[0]
        if counts[at_s] >= self._keys_max:
            return (at_s, OTHER, route, OTHER)
        counts[at_s] += 1
        return place

    def _add_deprecated(self, deprecated: Mapping[Key, tuple[int, float, str]]) -> None:
        counts: dict[int, int] = dict(
            self._connection.execute("SELECT day_s, COUNT(*) FROM deprecated_use GROUP BY day_s").fetchall()
            if deprecated
            else []
        )
        for (day_s, route, tenant, fingerprint), (calls, last_s, agent) in deprecated.items():
            changed = self._connection.execute(
                "UPDATE deprecated_use SET calls = calls + ?, last_s = ?, agent = ? "
                "WHERE day_s = ? AND tenant = ? AND route = ? AND fingerprint = ?",
                (calls, last_s, agent, day_s, tenant, route, fingerprint),
            ).rowcount
            if changed:
                continue
            place = (tenant, route, fingerprint)
            if counts.get(day_s, 0) >= self._keys_max:
                place = (OTHER, route, OTHER)
            counts[day_s] = counts.get(day_s, 0) + 1
            self._connection.execute(
                "INSERT INTO deprecated_use VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (day_s, tenant, route, fingerprint) DO UPDATE SET "
                "calls = calls + excluded.calls, last_s = excluded.last_s, agent = excluded.agent",
                (day_s, *place, calls, last_s, agent),
            )

    def times(self, step_s: int, from_s: float, to_s: float) -> list[int]:
        """Return the beginnings of the steps in [from_s, to_s) that have tallies, in order."""
        rows = self._rows(
            "SELECT DISTINCT at_s FROM usage WHERE step_s = ? AND at_s >= ? AND at_s < ? ORDER BY at_s",
            (step_s, from_s, to_s),
        )
        return [row[0] for row in rows]

    def tallies(self, step_s: int, at_s: int, tenant: str) -> Iterator[tuple[str, str, str, Tally]]:
        """Return (tenant, route, fingerprint, tally) of a step; an empty `tenant` is all of them."""
        rows = self._rows(
            "SELECT tenant, route, fingerprint, tally FROM usage "
            "WHERE step_s = ? AND at_s = ? AND tenant >= ? AND (? = '' OR tenant <= ?)",
            (step_s, at_s, tenant, tenant, tenant),
        )
        return ((row[0], row[1], row[2], DECODER.decode(row[3])) for row in rows)

    def deprecated(
        self, from_s: float, to_s: float, tenant: str, after: tuple[str, str, str], rows_max: int
    ) -> list[DeprecatedUse]:
        """Return the use of deprecated routes on the days from `from_s` to `to_s`, by route, tenant, key."""
        rows = self._rows(DEPRECATED, (from_s // DAY_S * DAY_S, to_s, tenant, tenant, *after, rows_max))
        names = ("route", "tenant", "fingerprint", "calls", "last_s", "agent")
        return [DeprecatedUse(**dict(zip(names, row, strict=True))) for row in rows]

    def _rows(self, sql: str, values: tuple[object, ...]) -> list[Any]:
        try:
            with self._turn:
                return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise UsageStoreError(f"cannot read {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file, after what is being written."""
        with self._turn:
            self._connection.close()
