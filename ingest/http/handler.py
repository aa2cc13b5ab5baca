"""One HTTP connection of a worker: who is at its other end, what it carries, and when it is cut off.

aiohttp's request handler, with what it does not keep: the transport, the peer, a deadline for what the peer
does not take, and a WebSocket whose bytes it hands on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ingest.authentication import Door, Peer, peer_of
from ingest.counters import Closing, Protocol
from ingest.http.open_socket import OpenSocket
from ingest.pipeline import Producer
from routing.tenancy.identity import Identity
from runtime import clock
from runtime.problem import problem

if TYPE_CHECKING:
    from ingest.http.listener import HttpListener


class Handler(RequestHandler):
    """One connection, with who it turned out to be."""

    __slots__ = (
        "_over",
        "_socket",
        "_unread",
        "closing",
        "counted",
        "door",
        "heard_s",
        "identity",
        "listener",
        "peer",
        "producers",
        "speaks",
        "wire",
    )

    def __init__(self, manager: Server, **kwargs: Any) -> None:
        super().__init__(manager, loop=manager.loop, **kwargs)
        self.listener: HttpListener = manager.listener
        self.door = manager.door
        self.peer: Peer | None = None
        self.producers: dict[Identity, Producer] = {}
        self.identity: Identity | None = None
        self.counted: Identity | None = None
        self.wire: asyncio.Transport | None = None
        self.closing: Closing | None = None
        self.speaks: Protocol | None = None
        self._socket: OpenSocket | None = None
        self.heard_s = 0.0
        self._over = False
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember who is at the other end."""
        super().connection_made(transport)
        self.wire = cast("asyncio.Transport", transport)  # uvloop's and aiofastnet's are not subclasses
        self.peer = peer_of(transport)

    def data_received(self, data: bytes) -> None:
        """Note when the peer was heard last, and give what it says to who reads it."""
        self.heard_s = clock.monotonic_s()
        if self._socket is not None:
            self._socket.received(data)
        else:
            super().data_received(data)

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """Leave what follows a handshake unread until `turn_into`, which reads it otherwise than aiohttp."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count the connection out."""
        super().connection_lost(exc)
        self.wire = None
        self._was_read()
        self.listener.left(self)
        if self._socket is not None:
            self._socket.gone()

    def turn_into(self, protocol: Protocol | None, socket: OpenSocket) -> None:
        """Give all that is read from now on to `socket`, which also hears that the connection is lost."""
        if self.wire is None:
            socket.gone()
            return
        if protocol is not None:
            self.listener.count_as(self, protocol)
        self._socket = socket
        early, self._message_tail = self._message_tail, b""
        if self._buffer_paused:
            self._resume_reading_if_drained()
        if early:
            socket.received(early)

    def send(self, data: bytes) -> None:
        """Write `data`, unless the connection is closing."""
        if self.wire is not None and not self.wire.is_closing():
            self.wire.write(data)

    def stop_reading(self) -> None:
        """Let the kernel hold what the peer sends."""
        if self.wire is not None and not self.wire.is_closing():
            self.wire.pause_reading()

    def go_on_reading(self) -> None:
        """Read again after `stop_reading`."""
        if self.wire is not None and not self.wire.is_closing():
            self.wire.resume_reading()

    async def start(self) -> None:
        """Serve the connection; its peer then has a deadline to take the rest of what it is sent."""
        try:
            await super().start()
        finally:
            self._over = True
            self._must_be_read()

    def pause_writing(self) -> None:
        """Give the peer a deadline to take what it is sent."""
        super().pause_writing()
        self._must_be_read()
        if self._socket is not None:
            self._socket.pause_writing()

    def resume_writing(self) -> None:
        """Go on: the peer has taken most of it. When the connection is to close, it must take all."""
        super().resume_writing()
        if not self._over:
            self._was_read()
        if self._socket is not None:
            self._socket.resume_writing()

    def _must_be_read(self) -> None:
        if self.wire is not None and self._unread is None:
            deadline_s = self.listener.settings.request_deadline_s
            self._unread = self._loop.call_later(deadline_s, self.abort, Closing.LOST)

    def _was_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def abort(self, closing: Closing) -> None:
        """Cut the connection."""
        if self.wire is not None:
            self.closing = closing
            self.wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp itself refuses: a bad request line, headers that are too large."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and exc is not None:
            self.listener.events.unexpected("http", exc)
            text = "an error that should not be possible; it was logged"
        else:
            text = (message or "the request is not HTTP").partition("\n")[0][:200]
            peer = self.peer.address if self.peer is not None else "?"
            self.listener.events.protocol_error(Protocol.HTTP, text, peer)
        slug = HTTPStatus(status).phrase.lower().replace(" ", "-")
        response = problem(status, slug, text)
        response.force_close()
        del request
        return response


class Server(web.Server):
    """Makes the connections of one door."""

    def __init__(self, listener: HttpListener, door: Door) -> None:
        settings = listener.settings
        super().__init__(listener.handle, request_factory=listener.make_request)
        self.loop = asyncio.get_running_loop()
        self.listener = listener
        self.door = door
        self._options: dict[str, Any] = {
            "access_log": None,
            "keepalive_timeout": settings.keep_alive_s,
            "max_field_size": settings.header_bytes_max,
            "max_line_size": settings.header_bytes_max,
            "max_headers": 64,
            "auto_decompress": False,
            "lingering_time": 0.0,
        }

    def __call__(self) -> RequestHandler:
        """Return the handler of a new connection."""
        return Handler(self, **self._options)
