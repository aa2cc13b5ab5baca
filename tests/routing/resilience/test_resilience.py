"""Breakers, back-off and concurrency, with the time as an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.resilience.backoff import full_jitter_s
from routing.resilience.breaker import Breaker, State
from routing.resilience.concurrency import AdaptiveConcurrency


def test_a_breaker_opens_after_failures_in_a_row_and_probes_once() -> None:
    breaker = Breaker(failures_max=2, open_s=1.0, open_s_max=8.0)
    breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.failed(0.0)
    assert not breaker.allows(0.5)
    assert breaker.due_s(0.5) == 0.5
    assert breaker.allows(1.0), "the probe"
    assert not breaker.allows(1.0), "one probe only"
    breaker.succeeded()
    assert breaker.allows(1.0)


def test_a_failed_probe_doubles_the_wait_up_to_its_maximum() -> None:
    breaker = Breaker(failures_max=1, open_s=1.0, open_s_max=3.0)
    breaker.failed(0.0)
    for wait_s in (2.0, 3.0, 3.0):
        now_s = breaker.due_s(0.0)
        assert breaker.allows(now_s)
        breaker.failed(now_s)
        assert breaker.due_s(now_s) == wait_s
    breaker.succeeded()
    breaker.failed(100.0)
    assert breaker.due_s(100.0) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 2)), max_size=60))
def test_a_breaker_never_stays_shut_for_longer_than_its_maximum(events: list[tuple[bool, float]]) -> None:
    breaker = Breaker(failures_max=3, open_s=0.5, open_s_max=4.0)
    now_s = 0.0
    for ok, wait_s in events:
        now_s += wait_s
        if breaker.allows(now_s):
            if ok:
                breaker.succeeded()
            else:
                breaker.failed(now_s)
        assert breaker.due_s(now_s) <= 4.0 + 1e-9  # a sum of floats, less one of them
        assert breaker.state is not State.HALF_OPEN


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_back_off_is_jittered_and_bounded(attempt: int, chance: float) -> None:
    wait_s = full_jitter_s(attempt, base_s=0.05, cap_s=5.0, random=lambda: chance)
    assert 0 <= wait_s <= min(5.0, 0.05 * 2.0 ** min(attempt - 1, 32))


def test_concurrency_grows_slowly_and_halves_on_trouble() -> None:
    concurrency = AdaptiveConcurrency(limit_max=8)
    for _ in range(100):
        concurrency.started()
        concurrency.ended(trouble=False)
    assert concurrency.limit == 8
    concurrency.started()
    concurrency.ended(trouble=True)
    assert concurrency.limit == 4
    for _ in range(10):
        concurrency.started()
        concurrency.ended(trouble=True)
    assert concurrency.limit == 1
    assert concurrency.has_room()
