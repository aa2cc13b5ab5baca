"""The server's side of one MQTT session, without I/O and without a clock.

`feed` takes what was read and returns the publishes; everything else that a peer may say is answered
in `take_output()`, or stands in an attribute for the driver to act on. A publish is answered only when
the driver says so (`acknowledge`), since an answer means durable.

Limits: those of `SessionLimits`; an incomplete packet is kept up to `packet_bytes_max`, and what follows
a CONNECT that waits for its verdict up to `BACKLOG_BYTES_MAX` more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from protocols.errors import ProtocolError
from protocols.mqtt import packets, wire
from protocols.mqtt.limits import SessionLimits
from protocols.mqtt.packets import MQTT_5, Connect, Packet, Will
from protocols.mqtt.reason import CONNACK_3, ReasonCode
from protocols.mqtt.wire import Properties, Property, malformed, violation

Publish = tuple[bytes, bytes, int, bytes]
"""(raw topic, payload, QoS, packet id as two raw bytes or empty for QoS 0)."""

BACKLOG_BYTES_MAX: Final = 65_536
TOPICS_KNOWN_MAX: Final = 256
PUBACK: Final = 0x40
PUBREC: Final = 0x50
PUBCOMP: Final = 0x70
NO_ID: Final = b"\0\0"


class ServerSession:
    """One MQTT 3.1.1 or 5 session as the server sees it.

    The driver reads: `connect` (a CONNECT waits for `accept` or `refuse`), `failure` (the peer broke the
    protocol: answer what was returned, then close), `disconnected` (it said goodbye), `will`, and
    `received` (QoS 2 packet ids that were published and not yet released). `attention` says that there is
    more to do than to answer publishes; the driver takes it back.
    """

    __slots__ = (
        "_aliases",
        "_limits",
        "_need",
        "_output",
        "_pending_received",
        "_released",
        "_tail",
        "_topics",
        "_unanswered",
        "attention",
        "connect",
        "disconnected",
        "failure",
        "inflight",
        "keep_alive_s",
        "open",
        "peer_packet_bytes_max",
        "problem_information",
        "received",
        "session_expiry_s",
        "uses_qos_2",
        "version",
        "will",
    )

    def __init__(self, limits: SessionLimits) -> None:
        self._limits = limits
        self._tail: bytearray | None = None
        self._need = 0
        # Most devices use one topic, and nothing else is said to them: these are made when they are needed.
        self._output: list[bytes] | None = None
        self._topics: set[bytes] | tuple[bytes, ...] = ()
        self._unanswered = 0
        self._aliases: dict[int, bytes] | None = None
        self._released: list[int] | None = None
        self._pending_received: set[int] | None = None
        self.received: set[int] | None = None
        self.open = False
        self.attention = False
        self.version = 0
        self.connect: Connect | None = None
        self.failure: ProtocolError | None = None
        self.disconnected = False
        self.will: Will | None = None
        self.inflight = 0
        self.uses_qos_2 = False
        self.keep_alive_s = 0
        self.session_expiry_s = 0
        self.peer_packet_bytes_max = wire.VARINT_MAX
        self.problem_information = True

    def feed(self, data: bytes) -> list[Publish]:  # noqa: PLR0915  # hot: one loop on purpose
        """Take what was read and return the publishes in it, in order.

        Hot: guarded by bench/test_mqtt_parse.py::test_feed. One loop over all complete packets; the plain
        PUBLISH stays in it, everything else leaves by one call. After a failure or a goodbye nothing more
        is read (MQTT-3.14.4-1).
        """
        tail = self._tail
        if tail is not None:
            tail += data
            if len(tail) < self._need:
                return []
            data = bytes(tail)
            self._tail = None
        publishes: list[Publish] = []
        if not self.open:
            self.attention = True
            self._feed_connect(data)
            return publishes
        position = 0
        end = len(data)
        topics = self._topics
        version_5 = self.version == MQTT_5
        packet_bytes_max = self._limits.packet_bytes_max
        append = publishes.append
        try:
            while position + 2 <= end:
                first = data[position]
                length = data[position + 1]
                body = position + 2
                if length > 0x7F:
                    if body < end and 0 < data[body] < 0x80:  # two bytes: up to 16,383
                        length += (data[body] << 7) - 0x80
                        body += 1
                    else:
                        head = wire.read_varint(data, position + 1)
                        if head is None:
                            self._need = end - position + 1
                            break
                        length, body = head
                stop = body + length
                if stop - position > packet_bytes_max:
                    self._refuse_size()
                if stop > end:
                    self._need = stop - position
                    break
                # QoS 1, not a duplicate, not retained: by far the most frequent packet.
                if first == 0x32 and length > 4:
                    payload = body + 4 + (data[body] << 8 | data[body + 1])
                    topic = data[body + 2 : payload - 2]
                    if topic in topics and payload <= stop:
                        packet_id = data[payload - 2 : payload]
                        if packet_id != NO_ID:
                            if not version_5:
                                append((topic, data[payload:stop], 1, packet_id))
                                position = stop
                                continue
                            if payload < stop and not data[payload]:
                                append((topic, data[payload + 1 : stop], 1, packet_id))
                                position = stop
                                continue
                self.attention = True
                if first & 0xF0 == 0x30:
                    publish = self._read_publish(first, data[body:stop])
                    topics = self._topics  # it may have learned one
                    if publish is not None:
                        append(publish)
                else:
                    self._read_other(first, data[body:stop])
                    if self.disconnected:
                        position = end
                        break
                position = stop
        except ProtocolError as error:
            self.attention = True
            self.failure = error
            self.open = False
            position = end
        if position < end:
            self._tail = bytearray(data[position:])
            if end - position < 2:
                self._need = 2
        self._count_inflight(publishes)
        return publishes

    def _refuse_size(self) -> None:
        raise ProtocolError(
            ReasonCode.PACKET_TOO_LARGE, f"a packet has at most {self._limits.packet_bytes_max} bytes"
        )

    def _count_inflight(self, publishes: list[Publish]) -> None:
        """Hold the client to the receive maximum, which 3.1.1 clients are never told of."""
        if not publishes:
            return
        self.inflight += len(publishes) - self._unanswered
        self._unanswered = 0
        if self.inflight > self._limits.receive_maximum and self.version == MQTT_5 and self.failure is None:
            # MQTT-3.3.4-9
            self.attention = True
            self.failure = ProtocolError(
                ReasonCode.RECEIVE_MAXIMUM_EXCEEDED, "more publishes in flight than the receive maximum"
            )
            self.open = False

    def _feed_connect(self, data: bytes) -> None:
        """Read the CONNECT, and keep what follows it until the verdict."""
        if self.failure is not None or self.disconnected:
            return
        try:
            self._feed_before_open(data)
        except ProtocolError as error:
            self.failure = error

    def _feed_before_open(self, data: bytes) -> None:
        if self.connect is not None:
            if len(data) > BACKLOG_BYTES_MAX:
                raise ProtocolError(ReasonCode.QUOTA_EXCEEDED, "too much sent before the CONNACK")
            self._keep(data, 0)
            return
        if not data:
            return
        if data[0] != 0x10:
            if data[0] >> 4 == Packet.CONNECT:
                raise malformed("CONNECT has wrong flags")
            raise violation("the first packet must be CONNECT")  # MQTT-3.1.0-1
        head = wire.read_varint(data, 1)
        if head is None:
            self._keep(data, len(data) + 1)
            return
        length, body = head
        if length > self._limits.connect_bytes_max:
            raise ProtocolError(ReasonCode.PACKET_TOO_LARGE, "the CONNECT is too large")
        if len(data) < body + length:
            self._keep(data, body + length)
            return
        # Known before the fields are: what is wrong with them is said in the words of its version.
        self.version = packets.version_of(data[body : body + length])
        self.connect = packets.read_connect(
            data[body : body + length],
            client_id_bytes_max=self._limits.client_id_bytes_max,
            user_properties_max=self._limits.user_properties_max,
        )
        if len(data) > body + length:
            self._keep(data[body + length :], 0)

    def _keep(self, data: bytes, need: int) -> None:
        """Keep what is no whole packet yet, until there are `need` bytes."""
        self._tail = bytearray(data)
        self._need = need

    def _read_publish(self, first: int, body: bytes) -> Publish | None:
        """Read any PUBLISH (3.3); None for a QoS 2 one that was received before."""
        qos = first >> 1 & 3
        if qos == 3:
            raise malformed("PUBLISH has QoS 3")  # MQTT-3.3.1-4
        if first & 0x08 and not qos:
            raise malformed("PUBLISH has DUP with QoS 0")  # MQTT-3.3.1-2
        topic, position = wire.read_binary(body, 0)
        packet_id = b""
        if qos:
            packet_id = _packet_id(body, position)
            position += 2
        if self.version == MQTT_5:
            if first & 0x01:
                # Announced by Retain Available = 0 in the CONNACK (3.2.2.3.5).
                raise ProtocolError(ReasonCode.RETAIN_NOT_SUPPORTED, "retained messages are not kept here")
            properties, position = wire.read_properties(
                body,
                position,
                allowed=packets.PUBLISH_PROPERTIES,
                user_properties_max=self._limits.user_properties_max,
            )
            response_topic = properties.get(Property.RESPONSE_TOPIC)
            if isinstance(response_topic, str):
                packets.check_topic_name(response_topic.encode())
            topic = self._resolve_alias(topic, properties.get(Property.TOPIC_ALIAS))
        if topic not in self._topics:
            self._learn_topic(topic)
        if not qos:
            self._unanswered += 1
        elif qos == 2 and self._is_repeated(packet_id):
            return None
        return (topic, body[position:], qos, packet_id)

    def _is_repeated(self, packet_id: bytes) -> bool:
        """Tell whether a QoS 2 packet id is in use; a durable one is answered again (4.3.3)."""
        number = int.from_bytes(packet_id, "big")
        if self.received is not None and number in self.received:
            self._say(packets.ack(PUBREC, packet_id))
            return True
        self.uses_qos_2 = True
        if self._pending_received is None:
            self._pending_received = set()
        if number in self._pending_received:
            return True  # its PUBREC waits for the fsync
        self._pending_received.add(number)
        return False

    def _resolve_alias(self, topic: bytes, alias: int | str | bytes | None) -> bytes:
        """Return the topic behind an alias, and remember new ones (3.3.2.3.4)."""
        if alias is None:
            return topic
        assert isinstance(alias, int)
        if not 1 <= alias <= self._limits.topic_alias_maximum:
            raise ProtocolError(ReasonCode.TOPIC_ALIAS_INVALID, "the topic alias is out of range")
        if self._aliases is None:
            self._aliases = {}
        if topic:
            self._aliases[alias] = topic
            return topic
        known = self._aliases.get(alias)
        if known is None:
            raise violation("the topic alias is not known")
        return known

    def _learn_topic(self, topic: bytes) -> None:
        """Check a topic the first time it is used on this connection."""
        packets.check_topic_name(topic)
        limits = self._limits
        if len(topic) > limits.topic_bytes_max or topic.count(b"/") >= limits.topic_levels_max:
            raise ProtocolError(ReasonCode.TOPIC_NAME_INVALID, "the topic is too long or too deep")
        known = self._topics
        if not known or len(known) >= TOPICS_KNOWN_MAX:
            self._topics = (topic,)
        elif isinstance(known, tuple):
            self._topics = {*known, topic}
        else:
            known.add(topic)

    def _read_other(self, first: int, body: bytes) -> None:
        """Read everything that is not a PUBLISH."""
        reader = _READERS.get(first)
        if reader is not None:
            reader(self, body)
            return
        kind = first >> 4
        if kind == Packet.CONNECT:
            raise violation("a second CONNECT")  # MQTT-3.1.0-2
        if kind in {Packet.PUBACK, Packet.PUBREC, Packet.PUBCOMP}:
            raise violation("an answer to a publish that was never sent")
        if kind == Packet.AUTH and self.version == MQTT_5:
            raise violation("AUTH without extended authentication")  # MQTT-4.12.0-6
        if kind in {Packet.PUBREL, Packet.SUBSCRIBE, Packet.UNSUBSCRIBE, Packet.PINGREQ, Packet.DISCONNECT}:
            raise malformed(f"{Packet(kind).name} has wrong flags")  # MQTT-2.1.3-1
        raise malformed(f"a client never sends packet type {kind}")

    def _read_pubrel(self, body: bytes) -> None:
        packet_id = _packet_id(body, 0)
        if self.version == MQTT_5:
            self._check_reason_and_properties(body, 2, packets.ACK_PROPERTIES)
        elif len(body) != 2:
            raise malformed("PUBREL has a wrong length")
        number = int.from_bytes(packet_id, "big")
        if self.received is not None and number in self.received:
            self.received.discard(number)
            self._release(number)
            self._say(packets.ack(PUBCOMP, packet_id))
            return
        reason = ReasonCode.PACKET_IDENTIFIER_NOT_FOUND if self.version == MQTT_5 else ReasonCode.SUCCESS
        self._say(packets.ack(PUBCOMP, packet_id, reason))

    def _check_reason_and_properties(self, body: bytes, start: int, allowed: frozenset[int]) -> Properties:
        """Read an optional reason code and property list at the end of a packet (3.4.2.1, 3.14.2)."""
        if len(body) <= start + 1:
            return {}
        properties, end = wire.read_properties(
            body, start + 1, allowed=allowed, user_properties_max=self._limits.user_properties_max
        )
        if end != len(body):
            raise malformed("the packet has bytes after its last field")
        return properties

    def _read_filters(self, body: bytes, allowed: frozenset[int], *, with_options: bool) -> tuple[bytes, int]:
        """Read the topic filters of a SUBSCRIBE or UNSUBSCRIBE; return (packet id, how many)."""
        packet_id = _packet_id(body, 0)
        position = 2
        if self.version == MQTT_5:
            _, position = wire.read_properties(
                body, position, allowed=allowed, user_properties_max=self._limits.user_properties_max
            )
        reserved = 0xC0 if self.version == MQTT_5 else 0xFC
        filters = 0
        while position < len(body):
            raw, position = wire.read_binary(body, position)
            packets.check_topic_filter(raw)
            if with_options:
                options, position = wire.read_u8(body, position)
                if options & 3 == 3 or options & reserved or options >> 4 & 3 == 3:
                    raise malformed("SUBSCRIBE has wrong options")  # MQTT-3.8.3-4, -5
            filters += 1
        if not filters:
            raise violation("a topic filter is missing")  # MQTT-3.8.3-2, MQTT-3.10.3-2
        return packet_id, filters

    def _read_subscribe(self, body: bytes) -> None:
        """Refuse every filter by name: commands to devices are not served yet."""
        packet_id, filters = self._read_filters(body, packets.SUBSCRIBE_PROPERTIES, with_options=True)
        refusal = ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR if self.version == MQTT_5 else 0x80
        self._answer(packets.suback(packet_id, bytes((refusal,)) * filters, version=self.version))

    def _read_unsubscribe(self, body: bytes) -> None:
        packet_id, filters = self._read_filters(body, packets.UNSUBSCRIBE_PROPERTIES, with_options=False)
        reasons = bytes((ReasonCode.NO_SUBSCRIPTION_EXISTED,)) * filters
        self._answer(packets.unsuback(packet_id, reasons, version=self.version))

    def _answer(self, packet: bytes) -> None:
        """Answer with a packet that grows with the question: what the client cannot take ends it."""
        if len(packet) > self.peer_packet_bytes_max:
            # MQTT-3.1.2-24: never larger than the client's maximum.
            raise ProtocolError(ReasonCode.PACKET_TOO_LARGE, "the answer is larger than the client takes")
        self._say(packet)

    def _read_pingreq(self, body: bytes) -> None:
        if body:
            raise malformed("PINGREQ has a body")
        self._say(b"\xd0\0")

    def _read_disconnect(self, body: bytes) -> None:
        reason = 0
        if self.version == MQTT_5:
            reason = body[0] if body else 0
            properties = self._check_reason_and_properties(body, 0, packets.DISCONNECT_PROPERTIES)
            expiry = properties.get(Property.SESSION_EXPIRY_INTERVAL)
            if isinstance(expiry, int):
                if expiry and not self.session_expiry_s:
                    raise violation("a session without expiry cannot be given one")  # 3.14.2.2.2
                self.session_expiry_s = min(expiry, self._limits.session_expiry_s_max)
        elif body:
            raise malformed("DISCONNECT has a body")
        if reason != ReasonCode.DISCONNECT_WITH_WILL:
            self.will = None  # MQTT-3.14.4-3
        self.disconnected = True
        self.open = False

    def _say(self, packet: bytes) -> None:
        if self._output is None:
            self._output = []
        self._output.append(packet)

    def _release(self, number: int) -> None:
        if self._released is None:
            self._released = []
        self._released.append(number)

    def has_more(self) -> bool:
        """Return whether something is kept that came behind the last packet."""
        return self._tail is not None

    def take_output(self) -> bytes:
        """Return the answers that need not wait for the disk."""
        output = self._output
        if output is None:
            return b""
        self._output = None
        return output[0] if len(output) == 1 else b"".join(output)

    def take_released(self) -> list[int]:
        """Return the QoS 2 packet ids that were released since the last call."""
        released = self._released
        self._released = None
        return released or []

    def accept(
        self,
        *,
        session_present: bool,
        received: Iterable[int] = (),
        assigned_client_id: str | None = None,
    ) -> bytes:
        """Open the session and return its CONNACK; call `feed(b"")` next for what was sent meanwhile."""
        connect = self.connect
        assert connect is not None
        assert not self.open
        limits = self._limits
        self.connect = None
        self.open = True
        kept = set(received)
        self.received = kept or None
        self.will = connect.will
        self.session_expiry_s = min(connect.session_expiry_s, limits.session_expiry_s_max)
        self.peer_packet_bytes_max = connect.packet_bytes_max
        self.problem_information = connect.problem_information
        self.keep_alive_s = connect.keep_alive_s
        if self.version != MQTT_5:
            return packets.connack_3(session_present=session_present, code=0)
        properties: Properties = {
            Property.RECEIVE_MAXIMUM: min(limits.receive_maximum, 65_535),
            Property.RETAIN_AVAILABLE: 0,
            Property.MAXIMUM_PACKET_SIZE: limits.packet_bytes_max,
            Property.TOPIC_ALIAS_MAXIMUM: limits.topic_alias_maximum,
            Property.WILDCARD_SUBSCRIPTION_AVAILABLE: 0,
            Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: 0,
            Property.SHARED_SUBSCRIPTION_AVAILABLE: 0,
        }
        if self.session_expiry_s != connect.session_expiry_s:
            properties[Property.SESSION_EXPIRY_INTERVAL] = self.session_expiry_s
        if not 0 < connect.keep_alive_s <= limits.keep_alive_s_max:
            self.keep_alive_s = limits.keep_alive_s_max
            properties[Property.SERVER_KEEP_ALIVE] = limits.keep_alive_s_max
        if assigned_client_id is not None:
            properties[Property.ASSIGNED_CLIENT_IDENTIFIER] = assigned_client_id
        return packets.connack_5(session_present=session_present, reason=0, properties=properties)

    def refuse(self, reason: int, text: str = "") -> bytes:
        """Return the CONNACK that refuses the connection; empty where the version has no word for it."""
        packet_bytes_max = packets.PEER_PACKET_BYTES_MIN
        if self.connect is not None:
            packet_bytes_max = self.connect.packet_bytes_max
        self.open = False
        self.connect = None
        self.will = None
        if self.version == MQTT_5:
            properties: Properties = {Property.REASON_STRING: text} if text else {}
            connack = packets.connack_5(session_present=False, reason=reason, properties=properties)
            if len(connack) > packet_bytes_max or reason == ReasonCode.PACKET_TOO_LARGE:
                connack = packets.connack_5(session_present=False, reason=reason, properties={})
            return connack
        if reason == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION or (self.version and reason in CONNACK_3):
            return packets.connack_3(session_present=False, code=CONNACK_3[reason])
        return b""

    def acknowledge(
        self, publishes: list[Publish], reasons: list[int] | None, text: Callable[[int], str] | None = None
    ) -> bytes:
        """Return the PUBACKs and PUBRECs of `publishes`; `reasons` None means that all succeeded.

        Hot: guarded by bench/test_mqtt_parse.py::test_acknowledge. The bytes are owed, not sent: call
        `answered` with the same publishes when they go out. `text` gives a reason string.
        """
        if reasons is None:
            if len(publishes) == 1 and publishes[0][2] == 1:
                return b"@\x02" + publishes[0][3]
            ids = [publish[3] for publish in publishes if publish[2] == 1]
            if len(ids) == len(publishes):
                return b"@\x02" + b"@\x02".join(ids)
            return b"".join(
                [
                    (b"@\x02" if publish[2] == 1 else b"P\x02") + publish[3]
                    for publish in publishes
                    if publish[2]
                ]
            )
        replies: list[bytes] = []
        for (_, _, qos, packet_id), reason in zip(publishes, reasons, strict=True):
            if not qos:
                continue
            why = text(reason) if reason and text is not None and self.problem_information else ""
            reply = packets.ack(PUBACK if qos == 1 else PUBREC, packet_id, reason, why)
            if len(reply) > self.peer_packet_bytes_max:
                reply = packets.ack(PUBACK if qos == 1 else PUBREC, packet_id, reason)
            if qos == 2 and reason >= 0x80 and self._pending_received is not None:
                # A refused QoS 2 publish ends with its PUBREC (4.3.3), and its id is free again.
                self._pending_received.discard(int.from_bytes(packet_id, "big"))
            replies.append(reply)
        return b"".join(replies)

    def qos_2_ids(self, publishes: list[Publish], reasons: list[int] | None) -> list[int]:
        """Return the packet ids of the QoS 2 publishes that succeeded."""
        return [
            int.from_bytes(publish[3], "big")
            for position, publish in enumerate(publishes)
            if publish[2] == 2 and (reasons is None or not reasons[position])
        ]

    def answered(self, count: int, ids: Iterable[int] = ()) -> None:
        """Note that the answers to `count` QoS 1 or 2 publishes were sent; `ids` are durable now."""
        self.inflight -= count
        for number in ids:
            if self._pending_received is not None:
                self._pending_received.discard(number)
            if self.received is None:
                self.received = set()
            self.received.add(number)

    def end(self) -> None:
        """Take nothing any more: the driver closes."""
        self.open = False
        self.disconnected = True

    def farewell(self, reason: int, text: str = "") -> bytes:
        """Return the DISCONNECT that says why the server closes; 3.1.1 has none (MQTT-3.14.0-1)."""
        if self.version != MQTT_5 or self.connect is not None:
            return b""
        packet = packets.disconnect(reason, text if self.problem_information else "")
        if len(packet) > self.peer_packet_bytes_max:
            packet = packets.disconnect(reason, "")
        return packet if len(packet) <= self.peer_packet_bytes_max else b""


def _packet_id(body: bytes, start: int) -> bytes:
    packet_id = body[start : start + 2]
    if len(packet_id) < 2:
        raise malformed("the packet ends early")
    if packet_id == NO_ID:
        raise violation("packet id 0")  # MQTT-2.2.1-3
    return packet_id


_READERS: Final[dict[int, Callable[[ServerSession, bytes], None]]] = {
    0x62: ServerSession._read_pubrel,
    0x82: ServerSession._read_subscribe,
    0xA2: ServerSession._read_unsubscribe,
    0xC0: ServerSession._read_pingreq,
    0xE0: ServerSession._read_disconnect,
}
