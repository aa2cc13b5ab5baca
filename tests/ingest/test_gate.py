"""Whether peers may be accepted at a given time: by rate, lag, room for handshakes, and the cap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.gate import BATCH_MAX, LAG_WAIT_S, ROOM_WAIT_S, Gate

PLENTY = 1000


def gate(rate_per_s: float = 40.0, lag_max_s: float = 0.5, connections_max: int = PLENTY) -> Gate:
    return Gate(rate_per_s=rate_per_s, lag_max_s=lag_max_s, connections_max=connections_max, now_s=100.0)


def accept_all(gate: Gate, now_s: float) -> int:
    """Accept as many as the gate lets in at one moment."""
    total = 0
    while count := gate.admit(now_s, PLENTY)[0]:
        for _ in range(count):
            assert gate.accepted(now_s, 0)
            gate.settled()
        total += count
    return total


def test_a_quarter_of_a_second_is_let_in_at_once_and_then_the_rate() -> None:
    door = gate(rate_per_s=40.0)
    assert accept_all(door, 100.0) == 10
    assert door.admit(100.0, PLENTY) == pytest.approx((0, 1 / 40))
    assert accept_all(door, 100.024) == 0
    assert accept_all(door, 100.026) == 1
    assert accept_all(door, 100.126) == 4
    assert accept_all(door, 200.0) == 10, "what was not used for long is not saved up"


def test_one_peer_at_least_is_let_in_at_once() -> None:
    door = gate(rate_per_s=0.5)
    assert accept_all(door, 100.0) == 1
    assert door.admit(100.0, PLENTY) == pytest.approx((0, 2.0))
    assert accept_all(door, 102.0) == 1


def test_the_wait_is_never_so_short_that_the_loop_would_spin() -> None:
    door = gate(rate_per_s=1e6)
    assert accept_all(door, 100.0) == 250_000
    assert door.admit(100.0, PLENTY) == (0, 0.001)


def test_a_batch_is_bounded() -> None:
    assert gate(rate_per_s=1e6).admit(100.0, PLENTY) == (BATCH_MAX, 0.0)


def test_no_more_are_let_in_than_there_is_room_for_handshakes() -> None:
    door = gate()
    assert door.admit(100.0, 3) == (3, 0.0)
    assert door.admit(100.0, 0) == (0, ROOM_WAIT_S)


def test_a_loop_that_is_late_accepts_nobody_until_it_has_caught_up() -> None:
    door = gate(lag_max_s=0.5)
    door.observe_lag(0.5)
    assert door.admit(100.0, PLENTY)[0], "once is no trend"
    for _ in range(20):
        door.observe_lag(1.0)
    assert 0.9 < door.lag_s < 1.0
    assert door.admit(100.0, PLENTY) == (0, LAG_WAIT_S)
    ticks = 0
    while not door.admit(100.0, PLENTY)[0]:
        door.observe_lag(0.0)
        ticks += 1
    assert ticks == 4


def test_a_peer_beyond_the_cap_is_refused_but_counted_into_the_rate() -> None:
    door = gate(rate_per_s=4.0, connections_max=2)
    assert not door.accepted(100.0, 2)
    assert door.admit(100.0, PLENTY) == pytest.approx((0, 0.25))
    assert door.handshakes == 0


def test_handshakes_of_all_listeners_count_to_the_cap() -> None:
    door = gate(connections_max=3)
    assert door.accepted(100.0, 1)
    assert door.accepted(100.0, 1)
    assert not door.accepted(100.0, 1)
    door.settled()
    assert not door.accepted(100.0, 2), "the handshake has become a connection"
    assert door.accepted(100.0, 1)


def test_more_handshakes_cannot_end_than_have_begun() -> None:
    with pytest.raises(AssertionError):
        gate().settled()


@given(
    rate_per_s=st.floats(0.5, 5000),
    steps=st.lists(st.tuples(st.floats(0, 2), st.integers(0, 100)), max_size=40),
)
def test_over_any_time_no_more_are_accepted_than_the_rate_and_one_burst(
    rate_per_s: float, steps: list[tuple[float, int]]
) -> None:
    door = gate(rate_per_s=rate_per_s)
    now_s, accepted = 100.0, 0
    for elapsed_s, room in steps:
        now_s += elapsed_s
        count, wait_s = door.admit(now_s, room)
        assert count <= room
        assert (wait_s == 0.0) == (count > 0)
        for _ in range(count):
            assert door.accepted(now_s, 0)
            door.settled()
        accepted += count
    burst = max(1.0, rate_per_s / 4)
    assert accepted <= rate_per_s * (now_s - 100.0) + burst + 1e-6 * rate_per_s
