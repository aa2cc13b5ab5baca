"""The doors of a worker: each `[[listeners]]` entry, open with the protocol and the TLS that it asks for."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from ingest.acceptor import Acceptor, listen
from ingest.authentication import Door, Peer, peer_of_socket
from ingest.counters import ConnectRefusal
from ingest.events import Events
from ingest.gate import Gate
from ingest.http.listener import HttpListener
from ingest.mqtt.connection import MqttConnection
from ingest.mqtt.hub import Hub
from ingest.mqtt.sockets import Sockets, SocketWire
from ingest.settings import Listener, Settings
from ingest.tls.handshakes import Handshakes
from routing.tenancy.identity import Credential
from runtime.settings_file import split_bind
from runtime.tls.failure import failure_of
from runtime.tls.store import TlsStore


class Doors:
    """Opens the listeners of a worker, and closes them. `tls` is there if a listener asks for it."""

    def __init__(
        self,
        settings: Settings,
        *,
        gate: Gate,
        hub: Hub,
        sockets: Sockets,
        http: HttpListener,
        tls: TlsStore | None,
        events: Events,
    ) -> None:
        self._settings = settings
        self._gate = gate
        self._hub = hub
        self._sockets = sockets
        self._http = http
        self._tls = tls
        self._events = events
        self._handshakes = Handshakes(
            asyncio.get_running_loop(), deadline_s=settings.tls.handshake_deadline_s
        )
        self._acceptors: list[Acceptor] = []
        self._accepting: list[asyncio.Task[None]] = []

    def open(self, tasks: asyncio.TaskGroup) -> None:
        """Listen; what accepts belongs to `tasks`."""
        for listener in self._settings.listeners:
            acceptor = self._acceptor(listener)
            self._acceptors.append(acceptor)
            self._accepting.append(tasks.create_task(acceptor.run()))

    def close(self) -> None:
        """Accept nobody any more; connections that are open stay."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._handshakes.close()

    def cancel(self) -> None:
        """End what accepts."""
        for task in self._accepting:
            task.cancel()

    def connections(self) -> int:
        """Return how many connections are open."""
        return len(self._hub.connections) + self._http.connections()

    def _acceptor(self, listener: Listener) -> Acceptor:
        settings = self._settings
        host, port = split_bind(listener.bind)
        door = Door(listener.bind, frozenset(map(Credential, listener.auth)))
        return Acceptor(
            listen(host, port, backlog=settings.accept.backlog),
            protocol=self._http.protocol_factory(door),
            tls=self._context(listener) if listener.tls != "off" else None,
            sockets=self._mqtt(door) if listener.protocol == "mqtt" else None,
            handshakes=self._handshakes,
            handshake_deadline_s=settings.tls.handshake_deadline_s,
            handshakes_max=settings.tls.handshakes_max,
            gate=self._gate,
            connections=self.connections,
            refused=lambda reason, peer: self._events.connect_refused(ConnectRefusal(reason), "", peer),
            failed=self._handshake_failed,
        )

    def _mqtt(self, door: Door) -> Callable[[socket.socket, str], None]:
        def connection(wire: SocketWire, peer: Peer) -> MqttConnection:
            made = MqttConnection(self._hub, wire, door, peer)
            self._hub.made(made)
            return made

        return lambda sock, name: self._sockets.add(sock, connection, peer_of_socket(sock, name))

    def _context(self, listener: Listener) -> Callable[[], ssl.SSLContext]:
        store = self._tls
        assert store is not None
        mutual, protocol = listener.tls == "mutual", listener.protocol
        return lambda: store.context(mutual=mutual, protocol=protocol)

    def _handshake_failed(self, error: BaseException, peer: str) -> None:
        self._events.handshake_failed(failure_of(error), str(error), peer)
