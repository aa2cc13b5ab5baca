"""Reads the body of a request: whole, within a limit of bytes and a deadline.

Compressed bodies go on as they came.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from aiohttp import ClientError, web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError

from routing.gateway.refused import Refused

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read(request: web.BaseRequest, *, bytes_max: int, deadline_s: float) -> bytes:
    """Return the body; raises `Refused` (413, 408, 417, 400)."""
    if not request.body_exists:
        return b""
    kept = request._read_bytes  # of an authorizer that had to check its hash
    if kept is not None:
        if len(kept) > bytes_max:
            raise _too_large(bytes_max)
        return kept
    length = request.content_length
    if length is not None and length > bytes_max:
        raise _too_large(bytes_max)
    _expect(request)
    content = request.content
    try:
        if content.is_eof():
            body = content.read_nowait(-1)
        else:
            async with asyncio.timeout(deadline_s):
                body = await _gather(request, bytes_max)
    except TimeoutError as error:
        raise Refused(
            HTTPStatus.REQUEST_TIMEOUT, "slow-body", f"the body took more than {deadline_s:g} s", close=True
        ) from error
    except (ClientError, HttpProcessingError) as error:
        raise Refused(
            HTTPStatus.BAD_REQUEST, "bad-body", "the body is not what its headers say", close=True
        ) from error
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    return body


async def _gather(request: web.BaseRequest, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await request.content.readany():
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        parts.append(part)
    return b"".join(parts)


def _expect(request: web.BaseRequest) -> None:
    expectation = request.headers.get("Expect")
    if expectation is None or request.version < HttpVersion11:
        return  # HTTP/1.0 does not know it (RFC 9110 10.1.1)
    if expectation.lower() != "100-continue":
        raise Refused(HTTPStatus.EXPECTATION_FAILED, "unknown-expectation", "only 100-continue is known")
    transport = request.transport
    if transport is not None and not request.content.total_bytes:
        transport.write(CONTINUE)


def _too_large(bytes_max: int) -> Refused:
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body-too-large",
        f"this route takes {bytes_max} bytes",
        close=True,
    )
