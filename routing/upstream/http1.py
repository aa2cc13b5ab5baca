"""HTTP/1.1 to one server: connections that are kept, one exchange at a time on each.

aiohttp's client takes three times what its server does for a request, and a gateway makes one for each that
it takes. So this is only what a gateway needs: a head and a whole body out, a head and a streamed body in, on
llhttp.

- What is sent is the caller's: it has removed hop-by-hop headers, and this module frames the body itself.
- An answer is complete when its body is; until then a reader that is slow makes its server wait.
- A connection that a caller leaves in the middle of an exchange is closed: its next bytes are another's.
- `NotSent` is safe to try again whatever the method: the server has read nothing of it. `Stale` is safe for
  what is idempotent only: most likely the server closed a kept connection in that moment, but nobody knows.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, cast

import httptools
from multidict import CIMultiDict

HEADER_BYTES_MAX: Final = 65_536
BUFFER_BYTES_MAX: Final = 262_144
"""What of a body may wait for its reader before the server has to."""
JOINED_BYTES_MAX: Final = 65_536
"""A body up to this is sent with its head in one call."""
INFORMATIONAL: Final = range(100, 200)
OURS: Final = frozenset({"host", "content-length", "transfer-encoding"})


class Http1Error(Exception):
    """An exchange failed; the text says how."""


class NotSent(Http1Error):
    """The server has read nothing of the request: nobody listens, or the connection had ended before."""


class Broken(Http1Error):
    """The connection ended before its answer was complete."""


class Stale(Broken):
    """A kept connection ended without a byte of an answer."""


class BadAnswer(Http1Error):
    """The server did not speak HTTP/1.1, or its head is too large."""


class Response:
    """An answer whose head has come; read its body, then `release` it."""

    __slots__ = ("_arrived", "_connection", "_error", "_parts", "_waiting", "complete", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.complete = False
        self._parts: deque[bytes] = deque()
        self._waiting = 0
        self._arrived: asyncio.Future[None] | None = None
        self._error: Http1Error | None = None

    def whole(self) -> bytes | None:
        """Return the body when all of it is here already, which is usual; None when it is still coming."""
        if not self.complete or self._error is not None:
            return None
        parts = self._parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def part(self) -> bytes:
        """Return what has come of the body since the last part, or b"" at its end.

        Raises `Broken` or `BadAnswer` when it does not come whole, after what came of it.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        part = self._parts.popleft()
        self._waiting -= len(part)
        if self._connection is not None and self._waiting < BUFFER_BYTES_MAX:
            self._connection.resume()
        return part

    async def read(self, bytes_max: int) -> bytes:
        """Return the whole body; raises `BadAnswer` when it is larger than that."""
        whole = self.whole()
        if whole is None:
            parts, size = [], 0
            while part := await self.part():
                parts.append(part)
                size += len(part)
                if size > bytes_max:
                    break
            whole = b"".join(parts)
        if len(whole) > bytes_max:
            raise BadAnswer(f"the answer has more than {bytes_max} bytes")
        return whole

    def release(self) -> None:
        """Give the connection back; one whose answer is not complete is closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.done(self)

    def feed(self, part: bytes) -> bool:
        """Take a part of the body; return whether the server has to wait."""
        self._parts.append(part)
        self._waiting += len(part)
        self._wake()
        return self._waiting >= BUFFER_BYTES_MAX

    def end(self, error: Http1Error | None) -> None:
        """Take the end of the body, or why there is none; the connection is somebody else's from now on."""
        self._connection = None
        self.complete = error is None
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


class Connection(asyncio.Protocol):
    """One connection, driven by its transport; `free` hears when it may be used again, `left` of its end."""

    def __init__(self, *, free: Callable[[Connection], None], left: Callable[[Connection], None]) -> None:
        self._free = free
        self._left = left
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[str, str]] = []
        self._header_bytes = 0
        self._head: asyncio.Future[Response] | None = None
        self._response: Response | None = None
        self._bodiless = False
        self._until_end = False
        self._paused = False
        self._used = False
        self._received = False
        self.idle_since_s = 0.0

    # What a pool does with it.

    async def exchange(self, head: bytes, body: bytes, *, bodiless: bool) -> Response:
        """Send a request and return its answer when its head is here; `bodiless` is for HEAD."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise NotSent("the connection has ended")
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._head = answered
        self._bodiless = bodiless
        self._received = False
        self._header_bytes = 0
        if len(body) < JOINED_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        try:
            return await answered
        except asyncio.CancelledError:
            # When the head is here all the same, somebody else may be using this connection already.
            if not answered.done() or answered.cancelled():
                self.abort()
            elif answered.exception() is None:
                answered.result().release()
            raise

    def done(self, response: Response) -> None:
        """Hear that nobody reads this answer any more."""
        if self._response is response:  # not complete
            self.abort()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether it is open."""
        return self._transport is not None and not self._transport.is_closing()

    # What its transport does with it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hear that it is open."""
        self._transport = cast("asyncio.Transport", transport)  # which uvloop's is not by name

    def data_received(self, data: bytes) -> None:
        """Take what the server sends."""
        self._received = True
        if self._head is None and self._response is None:
            self.abort()  # nobody asked
            return
        self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__ if isinstance(error.__context__, Http1Error) else None
            self._fail(cause or BadAnswer("the server does not speak HTTP/1.1"))
            return
        if self._head is not None and self._header_bytes > HEADER_BYTES_MAX:
            self._fail(BadAnswer(f"the head of the answer has more than {HEADER_BYTES_MAX} bytes"))

    def eof_received(self) -> bool:
        """Hear that the server sends no more."""
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Hear that it has ended."""
        self._transport = None
        response = self._response
        if response is not None and self._until_end and error is None:
            self._response = None
            response.end(None)
        elif self._used and not self._received:
            self._fail(Stale("a kept connection ended"))
        else:
            self._fail(Broken("the connection ended before the answer was complete"))
        self._left(self)

    def _fail(self, error: Http1Error) -> None:
        response, self._response = self._response, None
        head, self._head = self._head, None
        if response is not None:
            response.end(error)
        elif head is not None and not head.done():
            head.set_exception(error)
        self.abort()

    # What the parser finds.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers come here too, and are passed over."""
        if self._response is None:
            self._headers.append((_text(name), _text(value)))

    def on_headers_complete(self) -> None:
        """Take the end of a head."""
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if status in INFORMATIONAL:
            return
        head, self._head = self._head, None
        if head is None or head.done():
            raise BadAnswer("an answer that nobody asked for")
        response = self._response = Response(self)
        response.status = status
        response.headers = found = CIMultiDict(headers)
        self._until_end = (
            "Content-Length" not in found and "Transfer-Encoding" not in found and status not in {204, 304}
        )
        head.set_result(response)
        if self._bodiless:
            self._end()
            # What llhttp would take for a body is the next answer.
            self._parser = httptools.HttpResponseParser(self)

    def on_body(self, part: bytes) -> None:
        """Take a part of a body."""
        if self._response is not None and self._response.feed(part) and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Take the end of an answer."""
        if self._response is not None:
            self._end()

    def _end(self) -> None:
        response, self._response = self._response, None
        assert response is not None
        keeps = self._parser.should_keep_alive() or (self._bodiless and _keeps(response.headers))
        response.end(None)
        self.resume()
        self._used = True
        if keeps and self.usable:
            self._free(self)
        elif self._transport is not None:
            self._transport.close()


def _text(octets: bytes) -> str:
    """Return UTF-8 as it is meant, and anything else as ISO-8859-1, as it once was (RFC 9110, 5.5)."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return octets.decode("iso-8859-1")


