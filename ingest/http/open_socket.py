"""An open WebSocket: aiohttp shakes hands, and from then on its bytes are ours, a read at a time.

The connection stays aiohttp's for all else: its list of connections, its shutdown and its deadlines.

Limits: of a peer that is not to be read, `UNREAD_BYTES_MAX` and one read are kept, so that its end is heard;
a peer has `CLOSE_S` to answer a close.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from ingest.counters import Protocol
from protocols.websocket import BINARY, NO_CODE, NORMAL, PONG, Frames, encode, encode_close

if TYPE_CHECKING:
    from ingest.http.handler import Handler

UNREAD_BYTES_MAX: Final = 65_536
CLOSE_S: Final = 2.0


class Upgrade(web.WebSocketResponse):
    """The answer to a handshake, after which aiohttp neither reads nor writes."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: the closing handshake is ours too."""


class OpenSocket:
    """What MQTT and our own frames have in common. All of it happens on the event loop."""

    def __init__(self, handler: Handler, speaks: Protocol, *, takes_text: bool) -> None:
        self._handler = handler
        self._speaks = speaks
        self._frames = Frames(handler.listener.settings.websocket_message_bytes_max, takes_text=takes_text)
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._reading = True
        self._stopped = False
        self._closing = False
        self.over = asyncio.Event()

    # What a subclass does.

    def take(self, messages: list[bytes]) -> None:
        """Take the messages of one read."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        """Hear that the peer does not take what it is sent."""
        raise NotImplementedError

    def resume_writing(self) -> None:
        """Hear that it does."""
        raise NotImplementedError

    def gone(self) -> None:
        """Hear that the connection is lost."""
        self.over.set()

    # Reading.

    def received(self, data: bytes) -> None:
        """Take what was read."""
        if not self._reading:
            self._unread += data
            if len(self._unread) >= UNREAD_BYTES_MAX and not self._stopped:
                self._stopped = True
                self._handler.stop_reading()
            return
        if self._unread:
            data = bytes(self._unread) + data
            self._unread.clear()
        frames = self._frames
        messages = frames.feed(data)
        if messages and not self._closing:
            self.take(messages)
        if frames.attention:
            frames.attention = False
            self._attend()

    def _attend(self) -> None:
        frames = self._frames
        ping, frames.ping = frames.ping, None
        if ping is not None and not self._closing:
            self.send(PONG, ping)
        if frames.failure is not None and not self._closing:
            code, text = frames.failure
            peer = self._handler.peer
            self._handler.listener.events.protocol_error(self._speaks, text, peer.address if peer else "?")
            self.say_goodbye(code, text)
        if frames.closed is not None:
            self.say_goodbye(NO_CODE if frames.closed == NO_CODE else NORMAL, "")
            self.over.set()

    def pause_reading(self) -> None:
        """Take nothing more."""
        if not self._closing:
            self._reading = False

    def resume_reading(self) -> None:
        """Go on in the next turn of the loop."""
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._reading or self.over.is_set():
            return
        if self._stopped:
            self._stopped = False
            self._handler.go_on_reading()
        if self._unread:
            self.received(b"")

    # Writing.

    def send(self, opcode: int, payload: bytes) -> None:
        """Send one frame, unless a close was sent."""
        if not self._closing:
            self._handler.send(encode(opcode, payload))

    def write(self, data: bytes, /) -> None:
        """Send one binary message."""
        self.send(BINARY, data)

    def say_goodbye(self, code: int, text: str) -> None:
        """Begin the closing handshake, or answer it; it is over when the peer answers, or in `CLOSE_S`."""
        if self._closing:
            return
        self._handler.send(encode_close(code, text))
        self._closing = True
        self._loop.call_later(CLOSE_S, self.over.set)
        self.resume_reading()
