"""The KPL's aggregated record: many user records in one Kinesis record.

    magic F3 89 9A C2 | protobuf AggregatedRecord | MD5 of the protobuf

(amazon-kinesis-producer, aggregation-format.md.) Written by hand, since a record costs this loop a few
bytes and a protobuf library an object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

MAGIC: Final = b"\xf3\x89\x9a\xc2"
DIGEST_BYTES: Final = 16
RECORD_OVERHEAD: Final = 16
"""At most this many bytes around the data of one user record, its key apart."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_VARINTS: Final = tuple(_varint(value) for value in range(4096))


def aggregate(parts: Sequence[tuple[str, Sequence[bytes]]]) -> bytes:
    """Return the data of one Kinesis record that holds `parts`: (partition key, its records) in order.

    Hot: guarded by bench/test_delivery.py::test_aggregate.
    """
    table: dict[str, int] = {}
    out: list[bytes] = []
    for key, records in parts:
        index = table.setdefault(key, len(table))
        head = b"\x08%b\x1a" % (_VARINTS[index] if index < 4096 else _varint(index))
        head_bytes = len(head)
        for data in records:
            size = len(data)
            length = _VARINTS[size] if size < 4096 else _varint(size)
            inner = head_bytes + len(length) + size
            out += (b"\x1a", _VARINTS[inner] if inner < 4096 else _varint(inner), head, length, data)
    keys = []
    for key in table:
        raw = key.encode()
        keys.append(b"\x0a%b%b" % (_VARINTS[len(raw)], raw))
    message = b"".join(keys) + b"".join(out)
    return MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()
