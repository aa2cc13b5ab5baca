"""All MQTT connections of a worker: who they are, whose session is whose, and when they are over.

A session belongs to (tenant, identity, client id); a new connection takes it over from the old one, on
whichever worker of the node that is. What is kept of a session without a connection is in `sessions`, the
wills in `wills`, and when to look at whom in `wheel`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from ingest.authentication import Authenticator
from ingest.counters import Closing, ConnectRefusal, Protocol
from ingest.events import Events
from ingest.mqtt.sessions import KeptSession, Sessions
from ingest.mqtt.wheel import Wheel
from ingest.mqtt.wills import Wills
from ingest.pipeline import Pipeline, Producer
from ingest.spool.spool import Spool
from protocols.errors import ProtocolError
from protocols.mqtt.limits import SessionLimits
from protocols.mqtt.packets import MQTT_5, Connect
from protocols.mqtt.reason import ReasonCode
from routing.limits.allowance import Allowances, table_key
from routing.limits.shared_table import Table
from routing.limits.terms import Over
from routing.tenancy.identity import Identity, Kind, Unauthenticated
from runtime import clock

if TYPE_CHECKING:
    from ingest.mqtt.connection import MqttConnection

KEEP_ALIVE_SHARE: Final = 1.5
"""MQTT-3.1.2-22: a client is gone after one and a half keep-alives of silence."""
UNHEARD_S: Final = 60.0
"""How much longer a client may be silent whom we do not read: its PINGREQs are waiting in the kernel."""
NO_KEEP_ALIVE_S: Final = 60.0
"""How often to look at a client without a keep-alive."""


class HubLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and deadlines, in seconds. `sessions_max` counts kept sessions without a connection.

    `held_bytes_max` bounds the publishes that wait for room in the spool, over all connections.
    """

    connect_deadline_s: float
    close_deadline_s: float
    takeover_deadline_s: float
    sessions_max: int
    wills_max: int
    held_bytes_max: int


class Take(msgspec.Struct, frozen=True, tag=True):
    """Worker to worker: give me the session `key`, or with `clean_start` end it."""

    key: bytes
    worker: int
    serial: int
    clean_start: bool


class Gave(msgspec.Struct, frozen=True, tag=True):
    """Worker to worker: here it is, or it is not here (None)."""

    serial: int
    kept: KeptSession | None


class Took(msgspec.Struct, frozen=True, tag=True):
    """Worker to worker: I have stored the session `key`, so you need not keep it any more."""

    key: bytes


_MESSAGE: Final = msgspec.msgpack.Decoder(Take | Gave | Took)
_Arrival = tuple["MqttConnection", Connect, Identity, str | None]


