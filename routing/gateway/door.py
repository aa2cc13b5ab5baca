"""The public listener: accepts connections up to a limit, with TLS if asked for, and speaks HTTP/1.1 on them.

A driver. TLS contexts are asked for with each connection, so that new certificates and revocation lists hold
from the next one on. A peer that does not read is cut off after `write_deadline_s`; one that sends no whole
head within `head_deadline_s` of connecting, or within `keep_alive_s` of its last answer, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, cast

import aiofastnet
from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from routing.gateway.malformed import named
from runtime.problem import problem

SHUTDOWN_DEADLINE_S: Final = 2.0
LINGER_S: Final = 1.0
"""How long what a refused caller still sends is read, so that it can read the answer."""
ACCEPTED_AT_ONCE_MAX: Final = 64
WAIT_S: Final = 0.05
OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Answering = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class SlowHead(Exception):
    """The first head of a connection was not complete in time."""


class Connection(RequestHandler):
    """One connection of the public listener."""

    __slots__ = ("_first", "_heard", "_unread", "door", "peer", "secure", "wire")

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, loop=server.loop, **options)
        self.door = server.door
        self.peer = ""
        self.secure = False
        self.wire: asyncio.Transport | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._first: asyncio.TimerHandle | None = None
        self._heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember who is at the other end, and give it a deadline to say what it wants."""
        super().connection_made(transport)
        self.wire = cast("asyncio.Transport", transport)  # uvloop's and aiofastnet's are not subclasses
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if name else ""
        self.secure = transport.get_extra_info("ssl_object") is not None
        self._first = self._loop.call_later(self.door.head_deadline_s, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        """Take what the peer says; a body that cannot be parsed ends at once for who reads it."""
        self._heard = True
        super().data_received(data)
        if self._messages and self._current_request is not None:
            last, _ = self._messages[-1]
            content = self._current_request.content
            if isinstance(last, _ErrInfo) and not content.is_eof():
                content.set_exception(last.exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the deadlines of a peer that is gone."""
        super().connection_lost(exc)
        self.wire = None
        if self._first is not None:
            self._first.cancel()
        self.resume_writing_deadline()

    def pause_writing(self) -> None:
        """Give the peer a deadline to take what it is sent."""
        super().pause_writing()
        if self.wire is not None and self._unread is None:
            self._unread = self._loop.call_later(self.door.write_deadline_s, self.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self.resume_writing_deadline()

    def resume_writing_deadline(self) -> None:
        """End the deadline that `pause_writing` began."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def abort(self) -> None:
        """Cut the connection, so that what was sent cannot be taken for the whole."""
        if self.wire is not None:
            self.wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp itself refuses: a bad line, smuggled lengths, a head that is too large."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.door.failed(exc or RuntimeError("no cause was given"))
            slug, text = "internal-error", "an error that should not be possible; it was logged"
        elif isinstance(exc, SlowHead):
            status, slug, text = 408, "slow-head", "the head of the request took too long"
        else:
            status, slug, text = named(exc, message or "")
        if request.method == "UNKNOWN":
            request._version = HttpVersion11  # which aiohttp does not know of what it could not parse
        response = problem(status, slug, text, headers={"Server": "headworks"})
        self.door.unparsed(slug)
        response.force_close()
        return response

    def _head_is_late(self) -> None:
        """Refuse a client that has begun a head and not ended it; one that said nothing is let go of."""
        self._first = None
        if self._request_count or self.wire is None:
            return
        if not self._heard:
            self.wire.close()
            return
        self._messages.append((_ErrInfo(408, SlowHead(), ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Server(web.Server):
    """Makes connections. A handler is cancelled when its caller is gone."""

    def __init__(self, door: Door, answer: Answering, *, options: dict[str, Any]) -> None:
        super().__init__(answer, handler_cancellation=True)
        self.loop = asyncio.get_running_loop()
        self.door = door
        self._options = options

    def __call__(self) -> RequestHandler:
        """Return the protocol of a new connection."""
        return Connection(self, **self._options)


class Door:
    """One listening socket. `failed` hears of errors that should not be, `unparsed` of what is not HTTP."""

    def __init__(
        self,
        *,
        answer: Answering,
        tls: Callable[[], ssl.SSLContext] | None,
        connections_max: int,
        header_bytes_max: int,
        headers_max: int,
        head_deadline_s: float,
        keep_alive_s: float,
        write_deadline_s: float,
        handshake_deadline_s: float,
        handshakes_max: int,
        failed: Callable[[BaseException], None],
        unparsed: Callable[[str], None],
        turned_away: Callable[[str], None],
    ) -> None:
        self.head_deadline_s = head_deadline_s
        self.write_deadline_s = write_deadline_s
        self.failed = failed
        self.unparsed = unparsed
        self._turned_away = turned_away
        self._tls = tls
        self._connections_max = connections_max
        self._handshake_deadline_s = handshake_deadline_s
        self._handshakes_max = handshakes_max
        self._handshakes = 0
        self._sock: socket.socket | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._loop = asyncio.get_running_loop()
        self._server = Server(
            self,
            answer,
            options={
                "access_log": None,
                "keepalive_timeout": keep_alive_s,
                "max_field_size": header_bytes_max,
                "max_line_size": header_bytes_max,
                "max_headers": headers_max,
                "auto_decompress": False,
                "lingering_time": LINGER_S,
            },
        )

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._server._connections)

    def open(self, sock: socket.socket, tasks: asyncio.TaskGroup) -> None:
        """Accept on a listening socket; handshakes belong to `tasks`."""
        self._sock = sock
        self._tasks = tasks
        self._loop.add_reader(sock.fileno(), self._ready)

    def close(self) -> None:
        """Accept nobody any more, and close connections that are idle; what is under way goes on."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        self._server.pre_shutdown()

    async def drain(self, deadline_s: float) -> None:
        """Let what is under way end, and cut it off at the deadline."""
        await self._server.shutdown(deadline_s)

    def _ready(self) -> None:
        assert self._sock is not None
        for _ in range(ACCEPTED_AT_ONCE_MAX):
            if self._handshakes >= self._handshakes_max:
                self._pause()
                return
            try:
                peer, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    self._turned_away("descriptors")
                    self._pause()
                    return
                continue  # the peer is gone already
            self._take(peer)

    def _take(self, peer: socket.socket) -> None:
        if self.connections + self._handshakes >= self._connections_max:
            self._turned_away("connections")
            peer.close()
            return
        peer.setblocking(False)
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._handshakes += 1
        assert self._tasks is not None
        self._tasks.create_task(self._connect(peer))

    async def _connect(self, peer: socket.socket) -> None:
        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(self._server, peer)
            else:
                await aiofastnet.connect_accepted_socket(
                    self._loop,
                    self._server,
                    peer,
                    ssl=self._tls(),
                    ssl_handshake_timeout=self._handshake_deadline_s,
                    ssl_shutdown_timeout=SHUTDOWN_DEADLINE_S,
                )
        except (OSError, EOFError) as error:
            peer.close()
            self._turned_away("handshake")
            error.__traceback__ = None  # aiofastnet's future keeps the error, whose frames keep its buffers
        except asyncio.CancelledError:
            peer.close()
            raise
        finally:
            self._handshakes -= 1

    def _pause(self) -> None:
        """Leave peers in the backlog for a while."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.call_later(WAIT_S, self._resume)

    def _resume(self) -> None:
        if self._sock is not None:
            self._loop.add_reader(self._sock.fileno(), self._ready)


def listen(host: str, port: int, *, backlog: int) -> socket.socket:
    """Return a listening socket."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock
