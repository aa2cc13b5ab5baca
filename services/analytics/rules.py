"""What the settings come to, checked: windows, how late readings may be, and how much there may be."""

from __future__ import annotations

from typing import Final

import msgspec

from services.analytics.fold import FoldLimits
from services.analytics.watermark import Tolerance
from services.analytics.windows import Window, check_sizes, size_of
from services.settings import Analytics

DAY_S: Final = 86_400


class Rules(msgspec.Struct, frozen=True):
    """By what readings are folded."""

    windows: tuple[Window, ...]
    tolerance: Tolerance
    limits: FoldLimits

    def window(self, name: str) -> Window | None:
        """Return the window of a size, or None."""
        return next((window for window in self.windows if window.name == name), None)


def rules_of(settings: Analytics) -> Rules:
    """Return the rules that the settings come to; raises ValueError, which names the setting."""
    windows = tuple(
        Window(each.size, size_of(each.size), each.keep_days * DAY_S) for each in settings.windows
    )
    try:
        check_sizes(windows)
    except ValueError as error:
        raise ValueError(f"analytics.windows: {error}") from error
    if settings.future_s > settings.lateness_s:
        raise ValueError(
            "analytics.future_s: at most lateness_s, or a clock that is put right loses readings"
        )
    if settings.anomaly_warm_up > settings.anomaly_memory:
        raise ValueError("analytics.anomaly_warm_up: at most anomaly_memory")
    return Rules(
        windows,
        Tolerance(lateness_ms=round(settings.lateness_s * 1000), future_ms=round(settings.future_s * 1000)),
        FoldLimits(
            devices_max=settings.devices_max,
            series_max=settings.series_max,
            metrics_max=settings.metrics_max,
            memory=settings.anomaly_memory,
            warm_up=settings.anomaly_warm_up,
            anomaly_sigma=settings.anomaly_sigma,
        ),
    )
