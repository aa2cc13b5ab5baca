from __future__ import annotations

import pytest

from services.analytics.rules import rules_of
from services.analytics.windows import Window
from services.settings import Analytics, WindowSize


def test_the_defaults_fit_together() -> None:
    rules = rules_of(Analytics())
    assert [window.name for window in rules.windows] == ["1m", "5m", "1h", "1d"]
    assert rules.window("5m") == Window("5m", 300, 14 * 86_400)
    assert rules.window("2m") is None
    assert (rules.tolerance.lateness_ms, rules.tolerance.future_ms) == (3_600_000, 300_000)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            Analytics(windows=(WindowSize(size="1m", keep_days=1), WindowSize(size="90s", keep_days=1))),
            "analytics.windows: 90s is not a multiple of 1m",
        ),
        (Analytics(future_s=3601.0), "analytics.future_s"),
        (Analytics(anomaly_warm_up=201), "analytics.anomaly_warm_up"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(settings: Analytics, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        rules_of(settings)
