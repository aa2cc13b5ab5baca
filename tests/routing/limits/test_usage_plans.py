"""Usage plans: rate, burst, calls under way, and quotas that survive restarts and crashes."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.limits.plan import Plan
from routing.limits.quota import Quota, QuotaError, ahead_max
from routing.limits.rates import LocalRates, Rate
from routing.limits.usage import Admission, Reason, Usage, period_of
from routing.tenancy.identity import Credential
from routing.tenancy.principal import Principal
from routing.tenancy.registry import RegistryError

NOON = dt.datetime(2026, 2, 28, 12, tzinfo=dt.UTC).timestamp()
DAY_S = 86_400
ROOT = Path(__file__).parents[3]


class Node:
    """A node with plans, whose clocks the test turns."""

    def __init__(self, folder: Path, *, subjects_max: int = 100, **plans: Plan) -> None:
        self.quota = Quota(folder / "usage.db", counters_max=100)
        self.rates = LocalRates(subjects_max=subjects_max)
        self.plan_of = {"t": "t", "u": "u"}
        self.usage = Usage(
            plans, plan_of=lambda tenant: self.plan_of.get(tenant, "none"), rates=self.rates, quota=self.quota
        )
        self.now_s = NOON
        self.monotonic_s = 0.0

    def call(self, plan: str = "", *, tenant: str = "t", name: str = "k", owner: str = "") -> Admission:
        principal = Principal(
            tenant=owner or tenant,
            name=name,
            scopes=frozenset(),
            credential=Credential.API_KEY,
            fingerprint=name,
            plan=plan,
        )
        return self.usage.admit(principal, tenant, self.now_s, self.monotonic_s)

    def calls(self, count: int, plan: str = "", **who: Any) -> int:
        """Return how many of so many calls are admitted, each over at once."""
        admitted = 0
        for _ in range(count):
            admission = self.call(plan, **who)
            if admission.allowed:
                admitted += 1
                self.usage.release(admission)
        return admitted

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        self.monotonic_s += seconds


def test_without_limits_everything_passes_and_nothing_is_said(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert node.call() == Admission(allowed=True, headers={})


def test_a_burst_passes_and_then_the_rate(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(requests_per_s=10, requests_burst_s=2))
    assert node.calls(30) == 20
    refused = node.call()
    assert (refused.allowed, refused.reason, refused.status) == (False, Reason.RATE, 429)
    assert refused.retry_after_s == pytest.approx(0.1)
    node.pass_s(refused.retry_after_s)
    assert node.calls(5) == 1
    node.pass_s(1.0)
    assert node.calls(50) == 10


@settings(max_examples=60, deadline=None)
@given(
    rate=st.floats(0.01, 1000),
    burst_s=st.floats(0.001, 10),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30)), max_size=30),
)
def test_never_more_than_the_rate_and_a_burst(
    tmp_path_factory: pytest.TempPathFactory, rate: float, burst_s: float, steps: list[tuple[float, int]]
) -> None:
    plan = Plan(requests_per_s=rate, requests_burst_s=burst_s)
    node = Node(tmp_path_factory.mktemp("usage"), t=plan, k=plan)
    admitted = 0
    for wait_s, count in steps:
        node.pass_s(wait_s)
        admitted += node.calls(count, "k")
        assert admitted <= rate * node.monotonic_s + plan.requests_burst + 1e-6
        refused = node.call()
        if refused.allowed:
            admitted += 1
        else:
            node.pass_s(refused.retry_after_s)
            assert node.call().allowed, "Retry-After is the truth"
            admitted += 1


def test_both_the_key_and_the_tenant_must_allow_it(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(daily_max=5), small=Plan(daily_max=2))
    assert node.calls(10, "small", name="a") == 2
    assert node.calls(10, "small", name="b") == 2
    refused = node.call("small", name="c")
    assert refused.allowed
    assert node.call("small", name="d").reason is Reason.DAILY
    assert node.quota.used("key:d", "2026-02-28") == 0, "what is refused is counted nowhere"
    assert node.calls(3, tenant="u") == 3, "another tenant has its own"


def test_a_refused_key_costs_its_tenant_nothing(tmp_path: Path) -> None:
    node = Node(
        tmp_path, t=Plan(requests_per_s=1, requests_burst_s=5), k=Plan(requests_per_s=1, requests_burst_s=1)
    )
    assert node.calls(100, "k", name="greedy") == 1
    assert node.calls(100, name="other") == 4


def test_an_operator_is_held_to_the_plan_of_its_key_alone(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(daily_max=1), ops=Plan(daily_max=3))
    assert node.calls(10, "ops", owner="*") == 3
    assert node.calls(10) == 1
    assert node.calls(10, owner="*") == 10


def test_a_plan_that_nobody_has_written_down_is_the_default_one(tmp_path: Path) -> None:
    node = Node(tmp_path, default=Plan(daily_max=2))
    assert node.calls(5, tenant="elsewhere") == 2


def test_calls_under_way_are_limited_and_released(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(concurrent_max=2), k=Plan(concurrent_max=1))
    first = node.call("k", name="a")
    assert node.call("k", name="a").reason is Reason.CONCURRENCY
    second = node.call("k", name="b")
    third = node.call("k", name="c")
    assert (first.allowed, second.allowed, third.reason) == (True, True, Reason.CONCURRENCY)
    assert third.retry_after_s > 0
    node.usage.release(first)
    assert node.call("k", name="a").allowed
    node.usage.release(second)
    assert len(node.usage._under_way) == 2, "nothing is kept of who has no calls under way"


def test_days_and_months_are_those_of_utc(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(daily_max=3, monthly_max=5))
    assert node.calls(9) == 3
    refused = node.call()
    assert (refused.reason, refused.retry_after_s) == (Reason.DAILY, DAY_S / 2)
    node.pass_s(DAY_S / 2 - 0.001)
    assert not node.call().allowed
    node.pass_s(0.001)  # the first of March
    assert node.calls(9) == 3
    node.pass_s(DAY_S)
    assert node.calls(9) == 2
    refused = node.call()
    assert refused.reason is Reason.MONTHLY
    node.pass_s(refused.retry_after_s)
    assert period_of(Reason.DAILY, node.now_s)[0] == "2026-04-01"
    assert node.calls(9) == 3


@pytest.mark.parametrize(
    ("when", "month", "days"), [((2024, 2, 29), "2024-02", 29), ((2026, 12, 31), "2026-12", 31)]
)
def test_a_month_ends_when_the_next_one_begins(when: tuple[int, int, int], month: str, days: int) -> None:
    name, start_s, end_s = period_of(Reason.MONTHLY, dt.datetime(*when, 23, 59, tzinfo=dt.UTC).timestamp())
    assert (name, (end_s - start_s) // DAY_S) == (month, days)


def test_the_headers_say_what_is_left(tmp_path: Path) -> None:
    node = Node(
        tmp_path,
        t=Plan(requests_per_s=10, requests_burst_s=2, concurrent_max=4),
        k=Plan(daily_max=100, monthly_max=1000),
    )
    assert node.call("k").headers == {
        "RateLimit-Policy": '"tenant-rate";q=20;w=2, "tenant-concurrency";q=4;qu="concurrent-requests", '
        '"key-daily";q=100;w=86400, "key-monthly";q=1000;w=2419200',
        "RateLimit": '"tenant-rate";r=19;t=1, "tenant-concurrency";r=3, "key-daily";r=99;t=43200, '
        '"key-monthly";r=999;t=43200',
        "RateLimit-Limit": "20",
        "RateLimit-Remaining": "19",
        "RateLimit-Reset": "1",
    }
    assert node.calls(98, "k") == 19
    assert '"tenant-rate";r=0' in node.call("k").headers["RateLimit"]
    only = Node(tmp_path / "other", t=Plan(concurrent_max=4)).call().headers
    assert set(only) == {"RateLimit-Policy", "RateLimit"}


def test_quotas_are_exact_over_orderly_restarts(tmp_path: Path) -> None:
    admitted = 0
    for _ in range(12):
        node = Node(tmp_path, t=Plan(daily_max=5000))
        admitted += node.calls(500)
        node.quota.close()
    assert admitted == 5000


CRASHES = """
import os, sys
from pathlib import Path
from routing.limits.quota import Quota
quota = Quota(Path(sys.argv[1]), counters_max=10)
limit, calls = int(sys.argv[2]), int(sys.argv[3])
done = 0
for _ in range(calls):
    if not quota.holds("s", "2026-02-28", limit):
        break
    quota.spend("s", "2026-02-28")
    done += 1
