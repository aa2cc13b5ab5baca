"""Limits over nodes, with a real server: never more than all may, and a share for each when it is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from routing.limits.plan import Plan
from routing.limits.quota import ahead_max
from routing.limits.rates import ENOUGH, Rate
from routing.limits.usage import Admission, Reason, period_of
from routing.limits.usage_plans import Shared, UsagePlans
from routing.limits.valkey_lease import LEASE_SHARE, LeasedRates
from routing.limits.valkey_link import ValkeyLink
from routing.tenancy.identity import Credential
from routing.tenancy.principal import Principal
from runtime import clock
from tests.support.valkey_server import ValkeyServer

WITHIN_S = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    made = ValkeyServer(tmp_path)
    made.start()
    yield made
    made.stop()


class Clock:
    """Stands still, so that a bucket earns nothing that a node would know of."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextlib.asynccontextmanager
async def linked(server: ValkeyServer, node: str = "a") -> AsyncIterator[ValkeyLink]:
    link = ValkeyLink(server.url, node=node, deadline_s=2.0, nodes_expected=1, changed=lambda _: None)
    yield link
    await link.close()


async def spend(rates: LeasedRates, rate: Rate, calls: int, now_s: float = 0.0) -> int:
    admitted = 0
    for _ in range(calls):
        await rates.prepare("s", rate)
        if rates.left("s", rate, now_s)[0] >= ENOUGH:
            rates.take("s", rate, now_s)
            admitted += 1
    return admitted


async def test_nodes_together_have_one_burst(server: ValkeyServer) -> None:
    rate = Rate(per_s=0.001, burst=100)
    async with linked(server, "a") as one, linked(server, "b") as other:
        nodes = [LeasedRates(link, subjects_max=9, now_s=Clock()) for link in (one, other)]
        admitted = [await spend(rates, rate, 7) for _ in range(20) for rates in nodes]
        assert sum(admitted) == 100, "and none is lost, since both go on until nothing is left"
        assert nodes[0].wait_s("s", rate, 0.0) > 100
        assert nodes[0].left("s", rate, 0.0)[1] < 1


async def test_what_a_node_holds_and_another_lacks_is_within_the_bound(server: ValkeyServer) -> None:
    rate = Rate(per_s=0.001, burst=100)
    async with linked(server, "a") as one, linked(server, "b") as other:
        idle, busy = (LeasedRates(link, subjects_max=9, now_s=Clock()) for link in (one, other))
        assert await spend(idle, rate, 1) == 1
        assert await spend(busy, rate, 200) == 100 - 100 * LEASE_SHARE
        assert await spend(idle, rate, 200) == 100 * LEASE_SHARE - 1


async def test_many_calls_at_once_are_leased_for_at_once(server: ValkeyServer) -> None:
    rate = Rate(per_s=0.001, burst=50)
    async with linked(server) as link:
        rates = LeasedRates(link, subjects_max=9, now_s=Clock())
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(spend(rates, rate, 1)) for _ in range(200)]
        assert sum(call.result() for call in calls) == 50


async def test_whoever_asks_may_be_cancelled_and_the_others_are_served(server: ValkeyServer) -> None:
    rate = Rate(per_s=0.001, burst=50)
    async with linked(server) as link:
        rates = LeasedRates(link, subjects_max=9, now_s=Clock())
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(spend(rates, rate, 1)) for _ in range(10)]
            await asyncio.sleep(0)
            calls[0].cancel()
        assert sum(call.result() for call in calls[1:]) == 9


async def test_the_bucket_fills_at_its_rate(server: ValkeyServer) -> None:
    rate = Rate(per_s=200, burst=10)
    loop = asyncio.get_running_loop()
    async with linked(server) as link:
        rates = LeasedRates(link, subjects_max=9, now_s=loop.time)
        began_s = loop.time()
        admitted = 0
        while admitted < 100:
            admitted += await spend(rates, rate, 5, loop.time())
            assert admitted <= 200 * (loop.time() - began_s) + 10 + 1e-3 * 200
            await asyncio.sleep(0.001)
        assert loop.time() - began_s > 90 / 200 - 0.01


async def test_known_subjects_are_limited_and_what_they_had_is_not_given_twice(server: ValkeyServer) -> None:
    rate = Rate(per_s=0.001, burst=30)
    async with linked(server) as link:
        rates = LeasedRates(link, subjects_max=2, now_s=Clock())
        assert await spend(rates, rate, 1) == 1
        for other in ("t", "u"):
            await rates.prepare(other, rate)
        assert len(rates._leases) == 2
        assert await spend(rates, rate, 100) == 30 - 30 * LEASE_SHARE


class Node:
    """A node with usage plans, as the gateway has them."""

    def __init__(
        self, server: ValkeyServer, folder: Path, name: str, nodes_expected: int, **plans: Plan
    ) -> None:
        self.said: asyncio.Queue[str | None] = asyncio.Queue()
        self.plans = UsagePlans(
            plans,
            plan_of=lambda tenant: tenant,
            folder=folder / name,
            shared=Shared(url=server.url, node=name, nodes_expected=nodes_expected, deadline_s=2.0),
            link_changed=self.said.put_nowait,
        )

    async def call(self, plan: str = "") -> Admission:
        who = Principal(
            tenant="t",
            name="k",
            scopes=frozenset(),
            credential=Credential.API_KEY,
            fingerprint="k",
            plan=plan,
        )
        admission = await self.plans.admit(who, "t")
        if admission.allowed:
            self.plans.release(admission)
        return admission

    async def calls(self, count: int) -> int:
        return sum([(await self.call()).allowed for _ in range(count)])

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.plans.run())
            yield self
            task.cancel()
        self.plans.close()