def _keeps(headers: CIMultiDict[str]) -> bool:
    """Return whether a server keeps a connection: HTTP/1.1 does unless it says otherwise (RFC 9112, 9.3)."""
    return "close" not in headers.get("Connection", "").lower()


class Pool:
    """Connections to one server, at most `connections_max`; who finds none waits for its turn.

    What is idle for `idle_s` is not used again, since the server may be about to close it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        server_name: str,
        connections_max: int,
        idle_s: float,
    ) -> None:
        assert connections_max >= 1
        self._address = (host, port)
        self._tls = tls
        self._server_name = server_name or host
        self._connections_max = connections_max
        self._idle_s = idle_s
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def exchange(
        self,
        head: bytes,
        body: bytes,
        *,
        idempotent: bool,
        bodiless: bool = False,
        connect_s: float,
        timeout_s: float,
    ) -> Response:
        """Send a request and return its answer when its head is here, within `timeout_s`.

        What is idempotent is sent once more, on a new connection, when a kept one turns out to have ended.
        Raises `Http1Error`, and `TimeoutError` when it was sent and there is no answer.
        """
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connection(connect_s, fresh=False)
                sent = True
                try:
                    return await connection.exchange(head, body, bodiless=bodiless)
                except Stale:
                    if not idempotent:
                        raise
                sent = False
                connection = await self._connection(connect_s, fresh=True)
                sent = True
                return await connection.exchange(head, body, bodiless=bodiless)
        except TimeoutError as error:
            if sent:
                raise
            raise NotSent(f"no connection in {timeout_s:.3g} s") from error

    async def _connection(self, connect_s: float, *, fresh: bool) -> Connection:
        loop = asyncio.get_running_loop()
        while True:
            while self._idle and not fresh:
                connection = self._idle.pop()
                if connection.usable and loop.time() - connection.idle_since_s < self._idle_s:
                    return connection
                connection.abort()
            if fresh and len(self._open) + self._opening >= self._connections_max and self._idle:
                self._idle.popleft().abort()
            if len(self._open) + self._opening < self._connections_max:
                return await self._opened(connect_s)
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next()
                raise

    async def _opened(self, connect_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        host, port = self._address
        self._opening += 1
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(free=self._freed, left=self._ended),
                    host,
                    port,
                    ssl=self._tls,
                    server_hostname=self._server_name if self._tls is not None else None,
                )
        except OSError as error:  # which TimeoutError and ssl.SSLError are too
            self._next()
            raise NotSent(f"cannot connect: {error.strerror or type(error).__name__}") from error
        except asyncio.CancelledError:
            self._next()
            raise
        finally:
            self._opening -= 1
        self._open.add(connection)
        return connection

    def _freed(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(connection)
        self._next()

    def _ended(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._next()

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._open)

    def close(self) -> None:
        """End what is idle now, and what is in use when its exchange is over."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    def abort(self) -> None:
        """End all of it now."""
        self.close()
        for connection in tuple(self._open):
            connection.abort()


def head_of(method: str, target: str, host: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """Return the head of a request, framed for its body; raises `ValueError` for what would break a line.

    Host, Content-Length and Transfer-Encoding among `headers` are passed over: they are ours.
    """
    lines = [f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n"]
    for name, value in headers:
        if name.lower() not in OURS:
            lines.append(f"{name}: {value}\r\n")
    if body or method in {"POST", "PUT", "PATCH"}:
        lines.append(f"Content-Length: {len(body)}\r\n")
    text = "".join(lines)
    if not len(lines) + 1 == text.count("\r\n") == text.count("\n") == text.count("\r"):
        raise ValueError("a header has a line break in it")
    return (text + "\r\n").encode("utf-8", "surrogateescape")
