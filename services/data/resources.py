"""What callers see and ask for. Times are Unix time in ms, as devices send them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from protocols.telemetry import TS_MS_MAX
from services.web.page import PageQuery
from services.web.refusal import unprocessable

STREAM_ROWS_MAX: Final = 1_000_000
METRICS_MAX: Final = 32
BUCKETS_MAX: Final = 1_000_000
"""Of one series in one request."""
EVERY: Final = re.compile(r"([1-9][0-9]{0,5})(ms|s|m|h|d)")
UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

Ms = Annotated[int, Meta(ge=0, le=TS_MS_MAX + 1)]
StreamName = Annotated[str, Meta(max_length=512, description="Only of this stream.")]
MetricName = Annotated[str, Meta(min_length=1, max_length=128)]
Value = float | bool | str


class Telemetry(msgspec.Struct, frozen=True, kw_only=True):
    """A record as it came: the payload of a raw stream is base64 text."""

    id: str
    stream: str
    received_at: int
    payload: Any


class Records(msgspec.Struct, frozen=True):
    """The newest records of a device, in order of arrival."""

    items: list[Telemetry]


class RecordsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which records are asked for."""

    stream: StreamName = ""
    since: Annotated[Ms, Meta(description="Only what was received since (Unix ms).")] = 0
    limit: Annotated[int, Meta(ge=1, le=1000, description="At most so many, the newest.")] = 100


class Point(msgspec.Struct, frozen=True):
    """A metric at a time."""

    ts: int
    stream: str
    metric: str
    value: Value


class Bucket(msgspec.Struct, frozen=True):
    """The values of a metric from `start` on, for as long as `every` says; true counts as 1, false as 0."""

    start: int
    stream: str
    metric: str
    count: int
    min: float
    max: float
    mean: float | None
    """None when the sum is beyond what a double holds."""
    last: float


class Latest(msgspec.Struct, frozen=True):
    """The newest value of a metric, by the device's time, and when its record came."""

    stream: str
    metric: str
    ts: int
    value: Value
    received_at: int


class Metric(msgspec.Struct, frozen=True):
    """A metric that a device sends, of the type of its newest value."""

    stream: str
    metric: str
    type: Literal["number", "boolean", "text"]
    last_ts: int


class SelectionQuery(PageQuery, frozen=True, kw_only=True):
    """Which values are asked for; queries of values derive from it."""

    stream: StreamName = ""
    metric: Annotated[
        list[MetricName], Meta(max_length=METRICS_MAX, description="Only of these metrics.")
    ] = msgspec.field(default_factory=list)
    from_: Annotated[Ms, Meta(description="Not before (Unix ms).")] = msgspec.field(default=0, name="from")
    to: Annotated[Ms, Meta(description="Before (Unix ms).")] = TS_MS_MAX + 1
    limit: Annotated[
        int,
        Meta(
            ge=0,
            le=STREAM_ROWS_MAX,
            description="At most so many: of JSON never more than 1000, and 100 if left out; of streams all.",
        ),
    ] = 0


class PointsQuery(SelectionQuery, frozen=True, kw_only=True):
    """Which points are asked for."""

    order: Annotated[Literal["asc", "desc"], Meta(description="The oldest first, or the newest.")] = "asc"


class BucketsQuery(SelectionQuery, frozen=True, kw_only=True):
    """Which buckets are asked for."""

    from_: Annotated[Ms, Meta(description="Not before (Unix ms).")] = msgspec.field(name="from")
    every: Annotated[
        str,
        Meta(pattern=f"^{EVERY.pattern}$", description="How long a bucket is: 500ms, 10s, 5m, 1h, 1d."),
    ]


class Erased(msgspec.Struct, frozen=True):
    """How many records of a device were deleted."""

    records: int


class TailQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose live stream, and behind which record."""

    tenant: Annotated[str, Meta(min_length=1, max_length=128)]
    after: Annotated[str, Meta(max_length=512, description="The id of a record.")] = ""


def every_ms(text: str) -> int:
    """Return how long a bucket is; the text has matched its pattern."""
    found = EVERY.fullmatch(text)
    assert found is not None
    return int(found[1]) * UNIT_MS[found[2]]


def refuse_too_many_buckets(from_ms: int, to_ms: int, length_ms: int) -> None:
    """Refuse a range with more buckets of a series than there may be."""
    if (to_ms - from_ms) // length_ms > BUCKETS_MAX:
        raise unprocessable(f"every: at most {BUCKETS_MAX} buckets between from and to")


def value_of(number: float | None, boolean: bool | None, text: str | None) -> Value:  # noqa: FBT001  # a column
    """Return the one of the three that is there."""
    if number is not None:
        return number
    return boolean if boolean is not None else text or ""
