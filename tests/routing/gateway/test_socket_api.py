"""The WebSocket API against real servers and clients: routes, refusals, limits, drain."""

from __future__ import annotations

import asyncio
import base64
import socket as sockets_of_the_system
from typing import Any

import aiohttp
import pytest
import wsproto
import wsproto.events as ws
from aiohttp import WSMsgType, web

from routing.gateway.routes_file import SocketRoute
from runtime import clock
from tests.support.socket_rig import SocketRig, open_rig, principal, transport_of, until


def says(text: str, status: int = 200) -> Any:
    async def answer(event: dict[str, Any]) -> web.StreamResponse:
        del event
        return web.Response(status=status, text=text)

    return answer


async def echo(event: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text=event["body"])


async def closed_with(client: aiohttp.ClientWebSocketResponse) -> tuple[int, str]:
    message = await client.receive(timeout=5)
    assert message.type is WSMsgType.CLOSE, message
    return message.data, message.extra or ""


async def test_a_message_goes_to_the_route_that_it_names_and_the_answer_comes_back() -> None:
    async with open_rig() as rig:
        rig.service.answers["echo"] = echo
        async with await rig.connect() as client:
            await client.send_str('{"action":"echo","n":1}')
            assert await client.receive_str(timeout=5) == '{"action":"echo","n":1}'
        [event] = rig.service.events["echo"]
        context = event["requestContext"]
        assert event["isBase64Encoded"] is False
        assert context["routeKey"] == "echo"
        assert context["eventType"] == "MESSAGE"
        assert context["messageId"] == context["requestId"]
        assert context["apiId"] == "chat"
        assert context["authorizer"] == {
            "principalId": "ana",
            "tenant": "acme",
            "scopes": "connections:write live:read",
            "credential": "jwt",
            "device": "",
        }


async def test_connect_and_disconnect_are_told_in_the_form_of_aws() -> None:
    async with open_rig() as rig:
        async with await rig.connect(path="/v1/ws?room=7&room=8", headers={"X-Trace": "t"}) as client:
            await client.close(code=4000, message=b"enough")
        bye = (await until(lambda: rig.service.events.get("bye")))[0]
        [hello] = rig.service.events["hello"]
        assert hello["requestContext"]["eventType"] == "CONNECT"
        assert hello["requestContext"]["routeKey"] == "$connect"
        assert hello["queryStringParameters"] == {"room": "8"}
        assert hello["multiValueQueryStringParameters"] == {"room": ["7", "8"]}
        assert hello["headers"]["X-Trace"] == "t"
        assert "Authorization" not in hello["headers"]
        assert hello["requestContext"]["identity"]["sourceIp"] == "127.0.0.1"
        assert bye["requestContext"]["eventType"] == "DISCONNECT"
        assert bye["requestContext"]["disconnectStatusCode"] == 4000
        assert bye["requestContext"]["disconnectReason"] == "enough"
        assert bye["requestContext"]["connectionId"] == hello["requestContext"]["connectionId"]


@pytest.mark.parametrize(
    "message", ["not json", "[1]", '{"action":"nobody"}', '{"action":7}', '{"other":"echo"}']
)
async def test_what_names_no_route_goes_to_the_default(message: str) -> None:
    async with open_rig() as rig:
        rig.service.answers["other"] = echo
        async with await rig.connect() as client:
            await client.send_str(message)
            assert await client.receive_str(timeout=5) == message


async def test_a_binary_message_is_base64_for_the_default_route() -> None:
    async with open_rig() as rig:
        async with await rig.connect() as client:
            await client.send_bytes(b"\xff\x00")
            event = (await until(lambda: rig.service.events.get("other")))[0]
        assert event["isBase64Encoded"] is True
        assert base64.b64decode(event["body"]) == b"\xff\x00"


async def test_a_route_may_be_selected_by_a_member_of_a_member() -> None:
    async with open_rig(select="head.kind") as rig:
        rig.service.answers["echo"] = says("found")
        async with await rig.connect() as client:
            await client.send_str('{"head":{"kind":"echo"}}')
            assert await client.receive_str(timeout=5) == "found"


