"""Servers in trouble: health checks, ejection, breaker, budget, hedging, limits, discovery that changes."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from routing.gateway.routes_file import (
    Breaking,
    Discovery,
    Ejection,
    Endpoint,
    Health,
    Retries,
    RetryBudget,
    Upstream,
)
from routing.upstream.call import Reason, UpstreamError
from routing.upstream.upstreams import Upstreams
from runtime import clock
from tests.support.gateway import free_port
from tests.support.upstream_servers import Server, call_of, count, running, servers, static, text_of

ONCE = Retries(attempts_max=1)
NO_EJECTION = Ejection(failures_max=1000)


async def until(holds: object, deadline_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    assert callable(holds)
    async with asyncio.timeout(deadline_s):
        while not holds():
            await asyncio.sleep(0.01)


async def names(upstreams: Upstreams, times: int) -> Counter[str]:
    """Return who answered how often."""
    return Counter([(await text_of(upstreams, call_of()))[1][0] for _ in range(times)])


async def failing(request: web.Request) -> web.StreamResponse:
    await request.read()
    return web.Response(status=503)


async def slow(request: web.Request) -> web.StreamResponse:
    del request
    await asyncio.sleep(20)
    return web.Response(text="s")


def healthy(upstreams: Upstreams) -> list[bool]:
    return [each["healthy"] for each in upstreams.status()["u"]["endpoints"]]


@pytest.mark.parametrize("path", ["/healthz", ""])
async def test_a_dead_server_is_found_without_a_request_and_so_is_its_return(path: str) -> None:
    terms = Health(path=path, interval_s=0.05, timeout_s=1, healthy_after=1, unhealthy_after=1)
    async with (
        servers(2) as made,
        running({"u": Upstream(discovery=static(made), health=terms)}) as upstreams,
    ):
        await made[0].kill()
        await until(lambda: healthy(upstreams) == [False, True])
        assert set(await names(upstreams, 10)) == {"b"}
        assert made[0].seen == 0
        await made[0].start()
        await until(lambda: healthy(upstreams) == [True, True])
        assert set(await names(upstreams, 40)) == {"a", "b"}


async def test_a_server_that_says_it_is_unwell_is_left_out() -> None:
    terms = Health(interval_s=0.05, healthy_after=1, unhealthy_after=2)
    async with (
        servers(2) as made,
        running({"u": Upstream(discovery=static(made), health=terms)}) as upstreams,
    ):
        await until(lambda: made[0].checks > 0)
        made[0].healthy = False
        await until(lambda: healthy(upstreams) == [False, True])
        assert set(await names(upstreams, 10)) == {"b"}


async def test_who_fails_is_ejected_and_gets_requests_again_later() -> None:
    terms = Ejection(failures_max=3, base_s=0.3, share_max=0.5)
    registry = CollectorRegistry()
    async with servers(2) as made:
        made[0].behaviour = failing
        upstream = Upstream(discovery=static(made), balancing="weighted_round_robin", ejection=terms)
        async with running({"u": upstream}, registry) as upstreams:
            statuses = [(await text_of(upstreams, call_of(retries=ONCE)))[0] for _ in range(20)]
            assert statuses.count(503) == 3
            assert count(registry, "headworks_upstream_ejections_total", upstream="u") == 1
            made[0].behaviour = made[0].answer
            await asyncio.sleep(0.35)
            assert set(await names(upstreams, 4)) == {"a", "b"}


async def test_an_open_breaker_asks_nobody_and_one_probe_closes_it() -> None:
    breaker = Breaking(failures_max=3, open_s=0.2, open_s_max=1)
    async with servers(1) as [server]:
        upstream = Upstream(discovery=static([server]), breaker=breaker, ejection=NO_EJECTION)
        async with running({"u": upstream}) as upstreams:
            server.behaviour = failing
            for _ in range(3):
                await text_of(upstreams, call_of(retries=ONCE))
            seen = server.seen
            with pytest.raises(UpstreamError) as raised:
                await text_of(upstreams, call_of(retries=ONCE))
            assert (raised.value.reason, raised.value.status) == (Reason.BREAKER_OPEN, 503)
            assert raised.value.retry_after_s >= 1
            assert server.seen == seen
            server.behaviour = server.answer
            await until(lambda: upstreams.status()["u"]["breaker"] == "open")
            await asyncio.sleep(0.25)
            assert (await text_of(upstreams, call_of()))[0] == 200
            assert upstreams.status()["u"]["breaker"] == "closed"


async def test_a_caller_that_leaves_does_not_leave_the_breaker_half_open() -> None:
    breaker = Breaking(failures_max=1, open_s=0.05, open_s_max=0.1)
    async with servers(1) as [server]:
        upstream = Upstream(discovery=static([server]), breaker=breaker, ejection=NO_EJECTION)
        async with running({"u": upstream}) as upstreams:
            server.behaviour = failing
            await text_of(upstreams, call_of(retries=ONCE))
            await asyncio.sleep(0.06)
            server.behaviour = slow
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await text_of(upstreams, call_of(retries=ONCE))
            server.behaviour = server.answer
            await asyncio.sleep(0.15)
            assert (await text_of(upstreams, call_of(retries=ONCE)))[0] == 200


async def test_the_budget_bounds_what_trouble_adds() -> None:
    registry = CollectorRegistry()
    async with servers(1) as [server]:
        server.behaviour = failing
        upstream = Upstream(
            discovery=static([server]),
            retry_budget=RetryBudget(share=0.2, min_per_s=0, window_s=60),
            breaker=Breaking(failures_max=10_000),
            ejection=NO_EJECTION,
        )
        retries = Retries(attempts_max=5, backoff_base_s=0.001, backoff_max_s=0.001)
        async with running({"u": upstream}, registry) as upstreams:
            for _ in range(100):
                assert (await text_of(upstreams, call_of(retries=retries)))[0] == 503
        assert server.seen == 120
        assert count(registry, "headworks_upstream_retries_total", upstream="u", kind="retry") == 20
        assert count(registry, "headworks_upstream_retries_refused_total", upstream="u") > 0


async def test_a_post_is_sent_once_and_one_with_a_key_again() -> None:
    async with servers(1) as [server]:
        server.behaviour = failing
        upstream = Upstream(discovery=static([server]), ejection=NO_EJECTION)
        async with running({"u": upstream}) as upstreams:
            retries = Retries(attempts_max=3, backoff_base_s=0.001, backoff_max_s=0.001)
            assert (await text_of(upstreams, call_of("POST", retries=retries)))[2] == 1
            assert (await text_of(upstreams, call_of("POST", idempotent=True, retries=retries)))[2] == 3


async def test_a_slow_first_try_is_hedged_at_another_server() -> None:
    registry = CollectorRegistry()
    async with servers(2) as made:
        made[0].behaviour = slow
        upstream = Upstream(discovery=static(made), balancing="weighted_round_robin", ejection=NO_EJECTION)
        hedged = Retries(attempts_max=2, hedge_after_s=0.05, try_timeout_s=5)
        async with running({"u": upstream}, registry) as upstreams:
            began_s = clock.monotonic_s()
            for _ in range(6):
                assert (await text_of(upstreams, call_of(retries=hedged)))[1][0] == "b"
            assert clock.monotonic_s() - began_s < 5
            assert count(registry, "headworks_upstream_retries_total", upstream="u", kind="hedge") >= 2
            await until(lambda: upstreams.status()["u"]["endpoints"][0]["in_flight"] == 0)


async def test_what_may_not_be_repeated_is_never_hedged() -> None:
    async with servers(2) as made:
        for server in made:
            server.behaviour = slow
        hedged = Retries(attempts_max=2, hedge_after_s=0.02)
        async with running({"u": Upstream(discovery=static(made))}) as upstreams:
            with pytest.raises(UpstreamError):
                await text_of(upstreams, call_of("POST", retries=hedged, timeout_s=0.3))
            assert made[0].seen + made[1].seen == 1


async def test_no_more_requests_are_on_the_wire_than_allowed_and_who_waits_too_long_is_told() -> None:
    at_once = most = 0

    async def counting(request: web.Request) -> web.StreamResponse:
        nonlocal at_once, most
        await request.read()
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1
        return web.Response(text="a")

    async with servers(1) as [server]:
        server.behaviour = counting
        async with running({"u": Upstream(discovery=static([server]), connections_max=3)}) as upstreams:
            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(text_of(upstreams, call_of()))
            assert most == 3
            server.behaviour = slow
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(text_of(upstreams, call_of("POST", timeout_s=5))) for _ in range(3)
                ]
                await until(lambda: server.seen == 23)
                with pytest.raises(UpstreamError) as raised:
                    await text_of(upstreams, call_of("POST", timeout_s=0.1))
                assert raised.value.reason is Reason.OVERFLOW
                for task in tasks:
                    task.cancel()


async def test_more_than_may_be_under_way_are_refused_at_once() -> None:
    async with servers(1) as [server]:
        server.behaviour = slow
        upstream = Upstream(discovery=static([server]), breaker=Breaking(requests_max=2))
        async with running({"u": upstream}) as upstreams, asyncio.TaskGroup() as group:
            tasks = [group.create_task(text_of(upstreams, call_of())) for _ in range(2)]
            await until(lambda: server.seen == 2)
            with pytest.raises(UpstreamError) as raised:
                await text_of(upstreams, call_of())
            assert (raised.value.reason, raised.value.status) == (Reason.OVERFLOW, 503)
            for task in tasks:
                task.cancel()


def written(path: Path, made: list[Server]) -> None:
    text = "".join(f'[[endpoints]]\naddress = "{server.address}"\n' for server in made)
    partial = path.with_suffix(".new")
    partial.write_text(text)
    partial.rename(path)


async def test_requests_go_where_the_file_says_and_where_it_last_said_while_it_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.toml"
    async with servers(3) as made:
        written(path, made[:2])
        discovery = Discovery(kind="file", file=str(path), poll_s=0.05)
        async with running({"u": Upstream(discovery=discovery)}) as upstreams:
            assert set(await names(upstreams, 30)) == {"a", "b"}
            written(path, made[1:])
            await until(lambda: upstreams.status()["u"]["endpoints"][-1]["address"] == made[2].address)
            assert set(await names(upstreams, 30)) == {"b", "c"}
            path.write_text("endpoints = nonsense")
            await until(lambda: upstreams.status()["u"]["discovery_failures"] > 0)
            assert set(await names(upstreams, 30)) == {"b", "c"}


async def test_what_a_server_has_under_way_ends_well_when_discovery_forgets_it(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.toml"
    released = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await request.read()
        await released.wait()
        return web.Response(text="a")

    async with servers(2) as made:
        made[0].behaviour = wait
        written(path, made[:1])
        discovery = Discovery(kind="file", file=str(path), poll_s=0.05)
        async with running({"u": Upstream(discovery=discovery)}) as upstreams, asyncio.TaskGroup() as group:
            old = group.create_task(text_of(upstreams, call_of()))
            await until(lambda: made[0].seen == 1)
            written(path, made[1:])
            await until(lambda: upstreams.status()["u"]["endpoints"][0]["address"] == made[1].address)
            assert set(await names(upstreams, 5)) == {"b"}
            released.set()
            assert (await old)[:2] == (200, "a")


async def test_other_regions_are_used_while_the_first_is_down_and_left_when_it_is_back() -> None:
    terms = Health(interval_s=0.05, healthy_after=1, unhealthy_after=1)
    async with servers(4) as made:
        endpoints = [
            Endpoint(address=server.address, priority=0 if index < 2 else 1)
            for index, server in enumerate(made)
        ]
        upstream = Upstream(discovery=Discovery(kind="static", endpoints=endpoints), health=terms)
        async with running({"u": upstream}) as upstreams:
            assert set(await names(upstreams, 20)) == {"a", "b"}
            for server in made[:2]:
                await server.kill()
            await until(lambda: healthy(upstreams) == [False, False, True, True])
            assert set(await names(upstreams, 20)) == {"c", "d"}
            for server in made[:2]:
                await server.start()
            await until(lambda: all(healthy(upstreams)))
            assert set(await names(upstreams, 20)) == {"a", "b"}


async def test_a_host_name_is_looked_up_and_one_that_is_not_there_is_no_connection() -> None:
    async with servers(1) as [server]:
        known = Discovery(kind="static", endpoints=[Endpoint(address=f"localhost:{server.port}")])
        unknown = Discovery(kind="static", endpoints=[Endpoint(address=f"nobody.invalid:{free_port()}")])
        async with running({"u": Upstream(discovery=known), "v": Upstream(discovery=unknown)}) as upstreams:
            assert (await text_of(upstreams, call_of()))[0] == 200
            with pytest.raises(UpstreamError) as raised:
                await text_of(upstreams, call_of(retries=ONCE), "v")
            assert raised.value.reason is Reason.CONNECT
