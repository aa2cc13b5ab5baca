"""What is asked of the warehouse, as SQL with its values. Rows come by keyset, never by offset."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from protocols.telemetry import TS_MS_MAX

END_OF_TIME_MS: Final = TS_MS_MAX + 1
Asked = tuple[str, list[Any]]
"""SQL and the values of its placeholders."""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Points of one device, with `from_ms` <= ts < `to_ms`; empty is any stream, any metric."""

    tenant: str
    device: str
    stream: str = ""
    metrics: tuple[str, ...] = ()
    from_ms: int = 0
    to_ms: int = END_OF_TIME_MS

    def where(self) -> Asked:
        """Return the condition."""
        conditions = ["tenant = ?", "device = ?", "ts >= ?", "ts < ?"]
        values: list[Any] = [self.tenant, self.device, self.from_ms, self.to_ms]
        if self.stream:
            conditions.append("stream = ?")
            values.append(self.stream)
        if self.metrics:
            conditions.append(f"metric IN ({', '.join('?' * len(self.metrics))})")
            values += self.metrics
        return " AND ".join(conditions), values


PointKey = tuple[int, int, str]
"""ts, seq, metric: the order of points."""
BucketKey = tuple[int, str, str]
"""start, stream, metric: the order of buckets."""


def points(selection: Selection, after: PointKey | None, limit: int, *, newest_first: bool = False) -> Asked:
    """Return ts, seq, stream, metric, number, boolean, text of points behind a key."""
    if after is not None:
        bound = {"to_ms": min(selection.to_ms, after[0] + 1)} if newest_first else {}
        bound = bound or {"from_ms": max(selection.from_ms, after[0])}
        selection = msgspec.structs.replace(selection, **bound)
    condition, values = selection.where()
    if after is not None:
        condition += f" AND (ts, seq, metric) {'<' if newest_first else '>'} (?, ?, ?)"
        values += after
    way = "DESC" if newest_first else "ASC"
    statement = (
        f"SELECT ts, seq, stream, metric, number, boolean, text FROM points WHERE {condition} "
        f"ORDER BY ts {way}, seq {way}, metric {way} LIMIT ?"
    )
    return statement, [*values, limit]


def buckets(selection: Selection, every_ms: int, after: BucketKey | None, limit: int) -> Asked:
    """Return start, stream, metric, count, min, max, mean, last of buckets behind a key; text has none."""
    if after is not None:
        selection = msgspec.structs.replace(selection, from_ms=max(selection.from_ms, after[0]))
    condition, values = selection.where()
    behind = ""
    if after is not None:
        behind = "WHERE (start, stream, metric) > (?, ?, ?)"
        values += after
    statement = (
        "SELECT * FROM (SELECT ts // ? * ? AS start, stream, metric, count(*) AS count, min(value) AS min, "
        "max(value) AS max, avg(value) AS mean, max_by(value, (ts, seq)) AS last FROM "
        "(SELECT *, coalesce(number, CAST(boolean AS INTEGER)) AS value FROM points "
        f"WHERE {condition}) WHERE value IS NOT NULL GROUP BY ALL) {behind} "
        "ORDER BY start, stream, metric LIMIT ?"
    )
    return statement, [every_ms, every_ms, *values, limit]


def latest(tenant: str, device: str, after: tuple[str, str] | None, limit: int) -> Asked:
    """Return stream, metric, ts, number, boolean, text, received_at of the newest of each series."""
    behind, values = ("AND (stream, metric) > (?, ?)", [*after]) if after is not None else ("", [])
    statement = (
        "SELECT stream, metric, ts, number, boolean, text, received_at FROM latest "
        f"WHERE tenant = ? AND device = ? {behind} ORDER BY stream, metric LIMIT ?"
    )
    return statement, [tenant, device, *values, limit]


def newest_records(tenant: str, device: str, stream: str, since_ms: int, limit: int) -> Asked:
    """Return id, stream, received_at, payload of the newest records, the newest first."""
    of_stream, values = ("AND stream = ?", [stream]) if stream else ("", [])
    statement = (
        "SELECT id, stream, received_at, payload FROM records "
        f"WHERE tenant = ? AND device = ? AND received_at >= ? {of_stream} ORDER BY seq DESC LIMIT ?"
    )
    return statement, [tenant, device, since_ms, *values, limit]


def records_after(tenant: str, seq: int, limit: int) -> Asked:
    """Return seq, id, device, stream, received_at, payload of records of a tenant behind `seq`."""
    statement = (
        "SELECT seq, id, device, stream, received_at, payload FROM records "
        "WHERE tenant = ? AND seq > ? ORDER BY seq LIMIT ?"
    )
    return statement, [tenant, seq, limit]


def seq_of(tenant: str, identity: str) -> Asked:
    """Return the `seq` of a record by its id."""
    return "SELECT seq FROM records WHERE tenant = ? AND id = ?", [tenant, identity]
