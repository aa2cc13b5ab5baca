from __future__ import annotations

import random
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from protocols.telemetry import Telemetry
from services.analytics.fold import Fold, FoldLimits
from services.analytics.rollup import Rollup
from services.analytics.series import EVERY_DEVICE, Device, Key, Series
from services.analytics.watermark import Dropped, Tolerance
from services.analytics.windows import Window

NOW_MS = 1_764_000_000_000
WINDOWS = (Window("1m", 60, 86_400), Window("1h", 3600, 864_000))
TOLERANCE = Tolerance(lateness_ms=600_000, future_ms=60_000)
LIMITS = FoldLimits(devices_max=3, series_max=3, metrics_max=4, memory=50, warm_up=10, anomaly_sigma=4.0)


class Nothing:
    """What is known at first; what a fold has made can be put into it."""

    def __init__(self) -> None:
        self.devices: dict[tuple[str, str], Device] = {}
        self.found: dict[Key, Series] = {}

    def device(self, tenant: str, name: str) -> Device | None:
        return self.devices.get((tenant, name))

    def series(self, key: Key) -> Series | None:
        return self.found.get(key)

    def device_count(self, tenant: str) -> int:
        return sum(each[0] == tenant for each in self.devices)

    def series_count(self, tenant: str, device: str) -> int:
        return sum((key.tenant, key.device) == (tenant, device) for key in self.found)

    def keep(self, fold: Fold) -> None:
        self.devices |= {(each.tenant, each.name): each for each in fold.devices}
        self.found |= {each.key: each for each in fold.series}


def fold_on(known: Nothing, limits: FoldLimits = LIMITS) -> Fold:
    return Fold(known, limits, WINDOWS, TOLERANCE)


def give(
    fold: Fold, *, device: str = "d", stream: str = "s", ts_ms: int = NOW_MS, **metrics: float | bool | str
) -> None:
    fold.take("t", device, stream, NOW_MS, Telemetry(ts=ts_ms, metrics=dict(metrics)))


def rollups_of(fold: Fold) -> dict[Key, dict[int, Rollup]]:
    return {series.key: series.windows for series in fold.series}


reading = st.tuples(
    st.sampled_from(["a", "b"]),
    st.integers(NOW_MS - 540_000, NOW_MS + 60_000),
    st.dictionaries(
        st.sampled_from(["m", "n"]),
        st.integers(-1000, 1000).map(float) | st.booleans() | st.just("text"),
        min_size=1,
    ),
)


