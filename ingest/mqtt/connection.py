"""Drives one MQTT session over a wire: bytes in, publishes to the pipeline, answers out.

- Answers to QoS 1 and 2 publishes leave by the spool, after the fsync.
- While the spool has no room, publishes are held, up to a bound; then reading is paused.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

from ingest.authentication import Door, Peer
from ingest.counters import Closing
from ingest.mqtt.hub import Hub
from ingest.mqtt.sessions import KeptSession
from ingest.outcome import DETAIL, MQTT_REASON, Outcome
from ingest.pipeline import Producer
from ingest.spool.store import SpoolError
from protocols.mqtt.packets import Will
from protocols.mqtt.reason import ReasonCode
from protocols.mqtt.session import Publish, ServerSession
from runtime import clock

PUBACK_BYTES: Final = 4
HELD_BYTES_MAX: Final = 16_384
"""What one connection may have waiting for room in the spool before it is read no more."""
HELD_OVERHEAD_BYTES: Final = 256
"""What a held publish takes beside its payload."""
CLOSES_IN_3: Final = frozenset({Outcome.NOT_AUTHORISED, Outcome.BAD_TOPIC, Outcome.SUSPENDED})
"""Refusals for which MQTT 3.1.1 has no word, so that it closes (MQTT-3.3.5-2)."""
UNSAID_IN_3: Final = frozenset({Outcome.MALFORMED, Outcome.TOO_LARGE})
"""Refusals of QoS 1 and 2 that reach here only when there is no room for another dead letter."""
_TEXTS: Final = {
    MQTT_REASON[outcome]: DETAIL[outcome] for outcome in reversed(Outcome) if outcome is not Outcome.ACCEPTED
}


def text_of_reason(reason: int) -> str:
    """Return what an MQTT 5 client is told beside a reason code."""
    return _TEXTS.get(reason, "")


class Phase(enum.Enum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    DECIDING = "deciding"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Wire(Protocol):
    """What carries the bytes: a transport, or a WebSocket made to look like one."""

    def write(self, data: bytes, /) -> None:
        """Send `data`."""

    def close(self) -> None:
        """Send what is left, then close."""

    def abort(self) -> None:
        """Close at once."""

    def pause_reading(self) -> None:
        """Stop calling `received`."""

    def resume_reading(self) -> None:
        """Call `received` again."""

    def has_unread(self) -> bool:
        """Return whether the peer has sent what `received` was not called with yet."""


class MqttConnection:
    """One MQTT connection, whatever carries it. All state changes happen on the event loop."""

    __slots__ = (
        "_held",
        "_held_bytes",
        "_holds_reading",
        "_hub",
        "_owed",
        "_owed_parts",
        "_pauses",
        "closing",
        "counted",
        "door",
        "due_s",
        "gone",
        "key",
        "last_read_s",
        "peer",
        "phase",
        "producer",
        "session",
        "stored",
        "wire",
    )

    def __init__(self, hub: Hub, wire: Wire, door: Door, peer: Peer) -> None:
        self._hub = hub
        self.door = door
        self.wire = wire
        self.peer = peer
        self.session = ServerSession(hub.session_limits)
        self.phase = Phase.CONNECTING
        self.producer: Producer | None = None
        self.key = b""
        self.closing: Closing | None = None
        self.counted = False
        self.stored = False
        self.gone = False
        self.due_s = 0
        self.last_read_s = clock.monotonic_s()
        self._owed = 0
        self._owed_parts: list[tuple[int, int, list[int]]] | None = None
        self._held: list[list[Publish]] | None = None
        self._held_bytes = 0
        self._holds_reading = False
        self._pauses = 0

    # What the wire says.

    def received(self, data: bytes) -> None:
        """Take what was read. Hot: guarded by bench/test_worker.py::test_received."""
        session = self.session
        now_s = self.last_read_s = clock.monotonic_s()
        publishes = session.feed(data)
        if publishes:
            self._publish(publishes, now_s)
        if session.attention:
            session.attention = False
            self._attend()

    def peer_left(self) -> None:
        """Hear that the peer has hung up, before the last of what it sent."""
        self.gone = True

    def ended(self) -> None:
        """Hear that the wire is gone."""
        if self.phase is Phase.CLOSED:
            return
        was_open = self.producer is not None
        self.phase = Phase.CLOSED
        self._let_go_of_held()
        self._hub.closed(self, self.closing or (Closing.PEER if self.session.disconnected else Closing.LOST))
        if was_open:
            self._hub.leave_will(self)

    # Publishes.

    def _publish(self, publishes: list[Publish], now_s: float) -> None:
        hub = self._hub
        pipeline = hub.pipeline
        producer = self.producer
        assert producer is not None
        outcomes: list[int] | None
        pause_s = 0.0
        if self._held is None and pipeline.has_room():
            outcomes, pause_s = pipeline.publish(producer, publishes, now_s)
        elif self._held is None and producer.can_refuse and pipeline.refuses():
            outcomes = pipeline.refuse_all(producer, publishes, Outcome.SPOOL_FULL)
        else:
            self._hold(publishes)
            return
        session = self.session
        if outcomes is None:
            reasons = None
        elif producer.can_refuse:
            reasons = [MQTT_REASON[Outcome(outcome)] for outcome in outcomes]
        else:
            publishes, reasons = self._close_in_3(publishes, outcomes), None
        reply = session.acknowledge(publishes, reasons, text_of_reason) if publishes else b""
        if reply:
            if reasons is not None or session.uses_qos_2 or self._owed_parts:
                self._note_answers(publishes, reasons, len(reply))
            self._owed += len(reply)
            hub.spool.answer(self, reply)
        if pause_s:
            self.pause(pause_s)

    def _note_answers(self, publishes: list[Publish], reasons: list[int] | None, size: int) -> None:
        """Note what an answer is made of that is not just PUBACKs of four bytes."""
        session = self.session
        ids = session.qos_2_ids(publishes, reasons)
        self._note_part(size, sum(1 for publish in publishes if publish[2]), ids)
        if ids and session.session_expiry_s:
            self._hub.remember(self)

    def _note_part(self, size: int, count: int, ids: list[int]) -> None:
        """Note the next `size` bytes of what is owed: `count` answers, of which `ids` are QoS 2."""
        parts = self._owed_parts
        if parts is None:
            parts = self._owed_parts = []
        if self._owed and not parts:
            parts.append((self._owed, self._owed // PUBACK_BYTES, []))
        parts.append((size, count, ids))

    def kept_session(self) -> KeptSession | None:
        """Return what this connection leaves of its session, None when the session ends with it.

        Its QoS 2 ids are those whose publishes are durable, or will be with the group that is open now.
        """
        expiry_s = self.session.session_expiry_s
        if not expiry_s:
            return None
        ids = set(self.session.received or ())
        for _, _, owed in self._owed_parts or ():
            ids.update(owed)
        return KeptSession(clock.unix_s() + expiry_s, frozenset(ids))

    def _close_in_3(self, publishes: list[Publish], outcomes: list[int]) -> list[Publish]:
        """Answer what was accepted before the first refusal that 3.1.1 cannot say, then close."""
        for position, outcome in enumerate(outcomes):
            unsaid = outcome in UNSAID_IN_3 and publishes[position][2] > 0
            if outcome in CLOSES_IN_3 or unsaid:
                self.finish(Closing.REFUSED, ReasonCode.NOT_AUTHORIZED, DETAIL[Outcome(outcome)])
                return publishes[:position]
        return publishes

    def _hold(self, publishes: list[Publish]) -> None:
        """Keep the publishes of one read until the spool has room.

        Reading goes on, so that a client that waits for its answers hears those to its PINGREQs, until this
        connection or all together hold too much.
        """
        hub = self._hub
        if self._held is None:
            self._held = []
            hub.spool.when_room(self._release)
        self._held.append(publishes)
        size = sum(len(publish[1]) + HELD_OVERHEAD_BYTES for publish in publishes)
        self._held_bytes += size
        hub.held_bytes += size
        much = self._held_bytes >= HELD_BYTES_MAX or hub.held_bytes >= hub.held_bytes_max
        if much and not self._holds_reading:
            self._holds_reading = True
            self._stop_reading()

    def _take_held(self) -> list[list[Publish]]:
        """Stop holding and return what was held."""
        held = self._held or []
        self._held = None
        self._hub.held_bytes -= self._held_bytes
        self._held_bytes = 0
        if self._holds_reading:
            self._holds_reading = False
            self._start_reading()
        return held

    def _release(self) -> None:
        for publishes in self._take_held():
            self._publish(publishes, clock.monotonic_s())
        if self.phase is Phase.CLOSING and not self._owes():
            self._say_goodbye()

    def _let_go_of_held(self) -> None:
        """Refuse what is still held when the wire is gone: nobody waits for its answer any more."""
        if self._held is not None:
            self._hub.spool.waits_no_more(self._release)
            assert self.producer is not None
            for publishes in self._take_held():
                self._hub.pipeline.refuse_all(self.producer, publishes, Outcome.SPOOL_FULL)

    def _drop_held(self) -> None:
        """Let go of held QoS 2 publishes if the session goes on: its next connection sends them again."""
        if self._held is not None and self.session.uses_qos_2 and self.session.session_expiry_s:
            self._held = [
                kept for read in self._held if (kept := [publish for publish in read if publish[2] != 2])
            ]

    def _owes(self) -> bool:
        """Return whether something waits for the disk before this connection may close."""
        return self._owed > 0 or self._held is not None

    def pause(self, pause_s: float) -> None:
        """Read nothing for `pause_s`, so that the debt of this device or tenant is paid."""
        self._stop_reading()
        self._hub.loop.call_later(pause_s, self._start_reading)

    def pause_writing(self) -> None:
        """Read no more from a peer that does not take its answers."""
        self._stop_reading()

    def resume_writing(self) -> None:
        """Read again."""
        self._start_reading()

    @property
    def paused(self) -> bool:
        """Return whether it is we who do not read."""
        return self._pauses > 0

    def _stop_reading(self) -> None:
        self._pauses += 1
        if self._pauses == 1 and self.phase is not Phase.CLOSED:
            self.wire.pause_reading()

    def _start_reading(self) -> None:
        self._pauses -= 1
        if not self._pauses and self.phase in {Phase.OPEN, Phase.DECIDING}:
            self.last_read_s = clock.monotonic_s()
            self.wire.resume_reading()

    # What the spool says.

    def durable(self, reply: bytes) -> None:
        """Send answers: what they acknowledge is on the disk."""
        if self.phase is not Phase.CLOSED:
            self.wire.write(reply)
        size = len(reply)
        self._owed -= size
        parts = self._owed_parts
        if not parts:
            self.session.inflight -= size // PUBACK_BYTES
        while size > 0 and parts:
            length, count, ids = parts.pop(0)
            size -= length
            self.session.answered(count, ids)
        if self.phase is Phase.CLOSING and not self._owes():
            self._say_goodbye()

    def lost(self, error: SpoolError) -> bool:
        """Wait on while the disk refuses: nothing was answered, and the group is tried again."""
        assert error.retriable
        return False

    # Everything that is not a publish.

    def _attend(self) -> None:
        session = self.session
        if session.connect is not None and self.phase is Phase.CONNECTING:
            self.phase = Phase.DECIDING
            self._hub.connect(self, session.connect)
            return
        output = session.take_output()
        if output:
            self._send(output)
        if session.failure is not None and self.phase not in {Phase.CLOSING, Phase.CLOSED}:
            self._hub.broke_protocol(self, session.failure)
            if self.producer is None:
                refusal = session.refuse(session.failure.reason, session.failure.text)
                self.turn_away(refusal)
            else:
                self.finish(Closing.PROTOCOL_ERROR, session.failure.reason, session.failure.text)
        elif session.disconnected and self.phase is Phase.OPEN:
            self.finish(Closing.PEER, None, "")

    def _send(self, output: bytes) -> None:
        """Send answers that need no disk; a PUBCOMP waits until its release is stored."""
        released = self.session.take_released()
        if released and self.session.session_expiry_s:
            self._hub.remember(self)
            self._note_part(len(output), 0, [])
            self._owed += len(output)
            self._hub.spool.answer(self, output)
        elif self.phase is not Phase.CLOSED:
            self.wire.write(output)

    def opened(self, producer: Producer, connack: bytes) -> None:
        """Let the client in; what it sent since its CONNECT is read now."""
        self.producer = producer
        self.phase = Phase.OPEN
        self.wire.write(connack)
        self.received(b"")

    def turn_away(self, refusal: bytes) -> None:
        """Refuse the CONNECT and close."""
        if self.phase is Phase.CLOSED:
            return
        if refusal:
            self.wire.write(refusal)
        self.closing = Closing.REFUSED
        self.phase = Phase.CLOSING
        self._hub.closes(self)
        self.wire.close()

    def finish(self, closing: Closing, reason: int | None, text: str) -> None:
        """Close after what is owed is answered; MQTT 5 is told why, unless `reason` is None."""
        if self.phase in {Phase.CLOSING, Phase.CLOSED}:
            return
        self.closing = closing
        self.phase = Phase.CLOSING
        self._stop_reading()
        self.session.end()
        self._drop_held()
        self._hub.farewells[self] = (reason, text)
        self._hub.closes(self)
        if not self._owes():
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        reason, text = self._hub.farewells.pop(self, (None, ""))
        if reason is not None:
            farewell = self.session.farewell(reason, text)
            if farewell:
                self.wire.write(farewell)
        self.wire.close()

    def cut(self) -> None:
        """Close at once: the disk or the peer did not let us close in time."""
        self._hub.farewells.pop(self, None)
        self.wire.abort()

    def take_will(self) -> Will | None:
        """Return the will, once."""
        will, self.session.will = self.session.will, None
        return will
