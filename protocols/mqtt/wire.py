"""The data types of MQTT: variable byte integers, strings, binary data and properties.

Readers take (data, start) and return (value, end); they raise `ProtocolError` when the bytes are wrong
or end early, since they only ever see complete packets.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from protocols.errors import ProtocolError
from protocols.mqtt.reason import ReasonCode

VARINT_BYTES_MAX: Final = 4
VARINT_MAX: Final = 268_435_455
STRING_BYTES_MAX: Final = 65_535

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


def malformed(text: str) -> ProtocolError:
    """Return the error for bytes that are no packet."""
    return ProtocolError(ReasonCode.MALFORMED_PACKET, text)


def violation(text: str) -> ProtocolError:
    """Return the error for a well-formed packet that is not allowed."""
    return ProtocolError(ReasonCode.PROTOCOL_ERROR, text)


def read_varint(data: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """Return (value, end), or None when more bytes are needed (MQTT 5, 1.5.5)."""
    value = 0
    for position in range(start, min(len(data), start + VARINT_BYTES_MAX)):
        byte = data[position]
        value |= (byte & 0x7F) << (7 * (position - start))
        if byte < 0x80:
            if byte == 0 and position > start:
                # MQTT5-1.5.5-1: the encoded value must use the minimum number of bytes.
                raise malformed("variable byte integer is longer than it must be")
            return value, position + 1
    if len(data) - start >= VARINT_BYTES_MAX:
        raise malformed("variable byte integer exceeds 4 bytes")
    return None


def write_varint(value: int) -> bytes:
    """Encode `value`, 0 to 268,435,455."""
    assert 0 <= value <= VARINT_MAX
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_u8(data: bytes, start: int) -> tuple[int, int]:
    """Read one byte."""
    if start >= len(data):
        raise malformed("the packet ends early")
    return data[start], start + 1


def read_u16(data: bytes, start: int) -> tuple[int, int]:
    """Read a two byte integer."""
    if start + 2 > len(data):
        raise malformed("the packet ends early")
    return _U16.unpack_from(data, start)[0], start + 2


def read_u32(data: bytes, start: int) -> tuple[int, int]:
    """Read a four byte integer."""
    if start + 4 > len(data):
        raise malformed("the packet ends early")
    return _U32.unpack_from(data, start)[0], start + 4


def read_binary(data: bytes, start: int) -> tuple[bytes, int]:
    """Read length-prefixed bytes."""
    length, start = read_u16(data, start)
    end = start + length
    if end > len(data):
        raise malformed("a string or binary field ends after the packet")
    return data[start:end], end


def read_string(data: bytes, start: int) -> tuple[str, int]:
    """Read a UTF-8 string (MQTT 5, 1.5.4)."""
    raw, end = read_binary(data, start)
    return text(raw), end


def text(raw: bytes) -> str:
    """Decode UTF-8; U+0000, surrogates, control characters and non-characters are refused."""
    try:
        decoded = raw.decode()  # MQTT-1.5.4-1: surrogates are refused by the decoder
    except UnicodeDecodeError as error:
        raise malformed("a string is not UTF-8") from error
    if not decoded.isascii() or not decoded.isprintable():
        for character in decoded:
            code = ord(character)
            if code < 0x20 or 0x7F <= code <= 0x9F or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
                # MQTT-1.5.4-2 for U+0000; the others "should" close the connection.
                raise malformed("a string has a forbidden character")
    return decoded


def write_string(value: str) -> bytes:
    """Encode a UTF-8 string, cut to 65,535 bytes."""
    raw = value.encode()[:STRING_BYTES_MAX]
    return _U16.pack(len(raw)) + raw


def write_binary(value: bytes) -> bytes:
    """Encode length-prefixed bytes."""
    return _U16.pack(len(value)) + value


class Property(enum.IntEnum):
    """Property identifiers (MQTT 5, table 2-4)."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


class _Kind(enum.Enum):
    U8 = 0
    U16 = 1
    U32 = 2
    VARINT = 3
    STRING = 4
    BINARY = 5
    PAIR = 6


