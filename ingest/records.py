"""The unit that crosses the waist: a group of runs of payloads, as the spool stores it.

A *run* is what one read of one connection gave for one stream: payloads that share tenant, device,
stream, encoding and arrival time, so that a message costs the spool its payload and two bytes.
The envelope with its id is made on the way out (`ingest.delivery.envelope`): `id` is
`{node}-{boot}-{group}-{index}`, where `group` counts the groups of a start of the worker (`ordinal`), and
`index` the records of the group from 0.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

START_BITS: Final = 32
"""Groups of one start of a worker; the bits above them count its starts, so that numbers only ever grow."""


class Encoding(enum.IntEnum):
    """How each payload of a run is written. A `*_LIST` payload holds several records."""

    JSON = 0
    JSON_LIST = 1
    MSGPACK = 2
    MSGPACK_LIST = 3
    RAW = 4


class Run(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Payloads of one stream that arrived together; `count` is their number of records."""

    tenant: str
    device: str
    stream: str
    encoding: Encoding
    received_at_ms: int
    count: int
    payloads: list[bytes]


class After(msgspec.Struct, frozen=True, array_like=True):
    """Come after group `group` of the spool `spool` (the random number of its file), kept by `worker`."""

    worker: int
    spool: int
    group: int


class Group(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One group commit. (`node`, `boot`, `number`) is unique for ever.

    It is delivered only when each of `after` is (`ingest.order`). `traces` are the W3C trace contexts of runs
    that came with one, by position: of the group and not of a run, so that runs without one cost nothing.
    """

    node: str
    boot: str
    number: int
    runs: list[Run]
    after: list[After] = []
    traces: dict[int, str] = {}


class Spooled(msgspec.Struct, frozen=True):
    """A stored group, the bytes it takes up in the spool, and its records by tenant."""

    group: Group
    bytes: int
    tenants: dict[str, int]


ENCODE_GROUP: Final = msgspec.msgpack.Encoder()
DECODE_GROUP: Final = msgspec.msgpack.Decoder(Group)


def ordinal(number: int) -> int:
    """Return which group of its start of the worker a group is, from 1."""
    return number & ((1 << START_BITS) - 1)


def record_id(group: Group, index: int) -> str:
    """Return the id of the record at `index` of `group`: stable over retries, unique for ever."""
    return f"{group.node}-{group.boot}-{ordinal(group.number)}-{index}"
