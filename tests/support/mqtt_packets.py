"""Client packets for tests, built field by field so that each can be built wrongly."""

from __future__ import annotations

from protocols.mqtt.limits import SessionLimits
from protocols.mqtt.wire import write_binary, write_string, write_varint

LIMITS = SessionLimits(
    packet_bytes_max=4096,
    connect_bytes_max=1024,
    receive_maximum=8,
    topic_alias_maximum=4,
    topic_levels_max=8,
    topic_bytes_max=64,
    client_id_bytes_max=32,
    user_properties_max=2,
    keep_alive_s_max=600,
    session_expiry_s_max=3600,
)


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + write_varint(len(body)) + body


def connect(
    *,
    version: int = 4,
    flags: int = 0x02,
    client: str = "c",
    name: bytes = b"MQTT",
    keep_alive: int = 60,
    properties: bytes = b"",
    rest: bytes = b"",
) -> bytes:
    body = write_binary(name) + bytes((version, flags)) + keep_alive.to_bytes(2, "big")
    if version == 5:
        body += write_varint(len(properties)) + properties
    return packet(0x10, body + write_string(client) + rest)


def publish(
    *,
    topic: bytes = b"a/b",
    payload: bytes = b"p",
    qos: int = 1,
    packet_id: int = 1,
    flags: int = 0,
    properties: bytes | None = None,
) -> bytes:
    body = write_binary(topic)
    if qos:
        body += packet_id.to_bytes(2, "big")
    if properties is not None:
        body += write_varint(len(properties)) + properties
    return packet(0x30 | qos << 1 | flags, body + payload)


def subscribe(*, version: int, flags: int = 2, filters: bytes = b"\x00\x01a\x00") -> bytes:
    return packet(0x80 | flags, b"\x00\x01" + (b"\x00" if version == 5 else b"") + filters)
