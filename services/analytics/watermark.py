"""When a reading comes too late, or is of a time that cannot be.

The watermark of a device is the latest time it has sent, less the allowed lateness. A window is final when
the watermark has passed its end; a reading for one that is final is dropped, and counted by why. The devices
of a tenant do not wait for each other.

Event time is bounded by the gateway's: a reading is at most `future_ms` after it was received, so a device
whose clock jumps ahead moves its watermark no further. As lateness is no less than that, it loses nothing
when its clock is put right.
"""

from __future__ import annotations

import enum

import msgspec

from services.analytics.windows import Window


class Dropped(enum.Enum):
    """Why a value is in no roll-up."""

    LATE = "late"
    """Its window is final."""
    FUTURE = "future"
    """It is of a time that has not come."""
    EXPIRED = "expired"
    """No window is kept for so long."""
    OUT_OF_RANGE = "out_of_range"
    """The number is too large."""
    TOO_MANY_DEVICES = "too_many_devices"
    TOO_MANY_SERIES = "too_many_series"
    """The device has as many as it may."""
    TOO_MANY_METRICS = "too_many_metrics"
    """The tenant has as many as it may."""
    NOT_TELEMETRY = "not_telemetry"
    """A record of a raw stream, or one that nobody can read."""


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How late a reading may be, and how early, in ms."""

    lateness_ms: int
    future_ms: int


def watermark_ms(high_ms: int, tolerance: Tolerance) -> int:
    """Return the time before which nothing is taken any more from a device whose latest time is `high_ms`."""
    return high_ms - tolerance.lateness_ms


def untimely(
    ts_ms: int, received_ms: int, high_ms: int, *, tolerance: Tolerance, finest: Window, coarsest: Window
) -> Dropped | None:
    """Return why a reading is not of a time that can be taken, or None when it is."""
    if ts_ms > received_ms + tolerance.future_ms:
        return Dropped.FUTURE
    if not coarsest.is_kept(coarsest.start_of(ts_ms), received_ms):
        return Dropped.EXPIRED
    if (finest.start_of(ts_ms) + finest.size_s) * 1000 <= watermark_ms(high_ms, tolerance):
        return Dropped.LATE
    return None
