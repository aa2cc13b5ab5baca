"""The user records in a Kinesis record, which the KPL's format may hold many of.

    magic F3 89 9A C2 | protobuf AggregatedRecord | MD5 of the protobuf

(amazon-kinesis-producer, aggregation-format.md.) What has no magic, another checksum or no such message is a
record as it is: the format says so, since any bytes may begin with the magic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from ingest.delivery.kinesis.aggregation import DIGEST_BYTES, MAGIC

VARINT_BYTES_MAX: Final = 10
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
"""The wire types of protobuf; groups are not used any more."""
RECORDS: Final = 3
"""AggregatedRecord.records"""
DATA: Final = 3
"""Record.data"""


def user_records(data: bytes) -> list[bytes]:
    """Return the data of each user record, in order."""
    if len(data) < len(MAGIC) + DIGEST_BYTES or not data.startswith(MAGIC):
        return [data]
    message = memoryview(data)[len(MAGIC) : -DIGEST_BYTES]
    if hashlib.md5(message, usedforsecurity=False).digest() != data[-DIGEST_BYTES:]:
        return [data]
    try:
        return [
            bytes(_only(value, DATA))
            for number, value in _fields(message)
            if number == RECORDS and isinstance(value, memoryview)
        ]
    except _NotOne:
        return [data]


class _NotOne(Exception):
    """The bytes are no such message."""


def _only(message: memoryview, wanted: int) -> memoryview:
    """Return the last field of a number, which is how protobuf reads a field that is not repeated."""
    found = [value for number, value in _fields(message) if number == wanted]
    if not found or not isinstance(found[-1], memoryview):
        raise _NotOne
    return found[-1]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield (number, value) of each field of a protobuf message."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in {FIXED_32, FIXED_64}:
            size = 4 if kind == FIXED_32 else 8
        else:
            raise _NotOne
        if size > end - at:
            raise _NotOne
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(message[at : at + VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    raise _NotOne
