"""MQTT over WebSocket on /mqtt: a WebSocket made to look like the transport of an MQTT connection."""

from __future__ import annotations

import asyncio

from aiohttp import WSMsgType, web

from ingest.authentication import Door, Peer
from ingest.mqtt.connection import MqttConnection
from ingest.mqtt.hub import Hub

SUBPROTOCOL = "mqtt"


class SocketWire:
    """The `Wire` of a WebSocket: writes go out in order through one task."""

    def __init__(self) -> None:
        self._out: list[bytes] = []
        self._wake = asyncio.Event()
        self.reading = asyncio.Event()
        self.reading.set()
        self.closing = False

    def write(self, data: bytes, /) -> None:
        """Queue `data`; bounded by the session's receive maximum."""
        self._out.append(data)
        self._wake.set()

    def close(self) -> None:
        """Close after what is queued."""
        self.closing = True
        self._wake.set()
        self.reading.set()

    def abort(self) -> None:
        """Close now."""
        self._out.clear()
        self.close()

    def pause_reading(self) -> None:
        """Take no further message."""
        self.reading.clear()

    def resume_reading(self) -> None:
        """Take messages again."""
        self.reading.set()

    async def pump(self, socket: web.WebSocketResponse) -> None:
        """Send what is queued until the connection is closed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            out, self._out = self._out, []
            try:
                if out:
                    await socket.send_bytes(b"".join(out))
                if self.closing and not self._out:
                    await socket.close()
                    return
            except ConnectionError:
                return


async def serve(
    request: web.BaseRequest, *, hub: Hub, door: Door, peer: Peer, message_bytes_max: int
) -> web.WebSocketResponse:
    """Carry one MQTT connection (MQTT 5, 6)."""
    socket = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,), max_msg_size=message_bytes_max, timeout=2.0, compress=False
    )
    await socket.prepare(request)
    if socket.ws_protocol != SUBPROTOCOL:
        await socket.close(code=1002, message=b"the subprotocol is mqtt")  # MQTT-6.0.0-3
        return socket
    wire = SocketWire()
    connection = MqttConnection(hub, wire, door, peer)
    hub.made(connection)
    try:
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(wire.pump(socket))
            async for message in socket:
                if message.type is not WSMsgType.BINARY:
                    await socket.close(code=1003, message=b"MQTT is binary")  # MQTT-6.0.0-1
                    break
                connection.received(message.data)
                await wire.reading.wait()
            connection.ended()
            pump.cancel()
    finally:
        connection.ended()
    return socket
