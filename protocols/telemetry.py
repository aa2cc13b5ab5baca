"""Telemetry as devices send it, JSON or MessagePack, one or a list.

    {"ts": 1764000000000, "seq": 7, "metrics": {"temperature": 21.5, "door": true},
     "location": [50.1, 8.7], "meta": {"firmware": "1.4.2"}}

`ts` is Unix time in milliseconds. Names have 1 to 128 characters, text at most 1,024. Unknown members
are refused. Of a repeated JSON member the last one counts, as in most parsers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from math import isfinite
from typing import Annotated, Final

import msgspec

METRICS_MAX: Final = 256
TS_MS_MAX: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""
NAME_CHARACTERS_MAX: Final = 128
TEXT_CHARACTERS_MAX: Final = 1024
NOT_FINITE: Final = "a number is not finite"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS_MAX)]
Meta = Annotated[dict[Name, Text | float | bool | None], msgspec.Meta(max_length=METRICS_MAX)]
Latitude = Annotated[float, msgspec.Meta(ge=-90, le=90)]
Longitude = Annotated[float, msgspec.Meta(ge=-180, le=180)]


class Form(enum.IntEnum):
    """How a payload is written; the numbers are those of `ingest.records.Encoding`."""

    JSON = 0
    JSON_LIST = 1
    MSGPACK = 2
    MSGPACK_LIST = 3


class Telemetry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One measurement of one device."""

    ts: Annotated[int, msgspec.Meta(gt=0, le=TS_MS_MAX)]
    metrics: Annotated[dict[Name, float | bool | Text], msgspec.Meta(min_length=1, max_length=METRICS_MAX)]
    seq: Annotated[int, msgspec.Meta(ge=0)] | None = None
    location: tuple[Latitude, Longitude] | None = None
    meta: Meta | None = None


class Malformed(Exception):
    """The payload is not telemetry; the text says where, and never quotes the payload."""


_JSON_ONE: Final = msgspec.json.Decoder(Telemetry)
_JSON_LIST: Final = msgspec.json.Decoder(list[Telemetry])
_MSGPACK_ONE: Final = msgspec.msgpack.Decoder(Telemetry)
_MSGPACK_LIST: Final = msgspec.msgpack.Decoder(list[Telemetry])

decode_one_json: Final[Callable[[bytes], Telemetry]] = _JSON_ONE.decode
"""Decode one JSON object; raises `msgspec.DecodeError` or UnicodeDecodeError.

Hot: guarded by bench/test_telemetry.py::test_decode_one_json.
"""


def form_of(payload: bytes) -> Form:
    """Tell by the first byte how `payload` is written, which for telemetry is unambiguous."""
    if not payload:
        raise Malformed("the payload is empty")
    first = payload[0]
    if first in b" \t\r\n":
        first = payload.lstrip(b" \t\r\n")[:1][0] if payload.strip(b" \t\r\n") else 0
    if first == 0x7B:  # {
        return Form.JSON
    if first == 0x5B:  # [
        return Form.JSON_LIST
    if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):  # MessagePack: fixmap, map 16, map 32
        return Form.MSGPACK
    if 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):  # MessagePack: fixarray, array 16, array 32
        return Form.MSGPACK_LIST
    raise Malformed("neither a JSON nor a MessagePack object or list")


def decode(payload: bytes, records_max: int) -> tuple[Form, int]:
    """Validate `payload` and return its form and its number of records, 1 to `records_max`."""
    form = form_of(payload)
    try:
        if form is Form.JSON:
            _JSON_ONE.decode(payload)
            return form, 1
        if form is Form.MSGPACK:
            _refuse_non_finite([_MSGPACK_ONE.decode(payload)])
            return form, 1
        items = (_JSON_LIST if form is Form.JSON_LIST else _MSGPACK_LIST).decode(payload)
    except UnicodeDecodeError as error:
        raise Malformed("text is not UTF-8") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Malformed(_place(error)) from error
    if not 1 <= len(items) <= records_max:
        raise Malformed(f"a list holds 1 to {records_max} records, this one has {len(items)}")
    if form is Form.MSGPACK_LIST:
        _refuse_non_finite(items)
    return form, len(items)


def _place(error: Exception) -> str:
    """Return where the payload is wrong: msgspec's path, in which map keys stand as `[...]`."""
    text = str(error)
    if "unknown field" in text:
        return "an unknown member" + text[text.rfind(" - at ") :] if " - at " in text else "an unknown member"
    return text[:200]


def _refuse_non_finite(items: list[Telemetry]) -> None:
    """Refuse what JSON cannot say: MessagePack has NaN and infinities, and unpaired surrogates."""
    for item in items:
        for value in item.metrics.values():
            if type(value) is float and not isfinite(value):
                raise Malformed(NOT_FINITE)
        if item.meta is not None:
            for of_meta in item.meta.values():
                if type(of_meta) is float and not isfinite(of_meta):
                    raise Malformed(NOT_FINITE)
        if item.location is not None and not all(map(isfinite, item.location)):
            raise Malformed(NOT_FINITE)
