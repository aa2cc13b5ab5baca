"""From a group to the records of the stream: one JSON envelope a record, in order.

    {"id", "tenant", "device", "stream", "received_at", "node", "payload"}

`received_at` is Unix time in ms. A record that came with a W3C trace context has it as "trace" before its
payload, which is a `traceparent`. The payload of a raw stream is base64 text, with "encoding": "base64".
Payloads were validated when they came in, so JSON is spliced in as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Final

import msgspec

from ingest.records import Encoding, Group, Run, ordinal

_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_MSGPACK: Final = msgspec.msgpack.Decoder()
_JSON: Final = msgspec.json.Encoder()
JSON: Final = Encoding.JSON  # on Python 3.11 a member by its class costs as much as an envelope
RAW: Final = Encoding.RAW


class _Envelope(msgspec.Struct, frozen=True):
    payload: msgspec.Raw
    encoding: str = ""


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_BASE64: Final = msgspec.json.Decoder(bytes)


def payload_of(envelope: bytes) -> bytes:
    """Return the payload that an envelope was made of, as it came."""
    made = _ENVELOPE.decode(envelope)
    return _BASE64.decode(made.payload) if made.encoding else bytes(made.payload)


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
    encode = _JSON.encode
    head = b'{"id":' + encode(f"{group.node}-{group.boot}-{ordinal(group.number)}-")[:-1]
    node = encode(group.node)
    traced = {id(group.runs[position]): trace for position, trace in group.traces.items()}
    index = 0
    for run in group.runs:
        encoding = b""
        if run.encoding is JSON:
            payloads = run.payloads
        else:
            payloads = payloads_as_json(run)
            if run.encoding is RAW:
                encoding = b',"encoding":"base64"'
        if traced and id(run) in traced:
            encoding += b',"trace":' + encode(traced[id(run)])
        middle = b'","tenant":%b,"device":%b,"stream":%b,"received_at":%d,"node":%b%b,"payload":' % (
            encode(run.tenant),
            encode(run.device),
            encode(run.stream),
            run.received_at_ms,
            node,
            encoding,
        )
        if len(payloads) == 1:
            yield run, index, [b"%b%d%b%b}" % (head, index, middle, payloads[0])]
            index += 1
            continue
        numbered = enumerate(payloads, index)
        yield run, index, [b"%b%d%b%b}" % (head, number, middle, payload) for number, payload in numbered]
        index += len(payloads)
