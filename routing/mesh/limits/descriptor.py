"""What a proxy says of a request when it asks whether a shared limit lets it through.

The limit itself is in the question, so that a policy holds from the moment in which a proxy has it, and the
service keeps no configuration: entries `of`, `requests`, `per_ms` and `burst`, which are the policy's, then
one for what is counted apart. Source of the form: envoy.service.ratelimit.v3.RateLimitRequest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from routing.limits.rates import Rate
from routing.mesh.model.rate_limits import PER_MS_MAX, PER_MS_MIN, REQUESTS_MAX

OF: Final = "of"
REQUESTS: Final = "requests"
PER_MS: Final = "per_ms"
BURST: Final = "burst"
OURS: Final = (OF, REQUESTS, PER_MS, BURST)
ENTRIES_MAX: Final = 5
Entries = Sequence[tuple[str, str]]


class NotOurs(Exception):
    """A question that no proxy of a mesh asks; the text says why."""


class Asked(msgspec.Struct, frozen=True):
    """Who is counted, as a name of fixed length, and the limit."""

    subject: str
    requests: int
    per_ms: int
    rate: Rate


def asked(domain: str, entries: Entries) -> Asked:
    """Return what is asked of a mesh (`domain`); raises NotOurs.

    Whose limit is another counts anew.
    """
    if not len(OURS) <= len(entries) <= ENTRIES_MAX or tuple(key for key, _ in entries[: len(OURS)]) != OURS:
        raise NotOurs(f"a descriptor has the entries {', '.join(OURS)}, and at most one more")
    said = dict(entries)
    requests = _number(REQUESTS, said[REQUESTS], 1, REQUESTS_MAX)
    per_ms = _number(PER_MS, said[PER_MS], PER_MS_MIN, PER_MS_MAX)
    burst = _number(BURST, said[BURST], 1, REQUESTS_MAX)
    text = "\0".join([domain, *(f"{len(value)}:{key}={value}" for key, value in entries)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return Asked(f"mesh:{digest}", requests, per_ms, Rate(per_s=requests * 1000 / per_ms, burst=burst))


def _number(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        raise NotOurs(f"{name} is no number")
    if not least <= (value := int(text)) <= most:
        raise NotOurs(f"{name} must be between {least} and {most}")
    return value