async def test_without_a_default_route_the_client_hears_forbidden() -> None:
    async with open_rig(routes=[SocketRoute(key="echo", upstream="chat", path="/echo")]) as rig:
        async with await rig.connect() as client:
            await client.send_str("hello?")
            error = await client.receive_json(timeout=5)
        assert error["message"] == "Forbidden"
        assert set(error) == {"message", "connectionId", "requestId"}


@pytest.mark.parametrize(
    ("status", "body", "heard"),
    [
        (500, "secret trace", "Internal server error"),
        (302, "", "Internal server error"),
        (403, "no", "Forbidden"),
        (429, "slow", "Too Many Requests"),
        (400, "", "Bad Request"),
    ],
)
async def test_an_error_of_a_service_has_the_shape_of_aws(status: int, body: str, heard: str) -> None:
    async with open_rig() as rig:
        rig.service.answers["other"] = says(body, status)
        async with await rig.connect() as client:
            await client.send_str("x")
            assert (await client.receive_json(timeout=5))["message"] == heard


async def test_what_a_service_says_with_a_400_is_for_the_client() -> None:
    async with open_rig() as rig:
        rig.service.answers["other"] = says("name a room", 400)
        async with await rig.connect() as client:
            await client.send_str("x")
            assert await client.receive_str(timeout=5) == "name a room"


async def test_a_service_that_is_away_is_an_internal_server_error() -> None:
    async with open_rig() as rig, await rig.connect() as client:
        rig.backend.base = "http://127.0.0.1:1"
        await client.send_str("x")
        assert (await client.receive_json(timeout=5))["message"] == "Internal server error"
        rig.service.events.clear()


@pytest.mark.parametrize(("said", "heard"), [(403, 403), (401, 401), (418, 418), (500, 502), (302, 502)])
async def test_connect_lets_in_with_2xx_only(said: int, heard: int) -> None:
    async with open_rig() as rig:
        rig.service.answers["hello"] = says("", said)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await rig.connect()
        assert refused.value.status == heard
        assert rig.sockets.status()["connections"] == {}
        assert rig.counted("headworks_socket_refused_total", api="chat", status=str(heard)) == 1


async def test_connect_of_a_service_that_is_away_is_503() -> None:
    async with open_rig() as rig:
        rig.backend.base = "http://127.0.0.1:1"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await rig.connect()
        assert refused.value.status == 503


async def test_messages_of_a_connection_are_served_one_after_the_other() -> None:
    async with open_rig(messages_per_s=10_000.0) as rig:
        under_way, most = 0, 0

        async def slow(event: dict[str, Any]) -> web.StreamResponse:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            return web.Response(text=event["body"])

        rig.service.answers["other"] = slow
        async with await rig.connect() as client:
            for number in range(100):
                await client.send_str(str(number))
            assert [await client.receive_str(timeout=5) for _ in range(100)] == list(map(str, range(100)))
        assert most == 1


async def test_a_token_may_come_as_a_subprotocol_which_goes_no_further() -> None:
    async with open_rig() as rig:
        url = rig.server.make_url("/v1/ws")
        offered = ("headworks", "headworks.bearer.ana")
        async with rig.client.ws_connect(url, protocols=offered) as client:
            assert client.protocol == "headworks"
        [hello] = rig.service.events["hello"]
        assert "headworks.bearer" not in str(hello)


async def test_the_service_may_choose_a_subprotocol_that_was_offered() -> None:
    async def choose(event: dict[str, Any]) -> web.StreamResponse:
        del event
        return web.Response(headers={"Sec-WebSocket-Protocol": "chat.v2"})

    async with open_rig() as rig:
        rig.service.answers["hello"] = choose
        async with await rig.connect(protocols=("chat.v1", "chat.v2")) as client:
            assert client.protocol == "chat.v2"


async def test_two_credentials_are_one_too_many() -> None:
    async with open_rig() as rig:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await rig.connect(protocols=("headworks.bearer.bob",))
        assert refused.value.status == 401


