from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.analytics.rollup import MAGNITUDE_MAX, Rollup, decoded, encoded, merged

Reading = tuple[int, float]
readings = st.lists(st.tuples(st.integers(1, 50), st.floats(-1e6, 1e6)), min_size=1, max_size=100)


def rollup_of(taken: list[Reading]) -> Rollup:
    rollup = Rollup()
    for ts_ms, value in taken:
        rollup.add(ts_ms, value)
    return rollup


def merged_of(taken: list[Reading], parts: int) -> Rollup:
    made = Rollup()
    for part in range(parts):
        made.merge(rollup_of(taken[part::parts]))
    return made


@given(readings, st.randoms(use_true_random=False), st.integers(1, 7))
def test_a_roll_up_is_what_brute_force_finds_in_any_order_and_any_parts(
    taken: list[Reading], chance: random.Random, parts: int
) -> None:
    values = [value for _, value in taken]
    chance.shuffle(taken)
    made = merged_of(taken, parts)
    assert (made.count, made.minimum, made.maximum) == (len(values), min(values), max(values))
    assert (made.first_ms, made.first) == min(taken)
    assert (made.last_ms, made.last) == max(taken)
    assert made.total == pytest.approx(math.fsum(values), rel=1e-9, abs=1e-6)
    assert made.mean == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-6)
    assert made.variance == pytest.approx(statistics.pvariance(values), rel=1e-6, abs=1e-3)
    assert made.sketch == rollup_of(taken).sketch


@given(readings, readings)
def test_what_is_stored_merges_as_what_is_in_memory(one: list[Reading], other: list[Reading]) -> None:
    made = rollup_of(one)
    made.merge(rollup_of(other))
    assert decoded(merged(encoded(rollup_of(one)), encoded(rollup_of(other)))) == made


def test_the_variance_of_values_far_from_zero_is_not_lost() -> None:
    taken = [(index, 1e9 + index % 2) for index in range(1000)]
    assert rollup_of(taken).variance == pytest.approx(0.25)
    assert merged_of(taken, 6).variance == pytest.approx(0.25)


def test_the_largest_numbers_do_not_overflow() -> None:
    made = merged_of([(1, MAGNITUDE_MAX), (2, -MAGNITUDE_MAX)] * 500, 3)
    assert all(map(math.isfinite, (made.total, made.mean, made.variance, made.quantiles([1])[0])))


def test_texts_are_counted_and_no_more() -> None:
    made = Rollup(texts=2)
    made.merge(Rollup(texts=3))
    assert (made.texts, made.count, made.variance, made.rate_per_s) == (5, 0, 0.0, None)


def test_the_rate_of_change_is_from_the_first_to_the_last_a_second() -> None:
    assert rollup_of([(3000, 16.0), (1000, 10.0), (2000, 99.0)]).rate_per_s == 3.0
    assert rollup_of([(1000, 1.0), (1000, 5.0)]).rate_per_s is None


def test_a_quantile_is_never_outside_of_what_was_read() -> None:
    made = rollup_of([(1, 21.5)])
    assert made.quantiles([0, 0.5, 1]) == [21.5] * 3
