"""Folding telemetry into roll-ups: 1,000 records of 100 or 1,000 devices, three metrics each, in a minute."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from protocols.telemetry import Telemetry
from services.analytics.baseline import Baseline
from services.analytics.fold import Fold, FoldLimits
from services.analytics.rollup import Rollup, encoded, merged
from services.analytics.store.database import opened
from services.analytics.store.known import StoredSeries
from services.analytics.store.writer import Writer
from services.analytics.watermark import Tolerance
from services.analytics.windows import Window
from services.feed.feed import Batch, Record

READINGS = [(index * 100, random.Random(index).gauss(20, 5)) for index in range(1000)]
RECORDS, DEVICES, MANY, START_MS = 1000, 100, 1000, 1_764_000_000_000
WINDOWS = (
    Window("1m", 60, 172_800),
    Window("5m", 300, 1_209_600),
    Window("1h", 3600, 7_776_000),
    Window("1d", 86_400, 63_072_000),
)
TOLERANCE = Tolerance(lateness_ms=3_600_000, future_ms=300_000)
LIMITS = FoldLimits(
    devices_max=10_000, series_max=64, metrics_max=1000, memory=200, warm_up=30, anomaly_sigma=4.0
)


def rollup_of(readings: list[tuple[int, float]]) -> Rollup:
    rollup = Rollup()
    for ts_ms, value in readings:
        rollup.add(ts_ms, value)
    return rollup


def records_of(batch: int, devices: int = DEVICES) -> list[Record]:
    chance = random.Random(batch)
    records = []
    for index in range(RECORDS):
        ts_ms = START_MS + batch * 60_000 + index * 60
        metrics = {name: chance.gauss(20, 5) for name in ("temperature", "pressure", "flow")}
        telemetry = Telemetry(ts=ts_ms, metrics=dict[str, float | bool | str](metrics))
        identity = f"core-1-0123456789abcdef-{batch}-{index}"
        records.append(
            Record(identity, "acme", f"device-{index % devices}", "sensors", ts_ms, "{}", telemetry)
        )
    return records


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(
        opened(tmp_path / "analytics.db"),
        windows=WINDOWS,
        tolerance=TOLERANCE,
        limits=LIMITS,
        ids_max=200_000,
    )
    yield made
    made.close()


def test_add_readings(benchmark: BenchmarkFixture) -> None:
    assert benchmark(rollup_of, READINGS).count == 1000


def test_merge_stored_windows(benchmark: BenchmarkFixture) -> None:
    day, minute = encoded(rollup_of(READINGS)), encoded(rollup_of(READINGS[:60]))
    assert len(benchmark(merged, day, minute)) < 2000


def test_score_readings(benchmark: BenchmarkFixture) -> None:
    def scored() -> Baseline:
        baseline = Baseline()
        for _, value in READINGS:
            baseline.take(value, memory=200, warm_up=30)
        return baseline

    assert benchmark(scored).readings == 200


def test_fold_a_batch(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    connection, records = opened(tmp_path / "analytics.db"), records_of(0)

    def folded() -> int:
        fold = Fold(StoredSeries(connection), LIMITS, WINDOWS, TOLERANCE)
        for record in records:
            assert record.telemetry is not None
            fold.take(record.tenant, record.device, record.stream, record.received_at, record.telemetry)
        return fold.folded

    assert benchmark(folded) == 3 * RECORDS
    connection.close()


@pytest.mark.parametrize("devices", [DEVICES, MANY])
def test_store_a_batch(benchmark: BenchmarkFixture, writer: Writer, devices: int) -> None:
    numbers = itertools.count()

    def batch() -> tuple[tuple[Batch], dict[str, object]]:
        number = next(numbers)
        return (Batch("local", records_of(number, devices), str(number)),), {}

    stored = benchmark.pedantic(writer.take, setup=batch, rounds=30)  # type: ignore[no-untyped-call]
    assert stored.folded == 3 * RECORDS
