"""One HTTP connection over real sockets: what it may wait for, and for how long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from ingest.authentication import Door
from ingest.counters import Closing
from ingest.http.handler import Handler, Server
from ingest.http.listener import TRACEPARENT
from ingest.settings import Http

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
BUFFER_BYTES = 4096


class Listener:
    """Answers every request with `size` bytes, and notes how each connection ended."""

    def __init__(self, settings: Http, size: int) -> None:
        self.settings = settings
        self.events = self
        self.closings: list[Closing | None] = []
        self._size = size

    async def handle(self, _request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bytes(self._size))

    def make_request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())

    def left(self, handler: Handler) -> None:
        self.closings.append(handler.closing)


class Served:
    """A connection to a listener through sockets that hold next to nothing."""

    def __init__(self, listener: Listener, client: socket.socket) -> None:
        self.listener = listener
        self.client = client

    async def closings(self) -> list[Closing | None]:
        """Return how the connection ended, once it has."""
        async with asyncio.timeout(10):
            while not self.listener.closings:
                await asyncio.sleep(0.01)
        return self.listener.closings


async def serve(size: int, **settings: float) -> Served:
    listener = Listener(Http(**settings), size)  # type: ignore[arg-type]  # seconds only
    client, peer = socket.socketpair()
    client.setblocking(False)
    for end in (client, peer):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    server = Server(listener, Door("test", frozenset()))  # type: ignore[arg-type]  # a small fake
    await asyncio.get_running_loop().connect_accepted_socket(server, peer)
    return Served(listener, client)


@pytest.fixture
async def served() -> AsyncIterator[list[Served]]:
    opened: list[Served] = []
    yield opened
    for each in opened:
        each.client.close()
        await each.closings()


async def test_a_peer_that_does_not_read_its_answers_is_cut_off(served: list[Served]) -> None:
    served.append(await serve(200_000, request_deadline_s=0.2, keep_alive_s=60.0))
    await asyncio.get_running_loop().sock_sendall(served[0].client, REQUEST)
    assert await served[0].closings() == [Closing.LOST]


async def test_a_peer_that_leaves_the_end_of_an_answer_unread_is_cut_off(served: list[Served]) -> None:
    """The rest is too little to pause writing, and the connection is idle, so its keep-alive closes it."""
    served.append(await serve(40_000, request_deadline_s=0.2, keep_alive_s=0.2))
    await asyncio.get_running_loop().sock_sendall(served[0].client, REQUEST)
    assert await served[0].closings() == [Closing.LOST]


async def test_a_peer_that_reads_slowly_but_reads_is_not_cut_off(served: list[Served]) -> None:
    served.append(await serve(400_000, request_deadline_s=0.5, keep_alive_s=60.0))
    loop = asyncio.get_running_loop()
    client = served[0].client
    await loop.sock_sendall(client, REQUEST * 3)
    began_s = loop.time()
    received = 0
    async with asyncio.timeout(20):
        while received < 1_200_000:
            received += len(await loop.sock_recv(client, 8192))
            await asyncio.sleep(0.005)
    assert loop.time() - began_s > 0.6, "longer than the deadline"
    assert served[0].listener.closings == []


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n", False),
        ('00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","payload":1', False),
        ("", False),
    ],
)
def test_a_trace_context_is_taken_when_it_is_one(text: str, taken: bool) -> None:
    assert (TRACEPARENT.fullmatch(text) is not None) is taken
