"""All MQTT connections of a worker: who they are, whose session is whose, and when they are over.

- A session belongs to (tenant, identity, client id); a new connection takes it over from the old one,
  on whichever worker of the node that is (a directory in shared memory says which).
- Sessions with an expiry are kept in the spool's database with their QoS 2 packet ids, written in the
  transaction of the publishes they belong to.
- Keep-alive is a wheel of seconds: a connection is looked at when it could be over, not at each packet.
"""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from ingest import clock
from ingest.authentication import Authenticator, Unauthenticated
from ingest.counters import Closing, ConnectRefusal, Protocol
from ingest.events import Events
from ingest.node_memory import SESSION_VALUE
from ingest.pipeline import Pipeline, Producer
from ingest.spool.spool import Spool
from protocols.errors import ProtocolError
from protocols.mqtt.packets import MQTT_5, Connect, Will
from protocols.mqtt.reason import ReasonCode
from protocols.mqtt.session import SessionLimits
from routing.limits.allowance import Allowances, Over, table_key
from routing.limits.shared_table import Table, TableFullError
from routing.tenancy.identity import Identity, Kind

if TYPE_CHECKING:
    from ingest.mqtt.connection import MqttConnection

KEEP_SESSION: Final = (
    "INSERT INTO sessions (key, expires_s, received) VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET expires_s = excluded.expires_s, received = excluded.received"
)
FORGET_SESSION: Final = "DELETE FROM sessions WHERE key = ?"
READ_SESSIONS: Final = "SELECT key, expires_s, received FROM sessions"
KEEP_ALIVE_SHARE: Final = 1.5
"""MQTT-3.1.2-22: a client is gone after one and a half keep-alives of silence."""


class HubLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and deadlines, in seconds. `sessions_max` counts kept sessions without a connection."""

    connect_deadline_s: float
    close_deadline_s: float
    takeover_deadline_s: float
    sessions_max: int
    wills_max: int


class KeptSession(msgspec.Struct, frozen=True):
    """A session without a connection; `expires_s` is Unix time."""

    expires_s: float
    received: frozenset[int]


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


_MESSAGE: Final = msgspec.msgpack.Decoder(Take | Gave)
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
        self._epoch = epoch
        self.loop = loop
        self.spool = spool
        self.pipeline = pipeline
        self._authenticator = authenticator
        self._admits = admits
        self._allowances = allowances
        self._directory = directory
        self._post = post
        self.events = events
        self.session_limits = session_limits
        self._limits = limits
        self.close_deadline_s = limits.close_deadline_s
        self.farewells: dict[MqttConnection, tuple[int | None, str]] = {}
        self.connections: set[MqttConnection] = set()
        self._by_key: dict[bytes, MqttConnection] = {}
        self._kept: dict[bytes, KeptSession] = {}
        self._wheel: defaultdict[int, set[MqttConnection]] = defaultdict(set)
        self._turned_to = int(clock.monotonic_s())
        self._arrivals: dict[bytes, _Arrival] = {}
        self._asked: dict[int, tuple[bytes, asyncio.TimerHandle]] = {}
        self._serial = 0
        self._wills: dict[bytes, tuple[asyncio.TimerHandle, Producer, Will]] = {}
        self.draining = False

    # Connections come and go.

    def made(self, connection: MqttConnection) -> None:
        """Take in a new connection, which must send its CONNECT within the deadline."""
        self.connections.add(connection)
        self._watch(connection, self._limits.connect_deadline_s)

    def _watch(self, connection: MqttConnection, in_s: float) -> None:
        self._unwatch(connection)
        connection.due_s = int(clock.monotonic_s() + in_s) + 1
        self._wheel[connection.due_s].add(connection)

    def _unwatch(self, connection: MqttConnection) -> None:
        """Take a connection off the wheel, which would else keep it until its slot comes."""
        slot = self._wheel.get(connection.due_s)
        if slot is not None:
            slot.discard(connection)
            if not slot:
                del self._wheel[connection.due_s]

    def turn_wheel(self, now_s: float) -> None:
        """Look at the connections whose keep-alive may be over; call it about once a second."""
        while self._turned_to < int(now_s):
            self._turned_to += 1
            for connection in self._wheel.pop(self._turned_to, ()):
                if connection in self.connections:
                    self._look_at(connection, now_s)
        self._expire_sessions(clock.unix_s())

    def _look_at(self, connection: MqttConnection, now_s: float) -> None:
        if connection.producer is None:
            if connection.closing is None:
                self.events.connect_refused(
                    ConnectRefusal.PROTOCOL, "no CONNECT in time", connection.peer.address
                )
                connection.turn_away(b"")
            else:
                connection.wire.abort()
            return
        expires_s = connection.producer.identity.expires_s
        if expires_s is not None and clock.unix_s() >= expires_s:
            connection.finish(Closing.REVOKED, ReasonCode.NOT_AUTHORIZED, "the credential has expired")
        keep_alive_s = connection.session.keep_alive_s * KEEP_ALIVE_SHARE
        silent_s = now_s - connection.last_read_s
        if keep_alive_s and silent_s >= keep_alive_s and not connection.paused:
            connection.finish(Closing.KEEP_ALIVE, ReasonCode.KEEP_ALIVE_TIMEOUT, "silent for too long")
        # Without a keep-alive only the credential can end it, so a look now and then is enough.
        self._watch(connection, max(1.0, keep_alive_s - silent_s) if keep_alive_s else 60.0)

    def closed(self, connection: MqttConnection, closing: Closing) -> None:
        """Hear that a connection is gone; keep its session if it has an expiry."""
        self.connections.discard(connection)
        self.farewells.pop(connection, None)
        self._unwatch(connection)
        producer = connection.producer
        if producer is None:
            return
        self.events.connection_closed(closing)
        identity = producer.identity
        if identity.kind is not Kind.ANYONE:
            self._allowances.close_connection(identity.tenant, identity.name)
        if self._by_key.get(connection.key) is not connection:
            return
        del self._by_key[connection.key]
        kept = _kept_of(connection)
        if kept is None:
            self._forget(connection.key)
        else:
            self._keep(connection.key, kept)

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
        key = connection.key = table_key("session", identity.tenant, identity.name, client_id)
        arrival = (connection, connect, identity, assigned)
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
        owner = self._owner(key)
        if owner is not None and owner != self._worker:
            self._ask(owner, arrival)
            return
        self._admit(arrival, self._take_kept(key))

    def _turn_away(
        self, connection: MqttConnection, refusal: ConnectRefusal, reason: ReasonCode, text: str
    ) -> None:
        self.events.connect_refused(refusal, text, connection.peer.address)
        connection.turn_away(connection.session.refuse(reason, text))

    def _arrived(self, key: bytes, kept: KeptSession | None) -> None:
        """Admit who waited for the session `key`, now that its last owner has let go of it."""
        self._admit(self._arrivals.pop(key), kept)

    def _admit(self, arrival: _Arrival, kept: KeptSession | None) -> None:
        """Let a client in; `kept` is what its session left, None when there is none."""
        connection, connect, identity, assigned = arrival
        key = connection.key
        producer = Producer(identity, can_refuse=connect.version == MQTT_5)
        if connection.closing is not None or not self._may_enter(connection, connect, producer):
            if kept is not None:
                self._keep(key, kept)  # for its next try
            return
        resumed = kept is not None and not connect.clean_start
        self._settle_will(key, resumed=resumed)
        self._by_key[key] = connection
        self._enter(key, 0.0)
        connack = connection.session.accept(
            session_present=resumed,
            received=kept.received if kept is not None and resumed else (),
            assigned_client_id=assigned,
        )
        if kept is not None and not resumed:
            self.spool.store([(FORGET_SESSION, (key,))])
        self.events.connection_opened(Protocol.MQTT)
        if connection.session.keep_alive_s:
            self._watch(connection, connection.session.keep_alive_s * KEEP_ALIVE_SHARE)
        else:
            self._watch(connection, 60.0)
        connection.opened(producer, connack)

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
        if over is Over.NOBODY:
            return True
        device = over is Over.DEVICE
        refusal = ConnectRefusal.DEVICE_CONNECTIONS if device else ConnectRefusal.TENANT_CONNECTIONS
        self._turn_away(connection, refusal, ReasonCode.QUOTA_EXCEEDED, "too many connections")
        return False

    # Sessions.

    def _keep(self, key: bytes, kept: KeptSession) -> None:
        """Keep a session that has no connection, here and in the spool."""
        if len(self._kept) >= self._limits.sessions_max:
            self._forget(key)
            self.spool.store([(FORGET_SESSION, (key,))])
            return
        self._kept[key] = kept
        self._enter(key, kept.expires_s)
        self.spool.store([(KEEP_SESSION, (key, kept.expires_s, pack_ids(kept.received)))])

    def _enter(self, key: bytes, ends_s: float) -> None:
        """Enter a session into the node's directory. A full one costs take-over between workers only."""
        try:
            with self._directory.locked(key):
                self._directory.put(key, SESSION_VALUE.pack(self._worker, self._epoch, ends_s))
        except TableFullError:
            self.events.sink_trouble("session_directory_full", "raise memory.sessions_max")

    def _owner(self, key: bytes) -> int | None:
        value = self._directory.get(key)
        if value is None:
            return None
        worker, _, ends_s = SESSION_VALUE.unpack(value)
        if ends_s and ends_s < clock.unix_s():
            return None
        return int(worker)

    def _forget(self, key: bytes) -> None:
        with self._directory.locked(key):
            value = self._directory.get(key)
            if value is not None and SESSION_VALUE.unpack(value)[0] == self._worker:
                self._directory.remove(key)

    def _take_kept(self, key: bytes) -> KeptSession | None:
        kept = self._kept.pop(key, None)
        if kept is None or kept.expires_s < clock.unix_s():
            return None
        return kept

    def load_sessions(self, rows: Sequence[tuple[bytes, float, bytes]]) -> None:
        """Take in the sessions that an earlier run kept."""
        now_s = clock.unix_s()
        for key, expires_s, received in rows:
            if expires_s > now_s and len(self._kept) < self._limits.sessions_max:
                self._kept[key] = KeptSession(expires_s, frozenset(unpack_ids(received)))
                self._enter(key, expires_s)

    def _expire_sessions(self, now_s: float) -> None:
        for key in [key for key, kept in self._kept.items() if kept.expires_s < now_s]:
            del self._kept[key]
            self._forget(key)
            self.spool.store([(FORGET_SESSION, (key,))])

    def remember(self, connection: MqttConnection) -> None:
        """Store the QoS 2 ids of a session in the transaction of the open group."""
        ends_s = clock.unix_s() + connection.session.session_expiry_s
        ids = pack_ids(connection.stored_ids())
        self.spool.current.statements.append((KEEP_SESSION, (connection.key, ends_s, ids)))

    def _end(self, there: MqttConnection, *, clean_start: bool) -> KeptSession | None:
        """End the old connection of a session; return what goes on, None when the session ends with it."""
        self.events.taken_over()
        there.finish(Closing.TAKEN_OVER, ReasonCode.SESSION_TAKEN_OVER, "a new connection took over")
        kept = _kept_of(there)
        self._settle_will(there.key, resumed=kept is not None and not clean_start)
        del self._by_key[there.key]
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
        self._asked[serial] = (key, timer)
        self._arrivals[key] = arrival

    def heard(self, message: bytes) -> None:
        """Take a message of another worker."""
        match _MESSAGE.decode(message):
            case Take() as take:
                self._give(take)
            case Gave() as gave:
                self._got(gave)

    def _give(self, take: Take) -> None:
        there = self._by_key.get(take.key)
        if there is None:
            kept = self._take_kept(take.key)
            self._settle_will(take.key, resumed=kept is not None and not take.clean_start)
            if kept is not None:
                self.spool.store([(FORGET_SESSION, (take.key,))])
            self._hand_over(take, kept)
            return
        kept = self._end(there, clean_start=take.clean_start)
        self.spool.current.statements.append((FORGET_SESSION, (take.key,)))
        self.spool.answer(_Then(lambda: self._hand_over(take, kept)), b"")

    def _hand_over(self, take: Take, kept: KeptSession | None) -> None:
        self._post(take.worker, msgspec.msgpack.encode(Gave(take.serial, kept)))

    def _got(self, gave: Gave) -> None:
        entry = self._asked.pop(gave.serial, None)
        if entry is None:
            return
        key, timer = entry
        timer.cancel()
        self._arrived(key, gave.kept)

    # Wills.

    def leave_will(self, connection: MqttConnection) -> None:
        """Publish the will of a connection that ended without DISCONNECT, after its delay."""
        will = connection.take_will()
        producer = connection.producer
        if will is None or producer is None:
            return
        delay_s = min(will.delay_s, connection.session.session_expiry_s)
        if not delay_s or len(self._wills) >= self._limits.wills_max:
            self._publish_will(producer, will)
            return
        timer = self.loop.call_later(delay_s, self._will_due, connection.key)
        self._wills[connection.key] = (timer, producer, will)

    def _will_due(self, key: bytes) -> None:
        _, producer, will = self._wills.pop(key)
        self._publish_will(producer, will)

    def _settle_will(self, key: bytes, *, resumed: bool) -> None:
        """Decide on the will of a session whose client is back: before its delay is over, it is not sent.

        It is sent at once where it has no delay, or where the session ends here (3.1.3.2.2, MQTT-3.1.3-9).
        """
        entry = self._wills.pop(key, None)
        if entry is not None:
            entry[0].cancel()
            if not resumed:
                self._publish_will(entry[1], entry[2])
        there = self._by_key.get(key)
        if there is not None and there.producer is not None:
            will = there.take_will()
            if will is not None and not (resumed and will.delay_s):
                self._publish_will(there.producer, will)

    def _publish_will(self, producer: Producer, will: Will) -> None:
        if self.pipeline.has_room():
            publish = (will.topic, will.payload, will.qos, b"")
            self.pipeline.publish(producer, [publish], clock.monotonic_s())
        else:
            self.spool.when_room(lambda: self._publish_will(producer, will))

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
                connection.producer.routes.clear()

    def begin_drain(self) -> None:
        """Tell every client to go elsewhere (0x8B) once it has its answers."""
        self.draining = True
        for connection in list(self.connections):
            if connection.producer is None:
                connection.turn_away(b"")
            else:
                connection.finish(Closing.DRAINING, ReasonCode.SERVER_SHUTTING_DOWN, "shutting down")

    def publish_wills(self) -> None:
        """Publish the wills that still wait, since this worker will not be there when they are due."""
        for key in list(self._wills):
            self._wills[key][0].cancel()
            self._will_due(key)


class _Then:
    """Calls back once everything appended before is durable."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def durable(self, reply: bytes) -> None:
        """Call back."""
        assert not reply
        self._call()

    def lost(self, error: Exception) -> bool:
        """Wait on."""
        del error
        return False


def _kept_of(connection: MqttConnection) -> KeptSession | None:
    """Return what a connection leaves of its session, None when the session ends with it."""
    expiry_s = connection.session.session_expiry_s
    if not expiry_s:
        return None
    return KeptSession(clock.unix_s() + expiry_s, frozenset(connection.stored_ids()))


def pack_ids(ids: Iterable[int]) -> bytes:
    """Write packet ids, two bytes each."""
    ordered = sorted(ids)
    return struct.pack(f">{len(ordered)}H", *ordered)


def unpack_ids(packed: bytes) -> tuple[int, ...]:
    """Read packet ids, two bytes each."""
    return struct.unpack(f">{len(packed) // 2}H", packed)
