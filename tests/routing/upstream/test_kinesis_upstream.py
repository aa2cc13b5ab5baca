"""A Kinesis stream as an upstream, against a double of it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from routing.gateway.routes_file import Upstream
from routing.upstream.call import Reason, UpstreamError
from routing.upstream.kinesis import KEY_CHARACTERS_MAX, RECORD_BYTES_MAX
from tests.support.kinesis_servers import STREAM, all_records, client_of, make_stream, moto
from tests.support.upstream_servers import call_of, running


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with moto(tmp_path_factory.mktemp("moto")) as port:
        make_stream(client_of(port), shards=2)
        yield port


def terms(port: int, stream: str = STREAM) -> dict[str, Upstream]:
    endpoint = f"http://127.0.0.1:{port}"
    return {"u": Upstream(kind="kinesis", stream=stream, region="eu-central-1", endpoint=endpoint)}


def records_of(port: int, key: str) -> list[dict[str, Any]]:
    return [record for record in all_records(client_of(port)) if record["PartitionKey"] == key]


async def test_a_body_becomes_a_record_as_it_is_in_the_order_of_its_key(port: int) -> None:
    device = f"acme/pump-{uuid.uuid4().hex}"  # both loops use one server
    bodies = [f"\x00 body {number}".encode() for number in range(5)]
    async with running(terms(port)) as upstreams:
        for body in bodies:
            call = call_of("POST", body=body, hash_key=device)
            async with upstreams.call("u", call) as answer:
                said = json.loads(await answer.read(1000))
                assert (answer.status, answer.headers["content-type"]) == (202, "application/json")
                assert set(said) == {"sequence_number", "shard_id"}
    records = await asyncio.to_thread(records_of, port, device)
    assert [record["Data"] for record in records] == bodies


async def test_without_a_key_records_are_spread(port: int) -> None:
    shards = set()
    async with running(terms(port)) as upstreams:
        for _ in range(20):
            async with upstreams.call("u", call_of("POST", body=b"spread")) as answer:
                shards.add(json.loads(await answer.read(1000))["shard_id"])
    assert len(shards) == 2


async def test_a_key_may_be_longer_than_the_service_takes(port: int) -> None:
    call = call_of("POST", body=b"x", hash_key="k" * 300)
    async with running(terms(port)) as upstreams, upstreams.call("u", call) as answer:
        assert answer.status == 202
    assert await asyncio.to_thread(records_of, port, "k" * KEY_CHARACTERS_MAX)


async def test_a_record_that_is_too_large_is_refused_before_it_is_sent(port: int) -> None:
    async with running(terms(port)) as upstreams:
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of("POST", body=b"x" * RECORD_BYTES_MAX, hash_key="k")):
                pass
        assert (raised.value.reason, raised.value.status) == (Reason.TOO_LARGE, 413)


async def test_a_stream_that_is_not_there_is_named_so(port: int) -> None:
    async with running(terms(port, "nothing")) as upstreams:
        with pytest.raises(UpstreamError) as raised:
            async with upstreams.call("u", call_of("POST", body=b"x")):
                pass
        assert raised.value.reason is Reason.NOT_FOUND


@pytest.mark.parametrize("body", ["{}", "[]", "null", "nonsense"])
async def test_an_answer_that_makes_no_sense_is_an_upstream_that_failed(body: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text=body, content_type="application/x-amz-json-1.1")

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with running(terms(runner.addresses[0][1])) as upstreams:
            with pytest.raises(UpstreamError) as raised:
                async with upstreams.call("u", call_of("POST", body=b"x")):
                    pass
            assert raised.value.status == 502
    finally:
        await runner.cleanup()
