"""Answers to GET that are given again: bounded by bytes and entries, the least used goes first.

Pure, but for the future that concurrent misses of one key wait for: the first asks the upstream, the others
get what it got (one flight). What RFC 9111 says may not be kept by a shared cache is not kept: no-store,
private, no-cache, Set-Cookie, and a Vary on what is not part of the key.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec
from multidict import MultiMapping

Key = tuple[str, ...]
NEVER: Final = frozenset({"no-store", "no-cache", "private"})
ENTRY_OVERHEAD_BYTES: Final = 512


class Kept(msgspec.Struct, frozen=True):
    """An answer as it is given again. `headers` has its ETag; times are of the monotonic clock."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    etag: str
    kept_s: float
    until_s: float

    def cost(self) -> int:
        """Return the bytes that it counts for."""
        return (
            ENTRY_OVERHEAD_BYTES
            + len(self.body)
            + sum(len(name) + len(value) for name, value in self.headers)
        )


Flight = asyncio.Future[Kept | None]


class Cache:
    """The answers that are kept, and the keys that are being asked for."""

    def __init__(self, *, bytes_max: int, entries_max: int, entry_bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self.entry_bytes_max = entry_bytes_max
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._flights: dict[Key, Flight] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Return how many answers are kept."""
        return len(self._kept)

    def get(self, key: Key, now_s: float) -> Kept | None:
        """Return a fresh answer."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if now_s >= kept.until_s:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, kept: Kept) -> None:
        """Keep an answer, and let go of the least used ones."""
        cost = kept.cost()
        if key in self._kept:
            self._drop(key)
        if cost > self._bytes_max or not self._entries_max:
            return
        self._kept[key] = kept
        self.bytes += cost
        while self.bytes > self._bytes_max or len(self._kept) > self._entries_max:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget all, and what is being asked for: routes have changed."""
        self._kept.clear()
        self._flights.clear()
        self.bytes = 0

    def _drop(self, key: Key) -> None:
        self.bytes -= self._kept.pop(key).cost()

    def flight(self, key: Key) -> Flight | None:
        """Return the flight of who asks for a key already, to wait for, or None: then `lead`."""
        return self._flights.get(key)

    def lead(self, key: Key) -> Flight:
        """Ask for a key on behalf of all who want it meanwhile; it must `land`."""
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        return flight

    def land(self, key: Key, flight: Flight, kept: Kept | None) -> None:
        """Give those who wait the answer, and keep it; without one each has to ask for itself.

        What was asked for before `clear` is given to who waited for it then, and not kept.
        """
        if self._flights.get(key) is flight:
            del self._flights[key]
            if kept is not None:
                self.put(key, kept)
        if not flight.done():
            flight.set_result(kept)


def key_of(route: str, target: str, owner: str, vary: list[str], headers: MultiMapping[str]) -> Key:
    """Return the key of a request; `owner` is who alone may be given the answer, or empty for everybody."""
    return (route, target, owner, *(_all(headers, name) for name in vary))


def may_look(headers: MultiMapping[str]) -> bool:
    """Return whether a request may be answered from the cache, and its answer kept."""
    return not NEVER & _directives(headers).keys() and "Range" not in headers


def lifetime_s(status: int, headers: MultiMapping[str], ttl_s: float, vary: list[str]) -> float:
    """Return how long an answer may be kept, 0 for not at all; at most `ttl_s` (RFC 9111 3, 4.2.1)."""
    if status != 200 or "Set-Cookie" in headers:
        return 0.0
    depends = {part.strip().lower() for part in _all(headers, "Vary").split(",") if part.strip()}
    if depends - {name.lower() for name in vary}:
        return 0.0
    directives = _directives(headers)
    if NEVER & directives.keys():
        return 0.0
    age = directives.get("s-maxage", directives.get("max-age"))
    if age is None:
        return min(ttl_s, _expires_s(headers)) if "Expires" in headers else ttl_s
    return max(0.0, min(ttl_s, _seconds(age.strip('"')) - _seconds(headers.get("Age", "0"))))


def etag_of(body: bytes) -> str:
    """Return a strong validator of a body."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def is_unchanged(if_none_match: str | None, etag: str) -> bool:
    """Return whether the caller has the answer already (weak comparison, RFC 9110 13.1.2)."""
    if not if_none_match:
        return False
    if if_none_match.strip() == "*":
        return True
    wanted = etag.removeprefix("W/")
    return any(tag.strip().removeprefix("W/") == wanted for tag in if_none_match.split(","))


def _seconds(text: str) -> float:
    """Return a delta-seconds (RFC 9111 1.2.2); what is none is 0."""
    return float(text) if text.isascii() and text.isdecimal() else 0.0


def _expires_s(headers: MultiMapping[str]) -> float:
    """Return how long after its Date an answer expires; what is no date has expired (RFC 9111 5.3)."""
    try:
        expires, date = (parsedate_to_datetime(headers[name]) for name in ("Expires", "Date"))
        return max(0.0, (expires - date).total_seconds())
    except (KeyError, TypeError, ValueError):
        return 0.0


def _directives(headers: MultiMapping[str]) -> dict[str, str]:
    if "Cache-Control" not in headers:
        return {}
    parts = (part.strip().lower().partition("=") for part in _all(headers, "Cache-Control").split(","))
    return {name.strip(): value.strip() for name, _, value in parts}


def _all(headers: MultiMapping[str], name: str) -> str:
    """Return the lines of a header as one (RFC 9110 5.3)."""
    lines = headers.getall(name, ())
    return lines[0] if len(lines) == 1 else ", ".join(lines)