async def test_nodes_together_have_one_quota_over_restarts_of_them(
    server: ValkeyServer, tmp_path: Path
) -> None:
    plan = Plan(daily_max=1000)
    admitted = 0
    for turn in range(6):
        async with (
            Node(server, tmp_path, "a", 1, t=plan).running() as one,
            Node(server, tmp_path, "b", 1, t=plan).running() as other,
        ):
            for node in (one, other):
                admitted += await node.calls(101)
            if turn == 5:
                refused = await one.call()
                assert (refused.reason, refused.headers["RateLimit-Remaining"]) == (Reason.DAILY, "0")
    assert 1000 - 2 * ahead_max(1000) <= admitted <= 1000


async def test_a_server_that_forgot_everything_is_told_again(server: ValkeyServer, tmp_path: Path) -> None:
    plan = Plan(daily_max=1000)
    async with (
        Node(server, tmp_path, "a", 1, t=plan).running() as one,
        Node(server, tmp_path, "b", 1, t=plan).running() as idle,
    ):
        assert [await node.calls(400) for node in (one, idle)] == [400, 400]
        async with linked(server, "eraser") as link:
            await link._client.flushall()
            key = f"headworks:quota:{period_of(Reason.DAILY, clock.unix_s())[0]}:tenant:t"
            async with asyncio.timeout(WITHIN_S):
                while await link._client.hlen(key) < 2:
                    await asyncio.sleep(0.02)
        assert 200 - ahead_max(1000) <= await one.calls(500) <= 200


async def test_nodes_together_never_admit_more_than_the_quota(server: ValkeyServer, tmp_path: Path) -> None:
    plan = Plan(daily_max=500)
    nodes = [Node(server, tmp_path, name, 1, t=plan) for name in "abc"]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
        admitted = sum([await node.calls(11) for _ in range(20) for node in nodes])
        assert 500 - 3 * ahead_max(500) <= admitted <= 500
        assert all([(await node.call()).reason is Reason.DAILY for node in nodes])


async def test_callers_are_told_of_what_all_nodes_have_left(server: ValkeyServer, tmp_path: Path) -> None:
    plan = Plan(requests_per_s=0.001, requests_burst_s=86_400, daily_max=1000)
    async with Node(server, tmp_path, "a", 1, t=plan).running() as node:
        headers = (await node.call()).headers
        assert headers["RateLimit"].startswith('"tenant-rate";r=85;')
        assert '"tenant-daily";r=999;' in headers["RateLimit"]


async def test_while_the_server_is_away_each_node_has_its_share(server: ValkeyServer, tmp_path: Path) -> None:
    plan = Plan(requests_per_s=0.01, requests_burst_s=4000, daily_max=100)
    async with (
        Node(server, tmp_path, "a", 1, t=plan).running() as one,
        Node(server, tmp_path, "b", 1, t=plan).running() as other,
    ):
        nodes = (one, other)
        async with asyncio.timeout(WITHIN_S):
            while not all(node.plans.nodes == 2 for node in nodes):
                await asyncio.sleep(0.02)
        assert [await node.calls(1) for node in nodes] == [1, 1]
        server.stop()
        for node in nodes:
            async with asyncio.timeout(WITHIN_S):
                assert (await node.said.get()) is not None
        assert [await node.calls(60) for node in nodes] == [20, 20], "a burst of 40 over two nodes"
        refused = await one.call()
        assert refused.reason is Reason.RATE
        assert refused.retry_after_s == pytest.approx(200, rel=0.05), "half the rate"
        assert one.plans.fallbacks > 0
        server.start()
        for node in nodes:
            async with asyncio.timeout(WITHIN_S):
                assert (await node.said.get()) is None
        fallbacks = one.plans.fallbacks
        assert await one.calls(1) == 1
        assert one.plans.fallbacks == fallbacks


async def test_a_server_that_was_never_there_costs_one_deadline(server: ValkeyServer, tmp_path: Path) -> None:
    server.stop()
    loop = asyncio.get_running_loop()
    async with Node(server, tmp_path, "a", 4, t=Plan(daily_max=100)).running() as node:
        began_s = loop.time()
        assert await node.calls(99) == 25, "as many nodes as are expected"
        assert loop.time() - began_s < 2 * 2.0
        said = await node.said.get()
        assert said is not None
        assert "127.0.0.1" not in said


async def test_both_plans_are_leased_before_a_call_is_decided(server: ValkeyServer, tmp_path: Path) -> None:
    plan = Plan(requests_per_s=0.001, requests_burst_s=20_000)
    async with Node(server, tmp_path, "a", 1, t=plan, k=plan).running() as node:
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(node.call("k")) for _ in range(60)]
        assert sum(call.result().allowed for call in calls) == 20
