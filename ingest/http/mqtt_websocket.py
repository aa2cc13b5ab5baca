"""MQTT over WebSocket on /mqtt: a WebSocket made to look like the transport of an MQTT connection.

Limits: what the peer does not take is what the transport holds before it says so; then nothing more is read
(what one read asks for goes beyond it), and a peer that takes nothing is cut off by the deadline of its
connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from ingest.counters import Closing, Protocol
from ingest.http.open_socket import OpenSocket, Upgrade
from ingest.mqtt.connection import MqttConnection
from ingest.mqtt.hub import Hub
from protocols.websocket import NORMAL, PROTOCOL_ERROR

if TYPE_CHECKING:
    from ingest.http.handler import Handler

SUBPROTOCOL: Final = "mqtt"


class MqttSocket(OpenSocket):
    """The `Wire` of an MQTT connection.

    The messages of a read are taken as one: MQTT packets are cut into messages at will (MQTT-6.0.0-2).
    """

    def __init__(self, handler: Handler) -> None:
        super().__init__(handler, Protocol.MQTT, takes_text=False)  # MQTT-6.0.0-1
        self.connection: MqttConnection

    def take(self, messages: list[bytes]) -> None:
        """Let the connection read them."""
        self.connection.received(messages[0] if len(messages) == 1 else b"".join(messages))

    def pause_writing(self) -> None:
        """Tell the connection."""
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        """Tell the connection."""
        self.connection.resume_writing()

    def has_unread(self) -> bool:
        """Return False: what the transport has read is taken, unless it is we who do not read."""
        return False

    def close(self) -> None:
        """Close after what is written."""
        self.say_goodbye(NORMAL, "")

    def abort(self) -> None:
        """Close now."""
        self._handler.abort(Closing.LOST)


async def serve(request: web.BaseRequest, handler: Handler, hub: Hub) -> web.WebSocketResponse:
    """Carry one MQTT connection (MQTT 5, 6)."""
    response = Upgrade(protocols=(SUBPROTOCOL,), compress=False)
    await response.prepare(request)
    socket = MqttSocket(handler)
    assert handler.peer is not None
    connection = socket.connection = MqttConnection(hub, socket, handler.door, handler.peer)
    if response.ws_protocol != SUBPROTOCOL:
        socket.say_goodbye(PROTOCOL_ERROR, "the subprotocol is mqtt")  # MQTT-6.0.0-3
        handler.turn_into(None, socket)
        await socket.over.wait()
        return response
    hub.made(connection)
    handler.turn_into(Protocol.MQTT, socket)
    try:
        await socket.over.wait()
    finally:
        connection.ended()
    return response
