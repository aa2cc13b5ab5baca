"""/@connections against real WebSockets, and with boto3's own client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import pytest
from aiohttp import WSMsgType, web
from botocore.config import Config

from routing.gateway.refused import Refused
from routing.gateway.signed import SignedRequests
from routing.tenancy.identity import Unauthenticated
from routing.tenancy.principal import Principal
from runtime import clock
from tests.support.socket_rig import SocketRig, open_rig, transport_of, until

ACME = {"Authorization": "Bearer ana"}
SECRET = "a-secret-of-some-length"
KEYS = f"""
[keys.AKONE]
secret = "{SECRET}"
tenant = "acme"
scopes = ["connections:write"]
[keys.AKTWO]
secret = "{SECRET}"
tenant = "globex"
scopes = ["connections:write"]
[keys.AKREAD]
secret = "{SECRET}"
tenant = "acme"
scopes = ["telemetry:read"]
"""


async def opened(rig: SocketRig) -> str:
    """Return the id of the connection that was made last."""
    hello = await until(lambda: rig.service.events.get("hello"))
    connection_id: str = hello[-1]["requestContext"]["connectionId"]
    return connection_id


async def call(rig: SocketRig, method: str, connection: str, **more: Any) -> tuple[int, Any, Any]:
    headers = more.pop("headers", ACME)
    url = rig.url(f"/@connections/{connection}")
    async with rig.client.request(method, url, headers=headers, **more) as answer:
        text = await answer.read()
        return answer.status, answer.headers, text


async def test_a_push_reaches_the_client() -> None:
    async with open_rig() as rig, await rig.connect() as client:
        connection = await opened(rig)
        assert (await call(rig, "POST", connection, data="héllo".encode()))[0] == 200
        assert await client.receive_str(timeout=5) == "héllo"
        assert (await call(rig, "POST", connection, data=b"\xff\x00"))[0] == 200
        assert await client.receive_bytes(timeout=5) == b"\xff\x00"


async def test_information_and_deletion() -> None:
    async with open_rig() as rig, await rig.connect(headers={"User-Agent": "me"}) as client:
        connection = await opened(rig)
        async with rig.client.get(rig.url(f"/@connections/{connection}"), headers=ACME) as answer:
            told = await answer.json()
        assert told["identity"] == {"sourceIp": "127.0.0.1", "userAgent": "me"}
        assert told["connectedAt"].endswith("Z")
        assert told["lastActiveAt"] >= told["connectedAt"]
        assert (await call(rig, "DELETE", connection))[0] == 204
        message = await client.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1000)
        await client.close()
        assert (await call(rig, "DELETE", connection))[0] == 410


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_connections_of_another_tenant_are_gone_as_unknown_ones_are(method: str) -> None:
    async with open_rig() as rig, await rig.connect() as client:
        connection = await opened(rig)
        foreign = await call(rig, method, connection, headers={"Authorization": "Bearer bob"})
        unknown = await call(rig, method, "nobody", headers={"Authorization": "Bearer bob"})
        assert foreign[0] == unknown[0] == 410
        assert foreign[2] == unknown[2]
        assert foreign[1]["x-amzn-ErrorType"] == "GoneException"
        await client.send_str("still here")
        await until(lambda: rig.service.events.get("other"))


async def test_an_operator_reaches_every_tenant() -> None:
    async with open_rig() as rig, await rig.connect() as client:
        connection = await opened(rig)
        root = {"Authorization": "Bearer root"}
        assert (await call(rig, "POST", connection, data=b"x", headers=root))[0] == 200
        assert await client.receive_str(timeout=5) == "x"


@pytest.mark.parametrize("name", ["poor", "stranger"])
async def test_who_may_not_push_hears_403(name: str) -> None:
    async with open_rig() as rig, await rig.connect():
        headers = {"Authorization": f"Bearer {name}"}
        status, answered, _ = await call(rig, "POST", await opened(rig), headers=headers, data=b"x")
        assert (status, answered["x-amzn-ErrorType"]) == (403, "ForbiddenException")


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size):
        yield b"x"


async def test_a_push_may_be_as_long_as_a_message_and_not_longer() -> None:
    async with open_rig(message_bytes_max=1000) as rig, await rig.connect() as client:
        connection = await opened(rig)
        assert (await call(rig, "POST", connection, data=b"x" * 1000))[0] == 200
        for body in (b"x" * 1001, chunks(1001)):
            status, headers, _ = await call(rig, "POST", connection, data=body)
            assert (status, headers["x-amzn-ErrorType"]) == (413, "PayloadTooLargeException")
        assert len(await client.receive_str(timeout=5)) == 1000


async def test_other_methods_are_not_allowed() -> None:
    async with open_rig() as rig, await rig.connect():
        assert (await call(rig, "PUT", await opened(rig)))[0] == 405


async def test_a_push_to_who_does_not_read_is_429_and_nothing_grows() -> None:
    async with open_rig(push_bytes_max=64 * 1024) as rig:
        client = await rig.connect()
        connection = await opened(rig)
        transport_of(client).pause_reading()
        statuses = []
        for _ in range(400):
            statuses.append((await call(rig, "POST", connection, data=b"x" * 60_000))[0])
            if statuses[-1] != 200:
                break
        assert statuses[-1] == 429
        found = rig.sockets.find(connection)
        assert found is not None
        assert found.open.waiting_bytes <= 64 * 1024 + 64
        transport_of(client).resume_reading()
        for _ in statuses[:-1]:
            assert len(await client.receive_str(timeout=5)) == 60_000
        assert (await call(rig, "POST", connection, data=b"again"))[0] == 200
        assert await client.receive_str(timeout=5) == "again"
        await client.close()


async def test_a_connection_that_is_only_just_asked_for_is_gone() -> None:
    async with open_rig() as rig:
        seen: list[int] = []

        async def push_at_once(event: dict[str, Any]) -> web.StreamResponse:
            seen.append((await call(rig, "POST", event["requestContext"]["connectionId"], data=b"x"))[0])
            return web.Response()

        rig.service.answers["hello"] = push_at_once
        async with await rig.connect():
            assert seen == [410]


@contextlib.asynccontextmanager
async def signed_rig(folder: Path, **fields: Any) -> AsyncIterator[SocketRig]:
    """Return a rig whose /@connections asks for signatures, and whose WebSockets for tokens."""
    path = folder / "keys.toml"
    path.write_text(KEYS)
    path.chmod(0o600)
    async with open_rig(**fields) as rig:
        keys = SignedRequests(path, body_bytes_max=1 << 20, unix_s=clock.unix_s, reloaded=lambda _: None)
        by_token = rig.identify

        async def identify(request: web.BaseRequest) -> Principal:
            shown = keys.shown(request)
            return await (keys.principal(shown, request) if shown else by_token(request))

        rig.identify = identify
        yield rig


def boto(rig: SocketRig, key: str = "AKONE", secret: str = SECRET, path: str = "") -> Any:
    return boto3.client(
        "apigatewaymanagementapi",
        endpoint_url=rig.url(path or "/").rstrip("/"),
        region_name="eu-central-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


async def test_boto3_pushes_asks_and_closes(tmp_path: Path) -> None:
    async with signed_rig(tmp_path) as rig, await rig.connect(headers={"User-Agent": "me"}) as client:
        connection, chat = await opened(rig), boto(rig)
        try:
            await asyncio.to_thread(chat.post_to_connection, ConnectionId=connection, Data=b"from boto3")
            assert await client.receive_str(timeout=5) == "from boto3"
            told = await asyncio.to_thread(chat.get_connection, ConnectionId=connection)
            assert told["Identity"] == {"SourceIp": "127.0.0.1", "UserAgent": "me"}
            assert told["ConnectedAt"] <= told["LastActiveAt"]
            await asyncio.to_thread(chat.delete_connection, ConnectionId=connection)
            assert (await client.receive(timeout=5)).data == 1000
            await client.close()
            with pytest.raises(chat.exceptions.GoneException):
                await asyncio.to_thread(chat.post_to_connection, ConnectionId=connection, Data=b"x")
        finally:
            chat.close()


@pytest.mark.parametrize(
    ("key", "secret", "size", "raised"),
    [
        ("AKONE", "another-secret-of-length", 1, "ForbiddenException"),
        ("AKNONE", SECRET, 1, "ForbiddenException"),
        ("AKREAD", SECRET, 1, "ForbiddenException"),
        ("AKTWO", SECRET, 1, "GoneException"),
        ("AKONE", SECRET, 2000, "PayloadTooLargeException"),
    ],
)
async def test_boto3_raises_its_typed_exceptions(
    tmp_path: Path, key: str, secret: str, size: int, raised: str
) -> None:
    async with signed_rig(tmp_path, message_bytes_max=1000) as rig, await rig.connect():
        connection, chat = await opened(rig), boto(rig, key, secret)
        try:
            with pytest.raises(getattr(chat.exceptions, raised)):
                await asyncio.to_thread(chat.post_to_connection, ConnectionId=connection, Data=b"x" * size)
        finally:
            chat.close()


async def test_boto3_raises_limit_exceeded_for_who_does_not_read(tmp_path: Path) -> None:
    async with signed_rig(tmp_path, push_bytes_max=64 * 1024) as rig:
        client = await rig.connect()
        connection, chat = await opened(rig), boto(rig)
        transport_of(client).pause_reading()

        def flood() -> None:
            for _ in range(400):
                chat.post_to_connection(ConnectionId=connection, Data=b"x" * 60_000)

        try:
            with pytest.raises(chat.exceptions.LimitExceededException):
                await asyncio.to_thread(flood)
        finally:
            chat.close()
            transport_of(client).abort()


async def test_a_file_of_keys_is_read_again_and_a_bad_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    path.chmod(0o600)
    heard: list[str | None] = []
    keys = SignedRequests(path, body_bytes_max=10, unix_s=clock.unix_s, reloaded=heard.append)
    keys.look()
    assert heard == []
    path.write_text("nonsense")
    keys.look()
    assert heard[-1] is not None
    assert "AKONE" in keys._keys.keys
    path.write_text(KEYS.replace("AKONE", "AKNEW"))
    keys.look()
    assert heard[-1] is None
    assert set(keys._keys.keys) == {"AKNEW", "AKTWO", "AKREAD"}


async def test_a_body_that_is_too_long_to_check_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    path.chmod(0o600)
    keys = SignedRequests(path, body_bytes_max=10, unix_s=clock.unix_s, reloaded=lambda _: None)
    refusals: list[str] = []

    async def take(request: web.BaseRequest) -> web.Response:
        try:
            await keys.principal("", request)
        except Unauthenticated as error:
            refusals.append(str(error))
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    server = aiohttp.test_utils.TestServer(app)
    async with aiohttp.test_utils.TestClient(server) as client:
        for body in (b"x" * 11, chunks(11), chunks(9)):
            async with client.post("/", data=body):
                pass
    assert refusals[0] == refusals[1] == "the body is too long to check its signature"
    assert "signature of version 4" in refusals[2]


async def test_a_thousand_connections_each_get_their_own_push() -> None:
    async with open_rig(connections_max=1000, connections_per_tenant_max=1000) as rig:
        clients: list[aiohttp.ClientWebSocketResponse] = []
        gate = asyncio.Semaphore(50)

        async def join() -> None:
            async with gate:
                clients.append(await rig.connect())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(1000):
                tasks.create_task(join())
        ids = [event["requestContext"]["connectionId"] for event in rig.service.events["hello"]]
        assert len(set(ids)) == 1000

        async def push(connection: str) -> None:
            async with gate:
                assert (await call(rig, "POST", connection, data=connection))[0] == 200

        async with asyncio.TaskGroup() as tasks:
            for connection in ids:
                tasks.create_task(push(connection))
        got = [await client.receive_str(timeout=5) for client in clients]
        assert sorted(got) == sorted(ids)
        draining = asyncio.ensure_future(rig.sockets.drain(10.0))
        codes = [(await client.receive(timeout=10)).data for client in clients]
        assert codes == [1012] * 1000
        for client in clients:
            await client.close()
        await draining
        assert rig.sockets.status()["connections"] == {}
        assert len(rig.service.events["bye"]) == 1000


@pytest.mark.parametrize(
    ("status", "told", "name"),
    [
        (401, 403, "ForbiddenException"),
        (403, 403, "ForbiddenException"),
        (413, 413, "PayloadTooLargeException"),
        (429, 429, "LimitExceededException"),
        (408, 408, "BadRequestException"),
        (503, 503, "ServiceUnavailableException"),
    ],
)
async def test_what_the_gateway_refuses_before_is_told_as_the_service_tells_it(
    status: int, told: int, name: str
) -> None:
    async with open_rig() as rig:
        refused = Refused(status, "a-slug", "the reason", retry_after_s=1.5)
        answer = rig.connections.refused(refused)
    assert (answer.status, answer.headers["x-amzn-ErrorType"]) == (told, name)
    assert answer.headers["Retry-After"] == "2"
    assert answer.body == b'{"message":"the reason"}'
