"""Looks into the spools of a node from outside: status, the ledger, and the dead letters."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from ingest.spool.schema import Booking
from ingest.spool.store import SpoolError


class Entry(msgspec.Struct, frozen=True):
    """A tenant's line in the ledger, over all workers; cumulative but for `spooled`."""

    accepted: int
    delivered: int
    spooled: int
    dead_lettered: int

    @property
    def balanced(self) -> bool:
        """Return whether the conservation law holds."""
        return self.accepted == self.delivered + self.spooled + self.dead_lettered


class SpoolStatus(msgspec.Struct, frozen=True):
    """What one worker's spool holds; `oldest_ms` is Unix time."""

    worker: str
    groups: int
    records: int
    bytes: int
    oldest_ms: int | None
    dead_letters: int


class Letter(msgspec.Struct, frozen=True):
    """A dead letter without its payload. `name` is `worker/number`."""

    name: str
    at_ms: int
    tenant: str
    device: str
    stream: str
    reason: str
    detail: str
    accepted: bool
    bytes: int


def spools(data_dir: Path) -> list[Path]:
    """Return the spool files of a node."""
    return sorted(data_dir.glob("worker-*/spool.db"))


def worker_of(path: Path) -> int:
    """Return the number of the worker whose spool file this is."""
    return int(path.parent.name.removeprefix("worker-"))


@contextlib.contextmanager
def _opened(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    mode = "rw" if write else "ro"
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, isolation_level=None)
        connection.execute("PRAGMA busy_timeout = 5000")
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise SpoolError(f"cannot read {path}: {error}") from error


def status(data_dir: Path) -> list[SpoolStatus]:
    """Return what each worker's spool holds."""
    found = []
    for path in spools(data_dir):
        with _opened(path) as connection:
            row = connection.execute(
                "SELECT count(*), coalesce(sum(records), 0), coalesce(sum(bytes), 0), min(committed_ms), "
                "(SELECT count(*) FROM dead_letters) FROM groups"
            ).fetchone()
        found.append(SpoolStatus(path.parent.name, *row))
    return found


def ledger(data_dir: Path) -> dict[str, Entry]:
    """Return every tenant's line, each spool read in one snapshot."""
    sums: dict[str, list[int]] = {}
    for path in spools(data_dir):
        with _opened(path) as connection:
            connection.execute("BEGIN")
            for tenant, *counts in connection.execute("SELECT * FROM ledger"):
                entry = sums.setdefault(tenant, [0, 0, 0, 0])
                for position, count in zip((0, 1, 3), counts, strict=True):
                    entry[position] += count
            for tenant, count in connection.execute(
                "SELECT key, sum(value) FROM groups, json_each(groups.tenants) GROUP BY key"
            ):
                sums.setdefault(tenant, [0, 0, 0, 0])[2] += count
            connection.execute("COMMIT")
    return {tenant: Entry(*entry) for tenant, entry in sorted(sums.items())}


def letters(
    data_dir: Path, *, tenant: str | None = None, reason: str | None = None, limit: int
) -> list[Letter]:
    """Return the newest dead letters that match."""
    found: list[Letter] = []
    for path in spools(data_dir):
        with _opened(path) as connection:
            found.extend(
                Letter(
                    name=f"{path.parent.name}/{row[0]}",
                    at_ms=row[1],
                    tenant=row[2],
                    device=row[3],
                    stream=row[4],
                    reason=row[5],
                    detail=row[6],
                    accepted=row[7] in {Booking.POISON, Booking.ACKNOWLEDGED},
                    bytes=row[8],
                )
                for row in connection.execute(
                    "SELECT number, at_ms, tenant, device, stream, reason, detail, booking, length(payload) "
                    "FROM dead_letters WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR reason = ?2) "
                    "ORDER BY number DESC LIMIT ?3",
                    (tenant, reason, limit),
                )
            )
    return sorted(found, key=lambda letter: -letter.at_ms)[:limit]


def payload(data_dir: Path, name: str) -> bytes:
    """Return the payload of one dead letter, named `worker/number`."""
    path, number = _named(data_dir, name)
    with _opened(path) as connection:
        row: Any = connection.execute(
            "SELECT payload FROM dead_letters WHERE number = ?", (number,)
        ).fetchone()
    if row is None:
        raise SpoolError(f"there is no dead letter {name}")
    return bytes(row[0])


def mark_for_replay(
    data_dir: Path, *, name: str | None = None, tenant: str | None = None, reason: str | None = None
) -> tuple[int, int]:
    """Mark dead letters to be accepted again by the running node (or at its next start).

    Return how many, and how many cannot be: of those only the beginning was kept.
    """
    mark, keep = (f"UPDATE dead_letters SET replay = {replay}" for replay in (1, 0))
    marked = _change(mark, data_dir, name, tenant, reason, only=f"booking != {Booking.CUT:d}")
    return marked, _change(keep, data_dir, name, tenant, reason, only=f"booking = {Booking.CUT:d}")


def purge(
    data_dir: Path, *, name: str | None = None, tenant: str | None = None, reason: str | None = None
) -> int:
    """Delete dead letters for good; return how many. The ledger keeps counting them."""
    return _change("DELETE FROM dead_letters", data_dir, name, tenant, reason)


def _change(
    sql: str, data_dir: Path, name: str | None, tenant: str | None, reason: str | None, *, only: str = "true"
) -> int:
    changed = 0
    paths = spools(data_dir)
    number: int | None = None
    if name is not None:
        path, number = _named(data_dir, name)
        paths = [path]
    for path in paths:
        with _opened(path, write=True) as connection:
            changed += connection.execute(
                f"{sql} WHERE (?1 IS NULL OR number = ?1) AND (?2 IS NULL OR tenant = ?2) "
                f"AND (?3 IS NULL OR reason = ?3) AND {only}",
                (number, tenant, reason),
            ).rowcount
    return changed


def _named(data_dir: Path, name: str) -> tuple[Path, int]:
    worker, _, number = name.partition("/")
    path = data_dir / worker / "spool.db"
    if not number.isdecimal() or path not in spools(data_dir):
        raise SpoolError(f"{name} is not a dead letter: names look like worker-0/17")
    return path, int(number)
