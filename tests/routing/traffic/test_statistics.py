"""Statistics are read where they can be, and it is said where they cannot."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from routing.traffic import statistics
from routing.traffic.counts import Counts
from routing.traffic.sides import Sides
from routing.traffic.statistics import Admins, Prometheus, Unwatched

SIDES = Sides("shop", "v2", ("v1",))
NAME = "cds_egress_shop_v2_http_80"
TEXT = f'envoy_cluster_upstream_rq_xx{{envoy_response_code_class="2",envoy_cluster_name="{NAME}"}} 7\n'


@contextlib.asynccontextmanager
async def serving(status: int, text: str) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """Serve one answer; yields HOST:PORT, and what was asked."""
    asked: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        yield f"{host}:{port}", asked
    finally:
        await runner.cleanup()


async def test_proxies_that_answer_are_read() -> None:
    said: list[str] = []
    async with serving(200, TEXT) as (address, asked), aiohttp.ClientSession() as session:
        source = Admins(session, [address, "127.0.0.1:1"], SIDES)
        assert await source.read(said.append) == {address: {NAME: Counts(7)}}
        assert asked[0].path == "/stats/prometheus"
        assert asked[0].query["filter"] in source.asked()[0]
    assert len(said) == 1
    assert said[0].startswith("127.0.0.1:1: ")


@pytest.mark.parametrize(
    ("status", "text", "why"),
    [
        (503, "", "it answers 503"),
        (200, "{", "this is no answer of Prometheus"),
        (200, "x" * 2000, "its answer is longer than 1000 bytes"),
    ],
)
async def test_why_prometheus_cannot_be_read_is_said_without_its_password(
    monkeypatch: pytest.MonkeyPatch, status: int, text: str, why: str
) -> None:
    monkeypatch.setattr(statistics, "BODY_BYTES_MAX", 1000)
    said: list[str] = []
    async with serving(status, text) as (address, asked), aiohttp.ClientSession() as session:
        source = Prometheus(session, f"http://me:secret@{address}/prometheus/", SIDES)
        assert await source.read(said.append) == {}
        assert asked[0].path == "/prometheus/api/v1/query"
        assert "Authorization" in asked[0].headers
        assert "secret" not in f"{said} {source.asked()}"
    assert why in said[0]


async def test_nothing_is_asked_where_nothing_is_watched() -> None:
    assert await Unwatched().read(pytest.fail) == {}
    assert Unwatched().asked() == []
