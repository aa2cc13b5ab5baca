"""The names of what the HTTP parser refuses. Pure.

aiohttp's texts repeat what was sent; of them only the reason of the parser goes on, which does not.
"""

from __future__ import annotations

from typing import Final

from aiohttp.http_exceptions import BadStatusLine, InvalidURLError, LineTooLong

TOO_LARGE: Final = "a line of the head is too long, or there are too many headers"
NAMES: Final = (
    ("Too many headers", "headers-too-large"),
    ("Content-Length", "bad-framing"),
    ("Transfer-Encoding", "bad-framing"),
    ("hunk", "bad-framing"),
    ("Connection: close", "bad-framing"),
    ("Host", "bad-host"),
    ("eader", "bad-header"),
    ("start line", "bad-header"),
)
"""The first of these that is in the parser's reason says what the problem is called."""
REASON_MAX: Final = 100


def named(error: BaseException | None, message: str) -> tuple[int, str, str]:
    """Return the status, slug and detail of what could not be parsed."""
    if isinstance(error, LineTooLong):
        return 431, "headers-too-large", TOO_LARGE
    if isinstance(error, InvalidURLError):
        return 400, "bad-target", "the request target is not one of HTTP/1.1"
    if isinstance(error, BadStatusLine):
        return 400, "bad-request-line", "the first line is not that of an HTTP/1.1 request"
    reason = message.partition("\n")[0].rstrip(":")
    for part, slug in NAMES:
        if part in reason:
            if slug == "headers-too-large":
                return 431, slug, TOO_LARGE
            return 400, slug, _quoteless(reason)
    return 400, "bad-request", "the request is not HTTP/1.1"


def _quoteless(reason: str) -> str:
    """Return a reason unless it may repeat what was sent."""
    return "the headers are not those of HTTP/1.1" if "b'" in reason or len(reason) > REASON_MAX else reason