class Hub:
    """The MQTT half of a worker's composition; one for all listeners."""

    def __init__(
        self,
        *,
        worker: int,
        epoch: int,
        loop: asyncio.AbstractEventLoop,
        spool: Spool,
        pipeline: Pipeline,
        authenticator: Authenticator,
        admits: Callable[[Identity], ConnectRefusal | None],
        allowances: Allowances,
        directory: Table,
        post: Callable[[int, bytes], bool],
        events: Events,
        session_limits: SessionLimits,
        limits: HubLimits,
    ) -> None:
        self._worker = worker
        self.loop = loop
        self.spool = spool
        self.pipeline = pipeline
        self._authenticator = authenticator
        self._admits = admits
        self._allowances = allowances
        self._post = post
        self.events = events
        self.session_limits = session_limits
        self._limits = limits
        self.held_bytes_max = limits.held_bytes_max
        self.held_bytes = 0
        self.farewells: dict[MqttConnection, tuple[int | None, str]] = {}
        self.connections: set[MqttConnection] = set()
        self._by_key: dict[bytes, MqttConnection] = {}
        self._sessions = Sessions(
            worker=worker,
            epoch=epoch,
            directory=directory,
            spool=spool,
            events=events,
            sessions_max=limits.sessions_max,
        )
        self._wills = Wills(loop=loop, pipeline=pipeline, spool=spool, wills_max=limits.wills_max)
        self._wheel: Wheel[MqttConnection] = Wheel(clock.monotonic_s())
        self._arrivals: dict[bytes, _Arrival] = {}
        self._asked: dict[int, tuple[bytes, int, asyncio.TimerHandle]] = {}
        self._serial = 0
        self.draining = False

    def load_sessions(self, rows: Sequence[tuple[bytes, float, bytes]]) -> None:
        """Take in the sessions that an earlier run kept (`sessions.READ_SESSIONS`)."""
        self._sessions.load(rows)

    # Connections come and go.

    def made(self, connection: MqttConnection) -> None:
        """Take in a new connection, which must send its CONNECT within the deadline."""
        self.connections.add(connection)
        self._watch(connection, self._limits.connect_deadline_s)

    def _watch(self, connection: MqttConnection, in_s: float) -> None:
        self._wheel.watch(connection, in_s, clock.monotonic_s())

    def closes(self, connection: MqttConnection) -> None:
        """Hear that a connection is being closed: one that does not end by the deadline is cut."""
        self._watch(connection, self._limits.close_deadline_s)

    def turn_wheel(self, now_s: float) -> None:
        """Look at the connections that may be over; call it about once a second."""
        for connection in self._wheel.turn(now_s):
            if connection in self.connections:
                self._look_at(connection, now_s)
        self._sessions.expire(clock.unix_s())

    def _look_at(self, connection: MqttConnection, now_s: float) -> None:
        if connection.closing is not None:
            connection.cut()
            return
        producer = connection.producer
        expires_s = producer.identity.expires_s if producer is not None else None
        if expires_s is not None and clock.unix_s() >= expires_s:
            connection.finish(Closing.REVOKED, ReasonCode.NOT_AUTHORIZED, "the credential has expired")
            return
        if not connection.paused and self._is_late_for(connection, now_s):
            self._watch(connection, 1.0)
            return
        if producer is None:
            peer = connection.peer.address
            self.events.connect_refused(ConnectRefusal.PROTOCOL, "no CONNECT in time", peer)
            connection.turn_away(b"")
            return
        keep_alive_s = connection.session.keep_alive_s * KEEP_ALIVE_SHARE
        if connection.paused:
            keep_alive_s += UNHEARD_S
        silent_s = now_s - connection.last_read_s
        if connection.session.keep_alive_s and silent_s >= keep_alive_s:
            connection.finish(Closing.KEEP_ALIVE, ReasonCode.KEEP_ALIVE_TIMEOUT, "silent for too long")
            return
        self._watch_open(connection, silent_s)

    @staticmethod
    def _is_late_for(connection: MqttConnection, now_s: float) -> bool:
        """Return whether a silent client has said something that this worker has not read yet."""
        return now_s - connection.last_read_s >= 1.0 and connection.wire.has_unread()

    def _watch_open(self, connection: MqttConnection, silent_s: float = 0.0) -> None:
        """Look at an open connection when its keep-alive or its credential could be over."""
        keep_alive_s = connection.session.keep_alive_s
        in_s = max(1.0, keep_alive_s * KEEP_ALIVE_SHARE - silent_s) if keep_alive_s else NO_KEEP_ALIVE_S
        assert connection.producer is not None
        expires_s = connection.producer.identity.expires_s
        if expires_s is not None:
            in_s = min(in_s, max(0.0, expires_s - clock.unix_s()))
        self._watch(connection, in_s)

    def closed(self, connection: MqttConnection, closing: Closing) -> None:
        """Hear that a connection is gone; keep its session if it has an expiry."""
        self.connections.discard(connection)
        self.farewells.pop(connection, None)
        self._wheel.unwatch(connection)
        if connection.producer is None:
            return
        self.events.connection_closed(closing)
        self._count_out(connection)
        if self._by_key.get(connection.key) is not connection:
            return
        del self._by_key[connection.key]
        kept = connection.kept_session()
        if kept is None:
            self._sessions.forget(connection.key, stored=connection.stored)
        else:
            self._sessions.keep(connection.key, kept)

    def _count_out(self, connection: MqttConnection) -> None:
        """Give back the place that a connection has in its device's and its tenant's caps, once."""
        if connection.counted:
            connection.counted = False
            assert connection.producer is not None
            identity = connection.producer.identity
            self._allowances.close_connection(identity.tenant, identity.name)

    def broke_protocol(self, connection: MqttConnection, error: ProtocolError) -> None:
        """Count a peer that broke the protocol."""
        self.events.protocol_error(Protocol.MQTT, error.text, connection.peer.address)

    # CONNECT.

    def connect(self, connection: MqttConnection, connect: Connect) -> None:
        """Decide on a CONNECT; the answer may have to wait for the session's last owner."""
        if self.draining:
            self._turn_away(
                connection, ConnectRefusal.DRAINING, ReasonCode.SERVER_SHUTTING_DOWN, "shutting down"
            )
            return
        if connection.gone and not connection.session.has_more():
            # It waited in the kernel until its client gave up: it must not take over from the next try.
            self.events.connect_refused(ConnectRefusal.GONE, "hung up", connection.peer.address)
            connection.turn_away(b"")
            return
        try:
            identity = self._authenticator.of_mqtt(connection.door, connection.peer, connect.password)
        except Unauthenticated as error:
            self._turn_away(
                connection, ConnectRefusal.CREDENTIALS, ReasonCode.BAD_USER_NAME_OR_PASSWORD, str(error)
            )
            return
        refusal = self._admits(identity)
        if refusal is not None:
            self._turn_away(connection, refusal, ReasonCode.NOT_AUTHORIZED, refusal.value)
            return
        assigned = None
        client_id = connect.client_id
        if not client_id:
            assigned = client_id = uuid.uuid4().hex
        names = (identity.kind.value, identity.tenant, identity.name, client_id)
        connection.key = table_key("session", *names)
        self._find_session((connection, connect, identity, assigned))

    def _find_session(self, arrival: _Arrival) -> None:
        """Admit a client, once whoever has its session has let go of it."""
        connection, connect, _, _ = arrival
        key = connection.key
        earlier = self._arrivals.get(key)
        if earlier is not None:
            # Somebody of the same name still waits for the session: the last to come gets it.
            self._arrivals[key] = arrival
            self.events.taken_over()
            earlier[0].turn_away(b"")
            return
        there = self._by_key.get(key)
        if there is not None:
            self._arrivals[key] = arrival
            kept = self._end(there, clean_start=connect.clean_start)
            # What the old connection is still owed is durable before the new one is let in.
            self.spool.answer(_Then(lambda: self._arrived(key, kept)), b"")
            return
        owner = self._sessions.owner(key)
        if owner is not None and owner != self._worker:
            self._ask(owner, arrival)
            return
        self._admit(arrival, self._sessions.take(key))

    def _turn_away(
        self, connection: MqttConnection, refusal: ConnectRefusal, reason: ReasonCode, text: str
    ) -> None:
        self.events.connect_refused(refusal, text, connection.peer.address)
        connection.turn_away(connection.session.refuse(reason, text))

    def _arrived(self, key: bytes, kept: KeptSession | None, lender: int | None = None) -> None:
        """Admit who waited for the session `key`, now that its last owner has let go of it."""
        self._admit(self._arrivals.pop(key), kept, lender)

    def _admit(self, arrival: _Arrival, kept: KeptSession | None, lender: int | None = None) -> None:
        """Let a client in; `kept` is what its session left, None when there is none.

        Another worker that lends it keeps it until it is stored here.
        """
        connection, connect, identity, assigned = arrival
        key = connection.key
        producer = Producer(identity, can_refuse=connect.version == MQTT_5)
        if connection.closing is not None or not self._may_enter(connection, connect, producer):
            if kept is not None and lender is None:
                self._sessions.keep(key, kept)  # for its next try
            return
        resumed = kept is not None and not connect.clean_start
        self._wills.client_is_back(key, resumed=resumed)
        self._by_key[key] = connection
        if kept is not None and resumed and lender is not None:
            self._sessions.store(key, kept)
            self.spool.answer(_Then(lambda: self._took(connection, lender)), b"")
        else:
            self._sessions.enter(key)
        connack = connection.session.accept(
            session_present=resumed,
            received=kept.received if kept is not None and resumed else (),
            assigned_client_id=assigned,
        )
        if kept is not None:
            connection.stored = resumed
            if not resumed:
                self._sessions.forget_row(key)
        self.events.connection_opened(Protocol.MQTT)
        connection.opened(producer, connack)
        if connection.closing is None:
            self._watch_open(connection)

    def _took(self, connection: MqttConnection, lender: int) -> None:
        """Hear that a session is stored here, so that it belongs to this worker."""
        if self._by_key.get(connection.key) is connection:
            self._sessions.enter(connection.key)
        self._post(lender, msgspec.msgpack.encode(Took(connection.key)))

    def _may_enter(self, connection: MqttConnection, connect: Connect, producer: Producer) -> bool:
        """Count the connection in and return True, or turn it away."""
        if connection not in self.connections:
            return False
        if connect.will is not None and not self.pipeline.may_publish(producer, connect.will.topic):
            self._turn_away(
                connection,
                ConnectRefusal.WILL_NOT_AUTHORISED,
                ReasonCode.NOT_AUTHORIZED,
                "this identity may not publish its will",
            )
            return False
        identity = producer.identity
        if identity.kind is Kind.ANYONE:
            return True
        over = self._allowances.open_connection(identity.tenant, identity.name)
        connection.counted = over is Over.NOBODY
        if connection.counted:
            return True
        device = over is Over.DEVICE
        refusal = ConnectRefusal.DEVICE_CONNECTIONS if device else ConnectRefusal.TENANT_CONNECTIONS
        self._turn_away(connection, refusal, ReasonCode.QUOTA_EXCEEDED, "too many connections")
        return False

    def remember(self, connection: MqttConnection) -> None:
        """Store the QoS 2 ids of a session in the transaction of the open group."""
        kept = connection.kept_session()
        assert kept is not None
        connection.stored = True
        self._sessions.store(connection.key, kept)

    # Take-over.

    def _end(self, there: MqttConnection, *, clean_start: bool) -> KeptSession | None:
        """End the old connection of a session; return what goes on, None when the session ends with it."""
        self.events.taken_over()
        there.finish(Closing.TAKEN_OVER, ReasonCode.SESSION_TAKEN_OVER, "a new connection took over")
        self._count_out(there)  # its successor has its place, even at the cap
        kept = there.kept_session()
        resumed = kept is not None and not clean_start
        self._wills.client_is_back(there.key, resumed=resumed)
        will = there.take_will()
        if will is not None and not (resumed and will.delay_s):
            # Without a delay it is sent at once, and where the session ends too (MQTT-3.1.3-9).
            assert there.producer is not None
            self._wills.send(there.producer, will)
        del self._by_key[there.key]
        if kept is None and there.stored:
            self._sessions.forget_row(there.key)
        return kept

    def _ask(self, owner: int, arrival: _Arrival) -> None:
        """Ask the worker that has the session for it, and go on without after a deadline."""
        self._serial += 1
        serial = self._serial
        key = arrival[0].key
        message = Take(key, self._worker, serial, arrival[1].clean_start)
        if not self._post(owner, msgspec.msgpack.encode(message)):
            self._admit(arrival, None)
            return
        timer = self.loop.call_later(self._limits.takeover_deadline_s, self._got, Gave(serial, None))
        self._asked[serial] = (key, owner, timer)
        self._arrivals[key] = arrival

    def heard(self, message: bytes) -> None:
        """Take a message of another worker."""
        match _MESSAGE.decode(message):
            case Take() as take:
                self._give(take)
            case Gave() as gave:
                self._got(gave)
            case Took(key=key):
                self._sessions.drop(key)

    def _give(self, take: Take) -> None:
        """Lend a session to the worker that its client has come to; end it if the client wants a new one."""
        there = self._by_key.get(take.key)
        if there is None:
            kept = self._sessions.take(take.key)
            self._wills.client_is_back(take.key, resumed=kept is not None and not take.clean_start)
        else:
            kept = self._end(there, clean_start=take.clean_start)
        if kept is not None and take.clean_start:
            self._sessions.forget_row(take.key)
        elif kept is not None:
            self._sessions.keep(take.key, kept)
        gave = msgspec.msgpack.encode(Gave(take.serial, kept))
        self.spool.answer(_Then(lambda: self._post(take.worker, gave)), b"")

    def _got(self, gave: Gave) -> None:
        entry = self._asked.pop(gave.serial, None)
        if entry is None:
            return
        key, lender, timer = entry
        timer.cancel()
        self._arrived(key, gave.kept, lender)

    def leave_will(self, connection: MqttConnection) -> None:
        """Send the will of a connection that ended without DISCONNECT, after its delay."""
        will = connection.take_will()
        if will is not None and connection.producer is not None:
            expiry_s = connection.session.session_expiry_s
            self._wills.leave(connection.key, connection.producer, will, expiry_s)

    # The node.

    def close_where(
        self, unwanted: Callable[[Identity], bool], closing: Closing, reason: ReasonCode, text: str
    ) -> int:
        """Close the connections whose identity is unwanted; return how many."""
        found = [
            connection
            for connection in self.connections
            if connection.producer is not None and unwanted(connection.producer.identity)
        ]
        for connection in found:
            connection.finish(closing, reason, text)
        return len(found)

    def forget_routes(self) -> None:
        """Look every route up again: tenants, devices or plans have changed."""
        for connection in self.connections:
            if connection.producer is not None:
                connection.producer.forget_routes()

    def begin_drain(self) -> None:
        """Tell every client to go elsewhere (0x8B) once it has its answers."""
        self.draining = True
        for connection in list(self.connections):
            if connection.producer is None:
                connection.turn_away(b"")
            else:
                connection.finish(Closing.DRAINING, ReasonCode.SERVER_SHUTTING_DOWN, "shutting down")

    def send_wills(self) -> None:
        """Send the wills that still wait, since this worker will not be there when they are due."""
        self._wills.send_all()


class _Then:
    """Calls back once everything appended before is durable."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def durable(self, reply: bytes) -> None:
        """Call back."""
        assert not reply
        self._call()

    def lost(self, error: Exception) -> bool:
        """Wait on."""
        del error
        return False
