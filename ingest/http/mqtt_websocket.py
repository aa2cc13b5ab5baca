"""MQTT over WebSocket on /mqtt: a WebSocket made to look like the transport of an MQTT connection.

Limits: beyond `UNSENT_BYTES_MAX` that the peer has not taken, nothing more is read (what one message asks
for goes beyond it); a peer that takes nothing is cut off by the deadline of its connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import WSMsgType, web

from ingest.counters import Closing, Protocol
from ingest.mqtt.connection import MqttConnection
from ingest.mqtt.hub import Hub

if TYPE_CHECKING:
    from ingest.http.listener import Handler

SUBPROTOCOL: Final = "mqtt"
UNSENT_BYTES_MAX: Final = 65_536


class WebSocketWire:
    """The `Wire` of a WebSocket: writes go out in order through one task.

    Messages that are there together are read as one: a stream of MQTT packets is cut into messages at will
    (MQTT-6.0.0-2).
    """

    def __init__(self, handler: Handler, socket: web.WebSocketResponse) -> None:
        self._handler = handler
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._in: list[bytes] = []
        self._out: list[bytes] = []
        self._unsent_bytes = 0
        self._wake = asyncio.Event()
        self._turn = asyncio.Event()
        self._reading = True
        self._closing = False
        self._gone = False
        self.connection: MqttConnection

    def take(self, data: bytes) -> None:
        """Let the connection read `data` in the next turn of the loop, with all that is taken before that."""
        if not self._in:
            self._loop.call_soon(self.hand_over)
        self._in.append(data)

    def hand_over(self) -> None:
        """Let the connection read what was taken."""
        taken, self._in = self._in, []
        if taken:
            self.connection.received(b"".join(taken))

    def write(self, data: bytes, /) -> None:
        """Queue `data`; the connection hears when the peer does not take it."""
        self._out.append(data)
        self._wake.set()
        before = self._unsent_bytes
        self._unsent_bytes += len(data)
        if before <= UNSENT_BYTES_MAX < self._unsent_bytes:
            self.connection.pause_writing()

    def _sent(self, size: int) -> None:
        before = self._unsent_bytes
        self._unsent_bytes -= size
        if before > UNSENT_BYTES_MAX >= self._unsent_bytes:
            self.connection.resume_writing()

    def close(self) -> None:
        """Close after what is queued."""
        self._closing = True
        self._wake.set()
        self._turn.set()

    def abort(self) -> None:
        """Close now."""
        self._out.clear()
        self.close()
        self._handler.abort(Closing.LOST)

    def gone(self) -> None:
        """Hear that the connection is lost."""
        self._gone = True
        self._turn.set()

    def pause_reading(self) -> None:
        """Take no further message."""
        self._reading = False
        self._turn.clear()

    def has_unread(self) -> bool:
        """Return False: a task of its own reads the socket."""
        return False

    def resume_reading(self) -> None:
        """Take messages again."""
        self._reading = True
        self._turn.set()

    async def may_go_on(self) -> bool:
        """Wait until another message may be taken; False when the peer is gone before that."""
        while not (self._reading or self._closing or self._gone):
            await self._turn.wait()
        return self._reading or self._closing

    async def pump(self) -> None:
        """Send what is queued until the connection is closed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            out, self._out = self._out, []
            try:
                if out:
                    data = b"".join(out)
                    await self._socket.send_bytes(data)
                    self._sent(len(data))
                if self._closing and not self._out:
                    await self._socket.close()
                    return
            except ConnectionError:
                self.gone()
                return


async def serve(
    request: web.BaseRequest, handler: Handler, hub: Hub, *, message_bytes_max: int
) -> web.WebSocketResponse:
    """Carry one MQTT connection (MQTT 5, 6)."""
    socket = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,), max_msg_size=message_bytes_max, timeout=2.0, compress=False
    )
    await socket.prepare(request)
    if socket.ws_protocol != SUBPROTOCOL:
        await socket.close(code=1002, message=b"the subprotocol is mqtt")  # MQTT-6.0.0-3
        return socket
    wire = WebSocketWire(handler, socket)
    assert handler.peer is not None
    connection = wire.connection = MqttConnection(hub, wire, handler.door, handler.peer)
    hub.made(connection)
    handler.turn_into(Protocol.MQTT, wire.gone)
    try:
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(wire.pump())
            async for message in socket:
                if message.type is not WSMsgType.BINARY:
                    await socket.close(code=1003, message=b"MQTT is binary")  # MQTT-6.0.0-1
                    break
                wire.take(message.data)
                if not await wire.may_go_on():
                    break
            wire.hand_over()
            connection.ended()
            pump.cancel()
    finally:
        connection.ended()
    return socket
