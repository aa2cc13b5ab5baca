"""The admin endpoints of the gateway: /metrics /healthz /readyz /status, on an address of their own.

They are not for the public, and have no credentials: bind them to the loopback or to a management network.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

SHUTDOWN_S = 1.0


class Admin:
    """Serves them. `not_ready` returns why the gateway should not get requests, or nothing."""

    def __init__(
        self,
        collectors: list[Collector],
        *,
        not_ready: Callable[[], str],
        status: Callable[[], Mapping[str, object]],
    ) -> None:
        self._registry = CollectorRegistry()
        for collector in collectors:
            self._registry.register(collector)
        self._not_ready = not_ready
        self._status = status
        self._runner: web.ServerRunner | None = None

    async def open(self, sock: socket.socket) -> None:
        """Serve on a listening socket."""
        self._runner = web.ServerRunner(
            web.Server(self._answer, access_log=None), shutdown_timeout=SHUTDOWN_S
        )
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def close(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        match request.path:
            case "/healthz":
                return web.Response(text="ok\n")
            case "/readyz":
                why = self._not_ready()
                return web.Response(status=503 if why else 200, text=f"{why or 'ready'}\n")
            case "/metrics":
                return web.Response(
                    body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
                )
            case "/status":
                return web.Response(
                    body=msgspec.json.encode(self._status()), content_type="application/json", charset="utf-8"
                )
        return web.Response(status=404, text="/metrics /healthz /readyz /status\n")
