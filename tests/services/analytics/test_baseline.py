from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.analytics.baseline import SIGMA_MAX, Baseline, score_of

MEMORY, WARM_UP = 200, 30


def learnt(values: list[float]) -> Baseline:
    baseline = Baseline()
    for value in values:
        baseline.take(value, memory=MEMORY, warm_up=WARM_UP)
    return baseline


def noise(count: int, *, mean: float = 20.0, deviation: float = 0.5, seed: int = 1) -> list[float]:
    chance = random.Random(seed)
    return [chance.gauss(mean, deviation) for _ in range(count)]


def sigma_of(baseline: Baseline, value: float) -> float:
    sigma = baseline.take(value, memory=MEMORY, warm_up=WARM_UP)
    assert sigma is not None
    return sigma


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=WARM_UP))
def test_among_the_first_nothing_is_scored_and_all_weigh_the_same(values: list[float]) -> None:
    baseline = Baseline()
    assert {baseline.take(value, memory=MEMORY, warm_up=WARM_UP) for value in values} == {None}
    assert baseline.mean == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-6)
    assert baseline.variance == pytest.approx(statistics.pvariance(values), rel=1e-6, abs=1e-3)


def test_noise_is_scored_as_what_it_is() -> None:
    baseline, inside = learnt(noise(500)), 0
    for value in noise(2000, seed=2):
        inside += abs(sigma_of(baseline, value)) < 2
    assert 0.92 < inside / 2000 < 0.98, "95.4 % of a normal distribution is within two deviations"


def test_a_spike_is_unusual_and_does_not_spoil_the_baseline() -> None:
    baseline = learnt(noise(500))
    before = baseline.mean
    assert sigma_of(baseline, 40.0) > 25
    assert baseline.mean == pytest.approx(before, abs=0.02)
    assert sigma_of(baseline, 40.0) > 25
    assert sigma_of(baseline, 0.0) < -25


def test_a_new_level_is_learnt_in_the_end() -> None:
    baseline = learnt(noise(500))
    for value in noise(3 * MEMORY, mean=30.0, seed=3):
        sigma_of(baseline, value)
    assert abs(sigma_of(baseline, 30.0)) < 2


def test_a_series_that_never_changed_learns_that_it_does() -> None:
    baseline = learnt([20.0] * 500)
    assert sigma_of(baseline, 20.0) == 0
    assert sigma_of(baseline, 21.0) == SIGMA_MAX
    for _ in range(3 * MEMORY):
        sigma_of(baseline, 21.0)
    assert abs(sigma_of(baseline, 21.0)) < 2


def test_slow_change_is_followed() -> None:
    baseline = learnt(noise(500))
    values = [value + index * 0.005 for index, value in enumerate(noise(2000, seed=5))]
    assert max(abs(sigma_of(baseline, value)) for value in values) < 6


@given(st.lists(st.floats(-1e100, 1e100), max_size=300))
def test_whatever_comes_the_score_is_bounded(values: list[float]) -> None:
    baseline = Baseline()
    for value in values:
        sigma = baseline.take(value, memory=MEMORY, warm_up=WARM_UP)
        assert sigma is None or abs(sigma) <= SIGMA_MAX
        assert baseline.readings <= MEMORY
        assert 0 <= baseline.variance < float("inf")


def test_a_score_is_how_much_of_a_normal_distribution_is_closer() -> None:
    assert score_of(0) == 0
    assert score_of(1) == pytest.approx(0.6827, abs=1e-4)
    assert score_of(-2) == pytest.approx(0.9545, abs=1e-4)
    assert score_of(SIGMA_MAX) == 1