_KIND: Final[dict[int, _Kind]] = {
    Property.PAYLOAD_FORMAT_INDICATOR: _Kind.U8,
    Property.MESSAGE_EXPIRY_INTERVAL: _Kind.U32,
    Property.CONTENT_TYPE: _Kind.STRING,
    Property.RESPONSE_TOPIC: _Kind.STRING,
    Property.CORRELATION_DATA: _Kind.BINARY,
    Property.SUBSCRIPTION_IDENTIFIER: _Kind.VARINT,
    Property.SESSION_EXPIRY_INTERVAL: _Kind.U32,
    Property.ASSIGNED_CLIENT_IDENTIFIER: _Kind.STRING,
    Property.SERVER_KEEP_ALIVE: _Kind.U16,
    Property.AUTHENTICATION_METHOD: _Kind.STRING,
    Property.AUTHENTICATION_DATA: _Kind.BINARY,
    Property.REQUEST_PROBLEM_INFORMATION: _Kind.U8,
    Property.WILL_DELAY_INTERVAL: _Kind.U32,
    Property.REQUEST_RESPONSE_INFORMATION: _Kind.U8,
    Property.RESPONSE_INFORMATION: _Kind.STRING,
    Property.SERVER_REFERENCE: _Kind.STRING,
    Property.REASON_STRING: _Kind.STRING,
    Property.RECEIVE_MAXIMUM: _Kind.U16,
    Property.TOPIC_ALIAS_MAXIMUM: _Kind.U16,
    Property.TOPIC_ALIAS: _Kind.U16,
    Property.MAXIMUM_QOS: _Kind.U8,
    Property.RETAIN_AVAILABLE: _Kind.U8,
    Property.USER_PROPERTY: _Kind.PAIR,
    Property.MAXIMUM_PACKET_SIZE: _Kind.U32,
    Property.WILDCARD_SUBSCRIPTION_AVAILABLE: _Kind.U8,
    Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: _Kind.U8,
    Property.SHARED_SUBSCRIPTION_AVAILABLE: _Kind.U8,
}

_BOOLEANS: Final = frozenset(
    {
        Property.PAYLOAD_FORMAT_INDICATOR,
        Property.REQUEST_PROBLEM_INFORMATION,
        Property.REQUEST_RESPONSE_INFORMATION,
    }
)
_NEVER_ZERO: Final = frozenset(
    {Property.RECEIVE_MAXIMUM, Property.MAXIMUM_PACKET_SIZE, Property.SUBSCRIPTION_IDENTIFIER}
)

Properties = dict[int, int | str | bytes]


def read_properties(
    data: bytes, start: int, *, allowed: frozenset[int], user_properties_max: int
) -> tuple[Properties, int]:
    """Read a property list; user properties are checked, counted and dropped.

    A property that the packet may not have, or has twice, is an error (MQTT 5, 2.2.2).
    """
    head = read_varint(data, start)
    if head is None:
        raise malformed("the packet ends early")
    length, position = head
    end = position + length
    if end > len(data):
        raise malformed("the properties end after the packet")
    data = data[:end]
    found: Properties = {}
    user_properties = 0
    while position < end:
        identifier = data[position]
        kind = _KIND.get(identifier)
        if kind is None or identifier not in allowed:
            raise malformed(f"property 0x{identifier:02X} is not allowed here")
        value, position = _read_value(kind, data, position + 1)
        if identifier == Property.USER_PROPERTY:
            user_properties += 1
            if user_properties > user_properties_max:
                raise ProtocolError(ReasonCode.QUOTA_EXCEEDED, "too many user properties")
            continue
        if identifier in found:
            raise violation(f"property 0x{identifier:02X} is there twice")
        if (identifier in _BOOLEANS and value not in {0, 1}) or (identifier in _NEVER_ZERO and value == 0):
            raise violation(f"property 0x{identifier:02X} has a value that is not allowed")
        found[identifier] = value
    return found, end


def _read_value(kind: _Kind, data: bytes, start: int) -> tuple[int | str | bytes, int]:
    match kind:
        case _Kind.U8:
            return read_u8(data, start)
        case _Kind.U16:
            return read_u16(data, start)
        case _Kind.U32:
            return read_u32(data, start)
        case _Kind.STRING:
            return read_string(data, start)
        case _Kind.BINARY:
            return read_binary(data, start)
        case _Kind.PAIR:
            _, start = read_string(data, start)
            return read_string(data, start)
        case _Kind.VARINT:
            head = read_varint(data, start)
            if head is None:
                raise malformed("the packet ends early")
            return head


def write_properties(properties: Properties) -> bytes:
    """Encode a property list with its length."""
    out = bytearray()
    for identifier, value in properties.items():
        out.append(identifier)
        match _KIND[identifier], value:
            case _Kind.U8, int():
                out.append(value)
            case _Kind.U16, int():
                out += _U16.pack(value)
            case _Kind.U32, int():
                out += _U32.pack(value)
            case _Kind.STRING, str():
                out += write_string(value)
            case _:
                raise AssertionError(f"this server never sends property 0x{identifier:02X}")
    return write_varint(len(out)) + bytes(out)
