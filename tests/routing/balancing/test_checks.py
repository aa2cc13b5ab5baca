from __future__ import annotations

from routing.balancing.health import Checks


def checks(*, healthy: bool = True) -> Checks:
    return Checks(healthy_after=2, unhealthy_after=3, healthy=healthy)


def test_the_first_result_counts_at_once() -> None:
    assert checks().heard(passed=False)
    assert checks(healthy=False).heard(passed=True)
    assert not checks().heard(passed=True)


def test_later_ones_count_when_there_are_enough_in_a_row() -> None:
    each = checks()
    each.heard(passed=True)
    assert [each.heard(passed=False) for _ in range(3)] == [False, False, True]
    assert not each.healthy
    assert [each.heard(passed=True) for _ in range(2)] == [False, True]
    assert each.healthy


def test_one_of_the_other_kind_begins_the_row_again() -> None:
    each = checks()
    for passed in (True, False, False, True, False, False):
        assert not each.heard(passed=passed)
    assert each.healthy
