"""One open WebSocket: what waits to be written to it, when it was heard, and why it ends.

- Messages wait in an outbox that is bounded by bytes. A push that finds no room is refused; an answer waits
  for room, and then nothing more is read from the client.
- A client that takes nothing of a message for `unread_s` is cut off.
- What ends a socket first is the reason; what comes after it is too late.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

MESSAGE_OVERHEAD_BYTES: Final = 64
"""What an empty message counts in an outbox."""
NEVER_S: Final = float("inf")


class Ending(enum.Enum):
    """Why a socket ended; the values are labels of metrics."""

    CLIENT = "client"
    LOST = "lost"
    IDLE = "idle"
    DURATION = "duration"
    EXPIRED = "expired"
    REFUSED = "refused"
    TOO_BIG = "too_big"
    MALFORMED = "malformed"
    FLOOD = "flood"
    COMMAND = "command"
    UNREAD = "unread"
    DELETED = "deleted"
    DRAIN = "drain"
    FAILED = "failed"


class Close(NamedTuple):
    """The code and reason of a close frame (RFC 6455, 7.4)."""

    code: int
    reason: str


CLOSES: Final = {
    Ending.CLIENT: Close(1000, ""),
    Ending.LOST: Close(1006, "the connection was lost"),
    Ending.IDLE: Close(1001, "idle"),
    Ending.DURATION: Close(1001, "open for too long"),
    Ending.EXPIRED: Close(1008, "the credential has expired"),
    Ending.REFUSED: Close(1008, "the credential is no longer accepted"),
    Ending.TOO_BIG: Close(1009, "the message is too big"),
    Ending.MALFORMED: Close(1002, "not WebSocket"),
    Ending.FLOOD: Close(1008, "too many messages"),
    Ending.COMMAND: Close(1008, "no such command"),
    Ending.UNREAD: Close(1013, "reads too slowly"),
    Ending.DELETED: Close(1000, "closed by the service"),
    Ending.DRAIN: Close(1012, "the gateway restarts: connect again"),
    Ending.FAILED: Close(1011, "internal error"),
}
UNANNOUNCED: Final = frozenset({Ending.CLIENT, Ending.LOST, Ending.TOO_BIG, Ending.MALFORMED})
"""The peer is gone, or the library has answered already."""
FINISHED: Final = frozenset({Ending.DRAIN, Ending.DURATION, Ending.DELETED, Ending.IDLE})
"""What is under way is brought to an end first."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """When a socket is to be pinged, and when it ends by itself; `until_s` is the end of its credential."""

    ping_s: float
    idle_s: float
    duration_s: float
    unread_s: float
    until_s: float | None


class Heard(msgspec.Struct, kw_only=True):
    """When what last happened, on one monotonic clock; `pinged_s` is of a ping without an answer."""

    opened_s: float
    frame_s: float
    message_s: float
    pinged_s: float | None = None
    held_up: bool = False


def due(heard: Heard, timing: Timing, now_s: float) -> tuple[Ending | bool, float]:
    """Return why a socket ends, or whether it is to be pinged now; and how long nothing will be due.

    While we ourselves do not read (`held_up`), silence proves nothing. `until_s` is on the clock of `now_s`.
    """
    until_s = NEVER_S if timing.until_s is None else timing.until_s
    ends = {
        Ending.EXPIRED: until_s,
        Ending.DURATION: heard.opened_s + timing.duration_s,
        Ending.IDLE: NEVER_S if heard.held_up else heard.message_s + timing.idle_s,
    }
    for ending, at_s in ends.items():
        if at_s <= now_s:
            return ending, 0.0
    if heard.held_up:
        return False, min(timing.ping_s, *(at_s - now_s for at_s in ends.values()))
    silent_s = now_s - heard.frame_s
    if heard.pinged_s is not None:
        answer_s = heard.pinged_s + timing.ping_s
        if answer_s <= now_s:
            return Ending.LOST, 0.0
        return False, min(at_s - now_s for at_s in (answer_s, *ends.values()))
    if silent_s >= timing.ping_s:
        return True, 0.0
    return False, min(timing.ping_s - silent_s, *(at_s - now_s for at_s in ends.values()))


def size(message: str | bytes) -> int:
    """Return the bytes that a message takes on the wire, without its frame."""
    return len(message) if isinstance(message, bytes) or message.isascii() else len(message.encode())


class OpenSocket:
    """A WebSocket after its handshake, with its outbox. One task calls `write`, any may call the others."""

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_filled",
        "_outbox",
        "_room",
        "close",
        "ended",
        "ending",
        "heard",
        "socket",
        "timing",
    )

    def __init__(
        self, socket: web.WebSocketResponse, timing: Timing, *, bytes_max: int, now_s: float
    ) -> None:
        self.socket = socket
        self.timing = timing
        self.heard = Heard(opened_s=now_s, frame_s=now_s, message_s=now_s)
        self.ended = asyncio.Event()
        self.ending: Ending | None = None
        self.close = CLOSES[Ending.LOST]
        self._outbox: deque[str | bytes] = deque()
        self._bytes = 0
        self._bytes_max = bytes_max
        self._filled = asyncio.Event()
        self._room = asyncio.Event()

    def end(self, ending: Ending, close: Close | None = None) -> None:
        """End the socket, unless it has been ended already."""
        if self.ending is None:
            self.ending = ending
            self.close = close or CLOSES[ending]
            self.ended.set()
            self._room.set()

    @property
    def waiting_bytes(self) -> int:
        """Return what the outbox holds."""
        return self._bytes

    def offer(self, message: str | bytes) -> bool:
        """Put a message into the outbox; False when it has no room. One that never has may be alone."""
        taken = size(message) + MESSAGE_OVERHEAD_BYTES
        if self._bytes and self._bytes + taken > self._bytes_max:
            return False
        self._outbox.append(message)
        self._bytes += taken
        self._filled.set()
        return True

    async def put(self, message: str | bytes) -> None:
        """Put a message into the outbox as soon as it has room, unless the socket ends before it has."""
        while not self.offer(message):
            if self.ending is not None and self.ending not in FINISHED:
                return
            self._room.clear()
            await self._room.wait()

    async def written(self) -> None:
        """Wait until nothing waits in the outbox, or the socket has ended."""
        while self.ending is None and self._bytes:
            self._room.clear()
            await self._room.wait()

    async def write(self) -> None:
        """Write what comes into the outbox, until the client takes nothing more."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            try:
                while self._outbox:
                    async with asyncio.timeout(self.timing.unread_s):
                        await self._send_next()
            except TimeoutError:
                self.end(Ending.UNREAD)
                return
            except OSError:
                self.end(Ending.LOST)
                return

    async def _send_next(self) -> None:
        """Send a message; once begun it is on its way, even when this is cancelled."""
        message = self._outbox.popleft()
        try:
            if isinstance(message, bytes):
                await self.socket.send_bytes(message)
            else:
                await self.socket.send_str(message)
        finally:
            self._bytes -= size(message) + MESSAGE_OVERHEAD_BYTES
            self._room.set()

    async def ping(self, now_s: float) -> None:
        """Ask whether the client is there."""
        self.heard.pinged_s = now_s
        try:
            async with asyncio.timeout(self.timing.unread_s):
                await self.socket.ping()
        except TimeoutError:
            self.end(Ending.UNREAD)
        except OSError:
            self.end(Ending.LOST)

    async def pong(self, data: bytes) -> None:
        """Answer a ping."""
        try:
            async with asyncio.timeout(self.timing.unread_s):
                await self.socket.pong(data)
        except TimeoutError:
            self.end(Ending.UNREAD)
        except OSError:
            self.end(Ending.LOST)

    async def receive(self, monotonic_s: Callable[[], float]) -> str | bytes | None:
        """Return the next message, or None at the end; pings are answered on the way."""
        while self.ending is None:
            message = await self.socket.receive()
            now_s = monotonic_s()
            self.heard.frame_s, self.heard.pinged_s = now_s, None
            match message.type:
                case WSMsgType.TEXT | WSMsgType.BINARY:
                    self.heard.message_s = now_s
                    data: str | bytes = message.data
                    return data
                case WSMsgType.PING:
                    await self.pong(message.data)
                case WSMsgType.PONG:
                    pass
                case WSMsgType.CLOSE:
                    self.end(Ending.CLIENT, Close(message.data or 1005, message.extra or ""))
                case WSMsgType.ERROR:
                    self._broken(message.data)
                case _:
                    self.end(Ending.LOST)
        return None

    def _broken(self, error: object) -> None:
        if isinstance(error, WebSocketError):
            ending = Ending.TOO_BIG if error.code == WSCloseCode.MESSAGE_TOO_BIG else Ending.MALFORMED
            self.end(ending, Close(error.code, CLOSES[ending].reason))
        else:
            self.end(Ending.LOST)

    async def shut(self, request: web.BaseRequest, deadline_s: float) -> None:
        """Write what waits, say why, and let go of the connection, by `deadline_s` in any case."""
        ending = self.ending or Ending.FAILED
        transport = request.transport
        clean = False
        try:
            if ending not in UNANNOUNCED:
                with contextlib.suppress(TimeoutError, OSError):
                    async with asyncio.timeout(deadline_s):
                        if ending is not Ending.UNREAD:
                            while self._outbox:
                                await self._send_next()
                        await self.socket.close(code=self.close.code, message=self.close.reason.encode())
                        clean = self.socket.close_code != CLOSES[Ending.LOST].code
            else:
                clean = ending is not Ending.LOST
        finally:
            if transport is not None and not clean:
                transport.abort()


async def watch(opened: OpenSocket, monotonic_s: Callable[[], float]) -> None:
    """Ping, and end the socket when its time has come."""
    while opened.ending is None:
        what, wait_s = due(opened.heard, opened.timing, monotonic_s())
        if isinstance(what, Ending):
            opened.end(what)
        elif what:
            await opened.ping(monotonic_s())
        else:
            await asyncio.sleep(max(0.001, wait_s))
