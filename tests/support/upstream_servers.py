"""Real HTTP servers to call: each counts what it gets, behaves as told, can be killed and come back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry

from routing.gateway.routes_file import Discovery, Endpoint, Retries, Upstream
from routing.upstream.call import Call
from routing.upstream.events import UpstreamEvents
from routing.upstream.upstreams import Upstreams

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """One server on a free port, which it keeps when it is started again."""

    def __init__(self, name: str, context: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.seen = 0
        self.checks = 0
        self.healthy = True
        self.behaviour: Behaviour = self.answer
        self._context = context
        self._runner: web.AppRunner | None = None
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        return web.Response(text=f"{self.name} {request.method} {request.path_qs} {len(body)}")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/healthz":
            self.checks += 1
            return web.Response(status=200 if self.healthy else 503)
        self.seen += 1
        return await self.behaviour(request)

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=self._context, reuse_address=True
        )
        await site.start()

    async def kill(self) -> None:
        """Close the port and cut every connection."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        server = runner.server
        assert server is not None
        for handler in list(server.connections):
            if handler.transport is not None:
                handler.transport.abort()
        await runner.cleanup()


@contextlib.asynccontextmanager
async def servers(count: int, context: ssl.SSLContext | None = None) -> AsyncIterator[list[Server]]:
    """Run servers named a, b, c and so on."""
    made = [Server("abcdefgh"[index], context) for index in range(count)]
    for server in made:
        await server.start()
    try:
        yield made
    finally:
        for server in made:
            await server.kill()


def events_of(registry: CollectorRegistry | None = None) -> UpstreamEvents:
    """Return events that are counted in `registry` and logged nowhere."""
    log = structlog.wrap_logger(structlog.ReturnLogger())
    return UpstreamEvents(log=log, registry=registry or CollectorRegistry())


@contextlib.asynccontextmanager
async def running(
    upstreams: dict[str, Upstream], registry: CollectorRegistry | None = None
) -> AsyncIterator[Upstreams]:
    """Run `Upstreams` until the block ends."""
    made = Upstreams(events=events_of(registry))
    made.replace(upstreams)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.run())
        await asyncio.sleep(0)
        try:
            yield made
        finally:
            task.cancel()


def static(made: list[Server]) -> Discovery:
    """Return the discovery of `made`."""
    return Discovery(kind="static", endpoints=[Endpoint(address=server.address) for server in made])


def call_of(
    method: str = "GET",
    target: str = "/thing",
    *,
    idempotent: bool | None = None,
    body: bytes = b"",
    timeout_s: float = 5.0,
    retries: Retries | None = None,
    hash_key: str = "",
) -> Call:
    """Return a call as the gateway makes it."""
    return Call(
        method=method,
        target=target,
        headers=CIMultiDict(),
        body=body,
        idempotent=method in {"GET", "HEAD", "PUT", "DELETE"} if idempotent is None else idempotent,
        hash_key=hash_key,
        retries=retries or Retries(),
        timeout_s=timeout_s,
    )


async def text_of(upstreams: Upstreams, call: Call, name: str = "u") -> tuple[int, str, int]:
    """Make a call and return (status, body, attempts)."""
    async with upstreams.call(name, call) as answer:
        return answer.status, (await answer.read(1 << 20)).decode(), answer.attempts


def count(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """Return a counter of a registry."""
    return registry.get_sample_value(name, labels) or 0.0
