"""What was counted between two readings, whatever proxies do meanwhile."""

from __future__ import annotations

import math

import pytest

from routing.traffic.counts import Counts, grown, latest


def counts(requests: int, failures: int = 0, *within: tuple[float, int]) -> Counts:
    return Counts(requests, failures, dict(within))


def test_what_grew_is_summed_over_proxies() -> None:
    before = {"a": {"v1": counts(10, 1, (1, 5), (math.inf, 10))}, "b": {"v1": counts(0)}}
    after = {"a": {"v1": counts(30, 2, (1, 15), (math.inf, 30))}, "b": {"v1": counts(5), "v2": counts(3, 3)}}
    assert grown(before, after) == {"v1": counts(25, 1, (1, 10), (math.inf, 20)), "v2": counts(3, 3)}


def test_of_proxies_with_other_bounds_what_both_know_is_summed() -> None:
    one, two = counts(9, 0, (1, 5), (5, 8), (math.inf, 9)), counts(4, 0, (2, 1), (5, 4), (math.inf, 4))
    assert one + two == counts(13, 0, (5, 12), (math.inf, 13))
    assert one + counts(1) == counts(10, 0, (1, 5), (5, 8), (math.inf, 9))


def test_a_proxy_that_began_again_is_counted_from_nothing() -> None:
    assert grown({"a": {"v1": counts(10, 1)}}, {"a": {"v1": counts(4)}}) == {"v1": counts(4)}


def test_a_proxy_that_is_new_counts_from_its_next_reading_on() -> None:
    assert grown({}, {"a": {"v1": counts(10, 1)}}) == {}


def test_a_proxy_that_could_not_be_asked_is_counted_when_it_can() -> None:
    kept = latest({"a": {"v1": counts(10)}}, {})
    assert grown(kept, {"a": {"v1": counts(30)}}) == {"v1": counts(20)}


def test_quantiles_lie_between_bounds() -> None:
    seen = counts(100, 0, (10.0, 50), (20.0, 100), (math.inf, 100))
    assert seen.quantile_ms(0.5) == 10
    assert seen.quantile_ms(0.75) == 15
    assert counts(3).quantile_ms(0.5) is None
    assert counts(3, 0, (10.0, 0), (math.inf, 3)).quantile_ms(0.99) == 10


@pytest.mark.parametrize(
    ("least", "bound", "slower"), [(5, 10, 50), (10, 10, 50), (11, 20, 10), (21, math.inf, 0)]
)
def test_a_limit_is_taken_up_to_the_next_bound(least: float, bound: float, slower: int) -> None:
    seen = counts(100, 0, (10.0, 50), (20.0, 90), (math.inf, 100))
    assert (seen.bound(least), seen.slower(bound)) == (bound, slower)
