"""An MQTT device, 3.1.1 or 5: CONNECT, PUBLISH at QoS 1, PINGREQ; made for thousands in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtests.clients.client import Answer, Gone
from loadtests.devices import Reading

CONNACK: Final = 0x20
PUBLISH_QOS_1: Final = b"\x32"
PUBACK: Final = 0x40
PINGREQ: Final = b"\xc0\x00"
PINGRESP: Final = 0xD0
DISCONNECT: Final = 0xE0
GOODBYE: Final = b"\xe0\x00"
CLEAN_START: Final = 0x02
PACKET_IDS: Final = 65_535
LENGTH_BYTES_MAX: Final = 4
REASONS: Final = {
    0x87: "not_authorised",
    0x90: "bad_topic",
    0x97: "over_limit",
    0x99: "content",
}
AGAIN: Final = {0x80: "disk_error", 0x83: "draining"}
"""Not refused for good: what says so is sent again."""


class MqttClient:
    """One device; `topic` is where it publishes."""

    __slots__ = ("_connect", "_five", "_heard", "_owed", "_topic", "ready")

    def __init__(self, name: str, topic: str, *, version: int, keep_alive_s: int) -> None:
        self.ready = False
        self._five = version == 5
        self._heard = b""
        self._topic = _text(topic)
        self._owed: dict[int, int] = {}
        body = _text("MQTT") + bytes((version, CLEAN_START)) + keep_alive_s.to_bytes(2, "big")
        body += (b"\x00" if self._five else b"") + _text(name)
        self._connect = b"\x10" + _length(len(body)) + body

    def open(self) -> bytes:
        """Begin on a new connection."""
        self.ready = False
        self._heard = b""
        self._owed.clear()
        return self._connect

    def next_count(self) -> int:
        """Return that each message is one reading."""
        return 1

    def publish(self, readings: Sequence[Reading], payload: bytes) -> bytes:
        """Return a PUBLISH."""
        seq = readings[0][0]
        packet_id = seq % PACKET_IDS + 1
        self._owed[packet_id] = seq
        topic = self._topic
        head = packet_id.to_bytes(2, "big") + (b"\x00" if self._five else b"")
        return b"".join((PUBLISH_QOS_1, _length(len(topic) + len(head) + len(payload)), topic, head, payload))

    def hear(self, data: bytes) -> list[Answer]:
        """Return the answers in what came; raises `Gone`."""
        heard = self._heard + data if self._heard else data
        answers: list[Answer] = []
        at, size = 0, len(heard)
        while size - at >= 2:
            length = heard[at + 1]
            start = at + 2
            if length > 0x7F:
                end_of_length, length = _read_length(heard, at + 1)
                if not end_of_length:
                    break
                start = end_of_length
            if size < start + length:
                break
            kind = heard[at]
            if kind == PUBACK:
                seq = self._owed.pop(heard[start] << 8 | heard[start + 1], None)
                if seq is None:
                    raise Gone("an answer to what was not asked")
                code = heard[start + 2] if length > 2 else 0
                if code in AGAIN:
                    raise Gone(AGAIN[code])
                answers.append(Answer((seq,), REASONS.get(code, f"0x{code:02x}") if code else ""))
            else:
                self._hear_other(kind, heard[start : start + length])
            at = start + length
        self._heard = heard[at:]
        return answers

    def _hear_other(self, kind: int, body: bytes) -> None:
        if kind == CONNACK:
            if body[1]:
                raise Gone(f"CONNACK 0x{body[1]:02x}")
            self.ready = True
        elif kind == DISCONNECT:
            raise Gone(f"DISCONNECT 0x{body[0] if body else 0:02x}")
        elif kind != PINGRESP:
            raise Gone(f"a strange packet 0x{kind:02x}")

    def reply(self) -> bytes:
        """Return nothing: at QoS 1 the answer ends it."""
        return b""

    def ping(self) -> bytes:
        """Return a PINGREQ."""
        return PINGREQ

    def close(self) -> bytes:
        """Return a DISCONNECT."""
        return GOODBYE


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def _length(value: int) -> bytes:
    """Return a variable byte integer (MQTT 5, 1.5.5)."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_length(data: bytes, at: int) -> tuple[int, int]:
    """Return (end, value) of a variable byte integer, end 0 if more bytes are needed."""
    value = 0
    for position in range(at, min(len(data), at + LENGTH_BYTES_MAX)):
        value |= (data[position] & 0x7F) << (7 * (position - at))
        if data[position] < 0x80:
            return position + 1, value
    if len(data) - at >= LENGTH_BYTES_MAX:
        raise Gone("a length of more than 4 bytes")
    return 0, 0
