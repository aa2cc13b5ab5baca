"""The aiohttp application of a service: from operations to routes, through who may call them.

One request: passport -> scope -> tenant and device of the path -> parameters -> body -> handler -> answer.
Whatever goes wrong is problem details; what nobody foresaw is logged, and said to be ours.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from routing.tenancy.identity import Unauthenticated
from runtime import clock
from runtime.problem import problem
from services.web import decoding
from services.web.operations import Asked, Operation, Operations, Reply, Streamed
from services.web.passport import HEADER, Caller, PassportVerifier
from services.web.refusal import Refused

StateT = TypeVar("StateT")
READ_DEADLINE_S: Final = 30.0
HEALTH: Final = "/healthz"
METRICS: Final = "/metrics"


def make_app(
    operations: Operations[StateT],
    state: StateT,
    passports: PassportVerifier,
    *,
    draining: asyncio.Event,
    log: Any,
    metrics: CollectorRegistry | None = None,
) -> web.Application:
    """Return the application; while `draining` is set, /healthz says so and connections are not kept.

    /healthz and /metrics need no passport: they are for those who operate the service, and no route of the
    API gateway leads to them. Metrics name no tenant and no device.
    """
    app = web.Application(middlewares=[_Door(passports, draining, log).let_in])
    for operation in operations:
        endpoint = _Endpoint(operation, operations, state)
        app.router.add_route(operation.method, operation.path, endpoint.answer)

    async def health(_: web.Request) -> web.Response:
        if draining.is_set():
            return problem(503, "draining", "this process ends")
        return web.json_response({"status": "ok"})

    app.router.add_get(HEALTH, health)
    if metrics is not None:

        async def exposed(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})

        app.router.add_get(METRICS, exposed)
    return app


CALLER: Final = web.RequestKey("headworks.caller", Caller)


class _Door:
    """The middleware: lets in who has a passport, and turns what is raised into problem details."""

    def __init__(self, passports: PassportVerifier, draining: asyncio.Event, log: Any) -> None:
        self._passports = passports
        self._draining = draining
        self._log = log

    @property
    def let_in(self) -> Any:
        """Return what aiohttp takes for a middleware."""

        @web.middleware
        async def let_in(request: web.Request, handler: Any) -> web.StreamResponse:
            answer = await self._answer(request, handler)
            if self._draining.is_set() and not answer.prepared:
                answer.force_close()
            return answer

        return let_in

    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path in {HEALTH, METRICS}:
            return await _told(request, handler)
        try:
            request[CALLER] = self._passports.caller(request.headers.get(HEADER), clock.unix_s())
            return await _told(request, handler)
        except Unauthenticated as error:
            return problem(401, "unauthenticated", str(error))
        except Refused as refused:
            return refused.response()
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001  # the driver's last line
            self._log.error("request_failed", path=request.path, error=type(error).__name__, exc_info=True)
            return problem(500, "internal", "this is our fault; it has been logged")


async def _told(request: web.Request, handler: Any) -> web.StreamResponse:
    """Return what a handler answers; what aiohttp itself refuses is problem details too."""
    try:
        answer: web.StreamResponse = await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return problem(405, "method-not-allowed", f"allowed here: {allowed}", headers={"Allow": allowed})
    except web.HTTPException as error:
        slug = {404: "not-found", 413: "body-too-large"}.get(error.status, "invalid-request")
        return problem(error.status, slug, error.reason)
    return answer


class _Endpoint:
    """One operation as aiohttp calls it."""

    def __init__(self, operation: Operation, operations: Operations[Any], state: Any) -> None:
        self._operation = operation
        self._patterns = {name: operations.pattern(name) for name in operation.parameters}
        self._state = state

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Decode, allow, handle, encode."""
        operation = self._operation
        caller: Caller = request[CALLER]
        refuse_unless_allowed(operation, caller, request.match_info)
        decoding.check_path(request.match_info, self._patterns)
        query = decoding.query_of(operation.query, request.query)
        body = await self._body(request)
        asked: Asked[Any, Any] = Asked(caller, request.match_info, query, body, request)
        reply = await operation.handler(self._state, asked)
        return _response(reply) if isinstance(reply, Reply) else reply

    async def _body(self, request: web.Request) -> Any:
        operation = self._operation
        if operation.takes_body:
            decoding.media_type_of(operation, request.headers.get("Content-Type", ""))
        if operation.body is Streamed:
            return Streamed()
        size_max = operation.body_bytes_max if operation.takes_body else 0
        content = await read_within(request, size_max) if request.can_read_body else b""
        return decoding.body_of(operation, content)


async def read_within(request: web.Request, bytes_max: int) -> bytes:
    """Return a whole body; raises `Refused` when it is larger or slower than allowed."""
    too_large = Refused(413, "body-too-large", f"a body here has at most {bytes_max} bytes")
    if (request.content_length or 0) > bytes_max:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(READ_DEADLINE_S):
            async for piece in request.content.iter_any():
                content += piece
                if len(content) > bytes_max:
                    raise too_large
    except TimeoutError as error:
        raise Refused(408, "body-too-slow", f"the body did not come within {READ_DEADLINE_S:g} s") from error
    return bytes(content)


def refuse_unless_allowed(operation: Operation, caller: Caller, path: Any) -> None:
    """Refuse a caller without the scope, of another tenant, or that is another device.

    A caller that is a device reaches what is below its own name, and nothing else.
    """
    if operation.scope and operation.scope not in caller.scopes:
        raise Refused(403, "missing-scope", f"this needs the scope {operation.scope}")
    tenant = path.get("tenant")
    if tenant is not None and not caller.may_act_for(tenant):
        raise Refused(403, "foreign-tenant", "the caller belongs to another tenant")
    if caller.device and not operation.devices and path.get("device") != caller.device:
        raise Refused(403, "foreign-device", "a device may only use what is its own")


def _response(reply: Reply) -> web.Response:
    if reply.body is None:
        return web.Response(status=reply.status, headers=reply.headers)
    return web.Response(
        status=reply.status,
        body=msgspec.json.encode(reply.body),
        content_type="application/json",
        headers=reply.headers,
    )
