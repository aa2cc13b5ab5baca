from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.resilience.budget import SLOTS, Budget


def budget(share: float = 0.2, min_per_s: float = 0.0) -> Budget:
    return Budget(share=share, min_per_s=min_per_s, window_s=10.0, now_s=0.0)


def test_retries_are_a_share_of_the_requests() -> None:
    each = budget()
    for _ in range(100):
        each.asked(0.0)
    assert sum(each.take(0.0) for _ in range(100)) == 20


def test_some_are_always_allowed_so_that_who_asks_seldom_is_tried_again() -> None:
    each = budget(min_per_s=3.0)
    assert sum(each.take(0.0) for _ in range(100)) == 30


def test_what_is_older_than_the_window_counts_no_more() -> None:
    each = budget()
    for _ in range(100):
        each.asked(0.0)
    assert each.take(9.9)
    assert not each.take(10.0)
    for _ in range(5):
        each.asked(10.0)
    assert not each.take(10.0), "the retry of before still counts"
    assert each.take(19.9)


def test_a_pause_of_any_length_forgets_all() -> None:
    each = budget()
    for _ in range(100):
        each.asked(0.0)
    assert not each.take(1e9)


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_in_no_window_are_there_more_than_the_share(steps: list[tuple[float, bool]]) -> None:
    each = budget(share=0.2, min_per_s=0.5)
    now_s = 0.0
    asked: list[float] = []
    taken: list[float] = []
    for pause_s, retry in steps:
        now_s += pause_s
        if retry and each.take(now_s):
            taken.append(now_s)
        elif not retry:
            each.asked(now_s)
            asked.append(now_s)
        # Slots make it forget up to a slot early, never late.
        recent = sum(when > now_s - 10.0 * (SLOTS - 1) / SLOTS for when in taken)
        assert recent <= 0.2 * sum(when > now_s - 20.0 for when in asked) + 5