@pytest.mark.parametrize(
    ("fields", "name", "headers", "status"),
    [
        ({}, "stranger", {}, 401),
        ({"scopes": ["chat:use"]}, "ana", {}, 403),
        ({"origins": ["https://good.example"]}, "ana", {"Origin": "https://bad.example"}, 403),
    ],
)
async def test_who_may_not_is_refused_before_any_service_hears_of_it(
    fields: dict[str, Any], name: str, headers: dict[str, str], status: int
) -> None:
    async with open_rig(**fields) as rig:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await rig.connect(name, headers=headers)
        assert refused.value.status == status
        assert rig.service.events == {}


async def test_what_is_no_handshake_is_426_or_400() -> None:
    async with open_rig() as rig:
        url, token = rig.url("/v1/ws"), {"Authorization": "Bearer ana"}
        async with rig.client.get(url, headers=token) as answer:
            assert answer.status == 426
            assert answer.headers["Upgrade"] == "websocket"
        headers = {**token, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "12"}
        async with rig.client.get(url, headers=headers) as answer:
            assert answer.status == 400


async def test_caps_of_connections_are_for_a_tenant_and_for_all() -> None:
    async with open_rig(connections_max=2, connections_per_tenant_max=1) as rig:
        async with await rig.connect("ana"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await rig.connect("ana")
            assert refused.value.status == 429
            async with await rig.connect("bob"):
                with pytest.raises(aiohttp.WSServerHandshakeError) as full:
                    await rig.connect("root")
                assert full.value.status == 503
        await until(lambda: rig.sockets.status()["connections"] == {})
        async with await rig.connect("ana"):
            pass


async def test_a_message_may_be_as_long_as_the_limit_and_not_longer() -> None:
    async with open_rig(message_bytes_max=1000) as rig:
        rig.service.answers["other"] = echo
        async with await rig.connect() as client:
            await client.send_str("x" * 1000)
            assert await client.receive_str(timeout=5) == "x" * 1000
            await client.send_str("x" * 1001)
            assert (await closed_with(client))[0] == 1009
        await until(lambda: rig.counted("headworks_socket_ended_total", api="chat", ending="too_big"))


async def test_who_sends_too_fast_hears_it_and_then_is_cut_off() -> None:
    async with open_rig(messages_per_s=1.0) as rig:
        rig.service.answers["other"] = echo
        async with await rig.connect() as client:
            await client.send_str("first")
            assert await client.receive_str(timeout=5) == "first"
            await client.send_str("second")
            assert (await client.receive_json(timeout=5))["message"] == "Too Many Requests"
            for _ in range(120):
                await client.send_str("more")
            async for message in client:
                assert "Too Many Requests" in message.data
            assert client.close_code == 1008


async def test_an_idle_connection_is_closed_with_1001() -> None:
    async with open_rig(idle_s=0.2) as rig, await rig.connect() as client:
        assert await closed_with(client) == (1001, "idle")


async def test_nothing_is_open_for_longer_than_its_duration() -> None:
    async with open_rig(duration_s=0.2) as rig, await rig.connect() as client:
        assert await closed_with(client) == (1001, "open for too long")


async def test_the_end_of_a_credential_is_the_end_of_its_connection() -> None:
    async with open_rig() as rig:
        rig.callers["ana"] = principal(expires_s=clock.unix_s() + 0.2)
        async with await rig.connect() as client:
            assert await closed_with(client) == (1008, "the credential has expired")


async def test_who_is_no_longer_let_in_is_closed() -> None:
    async with open_rig() as rig, await rig.connect("ana") as ana, await rig.connect("bob") as bob:
        assert rig.sockets.end_refused(lambda caller: caller.tenant == "acme") == 1
        assert (await closed_with(ana))[0] == 1008
        await bob.send_str("still here")
        await until(lambda: rig.service.events.get("other"))


async def test_who_answers_no_ping_is_cut_off() -> None:
    async with open_rig(ping_s=0.1) as rig:
        client = await rig.connect(autoping=False)
        assert (await client.receive(timeout=5)).type is WSMsgType.PING
        assert (await client.receive(timeout=5)).type in {WSMsgType.CLOSED, WSMsgType.ERROR, WSMsgType.CLOSE}
        await until(lambda: rig.counted("headworks_socket_ended_total", api="chat", ending="lost"))


async def test_who_answers_pings_stays() -> None:
    async with open_rig(ping_s=0.05) as rig, await rig.connect() as client:
        asyncio.get_running_loop().call_later(0.5, rig.sockets.end_refused, lambda _: True)
        assert (await closed_with(client))[0] == 1008  # and not sooner, of a ping


async def test_a_ping_of_the_client_is_answered() -> None:
    async with open_rig() as rig, await rig.connect(autoping=False) as client:
        await client.ping(b"there?")
        message = await client.receive(timeout=5)
        assert (message.type, bytes(message.data)) == (WSMsgType.PONG, b"there?")


async def test_drain_closes_with_1012_after_what_is_under_way_and_lets_nobody_in() -> None:
    async with open_rig() as rig:
        release = asyncio.Event()

        async def slow(event: dict[str, Any]) -> web.StreamResponse:
            await release.wait()
            return web.Response(text=event["body"])

        rig.service.answers["other"] = slow
        async with await rig.connect() as client, asyncio.TaskGroup() as tasks:
            await client.send_str("last words")
            await until(lambda: rig.service.events.get("other"))
            draining = tasks.create_task(rig.sockets.drain(5.0))
            await until(lambda: rig.sockets.status()["draining"])
            release.set()
            assert await client.receive_str(timeout=5) == "last words"
            assert (await closed_with(client))[0] == 1012
            await client.close()
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await rig.connect()
            assert refused.value.status == 503
            await draining
        assert rig.service.events["bye"][0]["requestContext"]["disconnectStatusCode"] == 1012


async def test_a_disconnect_is_told_again_when_the_service_fails() -> None:
    async with open_rig() as rig:
        failures = iter([500, 500])

        async def flaky(event: dict[str, Any]) -> web.StreamResponse:
            del event
            return web.Response(status=next(failures, 200))

        rig.service.answers["bye"] = flaky
        async with await rig.connect():
            pass
        await until(lambda: rig.counted("headworks_socket_disconnects_total", outcome="ok"))
        assert len(rig.service.events["bye"]) == 3


async def test_a_disconnect_that_nobody_takes_is_counted_as_lost() -> None:
    async with open_rig() as rig:
        rig.service.answers["bye"] = says("", 500)
        async with await rig.connect():
            pass
        await until(lambda: rig.counted("headworks_socket_disconnects_total", outcome="lost"))
        assert len(rig.service.events["bye"]) == 3


async def test_a_client_that_vanishes_is_lost_and_its_disconnect_is_told() -> None:
    async with open_rig() as rig:
        client = await rig.connect()
        transport_of(client).abort()
        bye = (await until(lambda: rig.service.events.get("bye")))[0]
        assert bye["requestContext"]["disconnectStatusCode"] == 1006
        assert rig.sockets.status()["connections"] == {}


async def test_who_leaves_while_connect_is_asked_is_said_goodbye_to() -> None:
    async with open_rig() as rig:
        release = asyncio.Event()

        async def slow(event: dict[str, Any]) -> web.StreamResponse:
            del event
            await release.wait()
            return web.Response()

        rig.service.answers["hello"] = slow
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await rig.connect()
        bye = (await until(lambda: rig.service.events.get("bye")))[0]
        release.set()
        assert bye["requestContext"]["disconnectStatusCode"] == 1006
        assert rig.sockets.status()["connections"] == {}


async def test_who_is_let_in_during_a_drain_is_sent_away_at_once() -> None:
    async with open_rig() as rig, asyncio.TaskGroup() as tasks:
        release = asyncio.Event()

        async def slow(event: dict[str, Any]) -> web.StreamResponse:
            del event
            await release.wait()
            return web.Response()

        rig.service.answers["hello"] = slow
        connecting = tasks.create_task(rig.connect())
        await until(lambda: rig.service.events.get("hello"))
        draining = tasks.create_task(rig.sockets.drain(5.0))
        await until(lambda: rig.sockets.status()["draining"])
        release.set()
        client = await connecting
        assert (await closed_with(client))[0] == 1012
        await client.close()
        await draining


class RawClient:
    """A client that speaks with wsproto, and so can send what no client may."""

    def __init__(self, rig: SocketRig) -> None:
        self.rig = rig
        self.wire = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self, receive_buffer: int = 0) -> None:
        port = self.rig.server.port
        sock = sockets_of_the_system.socket()
        if receive_buffer:
            sock.setsockopt(sockets_of_the_system.SOL_SOCKET, sockets_of_the_system.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=4096)
        headers = [(b"Authorization", b"Bearer ana")]
        request = ws.Request(host=f"127.0.0.1:{port}", target="/v1/ws", extra_headers=headers)
        self.writer.write(self.wire.send(request))
        assert isinstance(await self.event(), ws.AcceptConnection)

    async def event(self) -> ws.Event:
        while True:
            for event in self.wire.events():
                return event
            data = await asyncio.wait_for(self.reader.read(4096), 5)
            self.wire.receive_data(data or None)

    async def close(self) -> None:
        self.writer.close()