@given(st.lists(reading, max_size=60), st.randoms(use_true_random=False), st.integers(1, 20))
def test_within_the_lateness_the_roll_ups_are_those_of_brute_force_in_any_order_and_batches(
    readings: list[tuple[str, int, dict[str, float | bool | str]]], chance: random.Random, size: int
) -> None:
    brute: dict[tuple[str, str, int], list[tuple[int, float]]] = defaultdict(list)
    texts: dict[tuple[str, str, int], int] = defaultdict(int)
    for device, ts_ms, metrics in readings:
        for metric, value in metrics.items():
            for each in (device, EVERY_DEVICE):
                where = (each, metric, ts_ms // 60_000 * 60)
                if isinstance(value, str):
                    texts[where] += 1
                else:
                    brute[where].append((ts_ms, float(value)))
    chance.shuffle(readings)
    known, made = Nothing(), dict[tuple[str, str, int], Rollup]()
    for begin in range(0, len(readings), size):
        fold = fold_on(known)
        for device, ts_ms, metrics in readings[begin : begin + size]:
            fold.take("t", device, "s", NOW_MS, Telemetry(ts=ts_ms, metrics=metrics))
        assert not fold.dropped
        assert fold.folded == sum(len(metrics) for _, _, metrics in readings[begin : begin + size])
        known.keep(fold)
        for series in fold.series:
            for start_s, rollup in series.windows.items():
                made.setdefault((series.key.device, series.key.metric, start_s), Rollup()).merge(rollup)
            series.windows = {}
    assert set(made) == set(brute) | set(texts)
    for where, rollup in made.items():
        exact = Rollup(texts=texts[where])
        for ts_ms, value in sorted(brute[where]):
            exact.add(ts_ms, value)
        # whole numbers, so that sums are exact; mean and squares differ in their last digits
        mean, squares = rollup.mean, rollup.squares
        rollup.mean, rollup.squares = exact.mean, exact.squares
        assert rollup == exact
        assert abs(mean - exact.mean) < 1e-9
        assert abs(squares - exact.squares) < 1e-3


def test_what_is_late_or_of_no_time_is_dropped_by_name_for_all_its_values() -> None:
    fold = fold_on(Nothing())
    give(fold, a=1.0)
    give(fold, ts_ms=NOW_MS - 700_000, a=2.0, b=3.0)
    give(fold, ts_ms=NOW_MS + 60_001, a=2.0)
    give(fold, ts_ms=1, a=2.0)
    assert fold.folded == 1
    assert fold.dropped == {Dropped.LATE: 2, Dropped.FUTURE: 1, Dropped.EXPIRED: 1}
    [device] = fold.devices
    assert (device.high_ms, device.dropped) == (NOW_MS, {"late": 2, "future": 1, "expired": 1})


def test_devices_do_not_wait_for_each_other() -> None:
    fold = fold_on(Nothing())
    give(fold, device="ahead", a=1.0)
    give(fold, device="behind", ts_ms=NOW_MS - 3_000_000, a=1.0)
    assert (fold.folded, dict(fold.dropped)) == (2, {})


def test_numbers_that_are_too_large_are_dropped_and_booleans_are_numbers() -> None:
    fold = fold_on(Nothing())
    give(fold, a=1e101, b=True)
    give(fold, a=-1e101, b=False)
    assert (fold.folded, dict(fold.dropped)) == (2, {Dropped.OUT_OF_RANGE: 2})
    rollup = rollups_of(fold)[Key("t", "d", "s", "b")][NOW_MS // 1000]
    assert (rollup.total, rollup.count) == (1.0, 2)


def test_a_tenant_has_so_many_devices() -> None:
    known = Nothing()
    for name in ("d0", "d1"):
        fold = fold_on(known)
        give(fold, device=name, a=1.0)
        known.keep(fold)
    fold = fold_on(known)
    for name in ("d2", "d3", "d3", "d0"):
        give(fold, device=name, a=1.0, b=1.0)
    assert fold.dropped == {Dropped.TOO_MANY_DEVICES: 4}
    assert [each.name for each in fold.devices] == ["d2", "d0"]


def test_a_device_has_so_many_series_and_what_is_refused_takes_no_place_of_the_tenants_metrics() -> None:
    known = Nothing()
    fold = fold_on(known)
    give(fold, a=1.0, b=1.0, c=1.0, d=1.0, e=1.0)
    assert fold.dropped == {Dropped.TOO_MANY_SERIES: 2}
    assert fold.devices[0].dropped == {"too_many_series": 2}
    known.keep(fold)
    fold = fold_on(known)
    give(fold, device="other", d=1.0, e=1.0)
    assert fold.dropped == {Dropped.TOO_MANY_METRICS: 1}
    assert {series.key.metric for series in fold.series} == {"d"}
    known.keep(fold)
    assert known.series_count("t", EVERY_DEVICE) == LIMITS.metrics_max
    fold = fold_on(known)
    give(fold, device="other", a=1.0)
    assert fold.folded == 1, "a refused series takes no place of the device's either"


def test_streams_and_tenants_are_apart() -> None:
    fold = fold_on(Nothing())
    give(fold, stream="one", a=1.0)
    give(fold, stream="two", a=2.0)
    fold.take("other", "d", "one", NOW_MS, Telemetry(ts=NOW_MS, metrics={"a": 3.0}))
    totals = {key: rollup[NOW_MS // 1000].total for key, rollup in rollups_of(fold).items()}
    assert totals == {
        Key(tenant, device, stream, "a"): total
        for tenant, stream, total in (("t", "one", 1.0), ("t", "two", 2.0), ("other", "one", 3.0))
        for device in ("d", EVERY_DEVICE)
    }


def test_what_is_unusual_is_kept_with_its_time_and_goes_on_over_batches() -> None:
    known = Nothing()
    for index in range(20):
        fold = fold_on(known)
        give(fold, ts_ms=NOW_MS - 20_000 + index * 1000, a=20.0 + index % 3)
        known.keep(fold)
    fold = fold_on(known)
    give(fold, a=90.0)
    give(fold, ts_ms=NOW_MS - 5000, a=-90.0)
    series = next(each for each in fold.series if each.key.device == "d")
    assert series.anomaly is not None
    assert (series.anomaly.at_ms, series.anomaly.value, series.anomalies) == (NOW_MS, 90.0, 1)
    assert series.sigma == series.anomaly.sigma > 4
    assert (series.last, series.last_ms) == (90.0, NOW_MS), "what is out of order is not scored"
    assert fold.folded == 2
    every = next(each for each in fold.series if each.key.device == EVERY_DEVICE)
    assert every.sigma is None
    assert fold.anomalies == 1


def test_booleans_are_rolled_up_and_not_scored() -> None:
    fold = fold_on(Nothing())
    for index in range(100):
        give(fold, ts_ms=NOW_MS - 1000 + index, a=index == 90)
    series = fold.series[0]
    assert (series.last, series.sigma, series.baseline.readings, fold.anomalies) == (0.0, None, 0, 0)
    assert sum(rollup.total for rollup in series.windows.values()) == 1.0


def test_texts_are_counted_and_not_scored() -> None:
    fold = fold_on(Nothing())
    give(fold, a="on")
    series = fold.series[0]
    assert (series.windows[NOW_MS // 1000].texts, series.last, series.baseline.readings) == (1, None, 0)
    assert (fold.folded, series.last_ms) == (1, NOW_MS)
