"""From what is in a stream to records; what is not ours is None."""

from __future__ import annotations

from typing import Final

import msgspec

from protocols.telemetry import Telemetry
from services.feed.feed import Record

_TELEMETRY: Final = msgspec.json.Decoder(Telemetry)


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    """`ingest.delivery.envelope`, as far as a consumer needs it."""

    id: str
    tenant: str
    device: str
    stream: str
    received_at: int
    payload: msgspec.Raw
    encoding: str = ""


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_TEXT: Final = msgspec.json.Decoder(str)


def record_of(envelope: bytes) -> Record | None:
    """Return the record that an envelope of the stream holds."""
    try:
        found = _ENVELOPE.decode(envelope)
        raw = found.encoding == "base64"
        payload = _TEXT.decode(found.payload) if raw else bytes(found.payload).decode()
        telemetry = None if raw else _TELEMETRY.decode(found.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Record(found.id, found.tenant, found.device, found.stream, found.received_at, payload, telemetry)


Row = tuple[str, str, str, str, int, str]
"""id, tenant, device, stream, received_at_ms, payload: of the table of the sink `local`."""


def record_of_row(row: Row) -> Record | None:
    """Return the record that a row of the sink `local` holds; base64 text never begins with a brace."""
    identity, tenant, device, stream, received_at_ms, payload = row
    telemetry = None
    if payload.startswith("{"):
        try:
            telemetry = _TELEMETRY.decode(payload)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
    return Record(identity, tenant, device, stream, received_at_ms, payload, telemetry)
