from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from multidict import CIMultiDict

from routing.upstream.http1 import (
    BUFFER_BYTES_MAX,
    HEADER_BYTES_MAX,
    BadAnswer,
    Broken,
    NotSent,
    Pool,
    Response,
    Stale,
    head_of,
)

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"


class Server:
    """Answers as a test says; counts its connections."""

    def __init__(self, behaviour: Callable[[Server], Behaviour]) -> None:
        self._behaviour = behaviour(self)
        self._open: set[asyncio.StreamWriter] = set()
        self._over = asyncio.Event()
        self.connections = 0
        self.requests: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._behaviour(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self._open.discard(writer)
        if not self._open:
            self._over.set()

    async def end(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        if self._open:
            self._over.clear()
            await self._over.wait()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        return head


@contextlib.asynccontextmanager
async def running(behaviour: Callable[[Server], Behaviour]) -> AsyncIterator[Server]:
    server = Server(behaviour)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await server.end()
        await listening.wait_closed()


def always(*answers: bytes, then_close: bool = False) -> Callable[[Server], Behaviour]:
    def made(server: Server) -> Behaviour:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await server.request(reader)
                for answer in answers:
                    writer.write(answer)
                    await writer.drain()
                    await asyncio.sleep(0)
                if then_close:
                    return

        return behave

    return made


def pool(server: Server, connections_max: int = 4, idle_s: float = 60.0) -> Pool:
    return Pool(
        "127.0.0.1", server.port, tls=None, server_name="", connections_max=connections_max, idle_s=idle_s
    )


def get(target: str = "/", method: str = "GET") -> bytes:
    return head_of(method, target, "things", [("Accept", "*/*")], b"")


async def asked(pool: Pool, method: str = "GET", *, idempotent: bool = True) -> Response:
    async with asyncio.timeout(5):
        return await pool.exchange(
            get(method=method),
            b"",
            idempotent=idempotent,
            bodiless=method == "HEAD",
            connect_s=5,
            timeout_s=5,
        )


async def test_an_answer_comes_with_its_head_and_body_and_the_connection_is_kept() -> None:
    async with running(always(OK)) as server:
        connections = pool(server)
        for _ in range(3):
            answer = await asked(connections)
            assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")
            assert await answer.read(10) == b"ok"
            answer.release()
        assert server.connections == 1
        assert server.requests[0] == b"GET / HTTP/1.1\r\nHost: things\r\nAccept: */*\r\n\r\n"
        connections.close()


@pytest.mark.parametrize("cut", range(1, len(OK)))
async def test_an_answer_may_come_cut_anywhere(cut: int) -> None:
    async with running(always(OK[:cut], OK[cut:])) as server:
        connections = pool(server)
        answer = await asked(connections)
        assert await answer.read(10) == b"ok"
        connections.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nX-Trailer: 1\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
)
async def test_chunks_and_informational_answers_are_understood(answer: bytes) -> None:
    async with running(always(answer)) as server:
        connections = pool(server)
        for _ in range(2):
            found = await asked(connections)
            assert found.status == 200
            assert await found.read(10) == b"ok"
            assert "Link" not in found.headers
            assert "X-Trailer" not in found.headers
        assert server.connections == 1
        connections.close()


async def test_a_body_may_end_with_the_connection() -> None:
    async with running(always(b"HTTP/1.1 200 OK\r\n\r\nall of it", then_close=True)) as server:
        connections = pool(server)
        assert await (await asked(connections)).read(100) == b"all of it"
        assert await (await asked(connections)).read(100) == b"all of it"
        assert server.connections == 2


async def test_head_has_no_body_whatever_its_length_says() -> None:
    async with running(always(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")) as server:
        connections = pool(server)
        for _ in range(2):
            answer = await asked(connections, "HEAD")
            assert answer.whole() == b""
            assert answer.headers["Content-Length"] == "1000"
        assert server.connections == 1
        connections.close()


@pytest.mark.parametrize("status", [204, 304])
async def test_some_answers_never_have_a_body(status: int) -> None:
    async with running(always(b"HTTP/1.1 %d x\r\n\r\n" % status)) as server:
        connections = pool(server)
        for _ in range(2):
            assert (await asked(connections)).whole() == b""
        assert server.connections == 1
        connections.close()


async def test_a_server_that_says_close_is_not_asked_again_there() -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with running(always(answer)) as server:
        connections = pool(server)
        for _ in range(2):
            assert await (await asked(connections)).read(10) == b"ok"
        assert server.connections == 2


async def test_nobody_listens() -> None:
    async with running(always(OK)) as server:
        connections = pool(server)
    with pytest.raises(NotSent, match="cannot connect"):
        await asked(connections)


def after_one(server: Server) -> Behaviour:
    """Answer once, and close when the next request comes."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.request(reader)
        writer.write(OK)
        await server.request(reader)

    return behave


async def test_a_kept_connection_that_ended_costs_an_idempotent_request_nothing() -> None:
    async with running(after_one) as server:
        connections = pool(server)
        for _ in range(4):
            assert await (await asked(connections)).read(10) == b"ok"
        assert server.connections == 4
        connections.close()


async def test_a_kept_connection_that_ended_is_told_to_whom_may_not_be_asked_twice() -> None:
    async with running(after_one) as server:
        connections = pool(server)
        await asked(connections, "POST", idempotent=False)
        with pytest.raises(Stale):
            await asked(connections, "POST", idempotent=False)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", Broken),
        (OK[:20], Broken),
        (b"SSH-2.0-OpenSSH\r\n\r\n", BadAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok", BadAnswer),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEADER_BYTES_MAX, BadAnswer),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", BadAnswer),
    ],
)
async def test_a_head_that_makes_no_sense_is_refused_by_name(answer: bytes, error: type[Exception]) -> None:
    async with running(always(answer, then_close=True)) as server:
        with pytest.raises(error):
            await asked(pool(server))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf of it",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf ",
    ],
)
async def test_a_body_that_breaks_off_is_an_error_and_not_its_end(answer: bytes) -> None:
    async with running(always(answer, then_close=True)) as server:
        found = await asked(pool(server))
        with pytest.raises(Broken):
            await found.read(100)


async def test_a_body_with_nonsense_in_it_is_an_error() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    async with running(always(answer)) as server:
        with pytest.raises(BadAnswer):
            await (await asked(pool(server))).read(100)


async def test_more_than_one_answer_is_nobodys() -> None:
    async with running(always(OK + OK)) as server:
        connections = pool(server)
        for _ in range(2):
            assert await (await asked(connections)).read(10) == b"ok"
        assert server.connections == 2


async def test_an_answer_larger_than_asked_for_is_refused() -> None:
    async with running(always(OK)) as server:
        connections = pool(server)
        with pytest.raises(BadAnswer, match="more than 1 bytes"):
            await (await asked(connections)).read(1)
        connections.close()


async def test_a_slow_reader_makes_the_server_wait() -> None:
    size = 64 * BUFFER_BYTES_MAX
    sent = 0

    def made(server: Server) -> Behaviour:
        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await server.request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(64):
                writer.write(bytes(BUFFER_BYTES_MAX))
                await writer.drain()
                sent += BUFFER_BYTES_MAX

        return behave

    async with running(made) as server:
        connections = pool(server)
        answer = await asked(connections)
        for _ in range(200):
            await asyncio.sleep(0.002)
        assert sent < size
        assert len(await answer.read(size)) == size
        connections.close()


async def test_an_answer_that_is_left_half_read_ends_its_connection() -> None:
    async with running(always(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf of it")) as server:
        connections = pool(server, connections_max=1)
        for _ in range(3):
            (await asked(connections)).release()
        assert server.connections == 3


async def test_who_gives_up_takes_the_connection_with_them() -> None:
    async with running(always(b"")) as server:
        connections = pool(server, connections_max=1)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await connections.exchange(get(), b"", idempotent=True, connect_s=5, timeout_s=5)
        await asyncio.sleep(0)
        assert server.connections == 2


async def test_no_more_connections_than_allowed_and_everybody_is_served() -> None:
    async with running(always(OK)) as server:
        connections = pool(server, connections_max=3)

        async def one() -> bytes:
            answer = await asked(connections)
            return await answer.read(10)

        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(one()) for _ in range(100)]
        assert {task.result() for task in answers} == {b"ok"}
        assert server.connections == 3
        assert connections.open == 3
        connections.close()


async def test_who_waits_for_a_connection_may_give_up_and_the_next_is_served() -> None:
    async with running(always(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")) as server:
        connections = pool(server, connections_max=1)
        first = await asked(connections)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await connections.exchange(get(), b"", idempotent=True, connect_s=5, timeout_s=5)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(asked(connections))
            await asyncio.sleep(0)
            first.release()
        assert waiting.result().status == 200
        waiting.result().release()


async def test_what_was_idle_for_too_long_is_not_used_again() -> None:
    async with running(always(OK)) as server:
        connections = pool(server, idle_s=0.0)
        for _ in range(2):
            await (await asked(connections)).read(10)
        assert server.connections == 2
        connections.close()


def test_a_head_is_framed_for_its_body() -> None:
    headers = CIMultiDict([("host", "evil"), ("content-length", "99"), ("X-A", "b"), ("X-A", "c")])
    assert head_of("POST", "/x?y=1", "things:80", headers.items(), b"four") == (
        b"POST /x?y=1 HTTP/1.1\r\nHost: things:80\r\nX-A: b\r\nX-A: c\r\nContent-Length: 4\r\n\r\n"
    )
    assert b"Content-Length: 0" in head_of("POST", "/", "h", [], b"")
    assert b"Content-Length" not in head_of("GET", "/", "h", [], b"")


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y", "a\rb", "\r\n"])
def test_a_header_cannot_begin_another(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        head_of("GET", "/", "h", [("X-A", value)], b"")
    with pytest.raises(ValueError, match="line break"):
        head_of("GET", f"/{value}", "h", [], b"")


async def test_who_has_sent_nothing_in_time_is_told_so_and_who_has_is_told_of_the_time() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with running(lambda _: silent) as server:
        connections = pool(server, connections_max=1)
        with pytest.raises(TimeoutError):
            await connections.exchange(get(), b"", idempotent=True, connect_s=5, timeout_s=0.05)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(
                connections.exchange(get(), b"", idempotent=True, connect_s=5, timeout_s=5)
            )
            await asyncio.sleep(0)
            with pytest.raises(NotSent):
                await connections.exchange(get(), b"", idempotent=True, connect_s=5, timeout_s=0.05)
            first.cancel()
        connections.abort()


async def test_a_header_is_utf_8_or_else_iso_8859_1() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Place: M\xfcnchen\r\nX-Right: M\xc3\xbcnchen\r\n\r\n"
    async with running(always(answer)) as server:
        connections = pool(server)
        headers = (await asked(connections)).headers
        assert headers["X-Right"] == headers["X-Place"] == "M\u00fcnchen"
        connections.close()
