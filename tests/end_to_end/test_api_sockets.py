"""WebSocket APIs, `@connections` and live telemetry through `headworks api`, with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import jwt
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError, web
from aiohttp.test_utils import TestServer
from botocore.config import Config

from tests.support.api_gateway import ApiGateway, api_gateway_beside
from tests.support.socket_rig import Service, until

pytestmark = pytest.mark.end_to_end
SECRET = "a-secret-of-some-length"
SIGNING_KEYS = f"""
[keys.AKCHAT]
secret = "{SECRET}"
tenant = "acme"
scopes = ["connections:write"]
[keys.AKOTHER]
secret = "{SECRET}"
tenant = "globex"
scopes = ["connections:write"]
[keys.AKPOOR]
secret = "{SECRET}"
tenant = "acme"
scopes = ["telemetry:read"]
"""
ROUTES = """
[authorizers.keys]
kind = "api_key"
operators = true
[authorizers.aws]
kind = "sigv4"
signing_keys_file = "{folder}/signing-keys.toml"
[upstreams.gateway]
kind = "internal"
[upstreams.chat]
discovery = {{ kind = "static", endpoints = [{{ address = "{address}" }}] }}
[upstreams.data]
discovery = {{ kind = "static", endpoints = [{{ address = "{address}" }}] }}
[sockets.chat]
path = "/v1/ws"
authorizers = ["keys"]
message_bytes_max = 1000
push_bytes_max = 100000
[[sockets.chat.routes]]
key = "$connect"
upstream = "chat"
path = "/hello"
[[sockets.chat.routes]]
key = "$disconnect"
upstream = "chat"
path = "/bye"
[[sockets.chat.routes]]
key = "$default"
upstream = "chat"
path = "/other"
[[sockets.chat.routes]]
key = "echo"
upstream = "chat"
path = "/echo"
[[routes]]
name = "live"
method = "GET"
path = "/v1/live"
upstream = "gateway"
authorizers = ["keys"]
[[routes]]
name = "whoami"
method = "GET"
path = "/v1/whoami"
upstream = "gateway"
authorizers = ["keys"]
"""
PUSHES = "".join(
    f"""
[[routes]]
name = "connections-{method}"
method = "{method}"
path = "/@connections/{{id}}"
upstream = "gateway"
operation = "connections"
authorizers = ["aws", "keys"]
"""
    for method in ("GET", "POST", "DELETE")
)
SETTINGS = """
[limits.single]
concurrent_max = 1
[limits.thrice]
daily_max = 3
"""


class Rig:
    """The gateway, and the services behind it in the loop of the test."""

    def __init__(self, node: ApiGateway, service: Service, seen: list[web.Request]) -> None:
        self.node = node
        self.service = service
        self.seen = seen
        self.client: aiohttp.ClientSession
        self.behind: TestServer

    async def connect(self, key: str, path: str = "/v1/ws", **more: Any) -> aiohttp.ClientWebSocketResponse:
        headers = {"X-API-Key": key, **more.pop("headers", {})} if key else {}
        url = f"{self.node.url}{path}"
        client: aiohttp.ClientWebSocketResponse = await self.client.ws_connect(url, headers=headers, **more)
        return client

    async def opened(self) -> str:
        """Return the id of the connection that was made last."""
        hello = await until(lambda: self.service.events.get("hello"))
        return str(hello[-1]["requestContext"]["connectionId"])

    @contextlib.contextmanager
    def boto(self, key: str = "AKCHAT", secret: str = SECRET) -> Any:
        client = boto3.client(
            "apigatewaymanagementapi",
            endpoint_url=self.node.url,
            region_name="eu-central-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )
        with contextlib.closing(client):
            yield client


@contextlib.asynccontextmanager
async def rig_in(folder: Path) -> AsyncIterator[Rig]:
    service, seen = Service(), []

    @web.middleware
    async def seeing(request: web.Request, handler: Any) -> web.StreamResponse:
        seen.append(request)
        return await handler(request)  # type: ignore[no-any-return]

    app = service.app()
    app.middlewares.append(seeing)
    behind = TestServer(app, host="127.0.0.1")
    await behind.start_server()
    keys = folder / "signing-keys.toml"
    keys.write_text(SIGNING_KEYS)
    keys.chmod(0o600)
    routes = ROUTES.format(folder=folder, address=f"127.0.0.1:{behind.port}") + PUSHES
    try:
        async with (
            aiohttp.ClientSession() as client,
            api_gateway_beside(folder, routes, extra=SETTINGS, drain_deadline_s=2) as node,
        ):
            rig = Rig(node, service, seen)
            rig.client, rig.behind = client, behind
            yield rig
            assert not node.lines("unexpected")
    finally:
        await behind.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_in(tmp_path) as made:
        yield made


# A WebSocket API.


async def test_events_of_a_connection_reach_their_routes(rig: Rig) -> None:
    async def echo(event: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text=f"you said {event['body']}")

    rig.service.answers["echo"] = echo
    key = rig.node.key(name="ana")
    client = await rig.connect(key, "/v1/ws?room=7", headers={"X-Colour": "red"})
    [hello] = rig.service.events["hello"]
    context = hello["requestContext"]
    assert (context["routeKey"], context["eventType"]) == ("$connect", "CONNECT")
    assert context["authorizer"]["tenant"] == "acme"
    assert context["identity"]["sourceIp"] == "127.0.0.1"
    assert hello["queryStringParameters"] == {"room": "7"}
    assert hello["headers"]["X-Colour"] == "red"
    assert key not in json.dumps(hello)
    told = jwt.decode(rig.seen[0].headers["X-Headworks-Identity"], options={"verify_signature": False})
    assert (told["sub"], told["aud"], told["tenant"]) == ("ana", "chat", "acme")

    await client.send_str('{"action": "echo", "n": 1}')
    assert await client.receive_str(timeout=5) == 'you said {"action": "echo", "n": 1}'
    await client.send_str("no JSON")
    await client.send_bytes(b"\x00\xff")
    await until(lambda: len(rig.service.events.get("other", [])) == 2)
    others = rig.service.events["other"]
    assert [other["requestContext"]["routeKey"] for other in others] == ["$default", "$default"]
    assert [other["isBase64Encoded"] for other in others] == [False, True]
    await client.close(code=4000, message=b"enough")
    [bye] = await until(lambda: rig.service.events.get("bye"))
    assert bye["requestContext"]["eventType"] == "DISCONNECT"
    assert bye["requestContext"]["disconnectStatusCode"] == 4000
    assert bye["requestContext"]["connectionId"] == context["connectionId"]


async def test_who_may_not_connect_hears_it_in_the_handshake(rig: Rig) -> None:
    with pytest.raises(WSServerHandshakeError) as nobody:
        await rig.connect("")
    assert nobody.value.status == 401

    async def refuse(_: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=403)

    rig.service.answers["hello"] = refuse
    with pytest.raises(WSServerHandshakeError) as refused:
        await rig.connect(rig.node.key())
    assert refused.value.status == 403
    async with rig.client.get(f"{rig.node.url}/v1/ws", headers={"X-API-Key": rig.node.key()}) as answer:
        assert answer.status == 426


async def test_a_page_shows_its_key_as_a_subprotocol_and_gets_another_back(rig: Rig) -> None:
    key = rig.node.key()
    client = await rig.connect("", protocols=("headworks", f"headworks.key.{key}"))
    assert client.protocol == "headworks"
    assert key not in json.dumps(rig.service.events["hello"])
    await client.close()
    assert key not in rig.node.log.read_text()


async def test_a_revoked_key_ends_its_connections_within_a_second(rig: Rig) -> None:
    key = rig.node.key("live:read")
    clients = [await rig.connect(key), await rig.connect(key, "/v1/live")]
    with rig.node.registry() as registry:
        registry.revoke_key(key.split("_")[1])
    for client in clients:
        message = await client.receive(timeout=2)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1008)


# Pushes.


async def test_boto3_pushes_looks_and_closes(rig: Rig) -> None:
    client = await rig.connect(rig.node.key(), headers={"User-Agent": "me"})
    connection = await rig.opened()

    def use() -> Any:
        with rig.boto() as chat:
            chat.post_to_connection(ConnectionId=connection, Data="héllo".encode())
            chat.post_to_connection(ConnectionId=connection, Data=b"\xff\x00")
            found = chat.get_connection(ConnectionId=connection)
            with pytest.raises(chat.exceptions.PayloadTooLargeException):
                chat.post_to_connection(ConnectionId=connection, Data=b"x" * 1001)
            chat.delete_connection(ConnectionId=connection)
            return found

    found = await asyncio.to_thread(use)
    assert found["Identity"] == {"SourceIp": "127.0.0.1", "UserAgent": "me"}
    assert await client.receive_str(timeout=5) == "héllo"
    assert await client.receive_bytes(timeout=5) == b"\xff\x00"
    message = await client.receive(timeout=5)
    assert (message.type, message.data) == (WSMsgType.CLOSE, 1000)
    await client.close()

    def gone() -> None:
        with rig.boto() as chat:
            for identifier in (connection, "nobody="):
                with pytest.raises(chat.exceptions.GoneException):
                    chat.post_to_connection(ConnectionId=identifier, Data=b"late")

    await asyncio.to_thread(gone)


async def test_whoever_may_not_push_hears_it_as_from_the_service(rig: Rig) -> None:
    client = await rig.connect(rig.node.key())
    connection = await rig.opened()

    def refused() -> None:
        for key, secret in (
            ("AKPOOR", SECRET),
            ("AKCHAT", "another-secret-than-its"),
            ("AKNOBODY", SECRET),
        ):
            with rig.boto(key, secret) as chat, pytest.raises(chat.exceptions.ForbiddenException) as caught:
                chat.post_to_connection(ConnectionId=connection, Data=b"x")
            assert caught.value.response["Error"]["Code"] == "ForbiddenException"
            assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        with rig.boto("AKOTHER") as chat, pytest.raises(chat.exceptions.GoneException):
            chat.post_to_connection(ConnectionId=connection, Data=b"x")

    await asyncio.to_thread(refused)
    url = f"{rig.node.url}/@connections/{connection}"
    async with rig.client.post(url, data=b"x") as answer:
        assert answer.status == 403
        assert answer.headers["x-amzn-ErrorType"] == "ForbiddenException"
        assert set(await answer.json()) == {"message"}
        assert "x-amzn-RequestId" in answer.headers
    assert rig.node.metric("headworks_api_refused_total", reason="unauthenticated") == 3
    await client.close()


async def test_the_usage_plan_of_who_pushes_is_told_as_the_service_tells_it(rig: Rig) -> None:
    client = await rig.connect(rig.node.key())
    connection = await rig.opened()
    headers = {"X-API-Key": rig.node.key("connections:write", plan="thrice", name="pusher")}
    url = f"{rig.node.url}/@connections/{connection}"
    statuses = []
    for _ in range(4):
        async with rig.client.post(url, data=b"x", headers=headers) as answer:
            statuses.append(answer.status)
            said = await answer.text()
    assert statuses == [200, 200, 200, 429]
    assert answer.headers["x-amzn-ErrorType"] == "LimitExceededException"
    assert int(answer.headers["Retry-After"]) > 0
    assert set(json.loads(said)) == {"message"}

    await client.close()


# Live telemetry, with a stand-in for the service that has it.


def line(number: int, **fields: Any) -> bytes:
    record = {
        "id": f"r{number}",
        "tenant": "acme",
        "device": "pump-7",
        "stream": "main",
        "payload": {"ts": number, "metrics": {"temperature": number}},
    }
    return json.dumps({**record, **fields}).encode() + b"\n"


class Tail:
    """Serves records as NDJSON; breaks off when told to, and then begins after what was seen last."""

    def __init__(self) -> None:
        self.records: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.queries: list[dict[str, str]] = []

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write(b"\n")
        while (record := await self.records.get()) is not None:
            await response.write(record)
        assert request.transport is not None
        request.transport.abort()
        return response


async def subscribed(client: aiohttp.ClientWebSocketResponse, **wanted: Any) -> None:
    await client.send_json({"subscribe": {"every_ms": 50, **wanted}})
    said = await client.receive_json(timeout=5)
    assert "subscribed" in said
    if said["tail"] != "live":
        assert await client.receive_json(timeout=5) == {"tail": "live"}


async def test_a_dashboard_sees_what_it_asked_for_and_goes_on_after_a_break(rig: Rig) -> None:
    tail = Tail()
    rig.service.tail = tail.serve
    client = await rig.connect(rig.node.key("live:read"), "/v1/live")
    await subscribed(client, devices=["pump-*"], metrics=["temp*"])
    await tail.records.put(line(1))
    await tail.records.put(line(2, device="valve-1"))
    assert (await client.receive_json(timeout=5))["values"] == [
        {"device": "pump-7", "stream": "main", "metric": "temperature", "ts": 1, "value": 1}
    ]
    for number in range(3, 40):
        await tail.records.put(line(number))
    values: list[int] = []
    conflated = 0
    while not values or values[-1] != 39:
        said = await client.receive_json(timeout=5)
        values += [value["value"] for value in said["values"]]
        conflated += said["conflated"]
    assert len(values) + conflated == 37, "the newest are sent; how many they replace is said"

    await tail.records.put(None)
    assert await client.receive_json(timeout=5) == {"tail": "lost"}
    assert await client.receive_json(timeout=5) == {"tail": "live"}
    assert tail.queries == [{"tenant": "acme"}, {"tenant": "acme", "after": "r39"}]
    await tail.records.put(line(40))
    assert (await client.receive_json(timeout=5))["values"][0]["value"] == 40
    await tail.records.put(None)
    await client.close()


async def test_a_dashboard_is_of_its_own_tenant_and_an_operator_names_one(rig: Rig) -> None:
    tail = Tail()
    rig.service.tail = tail.serve
    with pytest.raises(WSServerHandshakeError) as refused:
        await rig.connect(rig.node.key(), "/v1/live")
    assert refused.value.status == 403
    own = await rig.connect(rig.node.key("live:read"), "/v1/live")
    await own.send_json({"subscribe": {"tenant": "globex"}})
    message = await own.receive(timeout=5)
    assert (message.type, message.data) == (WSMsgType.CLOSE, 1008)
    operator = await rig.connect(rig.node.key("live:read", tenant="*"), "/v1/live")
    await subscribed(operator, tenant="globex")
    assert tail.queries == [{"tenant": "globex"}]
    await tail.records.put(line(1, tenant="globex"))
    assert (await operator.receive_json(timeout=5))["values"][0]["value"] == 1
    await tail.records.put(None)
    await operator.close()


async def test_an_open_dashboard_is_no_call_under_way_for_its_plan(rig: Rig) -> None:
    key = rig.node.key("live:read", plan="single", tenant="single")
    dashboards = [await rig.connect(key, "/v1/live") for _ in range(3)]
    async with rig.client.get(f"{rig.node.url}/v1/whoami", headers={"X-API-Key": key}) as answer:
        assert answer.status == 200
    few = rig.node.key("live:read", plan="thrice", tenant="thrice")
    dashboards += [await rig.connect(few, "/v1/live") for _ in range(3)]
    with pytest.raises(WSServerHandshakeError) as refused:
        await rig.connect(few, "/v1/live")
    assert refused.value.status == 429, "each handshake is a call"
    for dashboard in dashboards:
        await dashboard.close()


# The end.


async def test_a_drain_closes_all_with_1012_and_tells_their_services(rig: Rig) -> None:
    tail = Tail()
    rig.service.tail = tail.serve
    key = rig.node.key("live:read")
    chats = [await rig.connect(key) for _ in range(8)]
    dashboards = [await rig.connect(key, "/v1/live") for _ in range(4)]
    await subscribed(dashboards[0])
    rig.node.terminate()
    for client in [*chats, *dashboards]:
        message = await client.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.CLOSE, 1012)
    assert await asyncio.to_thread(rig.node.stop) == 0
    assert len(rig.service.events["bye"]) == 8
    assert {bye["requestContext"]["disconnectStatusCode"] for bye in rig.service.events["bye"]} == {1012}
    await tail.records.put(None)
