"""What the head of a request must be, beyond what the parser sees to (one Host, one length): one meaning.

Pure. What could be understood in another way by a server behind is refused, not mended (RFC 9112 11.2).
"""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web
from aiohttp.http import HttpVersion10

from routing.gateway.refused import Refused

HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
"""What a client may write in Host: a name or an address, and a port (RFC 9110 7.2)."""


def check(request: web.BaseRequest, bytes_max: int) -> None:
    """Refuse a head that is too large as a whole, or not clear; raises `Refused`."""
    message = request._message
    headers = message.headers
    size = 0
    for name, value in message.raw_headers:
        size += len(name) + len(value)
    if size > bytes_max:
        raise Refused(431, "headers-too-large", f"the headers have more than {bytes_max} bytes", close=True)
    version = message.version
    if version < HttpVersion10:
        request._version = HttpVersion10  # in which it can be answered
        raise Refused(505, "unknown-http-version", "this is HTTP/1.1, and HTTP/1.0", close=True)
    host = headers.get("Host")
    if host is not None and HOST.fullmatch(host) is None:
        raise Refused(400, "bad-host", "Host is a name or an address, and perhaps a port", close=True)
    if "Transfer-Encoding" in headers:
        _check_coding(headers["Transfer-Encoding"], chunked_is_known=version > HttpVersion10)


def _check_coding(coding: str, *, chunked_is_known: bool) -> None:
    """Refuse transfer codings beside `chunked`, and all of them in HTTP/1.0 (RFC 9112 6.1)."""
    if not chunked_is_known:
        raise Refused(400, "bad-framing", "HTTP/1.0 has no Transfer-Encoding", close=True)
    if coding.strip().lower() != "chunked":
        raise Refused(501, "unknown-transfer-coding", "only chunked is known", close=True)


def target(request: web.BaseRequest) -> str:
    """Return path and query as they were sent (RFC 9112 3.2); raises `Refused`."""
    sent = request._message.path
    if not sent.startswith("/"):
        if not sent.startswith(("http://", "https://")):
            raise Refused(400, "bad-target", "the request target is neither a path nor a URL")
        _, _, rest = sent.partition("://")
        host, _, path = rest.partition("/")
        if host.lower() != request.headers.get("Host", host).lower():
            raise Refused(400, "bad-host", "Host is not that of the request target", close=True)
        sent = f"/{path}"
    if not sent.isascii() or "#" in sent:
        raise Refused(400, "bad-target", "the request target has characters that must be percent-encoded")
    return sent