MASK = b"\0\0\0\0"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x83\x80" + MASK, 1002),  # no such opcode
        (b"\xc1\x80" + MASK, 1002),  # a reserved bit without an extension
        (b"\x80\x81" + MASK + b"x", 1002),  # continues nothing
        (b"\x01\x81" + MASK + b"x" + b"\x81\x81" + MASK + b"y", 1002),  # a message inside a message
        (b"\x89\xfe\x00\x7e" + MASK + b"x" * 126, 1002),  # a ping that is too long
        (b"\x09\x80" + MASK, 1002),  # a ping in parts
        (b"\x81\x82" + MASK + b"\xff\xfe", 1007),  # text that is no text
        (b"\x88\x81" + MASK + b"\x03", 1002),  # half a close code
        (b"\x81\xff" + b"\x7f" * 8 + MASK, 1009),  # eight exabytes to come
    ],
    ids=lambda value: value.hex()[:24] if isinstance(value, bytes) else str(value),
)
async def test_a_malformed_frame_ends_the_connection_with_its_code(frames: bytes, code: int) -> None:
    async with open_rig() as rig:
        client = RawClient(rig)
        await client.open()
        client.writer.write(frames)
        event = await client.event()
        assert isinstance(event, ws.CloseConnection)
        assert event.code == code
        await client.close()
        assert "other" not in rig.service.events
        await until(lambda: rig.sockets.status()["connections"] == {})


async def test_a_message_in_many_frames_is_one_message() -> None:
    async with open_rig() as rig:
        rig.service.answers["other"] = echo
        client = RawClient(rig)
        await client.open()
        frames = [b"\x01\x81" + MASK + b"a", *[b"\x00\x81" + MASK + b"b"] * 50, b"\x80\x81" + MASK + b"c"]
        for frame in frames:
            client.writer.write(frame)
        event = await client.event()
        assert isinstance(event, ws.TextMessage)
        assert event.data == "a" + "b" * 50 + "c"
        await client.close()


async def test_who_reads_nothing_is_cut_off_and_holds_no_more_than_its_outbox() -> None:
    async with open_rig(unread_s=0.5, push_bytes_max=64 * 1024, messages_per_s=10_000.0) as rig:
        rig.service.answers["other"] = says("x" * 60_000)
        client = RawClient(rig)
        await client.open(receive_buffer=4096)
        for _ in range(200):
            client.writer.write(client.wire.send(ws.TextMessage(data="give")))
        await until(lambda: rig.counted("headworks_socket_ended_total", api="chat", ending="unread"), 30)
        assert len(rig.service.events["other"]) < 200
        await client.close()
