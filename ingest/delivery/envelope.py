"""From a group to the records of the stream: one JSON envelope a record, in order.

    {"id", "tenant", "device", "stream", "received_at", "node", "payload"}

`received_at` is Unix time in ms. The payload of a raw stream is base64 text, with "encoding": "base64".
Payloads were validated when they came in, so JSON is spliced in as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Final

import msgspec

from ingest.records import Encoding, Group, Run

_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_MSGPACK: Final = msgspec.msgpack.Decoder()
_JSON: Final = msgspec.json.Encoder()


def payloads_as_json(run: Run) -> list[bytes]:
    """Return the payloads of a run as JSON texts, one a record."""
    match run.encoding:
        case Encoding.JSON:
            return run.payloads
        case Encoding.JSON_LIST:
            return [bytes(item) for payload in run.payloads for item in _LIST.decode(payload)]
        case Encoding.MSGPACK:
            return [_JSON.encode(_MSGPACK.decode(payload)) for payload in run.payloads]
        case Encoding.MSGPACK_LIST:
            return [_JSON.encode(item) for payload in run.payloads for item in _MSGPACK.decode(payload)]
        case Encoding.RAW:
            return [b'"' + base64.b64encode(payload) + b'"' for payload in run.payloads]


def envelopes(group: Group) -> Iterator[tuple[Run, int, list[bytes]]]:
    """Yield (run, index of its first record, its envelopes) in order.

    Hot: guarded by bench/test_delivery.py::test_envelopes. All of an envelope but its index is the same
    for a run, so a record costs one join of bytes.
    """
    head = b'{"id":' + _JSON.encode(f"{group.node}-{group.boot}-{group.number}-")[:-1]
    node = _JSON.encode(group.node)
    index = 0
    for run in group.runs:
        payloads = payloads_as_json(run)
        encoding = b',"encoding":"base64"' if run.encoding is Encoding.RAW else b""
        middle = b'","tenant":%b,"device":%b,"stream":%b,"received_at":%d,"node":%b%b,"payload":' % (
            _JSON.encode(run.tenant),
            _JSON.encode(run.device),
            _JSON.encode(run.stream),
            run.received_at_ms,
            node,
            encoding,
        )
        yield (
            run,
            index,
            [
                b"%b%d%b%b}" % (head, number, middle, payload)
                for number, payload in enumerate(payloads, index)
            ],
        )
        index += len(payloads)
