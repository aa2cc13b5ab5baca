"""The API over HTTP: signatures checked, calls done one at a time, errors as the service model has them.

A caller needs a key of the tenant `*`, because meshes are of the platform, and its scope:
`mesh:read` or `mesh:write`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from uuid import uuid4

import msgspec
from aiohttp import web

from routing.gateway.signed import SignedRequests
from routing.mesh.api.errors import ApiError
from routing.mesh.api.operations import Operation, operation
from routing.mesh.api.service import Answer, MeshApi
from routing.mesh.api.store import StoreError
from routing.tenancy.identity import Unauthenticated

READ: Final = "mesh:read"
WRITE: Final = "mesh:write"
PLATFORM: Final = "*"


class Door:
    """Takes calls. `worker` has one thread, so that the store has one user; `changed` hears of changes."""

    def __init__(
        self,
        api: MeshApi,
        callers: SignedRequests,
        *,
        worker: ThreadPoolExecutor,
        unix_s: Callable[[], float],
        changed: Callable[[], None],
        log: Any,
    ) -> None:
        self._api = api
        self._callers = callers
        self._worker = worker
        self._unix_s = unix_s
        self._changed = changed
        self._log = log

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer a call."""
        request_id = str(uuid4())
        try:
            answer = await self._answer(request, request_id)
        except ApiError as error:
            headers = {"x-amzn-RequestId": request_id, "x-amzn-ErrorType": error.code}
            return _response(error.status, {"message": error.message}, headers)
        return _response(200, answer, {"x-amzn-RequestId": request_id})

    async def _answer(self, request: web.BaseRequest, request_id: str) -> Answer:
        caller = await self._caller(request)
        found = operation(request.method, request.raw_path.partition("?")[0])
        scope = WRITE if found.writes else READ
        if caller.tenant != PLATFORM or scope not in caller.scopes:
            raise ApiError("ForbiddenException", f"{caller.name} needs the scope {scope} of the platform")
        body = await request.read()  # kept since its hash was checked
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._worker, self._do, found, dict(request.query), body)
        except StoreError as error:
            self._log.error("mesh_store_failed", why=str(error), request_id=request_id)
            raise ApiError("ServiceUnavailableException", "the store is not available") from error
        if found.writes:
            self._log.info("mesh_changed", verb=found.verb, path=request.path, caller=caller.name)
            self._changed()
        return answer

    async def _caller(self, request: web.BaseRequest) -> Any:
        shown = self._callers.shown(request)
        if shown is None:
            raise ApiError("MissingAuthenticationTokenException", f"this needs {self._callers.asks_for}")
        try:
            return await self._callers.principal(shown, request)
        except Unauthenticated as error:
            raise ApiError("InvalidSignatureException", str(error)) from error

    def _do(self, found: Operation, query: dict[str, str], body: bytes) -> Answer:
        return self._api.call(found, query, body, self._unix_s())


def _response(status: int, answer: Answer, headers: dict[str, str]) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(answer), headers=headers, content_type="application/json"
    )
