"""What devices send: telemetry, and what is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from loadtests.devices import Reading

Kind = Literal["telemetry", "malformed", "oversize", "garbage"]
"""Garbage is not even a message of its protocol."""
OVERSIZE: Final = b'"meta":{%s},' % b",".join(b'"%c":"%s"' % (name, b"x" * 1000) for name in b"abcd")
"""So much is in an oversize payload that the stream which it goes to takes less, though it is telemetry."""


def payload_of(kind: Kind, readings: Sequence[Reading]) -> bytes:
    """Return the payload that tells these readings: one object, or a list if there are more."""
    told = b",".join(
        b'{"ts":%d,"seq":%d,"metrics":{"temperature":%d.5,"load":%d}}' % (ts_ms, seq, 20 + seq % 9, seq % 100)
        for seq, ts_ms in readings
    )
    if kind == "malformed":
        return told.replace(b'"metrics"', b'"matrix"')
    if kind == "oversize":
        told = told.replace(b'"metrics"', OVERSIZE + b'"metrics"')
    if len(readings) > 1:
        told = b"[" + told + b"]"
    return told
