"""Trace context of a request (W3C Trace Context, level 1): read, make, and pass on.

Pure; randomness is passed in. What is malformed is treated as absent, and begins a new trace.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
TRACESTATE_CHARACTERS_MAX: Final = 512
SAMPLED: Final = 1
BITS_TRACE: Final = 128
BITS_SPAN: Final = 64


class TraceContext(msgspec.Struct, frozen=True):
    """Where a request stands in its trace. `parent` is the span of the caller, or empty."""

    trace_id: str
    span_id: str
    parent: str
    flags: int
    state: str

    @property
    def traceparent(self) -> str:
        """The header that is passed on: what is called next has this span as its parent."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def begin(traceparent: str | None, tracestate: str | None, random: int) -> TraceContext:
    """Return the context of a new span, in the caller's trace or in a new one.

    `random` has `BITS_TRACE + BITS_SPAN` bits.
    """
    span = f"{(random & 0xFFFF_FFFF_FFFF_FFFF) or 1:016x}"
    if traceparent is not None:
        found = TRACEPARENT.fullmatch(traceparent.strip())
        if found is not None and _is_valid(found):
            state = tracestate if tracestate and len(tracestate) <= TRACESTATE_CHARACTERS_MAX else ""
            return TraceContext(found[2], span, found[3], int(found[4], 16) & SAMPLED, state)
    return TraceContext(f"{(random >> BITS_SPAN) or 1:032x}", span, "", SAMPLED, "")


def _is_valid(found: re.Match[str]) -> bool:
    """Return whether a header that looks right may be used (sections 3.2.2.1 to 3.2.2.5)."""
    if found[1] == "ff" or (found[1] == "00" and found[5]):
        return False
    return found[2].strip("0") != "" and found[3].strip("0") != ""
