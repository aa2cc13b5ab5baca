"""What a lost server had under way says nothing of the others: the breaker of the upstream stays closed."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CollectorRegistry

from routing.balancing.group import Group
from routing.gateway.routes_file import Breaking, Discovery, Ejection, Endpoint, RetryBudget, Upstream
from tests.support.upstream_servers import call_of, count, running, servers, static, text_of

UNDER_WAY = 12


def terms(discovery: Discovery) -> Upstream:
    return Upstream(
        discovery=discovery,
        balancing="weighted_round_robin",
        ejection=Ejection(failures_max=2, share_max=0.5),
        breaker=Breaking(failures_max=4),
        retry_budget=RetryBudget(min_per_s=100),
    )


async def test_many_failures_of_one_server_at_once_leave_the_breaker_closed() -> None:
    released, waiting = asyncio.Event(), 0

    async def wait(_: web.Request) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        await released.wait()
        return web.Response(text="late")

    registry = CollectorRegistry()
    async with servers(3) as made:
        for server in made:
            server.behaviour = wait
        async with running({"u": terms(static(made))}, registry) as upstreams, asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(text_of(upstreams, call_of())) for _ in range(3 * UNDER_WAY)]
            while waiting < 3 * UNDER_WAY:
                await asyncio.sleep(0.005)
            await made[0].kill()
            while waiting < 4 * UNDER_WAY:  # asked again elsewhere
                await asyncio.sleep(0.005)
            released.set()
    assert {call.result()[0] for call in calls} == {200}
    assert count(registry, "headworks_upstream_retries_total", upstream="u", kind="retry") >= UNDER_WAY


def test_who_is_ejected_is_not_in_use() -> None:
    group = Group(terms(Discovery(kind="static")))
    group.replace([Endpoint(address="a:1"), Endpoint(address="b:1")], 0.0)
    first, second = group.hosts
    assert group.uses(first)
    assert not group.failed(first, 0.0)
    assert group.failed(first, 0.0)
    assert not group.uses(first)
    assert group.uses(second)
