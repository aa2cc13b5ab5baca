"""What a simulated device does, by seed and given time."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from loadtests.devices import Chance, Device, Habit

NOW_MS = 1_764_000_000_000
HABIT = Habit(
    period_s=2.0,
    jitter=0.5,
    clock_error_s=0.0,
    drift_ppm=0.0,
    offline_share=0.0,
    offline_s=5.0,
    backlog_max=1000,
    window=4,
)


def device(seed: int = 1, **changes: Any) -> Device:
    habit = msgspec.structs.replace(HABIT, **changes)
    return Device("acme", f"device-{seed}", habit, seed=seed, now_s=100.0, now_ms=NOW_MS)


def live(
    one: Device, until_s: float, *, rate: float = 1.0, measuring: bool = True
) -> list[tuple[float, int]]:
    """Let it live as its due times say; return when it had measured how much."""
    seen: list[tuple[float, int]] = []
    while one.due_s <= until_s:
        at_s = one.due_s
        one.step(at_s, rate=rate, measuring=measuring)
        seen.append((at_s, one.measured))
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_every_pause_is_within_the_jitter_and_the_mean_is_the_period(seed: int) -> None:
    times = [at_s for at_s, _ in live(device(seed), 2100.0)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 100.0 <= times[0] < 102.0
    assert all(1.0 <= pause <= 3.0 for pause in pauses)
    assert len(set(pauses)) > 100
    assert sum(pauses) / len(pauses) == pytest.approx(2.0, rel=0.05)


def test_the_same_seed_lives_the_same_life() -> None:
    assert live(device(7), 200.0) == live(device(7), 200.0) != live(device(8), 200.0)


def test_a_rate_above_one_measures_more_often() -> None:
    usual, often = device(), device()
    live(usual, 1100.0)
    live(often, 1100.0, rate=2.0)
    assert often.measured == pytest.approx(2 * usual.measured, rel=0.1)


def test_a_late_step_measures_all_that_was_due() -> None:
    one = device()
    one.step(200.0, rate=1.0, measuring=True)
    assert one.measured == len(one.waiting) > 30
    assert [seq for seq, _ in one.waiting] == list(range(1, one.measured + 1))


@pytest.mark.parametrize("seed", range(5))
def test_a_clock_is_wrong_and_drifts_within_its_limits(seed: int) -> None:
    one = device(seed, clock_error_s=2.0, drift_ppm=100.0)
    wrong_ms = one.clock_ms(100.0) - NOW_MS
    assert abs(wrong_ms) <= 2000
    drifted_ms = one.clock_ms(100.0 + 86_400) - NOW_MS - 86_400_000 - wrong_ms
    assert 0 < abs(drifted_ms) <= 8640 + 1


def test_a_right_clock_is_right() -> None:
    assert device().clock_ms(101.5) == NOW_MS + 1500


def test_the_readings_have_the_time_they_were_taken_at() -> None:
    one = device(period_s=1.0, jitter=0.0)
    one.step(110.0, rate=1.0, measuring=True)
    times = [ts_ms for _, ts_ms in one.waiting]
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [1000] * (len(times) - 1)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_out_of_reach_for_its_share_of_the_time_and_goes_on_measuring(seed: int) -> None:
    one = device(seed, offline_share=0.25, period_s=1.0)
    away, all_steps = 0, 0
    while one.due_s < 20_000:
        one.step(one.due_s, rate=1.0, measuring=True)
        all_steps += 1
        away += not one.in_reach
    assert away / all_steps == pytest.approx(0.25, abs=0.05)
    assert one.measured == pytest.approx(19_900, rel=0.05)


def test_what_is_measured_out_of_reach_comes_as_a_burst() -> None:
    one = device(period_s=1.0, window=100)
    one.go_out_of_reach(100.0, 30.0)
    live(one, 129.0)
    assert not one.in_reach
    live(one, 131.0)
    assert one.in_reach
    assert len(one.take(100, 131.0)) == one.measured >= 20


def test_beyond_its_backlog_the_oldest_is_forgotten() -> None:
    one = device(backlog_max=10)
    one.step(200.0, rate=1.0, measuring=True)
    assert [seq for seq, _ in one.waiting] == list(range(one.measured - 9, one.measured + 1))
    assert one.unanswered == list(range(1, one.measured - 9))


def test_at_the_end_it_measures_no_more_and_comes_home() -> None:
    one = device(offline_share=0.5)
    one.go_out_of_reach(100.0, 1000.0)
    one.step(150.0, rate=1.0, measuring=False)
    assert one.in_reach
    assert one.measured == 0
    assert one.settled


def test_no_more_than_its_window_is_in_flight() -> None:
    one = device()
    one.step(200.0, rate=1.0, measuring=True)
    assert [seq for seq, _ in one.take(10, 200.0)] == [1, 2, 3, 4]
    assert one.take(10, 200.0) == []
    assert one.answered([2], "", 201.0) == 1.0
    assert [seq for seq, _ in one.take(10, 202.0)] == [5]
    assert one.sent == 5


def test_an_answer_says_how_long_the_oldest_waited() -> None:
    one = device()
    one.step(200.0, rate=1.0, measuring=True)
    one.take(1, 200.0)
    one.take(1, 203.0)
    assert one.answered([1, 2], "", 205.0) == 5.0
    assert not one.flying


def test_an_answer_that_is_not_owed_is_strange() -> None:
    one = device()
    one.step(200.0, rate=1.0, measuring=True)
    one.take(1, 200.0)
    assert one.answered([1], "", 201.0) == 1.0
    assert one.answered([1], "", 201.0) == -1.0
    assert one.answered([99], "", 201.0) == -1.0


def test_a_refusal_is_kept_by_its_reason() -> None:
    one = device()
    one.step(200.0, rate=1.0, measuring=True)
    one.take(2, 200.0)
    one.answered([1], "malformed", 201.0)
    assert one.refused == {1: "malformed"}
    assert not one.settled


def test_what_was_not_answered_goes_again_first_and_in_order() -> None:
    one = device()
    one.step(200.0, rate=1.0, measuring=True)
    one.take(4, 200.0)
    one.answered([2], "", 200.5)
    one.again()
    assert [seq for seq, _ in one.take(4, 201.0)] == [1, 3, 4, 5]
    assert one.repeated == [1, 3, 4]
    assert one.sent == 5


def test_a_back_off_is_jittered_over_a_span_that_doubles_up_to_a_limit() -> None:
    one = device()
    for attempt, most_s in ((0, 0.5), (1, 1.0), (3, 4.0), (10, 8.0), (1000, 8.0)):
        waits = [one.back_off_s(attempt, 0.5, 8.0) for _ in range(200)]
        assert 0.8 * most_s < max(waits) <= most_s
        assert min(waits) < 0.2 * most_s


def test_luck_is_splitmix64() -> None:
    assert Chance(0).random() == (0xE220A8397B1DCDAF >> 11) / 2**53
    numbers = [Chance(seed).uniform(-1, 1) for seed in range(1000)]
    assert sum(numbers) / 1000 == pytest.approx(0, abs=0.1)
