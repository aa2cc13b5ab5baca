"""What a route that is deprecated says about it: Deprecation (RFC 9745), Sunset (RFC 8594) and Link.

Pure. Dates are `2027-01-31` or an RFC 3339 time with its offset; a date alone begins at midnight UTC.
"""

from __future__ import annotations

import datetime as dt
from email.utils import formatdate
from typing import Final

import msgspec

from routing.gateway.routes_file import Deprecation

LINK_UNSAFE: Final = frozenset('<>" \r\n\\')


class Farewell(msgspec.Struct, frozen=True):
    """The dates of a route in Unix seconds, and the headers that say them; `sunset_s` is None without one."""

    since_s: int
    sunset_s: int | None
    headers: tuple[tuple[str, str], ...]

    def is_gone(self, now_s: float) -> bool:
        """Return whether the route is not served any more."""
        return self.sunset_s is not None and now_s >= self.sunset_s


def farewell(deprecation: Deprecation) -> Farewell:
    """Read the dates of a route; raises ValueError."""
    since_s = unix_of(deprecation.since)
    sunset_s = unix_of(deprecation.sunset) if deprecation.sunset else None
    if sunset_s is not None and sunset_s < since_s:
        raise ValueError("sunset is before since")
    headers = [("Deprecation", f"@{since_s}")]
    if sunset_s is not None:
        headers.append(("Sunset", formatdate(sunset_s, usegmt=True)))
    if deprecation.link:
        if LINK_UNSAFE & set(deprecation.link) or not deprecation.link.isascii():
            raise ValueError("link is not a URI")
        headers.append(("Link", f'<{deprecation.link}>; rel="deprecation"; type="text/html"'))
        if sunset_s is not None:
            headers.append(("Link", f'<{deprecation.link}>; rel="sunset"; type="text/html"'))
    return Farewell(since_s, sunset_s, tuple(headers))


def unix_of(date: str) -> int:
    """Return a date or time in Unix seconds; raises ValueError."""
    try:
        moment = dt.datetime.fromisoformat(date)
    except ValueError as error:
        raise ValueError(f"{date!r} is not a date like 2027-01-31") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return int(moment.timestamp())
