"""Whether a server is well."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from routing.discovery.active_check import BadTarget, target_of, why_not
from tests.support.gateway import free_port
from tests.support.upstream_servers import servers


@pytest.mark.parametrize(
    "text",
    ["", "cart:80", "https://cart/", "tcp://cart", "tcp://cart:1/x", "http://", "http://c:x/", "http://u@c/"],
)
def test_what_cannot_be_checked_is_refused(text: str) -> None:
    with pytest.raises(BadTarget):
        target_of(text)


async def test_an_answer_of_2xx_or_a_connection_is_well() -> None:
    async with servers(1) as (one,):
        for text in (f"http://{one.address}/healthz", f"tcp://{one.address}"):
            assert await why_not(target_of(text), deadline_s=10) == ""
        one.healthy = False
        assert await why_not(target_of(f"http://{one.address}/healthz"), deadline_s=10) == "status 503"


async def test_silence_and_nobody_are_not() -> None:
    async def silent(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with servers(1) as (one,):
        one.behaviour = silent
        assert await why_not(target_of(f"http://{one.address}/"), deadline_s=0.2) == "no answer in 0.2 s"
    for scheme in ("http", "tcp"):
        assert await why_not(target_of(f"{scheme}://127.0.0.1:{free_port()}"), deadline_s=10)
