from __future__ import annotations

import random

from pytest_benchmark.fixture import BenchmarkFixture

from services.analytics.baseline import Baseline
from services.analytics.rollup import Rollup, encoded, merged

READINGS = [(index * 100, random.Random(index).gauss(20, 5)) for index in range(1000)]


def rollup_of(readings: list[tuple[int, float]]) -> Rollup:
    rollup = Rollup()
    for ts_ms, value in readings:
        rollup.add(ts_ms, value)
    return rollup


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
