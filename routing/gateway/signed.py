"""Callers that sign their requests as AWS has them: the keys of a file, read again when it changes.

A file that has become bad keeps the last good keys. The body is read before its hash can be checked, and no
more of it than `body_bytes_max`; aiohttp keeps it, for who reads it next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from routing.tenancy import sigv4
from routing.tenancy.identity import Unauthenticated
from routing.tenancy.principal import Principal
from runtime.settings_file import SettingsError

LOOK_EVERY_S: Final = 0.5


class SignedRequests:
    """An authorizer of kind `sigv4`. The file is read at once: raises `SettingsError`.

    `reloaded` hears None, or what is wrong, each time the file has changed.
    """

    asks_for = "a request signed with AWS Signature Version 4"

    def __init__(
        self,
        path: Path,
        *,
        body_bytes_max: int,
        unix_s: Callable[[], float],
        reloaded: Callable[[str | None], None],
        service: str = sigv4.SERVICE,
    ) -> None:
        self._path = path
        self._body_bytes_max = body_bytes_max
        self._unix_s = unix_s
        self._service = service
        self._reloaded = reloaded
        self._seen = _signature(path)
        self._keys = sigv4.load(path)

    def shown(self, request: web.BaseRequest) -> str | None:
        """Return the signature of a request, if it has one."""
        authorization = request.headers.get("Authorization", "")
        return authorization if sigv4.is_signed(authorization) else None

    async def principal(self, shown: str, request: web.BaseRequest) -> Principal:
        """Return who signed a request; raises `Unauthenticated`."""
        del shown
        path, _, query = request.raw_path.partition("?")
        signed = sigv4.SignedRequest(
            method=request.method,
            path=path,
            query=query,
            headers=list(request.headers.items()),
            body=await self._body(request),
        )
        return sigv4.verify(signed, self._keys.keys, self._unix_s(), self._service)

    async def run(self) -> None:
        """Read the file again when it changes, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()

    def look(self) -> None:
        """Read the file again if it has changed."""
        seen = _signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = sigv4.load(self._path)
        except SettingsError as error:
            self._reloaded(str(error))
        else:
            self._reloaded(None)

    async def close(self) -> None:
        """Nothing is held."""

    async def _body(self, request: web.BaseRequest) -> bytes:
        if (request.content_length or 0) > self._body_bytes_max:
            raise Unauthenticated("the body is too long to check its signature")
        if request._read_bytes is None:  # aiohttp keeps it there, so that it can be read again
            body = bytearray()
            async for part in request.content.iter_any():
                body += part
                if len(body) > self._body_bytes_max:
                    raise Unauthenticated("the body is too long to check its signature")
            request._read_bytes = bytes(body)
        return request._read_bytes


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_mode
