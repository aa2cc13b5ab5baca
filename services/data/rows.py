"""From records to the rows of the warehouse: a row a record, a row a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from services.feed.feed import Record

RECORD_SHAPE: Final = (
    '[{"seq":"BIGINT","id":"VARCHAR","tenant":"VARCHAR","device":"VARCHAR","stream":"VARCHAR",'
    '"received_at":"BIGINT","payload":"VARCHAR"}]'
)
"""As `from_json` of DuckDB reads lists of `RecordRow`; so does the next of `PointRow`."""
POINT_SHAPE: Final = (
    '[{"seq":"BIGINT","tenant":"VARCHAR","device":"VARCHAR","stream":"VARCHAR","metric":"VARCHAR",'
    '"ts":"BIGINT","number":"DOUBLE","boolean":"BOOLEAN","text":"VARCHAR","received_at":"BIGINT"}]'
)


class RecordRow(msgspec.Struct, frozen=True, gc=False):
    """A record; `seq` counts them as they come, and never goes back."""

    seq: int
    id: str
    tenant: str
    device: str
    stream: str
    received_at: int
    payload: str


class PointRow(msgspec.Struct, frozen=True, gc=False):
    """A metric of a record. One of `number`, `boolean` and `text` is not None."""

    seq: int
    tenant: str
    device: str
    stream: str
    metric: str
    ts: int
    number: float | None
    boolean: bool | None
    text: str | None
    received_at: int


def record_rows(records: Sequence[Record], first_seq: int) -> list[RecordRow]:
    """Return a row for each record, numbered from `first_seq`."""
    return [
        RecordRow(seq, each.id, each.tenant, each.device, each.stream, each.received_at, each.payload)
        for seq, each in enumerate(records, first_seq)
    ]


def point_rows(records: Sequence[Record], first_seq: int) -> list[PointRow]:
    """Return a row for each metric of each record; raw streams have none."""
    rows: list[PointRow] = []
    for seq, each in enumerate(records, first_seq):
        if each.telemetry is None:
            continue
        ts = each.telemetry.ts
        for metric, value in each.telemetry.metrics.items():
            boolean = value if isinstance(value, bool) else None
            text = value if isinstance(value, str) else None
            number = None if isinstance(value, bool | str) else float(value)
            rows.append(
                PointRow(
                    seq,
                    each.tenant,
                    each.device,
                    each.stream,
                    metric,
                    ts,
                    number,
                    boolean,
                    text,
                    each.received_at,
                )
            )
    return rows
