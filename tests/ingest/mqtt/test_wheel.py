"""The wheel looks at each connection once, when it is due and not before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.mqtt.wheel import Wheel


class Watched:
    def __init__(self) -> None:
        self.due_s = 0


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5)), max_size=30))
def test_everything_is_due_once_within_a_second_of_its_time(steps: list[tuple[float, float]]) -> None:
    wheel: Wheel[Watched] = Wheel(100.0)
    now_s = 100.0
    due_at: dict[Watched, float] = {}
    for in_s, passes_s in steps:
        watched = Watched()
        wheel.watch(watched, in_s, now_s)
        due_at[watched] = now_s + in_s
        now_s += passes_s
        due = wheel.turn(now_s)
        assert len(due) == len(set(due))
        for each in due:
            assert due_at.pop(each) <= now_s
        assert all(at_s + 1 >= int(now_s) for at_s in due_at.values())


def test_what_is_watched_anew_or_no_more_is_not_due_at_its_old_time() -> None:
    wheel: Wheel[Watched] = Wheel(0.0)
    again, never = Watched(), Watched()
    wheel.watch(again, 1.0, 0.0)
    wheel.watch(never, 1.0, 0.0)
    wheel.watch(again, 5.0, 0.5)
    wheel.unwatch(never)
    assert wheel.turn(4.0) == []
    assert wheel.turn(7.0) == [again]
    assert not wheel._slots
