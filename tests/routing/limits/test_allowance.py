"""Limits hold over workers, are paid by pausing, and cost a table operation now and then only."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.limits.allowance import (
    LEASE_SHARE,
    Allowances,
    Over,
    Policy,
    Rates,
    Terms,
    forget_worker,
    row_expired,
)
from routing.limits.bucket import TokenBucket
from routing.limits.shared_table import LocalTable

FREE = Rates(messages_per_s=0, bytes_per_s=0, burst_s=1, connections_max=0)


def table() -> LocalTable:
    return LocalTable(capacity=1000, expired=row_expired)


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
    forget_worker(tenants, 0, 2)
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
