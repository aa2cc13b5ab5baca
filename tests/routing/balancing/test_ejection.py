from __future__ import annotations

from routing.balancing import ejection
from routing.balancing.ejection import Record, out_s
from routing.gateway.routes_file import Ejection

TERMS = Ejection(failures_max=3, base_s=5, max_s=60, share_max=0.5)


def fails(record: Record, times: int, now_s: float, *, ejected: int = 0, hosts: int = 4) -> list[bool]:
    return [ejection.failed(record, TERMS, now_s, ejected=ejected, hosts=hosts) for _ in range(times)]


def test_failures_in_a_row_eject_and_a_success_between_them_forgives() -> None:
    record = Record()
    assert fails(record, 2, 0.0) == [False, False]
    ejection.succeeded(record, TERMS, 0.0)
    assert fails(record, 3, 0.0) == [False, False, True]
    assert record.until_s == 5.0


def test_what_was_under_way_at_an_ejected_server_ejects_it_no_longer() -> None:
    record = Record()
    fails(record, 3, 0.0)
    assert fails(record, 10, 1.0) == [False] * 10
    assert record.until_s == 5.0


def test_one_failure_after_its_return_ejects_it_again_for_longer() -> None:
    record = Record()
    fails(record, 3, 0.0)
    assert fails(record, 1, 6.0) == [True]
    assert record.until_s == 16.0


def test_time_spent_well_is_forgiven_an_ejection_at_a_time() -> None:
    record = Record()
    fails(record, 3, 0.0)
    fails(record, 1, 6.0)
    ejection.succeeded(record, TERMS, 20.0)
    assert record.times == 2
    ejection.succeeded(record, TERMS, 26.0)
    assert record.times == 1
    ejection.succeeded(record, TERMS, 31.0)
    assert record.times == 0


def test_no_more_than_the_share_is_out_at_once() -> None:
    assert not any(fails(Record(), 10, 0.0, ejected=2, hosts=4))
    assert not any(fails(Record(), 10, 0.0, ejected=0, hosts=1))
    assert any(fails(Record(), 3, 0.0, ejected=1, hosts=4))


def test_an_ejection_is_never_longer_than_the_longest() -> None:
    assert [out_s(times, TERMS) for times in (1, 2, 3, 4, 5, 1000)] == [5, 10, 20, 40, 60, 60]
