from __future__ import annotations

from services.analytics.watermark import Dropped, Tolerance, untimely, watermark_ms
from services.analytics.windows import Window

MINUTE = Window("1m", 60, 3600)
DAY = Window("1d", 86_400, 10 * 86_400)
TOLERANCE = Tolerance(lateness_ms=120_000, future_ms=30_000)
NOW_MS = 1_764_000_000_000  # the beginning of a minute


def judged(ts_ms: int, *, received_ms: int = NOW_MS, high_ms: int = 0) -> Dropped | None:
    return untimely(ts_ms, received_ms, high_ms, tolerance=TOLERANCE, finest=MINUTE, coarsest=DAY)


def test_the_first_reading_of_a_device_may_be_as_old_as_windows_are_kept() -> None:
    assert judged(NOW_MS) is None
    assert judged(NOW_MS - 5 * 86_400_000) is None
    assert judged(NOW_MS - 12 * 86_400_000) is Dropped.EXPIRED
    assert judged(1) is Dropped.EXPIRED


def test_a_reading_is_late_when_the_watermark_has_passed_the_end_of_its_window() -> None:
    assert watermark_ms(NOW_MS, TOLERANCE) == NOW_MS - 120_000
    assert judged(NOW_MS - 120_000, high_ms=NOW_MS) is None
    assert judged(NOW_MS - 120_001, high_ms=NOW_MS) is Dropped.LATE
    assert judged(NOW_MS - 120_001, high_ms=NOW_MS - 1) is None


def test_a_time_that_has_not_come_is_bounded_by_when_the_reading_was_received() -> None:
    assert judged(NOW_MS + 30_000) is None
    assert judged(NOW_MS + 30_001) is Dropped.FUTURE


def test_a_clock_that_was_ahead_and_is_put_right_loses_nothing() -> None:
    ahead_ms = NOW_MS + TOLERANCE.future_ms
    assert judged(ahead_ms) is None
    assert judged(NOW_MS, high_ms=ahead_ms) is None
