"""What Cloud Map is told of an instance, and when."""

from __future__ import annotations

import pytest

from routing.discovery.registration import RETRY_CAP_S, SETTLE_S, Registration, Step

EVERY_S = 30.0


def registration() -> Registration:
    return Registration(every_s=EVERY_S, random=lambda: 1.0)


def registered(now_s: float = 0.0) -> Registration:
    made = registration()
    assert made.step(healthy=True, now_s=now_s) is Step.REGISTER
    made.done(Step.REGISTER, healthy=True, now_s=now_s)
    return made


def test_nobody_hears_of_an_instance_before_it_is_well() -> None:
    made = registration()
    assert made.step(healthy=False, now_s=0) is None
    assert made.due_in_s(healthy=False, now_s=0) == EVERY_S
    assert made.step(healthy=True, now_s=1) is Step.REGISTER


def test_it_is_confirmed_each_interval() -> None:
    made = registered()
    assert made.step(healthy=True, now_s=1) is None
    assert made.due_in_s(healthy=True, now_s=10) == EVERY_S - 10
    assert made.step(healthy=True, now_s=EVERY_S) is Step.CONFIRM
    made.done(Step.CONFIRM, healthy=True, now_s=EVERY_S)
    assert made.step(healthy=True, now_s=EVERY_S + 1) is None


@pytest.mark.parametrize("healthy", [False, True])
def test_a_change_is_said_at_once(*, healthy: bool) -> None:
    made = registered()
    made.done(Step.CONFIRM, healthy=not healthy, now_s=1)
    assert made.due_in_s(healthy=healthy, now_s=2) == 0
    assert made.step(healthy=healthy, now_s=2) is Step.CONFIRM


def test_failures_are_tried_again_ever_later_up_to_a_limit() -> None:
    made = registered()
    waits = []
    now_s = EVERY_S
    for _ in range(10):
        made.failed(now_s)
        assert made.step(healthy=True, now_s=now_s) is None
        waits.append(made.due_in_s(healthy=True, now_s=now_s))
        now_s += waits[-1]
        assert made.step(healthy=True, now_s=now_s) is Step.CONFIRM
    assert waits[:4] == [0.5, 1, 2, 4]
    assert waits[-1] == RETRY_CAP_S
    made.done(Step.CONFIRM, healthy=True, now_s=now_s)
    assert made.failures == 0


def test_an_instance_that_is_not_known_yet_is_waited_for_and_a_lost_one_registered_again() -> None:
    made = registered()
    assert not made.lost(1)
    assert made.registered
    assert made.lost(SETTLE_S)
    assert not made.registered
    assert made.due_in_s(healthy=True, now_s=SETTLE_S) == 0
    assert made.step(healthy=True, now_s=SETTLE_S) is Step.REGISTER


def test_an_instance_that_was_known_is_registered_again_at_once() -> None:
    made = registered()
    made.done(Step.CONFIRM, healthy=True, now_s=1)
    assert made.lost(2)


def test_a_lost_one_that_is_not_well_is_not_registered() -> None:
    made = registered()
    assert made.lost(SETTLE_S)
    assert made.step(healthy=False, now_s=SETTLE_S) is None
