"""Keys of a running node: a wrong file stops the start, a server that fails is counted until it answers."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from tests.end_to_end.test_clients import telemetry
from tests.support.gateway import Gateway

pytestmark = pytest.mark.end_to_end


def node_with(folder: Path, setting: str) -> Gateway:
    node = Gateway(folder, workers=2, extra=f"[jwt]\n{setting}\n")
    node.config.write_text(node.config.read_text().replace('auth = ["topic"', 'auth = ["jwt"'))
    return node


@pytest.mark.parametrize("content", [b"\xff", b'{"keys": [{"kty": "oct"}]}'])
async def test_a_file_of_keys_that_is_wrong_is_named_at_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(content)
    node = node_with(tmp_path, f'jwks_file = "{path}"')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "commands.cli", "serve", "--config", str(node.config)),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        said = (await process.communicate())[1].decode()
    assert process.returncode == 1
    assert f"jwt.jwks_file {path}: " in said
    assert "JWKS" in said
    assert "Traceback" not in said


async def test_keys_that_cannot_be_fetched_are_counted_and_fetched_when_they_can(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    keys = {"keys": [{**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": "k"}]}
    well = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        del request
        return web.json_response(keys) if well.is_set() else web.Response(status=500, text="at lunch")

    app = web.Application()
    app.router.add_get("/keys", answer)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    node = node_with(tmp_path, f'jwks_url = "{server.make_url("/keys")}"')
    await asyncio.to_thread(node.start)
    try:
        claims = {"tenant": "acme", "device": "d", "exp": time.time() + 600}  # noqa: TID251  # a real token
        headers = {
            "Authorization": "Bearer " + jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k"})
        }
        url = f"http://127.0.0.1:{node.http}/v1/telemetry/s"

        async def posted() -> int:
            """Post on a new connection, so that each worker gets its share."""
            async with (
                aiohttp.ClientSession() as client,
                client.post(url, json=telemetry(), headers=headers) as response,
            ):
                return response.status

        def fetched(result: str) -> float:
            return node.metric(f'headworks_jwks_fetches_total{{result="{result}"}}')

        await asyncio.to_thread(node.wait_until, lambda: fetched("failed") >= 2)
        assert fetched("ok") == 0
        assert [await posted() for _ in range(8)] == [401] * 8
        assert '"event": "jwks_fetch_failed"' in node.log.read_text()
        assert "the answer is 500 Internal Server Error" in node.log.read_text()
        well.set()
        await asyncio.to_thread(node.wait_until, lambda: fetched("ok") >= 2)
        assert [await posted() for _ in range(8)] == [202] * 8
    finally:
        assert await asyncio.to_thread(node.stop) == 0
        await server.close()
