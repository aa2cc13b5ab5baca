"""Limits hold over workers, are paid by pausing, and cost a table operation now and then only."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.limits.allowance import (
    DEBT_KEPT_S,
    LEASE_S,
    LEASE_SHARE,
    TOKENS,
    Allowance,
    Allowances,
    forget_worker,
    row_expired,
    table_key,
)
from routing.limits.bucket import TokenBucket
from routing.limits.shared_table import LocalTable
from routing.limits.terms import Over, Policy, Rates, Terms

FREE = Rates(messages_per_s=0, bytes_per_s=0, burst_s=1, connections_max=0)


DEVICE = table_key("device", "t", "d")


class Observed(LocalTable):
    """Counts what is read; another worker may come in between, just before a lock is taken."""

    gets = 0
    before_lock: Callable[[bytes], None] | None = None

    def get(self, key: bytes) -> bytes | None:
        self.gets += 1
        return super().get(key)

    def locked(self, key: bytes) -> AbstractContextManager[None]:
        if self.before_lock is not None:
            self.before_lock(key)
        return super().locked(key)


def table(capacity: int = 1000) -> Observed:
    return Observed(capacity=capacity, expired=lambda row: row_expired(row, 0.0))


def about(value: float, abs: float | None = None) -> Any:  # noqa: A002  # as pytest has it
    return pytest.approx(value, abs=abs)


def counts_of(row: bytes | None, workers: int) -> tuple[int, ...]:
    assert row is not None
    return struct.unpack_from(f"<{workers}I", row, TOKENS.size)


def worker(
    devices: LocalTable, tenants: LocalTable, terms: Terms, index: int = 0, workers: int = 1
) -> Allowances:
    return Allowances(
        devices=devices, tenants=tenants, terms=lambda _: terms, worker=index, workers=workers, idle_max=100
    )


def terms(*, device: Rates = FREE, tenant: Rates = FREE, policy: Policy = Policy.PAUSE) -> Terms:
    return Terms(device=device, tenant=tenant, policy=policy)


def rates(messages_per_s: float = 0, bytes_per_s: float = 0, connections_max: int = 0) -> Rates:
    return Rates(
        messages_per_s=messages_per_s, bytes_per_s=bytes_per_s, burst_s=1, connections_max=connections_max
    )


def test_debt_is_paid_by_pausing() -> None:
    bucket = TokenBucket(rate_per_s=10, burst=5, now_s=0.0)
    assert bucket.take(5, now_s=0.0) == 0.0
    assert bucket.take(1, now_s=0.0) == 0.1
    assert bucket.take(1, now_s=0.2) == 0.0


def test_a_device_that_sends_seldom_costs_the_table_nothing_while_it_is_at_home() -> None:
    devices = table()
    allowance = worker(devices, table(), terms(device=rates(1, 1000)), workers=60).get("t", "d")
    assert allowance.charge(1, 2, 0.0, refuse=False) == (1, 0.0, Over.NOBODY)
    gets = devices.gets
    for turn in range(1, 20):
        at_home = allowance.charge(1, 2, 2.0 * turn, refuse=turn % 2 == 0, at_home=True)
        assert at_home == (1, 0.0, Over.NOBODY)
    assert devices.gets == gets
    allowance.charge(1, 2, 100.0, refuse=False)
    assert devices.gets > gets


def test_what_was_borrowed_is_booked_with_the_next_look() -> None:
    allowance = worker(table(), table(), terms(device=rates(4, 1000)), workers=60).get("t", "d")
    allowance.charge(1, 0, 0.0, refuse=True)
    taken = sum(allowance.charge(1, 0, 5.0, refuse=True, at_home=True)[0] for _ in range(20))
    assert taken == 4
    taken = sum(allowance.charge(1, 0, 5.5, refuse=True, at_home=True)[0] for _ in range(20))
    assert taken == 2


def test_what_is_larger_than_a_lease_is_not_borrowed() -> None:
    devices = table()
    allowance = worker(devices, table(), terms(device=rates(100, 1000)), workers=60).get("t", "d")
    allowance.charge(1, 1, 0.0, refuse=False)
    for messages, size in ((2, 1), (1, 100)):
        gets = devices.gets
        allowance.charge(messages, size, 10.0, refuse=False, at_home=True)
        assert devices.gets > gets


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.floats(0, 0.6)), max_size=120),
    st.integers(1, 4),
    st.integers(1, 40),
)
def test_a_device_that_moves_gains_at_most_a_lease_a_move(
    steps: list[tuple[int, int, float]], workers: int, rate: int
) -> None:
    devices, tenants = table(), table()
    nodes = [worker(devices, tenants, terms(device=rates(rate)), n, workers) for n in range(workers)]
    now_s, passed, home, moves = 0.0, 0, None, 0
    for chosen, count, later_s in steps:
        now_s += later_s
        at = chosen % workers
        allowance = nodes[at].get("t", "d")
        allowed = allowance.charge(count, 1, now_s, refuse=True, at_home=at == home)[0]
        passed += allowed
        if allowed:
            moves += at != home
            home = at
    lease = rate / (LEASE_SHARE * workers)
    bound = rate * now_s + rate + workers * lease + moves * max(1.0, lease)
    assert passed <= bound + 1e-6


def test_no_limit_costs_nothing() -> None:
    allowance = worker(table(), table(), terms()).get("t", "d")
    assert allowance.charge(10**9, 10**12, 0.0, refuse=True) == (10**9, 0.0, Over.NOBODY)


def test_a_device_over_its_rate_pauses_until_the_debt_is_paid() -> None:
    allowance = worker(table(), table(), terms(device=rates(10))).get("t", "d")
    assert allowance.charge(10, 0, 0.0, refuse=False)[1] == 0.0
    allowed, pause_s, over = allowance.charge(5, 0, 0.0, refuse=False)
    assert (allowed, over) == (5, Over.DEVICE)
    assert 0.3 < pause_s <= 0.6


def test_a_tenant_over_its_bytes_refuses_what_does_not_fit() -> None:
    allowance = worker(table(), table(), terms(tenant=rates(bytes_per_s=1000))).get("t", "d")
    allowed, wait_s, over = allowance.charge(10, 2000, 0.0, refuse=True)
    assert (allowed, over) == (5, Over.TENANT)
    assert wait_s > 0
    assert allowance.charge(1, 100, 2.0, refuse=True)[0] == 1


def test_devices_of_a_tenant_share_its_limit() -> None:
    node = worker(table(), table(), terms(tenant=rates(10)))
    taken = sum(node.get("t", f"d{n}").charge(1, 1, 0.0, refuse=True)[0] for n in range(20))
    assert taken == 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.floats(0, 0.3)), max_size=120),
    st.integers(1, 4),
)
def test_workers_together_keep_to_the_stated_bound(reads: list[tuple[int, int, float]], workers: int) -> None:
    rate = 20.0
    devices, tenants = table(), table()
    nodes = [
        worker(devices, tenants, terms(device=rates(rate), policy=Policy.REFUSE), index, workers)
        for index in range(workers)
    ]
    now_s = taken = 0.0
    for index, messages, wait_s in reads:
        now_s += wait_s
        taken += nodes[index % workers].get("t", "d").charge(messages, 10, now_s, refuse=True)[0]
    lease = rate / (LEASE_SHARE * workers)
    assert taken <= rate * now_s + rate + workers * lease + 1e-6


def test_connections_are_counted_over_workers_and_a_dead_one_is_taken_out() -> None:
    devices, tenants = table(), table()
    few = terms(tenant=rates(connections_max=2))
    first, second = worker(devices, tenants, few, 0, 2), worker(devices, tenants, few, 1, 2)
    assert first.open_connection("t", "a") is Over.NOBODY
    assert first.open_connection("t", "b") is Over.NOBODY
    assert second.open_connection("t", "c") is Over.TENANT
    first.close_connection("t", "b")
    assert second.open_connection("t", "c") is Over.NOBODY
    assert second.open_connection("t", "d") is Over.TENANT
    forget_worker(tenants, 0)
    assert second.open_connection("t", "d") is Over.NOBODY


def test_a_new_plan_holds_at_once() -> None:
    current = terms()
    node = Allowances(
        devices=table(), tenants=table(), terms=lambda _: current, worker=0, workers=1, idle_max=9
    )
    allowance = node.get("t", "d")
    assert allowance.charge(50, 1, 0.0, refuse=True)[0] == 50
    current = terms(device=rates(10), policy=Policy.REFUSE)
    node.replan()
    assert allowance.policy is Policy.REFUSE
    assert allowance.charge(50, 1, 0.0, refuse=True)[0] == 10


def until_taken(allowance: Allowance, records: int, size: int, now_s: float, tries: int) -> float:
    """Try again as often as, and when, the refusals say; return when it was taken."""
    for _ in range(tries):
        wait_s, _ = allowance.charge_whole(records, size, now_s)
        if not wait_s:
            return now_s
        now_s += wait_s
    raise AssertionError(f"not in {tries} tries")


def test_a_list_that_is_refused_is_charged_nothing_and_taken_when_its_wait_is_over() -> None:
    allowance = worker(table(), table(), terms(device=rates(100))).get("t", "d")
    assert allowance.charge_whole(80, 1, 0.0) == (0.0, Over.NOBODY)
    wait_s, over = allowance.charge_whole(60, 1, 0.0)
    assert (wait_s, over) == (about(0.4), Over.DEVICE)
    assert allowance.charge_whole(60, 1, 0.2)[0] == about(0.2), "the first try has cost nothing"
    assert until_taken(allowance, 60, 1, 0.2, tries=2) == about(0.4)


def test_a_list_larger_than_the_burst_is_taken_from_a_full_bucket_and_paid_for_after() -> None:
    allowance = worker(table(), table(), terms(device=rates(100))).get("t", "d")
    assert allowance.charge_whole(300, 1, 0.0) == (0.0, Over.NOBODY)
    assert allowance.charge_whole(1, 1, 0.0)[0] == about(2.01), "300 taken of 100"
    assert until_taken(allowance, 300, 1, 0.0, tries=2) == about(3.0)


def test_a_payload_larger_than_the_burst_is_taken_from_a_full_bucket() -> None:
    allowance = worker(table(), table(), terms(tenant=rates(bytes_per_s=1000))).get("t", "d")
    assert allowance.charge_whole(1, 5000, 0.0) == (0.0, Over.NOBODY)
    assert allowance.charge_whole(1, 5000, 0.0) == (about(5.0), Over.TENANT)
    assert until_taken(allowance, 1, 5000, 0.0, tries=2) == about(5.0)


def test_of_publishes_larger_than_the_burst_one_read_gets_one_through() -> None:
    allowance = worker(table(), table(), terms(device=rates(bytes_per_s=1000))).get("t", "d")
    assert allowance.charge(3, 6000, 0.0, refuse=True) == (1, about(2.0), Over.DEVICE)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 3000)), min_size=1, max_size=6),
    st.floats(0, 0.9),
)
def test_who_waits_as_long_as_told_is_refused_once_whatever_is_leased(
    lists: list[tuple[int, int]], single_s: float
) -> None:
    both = terms(device=rates(100, 2000), tenant=rates(150, 1500))
    allowance = worker(table(), table(), both).get("t", "d")
    now_s = 0.0
    for records, size in lists:
        allowance.charge(1, 1, now_s, refuse=False)  # draws a lease
        now_s = until_taken(allowance, records, size, now_s + single_s, tries=2)


def test_a_device_pays_nothing_for_what_its_tenant_refuses() -> None:
    node = worker(table(), table(), terms(device=rates(100), tenant=rates(10)))
    allowance = node.get("t", "d")
    assert allowance.charge_whole(10, 1, 0.0)[0] == 0.0
    for _ in range(50):
        assert allowance.charge_whole(10, 1, 0.0) == (about(1.0), Over.TENANT)
        assert allowance.charge(5, 1, 0.0, refuse=True) == (0, about(0.1), Over.TENANT)
    assert allowance.charge_whole(90, 1, 9.0) == (0.0, Over.NOBODY)


def test_the_wait_is_that_of_the_slower_limit() -> None:
    allowance = worker(table(), table(), terms(device=rates(10), tenant=rates(5))).get("t", "d")
    assert allowance.charge_whole(4, 1, 0.0) == (0.0, Over.NOBODY)
    wait_s, over = allowance.charge_whole(8, 1, 0.0)
    assert (wait_s, over) == (about(0.8), Over.DEVICE)
    assert until_taken(allowance, 8, 1, 0.0, tries=2) == about(0.8)


def test_what_a_read_has_paid_does_not_make_a_full_bucket_less_full() -> None:
    allowance = worker(table(), table(), terms(device=rates(100))).get("t", "d")
    assert allowance.charge(10, 10, 0.0, refuse=True)[0] == 10
    assert allowance.charge_whole(149, 0, 0.0, paid=9)[0] == about(0.01)
    assert allowance.charge_whole(149, 0, 0.0, paid=10) == (0.0, Over.NOBODY)
    assert allowance.charge_whole(1, 0, 0.0)[0] == about(0.6), "159 taken of 100"


def test_an_empty_payload_is_refused_while_bytes_are_owed() -> None:
    allowance = worker(table(), table(), terms(device=rates(bytes_per_s=100))).get("t", "d")
    allowance.charge(1, 500, 0.0, refuse=False)
    assert allowance.charge(1, 0, 2.0, refuse=True) == (0, about(2.0), Over.DEVICE)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.floats(0, 0.3)), max_size=120),
    st.integers(1, 4),
)
def test_lists_keep_to_the_stated_bound_and_one_that_is_larger(
    lists: list[tuple[int, int, float]], workers: int
) -> None:
    rate = 20.0
    devices, tenants = table(), table()
    nodes = [worker(devices, tenants, terms(device=rates(rate)), index, workers) for index in range(workers)]
    now_s = taken = 0.0
    for index, records, wait_s in lists:
        now_s += wait_s
        if not nodes[index % workers].get("t", "d").charge_whole(records, 10, now_s)[0]:
            taken += records
    lease = rate / (LEASE_SHARE * workers)
    assert taken <= rate * now_s + rate + workers * lease + 30 - rate + 1e-3


def test_a_lease_costs_one_look_at_the_row() -> None:
    devices = table()
    allowance = worker(devices, table(), terms(device=rates(100))).get("t", "d")
    for second in range(10):
        allowance.charge(1, 1, second * 2 * LEASE_S, refuse=False)
    assert devices.gets == 10


def test_who_is_not_limited_takes_no_room_in_the_table() -> None:
    devices, tenants = table(), table()
    allowance = worker(devices, tenants, terms(tenant=rates(100))).get("t", "d")
    for second in range(10):
        allowance.charge(1, 1, second * 2 * LEASE_S, refuse=False)
    assert not list(devices.items())
    assert devices.gets == 0
    assert len(list(tenants.items())) == 1


def test_limits_hold_for_who_finds_no_room_in_the_table() -> None:
    devices = table(capacity=1)
    node = worker(devices, table(), terms(device=rates(10, connections_max=5)))
    assert node.open_connection("t", "first") is Over.NOBODY
    allowance = node.get("t", "d")
    pauses = [allowance.charge(20, 1, number / 1000, refuse=False)[1] for number in range(10)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == about(19, abs=0.1), "200 taken of 10"
    assert [node.open_connection("t", "d") for _ in range(6)] == [Over.NOBODY] * 5 + [Over.DEVICE]
    node.close_connection("t", "d")
    assert node.open_connection("t", "d") is Over.NOBODY
    assert len(list(devices.items())) == 1


def test_who_found_no_room_enters_the_table_when_there_is_some() -> None:
    devices = table(capacity=1)
    both = terms(device=rates(10, connections_max=5))
    first, second = (worker(devices, table(), both, index, 2) for index in range(2))
    assert first.open_connection("t", "other") is Over.NOBODY
    for node in (first, second):
        assert node.open_connection("t", "d") is Over.NOBODY
        assert node.get("t", "d").charge(30, 1, 0.0, refuse=False)[1] == about(2.0)
    first.close_connection("t", "other")
    assert first.open_connection("t", "d") is Over.NOBODY
    assert counts_of(devices.get(DEVICE), 2) == (2, 0)
    assert second.open_connection("t", "d") is Over.NOBODY
    assert counts_of(devices.get(DEVICE), 2) == (2, 2), "what it counted before is not lost"
    assert second.get("t", "d").charge(1, 1, 0.0, refuse=False)[1] == about(2.1)
    for node in (first, second):
        node.close_connection("t", "d")
        node.close_connection("t", "d")
    assert counts_of(devices.get(DEVICE), 2) == (0, 0)


@pytest.mark.parametrize("limits", [rates(messages_per_s=10), rates(bytes_per_s=1e6)])
def test_a_row_of_one_limit_only_makes_room_again(limits: Rates) -> None:
    devices = table()
    allowance = worker(devices, table(), terms(device=limits)).get("t", "d")
    for second in range(10):
        allowance.charge(1, 100, 2.0 * second, refuse=False)
    row = devices.get(DEVICE)
    assert row is not None
    assert row_expired(row, 18.0)


def test_a_debt_is_remembered_for_an_hour_and_a_connection_for_ever() -> None:
    devices = table()
    node = worker(devices, table(), terms(device=rates(10)))
    node.get("t", "d").charge(100, 1, 5.0, refuse=False)
    row = devices.get(DEVICE)
    assert row is not None
    assert not row_expired(row, 5.0 + DEBT_KEPT_S)
    assert row_expired(row, 6.0 + DEBT_KEPT_S)
    node.open_connection("t", "d")
    row = devices.get(DEVICE)
    assert row is not None
    assert not row_expired(row, 6.0 + DEBT_KEPT_S)


def test_a_plan_without_a_cap_leaves_no_phantom_connections() -> None:
    current = terms(device=rates(connections_max=2))
    node = Allowances(
        devices=table(), tenants=table(), terms=lambda _: current, worker=0, workers=1, idle_max=9
    )
    assert node.open_connection("t", "d") is node.open_connection("t", "d") is Over.NOBODY
    current = terms()
    node.replan()
    for _ in range(2):
        node.close_connection("t", "d")
    for _ in range(3):
        assert node.open_connection("t", "d") is Over.NOBODY
    current = terms(device=rates(connections_max=4))
    node.replan()
    assert node.open_connection("t", "d") is Over.NOBODY, "the three count"
    assert node.open_connection("t", "d") is Over.DEVICE
    for _ in range(4):
        node.close_connection("t", "d")
    assert [node.open_connection("t", "d") for _ in range(5)] == [Over.NOBODY] * 4 + [Over.DEVICE]


def test_a_plan_that_begins_to_limit_starts_with_a_full_bucket() -> None:
    current = terms(device=rates(bytes_per_s=1e6))
    devices = table()
    node = Allowances(
        devices=devices, tenants=table(), terms=lambda _: current, worker=0, workers=1, idle_max=9
    )
    allowance = node.get("t", "d")
    allowance.charge(50, 10, 0.0, refuse=False)
    current = terms(device=rates(10, 1e6))
    node.replan()
    assert allowance.charge(20, 10, 0.0, refuse=True)[0] == 10


def test_what_other_workers_write_while_a_dead_one_is_taken_out_stays() -> None:
    devices = table()
    few = terms(device=rates(connections_max=9))
    dead, alive = worker(devices, table(), few, 0, 2), worker(devices, table(), few, 1, 2)
    dead.open_connection("t", "d")
    alive.open_connection("t", "d")

    def close(key: bytes) -> None:
        assert key == DEVICE
        devices.before_lock = None
        alive.close_connection("t", "d")

    devices.before_lock = close
    forget_worker(devices, 0)
    assert counts_of(devices.get(DEVICE), 2) == (0, 0)
