from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.analytics.rollup import Rollup
from services.analytics.windows import Window, check_sizes, coarser, size_of

MINUTE = Window("1m", 60, 3600)
HOUR = Window("1h", 3600, 86_400)


@given(st.integers(1, 10**13), st.sampled_from([MINUTE, HOUR]))
def test_a_window_begins_at_or_before_its_times_and_ends_after_them(ts_ms: int, window: Window) -> None:
    start_s = window.start_of(ts_ms)
    assert start_s % window.size_s == 0
    assert start_s * 1000 <= ts_ms < (start_s + window.size_s) * 1000


def test_a_window_is_kept_for_its_time_after_its_end() -> None:
    end_ms = (120 + 60 + 3600) * 1000
    assert MINUTE.is_kept(120, end_ms - 1)
    assert not MINUTE.is_kept(120, end_ms)


@given(st.dictionaries(st.integers(0, 500).map(lambda minute: minute * 60), st.floats(-9, 9)))
def test_a_coarser_window_is_merged_from_the_finer_ones_in_it(values: dict[int, float]) -> None:
    finer = {start_s: Rollup() for start_s in values}
    for start_s, value in values.items():
        finer[start_s].add(start_s * 1000, value)
    made = coarser(finer, HOUR)
    assert {start_s: rollup.count for start_s, rollup in made.items()} == {
        hour: sum(start_s // 3600 * 3600 == hour for start_s in values) for hour in made
    }
    assert sum(rollup.count for rollup in made.values()) == len(values)
    assert all(rollup.count == 1 for rollup in finer.values()), "the finer ones stay as they are"


@pytest.mark.parametrize(("name", "size_s"), [("30s", 30), ("1m", 60), ("6h", 21_600), ("1d", 86_400)])
def test_a_size_is_a_number_and_a_unit(name: str, size_s: int) -> None:
    assert size_of(name) == size_s


@pytest.mark.parametrize("name", ["", "m", "0m", "1w", "1.5h", "-1m", "1m ", "100000s"])
def test_what_is_no_size_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a size is"):
        size_of(name)


def test_sizes_must_be_multiples_of_each_other_and_kept_longer_and_longer() -> None:
    check_sizes([MINUTE, HOUR])
    with pytest.raises(ValueError, match="1m is not a multiple of 1h"):
        check_sizes([HOUR, MINUTE])
    with pytest.raises(ValueError, match="90s is not a multiple of 1m"):
        check_sizes([MINUTE, Window("90s", 90, 3600)])
    with pytest.raises(ValueError, match="1h must be kept as long as 1m"):
        check_sizes([MINUTE, Window("1h", 3600, 60)])
