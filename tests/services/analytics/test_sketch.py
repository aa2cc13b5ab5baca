from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.analytics.sketch import BINS_MAX, MAGNITUDE_MIN, RELATIVE_ERROR, Sketch

readings = st.lists(
    st.one_of(st.floats(-1e6, 1e6), st.integers(-100, 100).map(float), st.sampled_from([1e100, -1e100, 0.0])),
    min_size=1,
    max_size=200,
)
QS = st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0])


def sketch_of(values: list[float]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@given(readings, QS)
def test_a_quantile_is_within_the_relative_error_of_the_reading_of_its_rank(
    values: list[float], q: float
) -> None:
    exact = sorted(values)[int(q * (len(values) - 1))]
    assert (
        abs(sketch_of(values).quantiles([q])[0] - exact)
        <= RELATIVE_ERROR * abs(exact) * 1.000001 + MAGNITUDE_MIN
    )


@given(readings, st.randoms(use_true_random=False), st.integers(1, 5))
def test_a_sketch_is_the_same_in_any_order_and_merged_of_any_parts(
    values: list[float], chance: random.Random, parts: int
) -> None:
    whole = sketch_of(values)
    chance.shuffle(values)
    made = Sketch()
    for part in range(parts):
        made.merge(sketch_of(values[part::parts]))
    assert made == whole


def test_bins_have_a_limit_and_the_largest_magnitudes_keep_the_error() -> None:
    values = [1.03**exponent for exponent in range(-2000, 2000)]
    random.Random(4).shuffle(values)
    whole = sketch_of(values)
    parts = sketch_of(values[:1500])
    parts.merge(sketch_of(values[1500:]))
    assert whole == parts
    assert len(whole.positive) == BINS_MAX
    assert sum(whole.positive.values()) == len(values)
    for q in (0.9, 0.99):
        assert whole.quantiles([q])[0] == pytest.approx(
            sorted(values)[int(q * 3999)], rel=RELATIVE_ERROR * 1.001
        )


def test_the_negative_side_has_a_limit_of_its_own() -> None:
    sketch = sketch_of([-(1.03**exponent) for exponent in range(2000)])
    assert (len(sketch.negative), len(sketch.positive)) == (BINS_MAX, 0)
    assert sketch.quantiles([0])[0] == pytest.approx(-(1.03**1999), rel=RELATIVE_ERROR * 1.001)


@given(readings)
def test_it_is_stored_and_read_back_as_it_was(values: list[float]) -> None:
    sketch = sketch_of(values)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sketch), type=Sketch) == sketch


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(AssertionError):
        Sketch().quantiles([0.5])[0]
