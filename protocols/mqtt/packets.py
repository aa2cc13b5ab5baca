"""CONNECT as it is read, and every packet that this server writes.

Names of clauses are those of MQTT 5; 3.1.1 has the same packets without properties.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from protocols.errors import ProtocolError
from protocols.mqtt import wire
from protocols.mqtt.reason import ReasonCode
from protocols.mqtt.wire import Properties, Property, malformed, violation

MQTT_3_1_1: Final = 4
MQTT_5: Final = 5
PEER_PACKET_BYTES_MIN: Final = 128
"""A client that takes no packet of this size could not be sent the largest CONNACK (MQTT-3.1.2-24)."""


class Packet(enum.IntEnum):
    """Control packet types (table 2-1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


CONNECT_PROPERTIES: Final = frozenset(
    {
        Property.SESSION_EXPIRY_INTERVAL,
        Property.RECEIVE_MAXIMUM,
        Property.MAXIMUM_PACKET_SIZE,
        Property.TOPIC_ALIAS_MAXIMUM,
        Property.REQUEST_RESPONSE_INFORMATION,
        Property.REQUEST_PROBLEM_INFORMATION,
        Property.USER_PROPERTY,
        Property.AUTHENTICATION_METHOD,
        Property.AUTHENTICATION_DATA,
    }
)
WILL_PROPERTIES: Final = frozenset(
    {
        Property.WILL_DELAY_INTERVAL,
        Property.PAYLOAD_FORMAT_INDICATOR,
        Property.MESSAGE_EXPIRY_INTERVAL,
        Property.CONTENT_TYPE,
        Property.RESPONSE_TOPIC,
        Property.CORRELATION_DATA,
        Property.USER_PROPERTY,
    }
)
PUBLISH_PROPERTIES: Final = frozenset(
    {
        Property.PAYLOAD_FORMAT_INDICATOR,
        Property.MESSAGE_EXPIRY_INTERVAL,
        Property.TOPIC_ALIAS,
        Property.RESPONSE_TOPIC,
        Property.CORRELATION_DATA,
        Property.USER_PROPERTY,
        Property.CONTENT_TYPE,
    }
)
ACK_PROPERTIES: Final = frozenset({Property.REASON_STRING, Property.USER_PROPERTY})
SUBSCRIBE_PROPERTIES: Final = frozenset({Property.SUBSCRIPTION_IDENTIFIER, Property.USER_PROPERTY})
UNSUBSCRIBE_PROPERTIES: Final = frozenset({Property.USER_PROPERTY})
DISCONNECT_PROPERTIES: Final = frozenset(
    {
        Property.SESSION_EXPIRY_INTERVAL,
        Property.REASON_STRING,
        Property.USER_PROPERTY,
        Property.SERVER_REFERENCE,
    }
)


class Will(msgspec.Struct, frozen=True):
    """What to publish for a client that goes without DISCONNECT; `delay_s` only in MQTT 5."""

    topic: bytes
    payload: bytes
    qos: int
    retain: bool
    delay_s: int


class Connect(msgspec.Struct, frozen=True, kw_only=True):
    """A CONNECT that keeps to the protocol; intervals in seconds.

    `session_expiry_s` is what the client asked for: 3.1.1 with clean session 0 asks for "no end",
    which is 0xFFFFFFFF as in MQTT 5.
    """

    version: int
    client_id: str
    clean_start: bool
    keep_alive_s: int
    session_expiry_s: int
    will: Will | None
    user_name: str | None
    password: bytes | None
    packet_bytes_max: int
    problem_information: bool


def version_of(body: bytes) -> int:
    """Return the version that a CONNECT asks for, or 0 when it is none that is spoken here."""
    version = body[6] if body[:6] == b"\0\4MQTT" and len(body) > 6 else 0
    return version if version in {MQTT_3_1_1, MQTT_5} else 0


def read_connect(body: bytes, *, client_id_bytes_max: int, user_properties_max: int) -> Connect:
    """Read the body of a CONNECT (3.1)."""
    name, position = wire.read_binary(body, 0)
    version, position = wire.read_u8(body, position)
    if name != b"MQTT" or version not in {MQTT_3_1_1, MQTT_5}:
        raise ProtocolError(ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, "MQTT 3.1.1 and MQTT 5 are spoken here")
    flags, position = wire.read_u8(body, position)
    will_qos = flags >> 3 & 3
    _check_flags(flags, version)
    keep_alive_s, position = wire.read_u16(body, position)
    properties: Properties = {}
    if version == MQTT_5:
        properties, position = wire.read_properties(
            body, position, allowed=CONNECT_PROPERTIES, user_properties_max=user_properties_max
        )
        if Property.AUTHENTICATION_METHOD in properties:
            raise ProtocolError(
                ReasonCode.BAD_AUTHENTICATION_METHOD, "extended authentication is not offered"
            )
        if Property.AUTHENTICATION_DATA in properties:
            raise violation("authentication data without a method")
    client_id, position = wire.read_string(body, position)
    if len(client_id.encode()) > client_id_bytes_max:
        raise ProtocolError(
            ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, f"a client id has at most {client_id_bytes_max} bytes"
        )
    clean_start = bool(flags & 0x02)
    if not client_id and version == MQTT_3_1_1 and not clean_start:
        # MQTT-3.1.3-8 (3.1.1)
        raise ProtocolError(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "a kept session needs a client id")
    will = None
    if flags & 0x04:
        will, position = _read_will(body, position, version, will_qos, flags, user_properties_max)
    user_name = password = None
    if flags & 0x80:
        user_name, position = wire.read_string(body, position)
    if flags & 0x40:
        password, position = wire.read_binary(body, position)
    if position != len(body):
        raise malformed("CONNECT has bytes after its last field")
    if version == MQTT_5:
        expiry = properties.get(Property.SESSION_EXPIRY_INTERVAL, 0)
    else:
        expiry = 0 if clean_start else 0xFFFF_FFFF
    packet_bytes_max = properties.get(Property.MAXIMUM_PACKET_SIZE, wire.VARINT_MAX)
    assert isinstance(expiry, int)
    assert isinstance(packet_bytes_max, int)
    if packet_bytes_max < PEER_PACKET_BYTES_MIN:
        raise ProtocolError(
            ReasonCode.PACKET_TOO_LARGE, f"a maximum packet size below {PEER_PACKET_BYTES_MIN} is not served"
        )
    return Connect(
        version=version,
        client_id=client_id,
        clean_start=clean_start,
        keep_alive_s=keep_alive_s,
        session_expiry_s=expiry,
        will=will,
        user_name=user_name,
        password=password,
        packet_bytes_max=packet_bytes_max,
        problem_information=properties.get(Property.REQUEST_PROBLEM_INFORMATION, 1) == 1,
    )


def _check_flags(flags: int, version: int) -> None:
    """Check the connect flags against each other (3.1.2.3 to 3.1.2.9)."""
    if flags & 0x01:
        raise malformed("CONNECT has its reserved flag set")  # MQTT-3.1.2-3
    will_qos = flags >> 3 & 3
    if flags & 0x04:
        if will_qos == 3:
            raise malformed("the will has QoS 3")  # MQTT-3.1.2-12
    elif flags & 0x38:
        raise malformed("will flags without a will")  # MQTT-3.1.2-11, -13
    if flags & 0x40 and not flags & 0x80 and version == MQTT_3_1_1:
        raise malformed("a password without a user name")  # MQTT-3.1.2-22 (3.1.1)


def _read_will(
    body: bytes, position: int, version: int, qos: int, flags: int, user_properties_max: int
) -> tuple[Will, int]:
    properties: Properties = {}
    if version == MQTT_5:
        properties, position = wire.read_properties(
            body, position, allowed=WILL_PROPERTIES, user_properties_max=user_properties_max
        )
        if flags & 0x20:
            # MQTT-3.2.2-13, announced by Retain Available = 0; 3.1.1 has no word for it.
            raise ProtocolError(ReasonCode.RETAIN_NOT_SUPPORTED, "retained messages are not kept here")
    raw, position = wire.read_binary(body, position)
    check_topic_name(raw)
    payload, position = wire.read_binary(body, position)
    delay_s = properties.get(Property.WILL_DELAY_INTERVAL, 0)
    assert isinstance(delay_s, int)
    return Will(raw, payload, qos, bool(flags & 0x20), delay_s), position


def check_topic_name(raw: bytes) -> None:
    """Check a topic that is published to: UTF-8, not empty, without wildcards (4.7)."""
    if not raw:
        raise ProtocolError(ReasonCode.TOPIC_NAME_INVALID, "the topic is empty")  # MQTT-4.7.3-1
    wire.text(raw)
    if b"+" in raw or b"#" in raw:
        raise ProtocolError(ReasonCode.TOPIC_NAME_INVALID, "the topic has a wildcard")  # MQTT-3.3.2-2


def check_topic_filter(raw: bytes) -> None:
    """Check a topic filter (4.7.1): wildcards stand alone in their level, `#` last."""
    if not raw:
        raise malformed("a topic filter is empty")
    wire.text(raw)
    levels = raw.split(b"/")
    for number, level in enumerate(levels, start=1):
        if b"#" in level and (level != b"#" or number != len(levels)):
            raise ProtocolError(ReasonCode.TOPIC_FILTER_INVALID, "a filter has `#` before its end")
        if b"+" in level and level != b"+":
            raise ProtocolError(ReasonCode.TOPIC_FILTER_INVALID, "a filter has `+` inside a level")


def connack_3(*, session_present: bool, code: int) -> bytes:
    """Write a CONNACK of 3.1.1."""
    return bytes((0x20, 2, session_present, code))


def connack_5(*, session_present: bool, reason: int, properties: Properties) -> bytes:
    """Write a CONNACK (3.2)."""
    body = bytes((session_present, reason)) + wire.write_properties(properties)
    return b"\x20" + wire.write_varint(len(body)) + body


def ack(first_byte: int, packet_id: bytes, reason: int = 0, text: str = "") -> bytes:
    """Write a PUBACK, PUBREC or PUBCOMP; success is the short form of both versions (3.4.2.1)."""
    if not reason:
        return bytes((first_byte, 2)) + packet_id
    if not text:
        return bytes((first_byte, 3)) + packet_id + bytes((reason,))
    body = packet_id + bytes((reason,)) + wire.write_properties({Property.REASON_STRING: text})
    return bytes((first_byte,)) + wire.write_varint(len(body)) + body


def suback(packet_id: bytes, reasons: bytes, *, version: int) -> bytes:
    """Write a SUBACK (3.9), one reason a filter."""
    body = packet_id + (b"\0" if version == MQTT_5 else b"") + reasons
    return b"\x90" + wire.write_varint(len(body)) + body


def unsuback(packet_id: bytes, reasons: bytes, *, version: int) -> bytes:
    """Write an UNSUBACK (3.11); 3.1.1 has no reasons."""
    body = packet_id + (b"\0" + reasons if version == MQTT_5 else b"")
    return b"\xb0" + wire.write_varint(len(body)) + body


def disconnect(reason: int, text: str) -> bytes:
    """Write a DISCONNECT of MQTT 5 (3.14)."""
    if not text:
        return bytes((0xE0, 1, reason))
    body = bytes((reason,)) + wire.write_properties({Property.REASON_STRING: text})
    return b"\xe0" + wire.write_varint(len(body)) + body