print(done, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("limit", [10, 500, 20_000])
def test_a_killed_process_counts_too_many_within_the_bound_and_never_too_few(
    tmp_path: Path, limit: int
) -> None:
    path = tmp_path / "usage.db"
    counted = 0
    for kills in range(1, 4):
        done = subprocess.run(
            [sys.executable, "-c", CRASHES, str(path), str(limit), "3"],
            stdout=subprocess.PIPE,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == -9
        counted += int(done.stdout)
        used = Quota(path, counters_max=10).used("s", "2026-02-28")
        assert counted <= used <= counted + kills * ahead_max(limit)


def test_two_processes_never_admit_more_than_the_quota_together(tmp_path: Path) -> None:
    nodes = [Node(tmp_path, t=Plan(daily_max=1000)) for _ in range(2)]
    admitted = sum(node.calls(7) for _ in range(100) for node in nodes)
    assert 1000 - ahead_max(1000) <= admitted <= 1000
    for node in nodes:
        node.quota.close()
    assert Node(tmp_path, t=Plan(daily_max=1000)).calls(100) == 1000 - admitted


async def test_blocks_are_reserved_beside_requests(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(daily_max=100_000))
    counter = node.quota._counter("tenant:t", "2026-02-28")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(node.quota.run())
        assert node.calls(1) == 1
        block = counter.block
        assert node.calls(block - 2) == block - 2
        assert counter.ahead == 1
        async with asyncio.timeout(10):
            while counter.ahead < 2:
                await asyncio.sleep(0.01)
        assert counter.ahead <= ahead_max(100_000)
        running.cancel()
    used = counter.used
    node.quota.close()
    assert Quota(tmp_path / "usage.db", counters_max=1).used("tenant:t", "2026-02-28") == used == block - 1


def test_a_counter_that_is_no_longer_in_memory_is_exact(tmp_path: Path) -> None:
    quota = Quota(tmp_path / "usage.db", counters_max=2)
    for turn in range(3):
        for subject in "abcd":
            assert quota.used(subject, "2026-02") == turn
            assert quota.holds(subject, "2026-02", 10_000)
            quota.spend(subject, "2026-02")
    assert len(quota._counters) == 2


def test_old_counts_are_forgotten(tmp_path: Path) -> None:
    quota = Quota(tmp_path / "usage.db", counters_max=10)
    for period in ("2026-01-31", "2026-02-01", "2026-01", "2026-02"):
        assert quota.holds("s", period, 10)
        quota.spend("s", period)
    assert quota.forget_before("2026-02-01", "2026-02") == 2
    assert [quota.used("s", period) for period in ("2026-01-31", "2026-02-01", "2026-01", "2026-02")] == [
        0,
        1,
        0,
        1,
    ]


def test_a_smaller_quota_counts_at_once(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(daily_max=1000))
    assert node.calls(50) == 50
    node.usage.replace({"t": Plan(daily_max=40)})
    assert node.calls(5) == 0
    node.usage.replace({"t": Plan(daily_max=60)})
    assert node.calls(50) == 10


def test_another_rate_gives_nothing_back_that_was_used(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(requests_per_s=10, requests_burst_s=1))
    assert node.calls(10) == 10
    node.usage.replace({"t": Plan(requests_per_s=20, requests_burst_s=1)})
    assert node.calls(50) == 0
    node.pass_s(0.5)
    assert node.calls(50) == 10


def test_counts_that_cannot_be_kept_are_a_503(tmp_path: Path) -> None:
    node = Node(tmp_path, t=Plan(daily_max=10))
    node.quota._connection.execute("DROP TABLE quota")
    refused = node.call()
    assert (refused.allowed, refused.reason, refused.status) == (False, Reason.UNAVAILABLE, 503)

    def broken(tenant: str) -> str:
        raise RegistryError(tenant)

    usage = Usage({}, plan_of=broken, rates=node.rates, quota=node.quota)
    node.usage = usage
    assert node.call().status == 503
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(QuotaError):
        Quota(tmp_path / "file" / "usage.db", counters_max=1)


def test_how_many_subjects_are_known_is_limited_and_nobody_profits() -> None:
    rates = LocalRates(subjects_max=3)
    rate = Rate(per_s=1, burst=2)
    for subject in "abc":
        assert rates.left(subject, rate, 0.0) == (2, 2)
        rates.take(subject, rate, 0.0)
    assert rates.left("d", rate, 0.0) == (0, 0), "a is not full, and would be again if it were forgotten"
    assert rates.wait_s("d", rate, 0.0) == 1
    assert rates.left("a", rate, 0.0) == (1, 1)
    assert rates.left("d", rate, 5.0) == (2, 2), "now the others are full"
    assert len(rates) == 3
    assert rates.refused_for_room == 2


def test_every_word_of_a_reason_is_one() -> None:
    assert all(re.fullmatch(r"[a-z]*", reason.value) for reason in Reason)
