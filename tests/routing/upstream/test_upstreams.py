"""Calls to real servers: retries, time-outs, ejection, hedging, breaker, TLS, live reload."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from routing.gateway.routes_file import (
    Discovery,
    Endpoint,
    Retries,
    Upstream,
)
from routing.upstream.call import Reason, UpstreamError
from runtime import clock
from tests.support.gateway import free_port
from tests.support.upstream_servers import call_of, count, running, servers, static, text_of

QUICK = Retries(attempts_max=3, try_timeout_s=0.5, backoff_base_s=0.001, backoff_max_s=0.01)


async def _status(request: web.Request, status: int) -> web.StreamResponse:
    await request.read()
    return web.Response(status=status, text="no")


def _always(status: int) -> object:
    return lambda request: _status(request, status)


async def _abort(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _silent(request: web.Request) -> web.StreamResponse:
    del request
    await asyncio.sleep(30)
    return web.Response()


async def test_an_answer_comes_with_status_headers_body_and_endpoint() -> None:
    async with servers(1) as [server], running({"u": Upstream(discovery=static([server]))}) as upstreams:
        async with upstreams.call("u", call_of("POST", "/a%2Fb?x=%20", body=b"four")) as answer:
            assert (answer.status, answer.attempts, answer.endpoint) == (200, 1, server.address)
            assert answer.headers["content-type"].startswith("text/plain")
            assert await answer.read(100) == b"a POST /a%2Fb?x=%20 4"
        assert upstreams.status()["u"]["under_way"] == 0
        assert upstreams.status()["u"]["endpoints"][0]["in_flight"] == 0


async def test_an_idempotent_call_is_tried_at_another_server() -> None:
    async with servers(2) as made, running({"u": Upstream(discovery=static(made))}) as upstreams:
        made[0].behaviour = _abort
        for _ in range(10):
            status, text, _ = await text_of(upstreams, call_of(retries=QUICK))
            assert (status, text[0]) == (200, "b")
        assert made[0].seen > 0


async def test_a_call_that_is_not_idempotent_is_not_repeated_once_sent() -> None:
    async with servers(2) as made, running({"u": Upstream(discovery=static(made))}) as upstreams:
        for server in made:
            server.behaviour = _abort
        with pytest.raises(UpstreamError) as raised:
            await text_of(upstreams, call_of("POST", body=b"x", retries=QUICK))
        assert raised.value.reason is Reason.RESET
        assert raised.value.status == 502
        assert made[0].seen + made[1].seen == 1


async def test_any_call_is_tried_again_when_no_connection_was_made() -> None:
    async with servers(1) as [server]:
        dead = Endpoint(address=f"127.0.0.1:{free_port()}")
        discovery = Discovery(kind="static", endpoints=[dead, Endpoint(address=server.address)])
        async with running({"u": Upstream(discovery=discovery)}) as upstreams:
            for _ in range(10):
                status, _, _ = await text_of(upstreams, call_of("POST", body=b"x", retries=QUICK))
                assert status == 200
        assert server.seen == 10


async def test_the_last_bad_answer_is_passed_on() -> None:
    async with servers(2) as made, running({"u": Upstream(discovery=static(made))}) as upstreams:
        for server in made:
            server.behaviour = lambda request: _status(request, 503)
        assert await text_of(upstreams, call_of(retries=QUICK)) == (503, "no", 3)
        assert await text_of(upstreams, call_of("POST", retries=QUICK)) == (503, "no", 1)


async def test_no_try_begins_after_the_deadline_of_the_call() -> None:
    async with servers(2) as made, running({"u": Upstream(discovery=static(made))}) as upstreams:
        for server in made:
            server.behaviour = _silent
        retries = Retries(attempts_max=10, try_timeout_s=0.2, backoff_base_s=0.01, backoff_max_s=0.01)
        began_s = clock.monotonic_s()
        with pytest.raises(UpstreamError) as raised:
            await text_of(upstreams, call_of(retries=retries, timeout_s=0.5))
        assert clock.monotonic_s() - began_s < 1.0
        assert (raised.value.reason, raised.value.status) == (Reason.TIMEOUT, 504)
        seen = made[0].seen + made[1].seen
        assert seen == 3
        await asyncio.sleep(0.3)
        assert made[0].seen + made[1].seen == seen


async def test_unknown_upstreams_and_those_without_servers_are_errors() -> None:
    async with running({"u": Upstream(discovery=Discovery(kind="static"))}) as upstreams:
        for name, reason in (("u", Reason.NO_ENDPOINT), ("v", Reason.NOT_FOUND)):
            with pytest.raises(UpstreamError) as raised:
                await text_of(upstreams, call_of(), name)
            assert raised.value.reason is reason


async def test_an_answer_longer_than_is_taken_is_an_error() -> None:
    async with servers(1) as made, running({"u": Upstream(discovery=static(made))}) as upstreams:
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of()) as answer:
                await answer.read(3)
        assert raised.value.reason is Reason.BAD_ANSWER
        assert (await text_of(upstreams, call_of()))[0] == 200


async def test_a_body_that_breaks_off_is_an_error_of_the_upstream() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    registry = CollectorRegistry()
    async with (
        servers(1) as [server],
        running({"u": Upstream(discovery=static([server]))}, registry) as upstreams,
    ):
        server.behaviour = half
        chunks: list[bytes] = []

        async def read() -> None:
            async with upstreams.call("u", call_of()) as answer:
                chunks.extend([chunk async for chunk in answer.chunks()])

        with pytest.raises(UpstreamError) as raised:
            await read()
        assert raised.value.reason is Reason.RESET
        assert count(registry, "headworks_upstream_bodies_broken_total", upstream="u") == 1
