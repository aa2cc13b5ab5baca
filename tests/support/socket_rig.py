"""A WebSocket API with real servers: the gateway's handlers in one, the services behind it in another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from routing.gateway.backend import BackendCall, BackendDown
from routing.gateway.connections import Connections
from routing.gateway.handshake import with_credentials
from routing.gateway.live import Live, LiveSettings
from routing.gateway.routes_file import SocketApi, SocketRoute
from routing.gateway.socket_metrics import SocketMetrics
from routing.gateway.sockets import Sockets
from routing.tenancy.identity import Credential, Unauthenticated
from routing.tenancy.principal import Principal
from runtime.logs import make_log
from runtime.problem import problem

Answer = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]
"""What a service answers to an event."""


def principal(name: str = "ana", tenant: str = "acme", **more: Any) -> Principal:
    scopes = more.pop("scopes", frozenset({"connections:write", "live:read"}))
    return Principal(
        tenant=tenant, name=name, scopes=scopes, credential=more.pop("credential", Credential.JWT), **more
    )


class HttpReply:
    """An answer of aiohttp's client."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def read(self, bytes_max: int) -> bytes:
        body = await self._response.read()
        if len(body) > bytes_max:
            raise BackendDown("the answer is too long")
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise BackendDown(type(error).__name__) from error


class HttpBackend:
    """Calls one server, and says for whom in a header, as the passport will."""

    def __init__(self, base: str, client: aiohttp.ClientSession) -> None:
        self.base = base
        self._client = client

    @contextlib.asynccontextmanager
    async def call(self, call: BackendCall) -> AsyncIterator[HttpReply]:
        headers = {**call.headers, "X-Tenant": call.principal.tenant}
        timeout = aiohttp.ClientTimeout(total=call.timeout_s)
        try:
            request = self._client.request(
                call.method, self.base + call.target, data=call.body, headers=headers, timeout=timeout
            )
            response = await request
        except TimeoutError as error:
            raise BackendDown("timeout", status=504) from error
        except (aiohttp.ClientError, OSError) as error:
            raise BackendDown(type(error).__name__, status=503) from error
        async with response:
            yield HttpReply(response)


class Service:
    """The services behind the gateway: they keep every event, and answer as a test wants."""

    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.answers: dict[str, Answer] = {}
        self.tails: list[web.Request] = []
        self.tail: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 22)
        app.router.add_post("/{name}", self._answer)
        app.router.add_get("/tail", self._tail)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        event = msgspec.json.decode(await request.read())
        self.events.setdefault(name, []).append(event)
        if name in self.answers:
            return await self.answers[name](event)
        return web.Response()

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        self.tails.append(request)
        assert self.tail is not None
        return await self.tail(request)


def socket_api(**fields: Any) -> SocketApi:
    """Return an API with all kinds of routes, except what `fields` say."""
    routes = {"$connect": "hello", "$disconnect": "bye", "$default": "other", "echo": "echo"}
    made = [
        SocketRoute(key=key, upstream="chat", path=f"/{name}", timeout_s=5.0) for key, name in routes.items()
    ]
    return SocketApi(**{"path": "/v1/ws", "authorizers": ["keys"], "routes": made, **fields})


class SocketRig:
    """Everything of one test; made by `open_rig`."""

    def __init__(self, backend: HttpBackend, service: Service, api: SocketApi, live: LiveSettings) -> None:
        self.service = service
        self.backend = backend
        self.api = api
        self.registry = CollectorRegistry()
        self.callers = {
            "ana": principal(),
            "bob": principal("bob", "globex"),
            "root": principal("root", "*"),
            "poor": principal("poor", scopes=frozenset()),
        }
        metrics = SocketMetrics(self.registry)
        log = make_log("critical", "json")
        self.sockets = Sockets(backend=backend, metrics=metrics, log=log, random=lambda: 0.01)
        self.connections = Connections(self.sockets, metrics=metrics)
        self.live = Live(live, backend=backend, metrics=metrics, log=log, random=lambda: 0.01)
        self.identify: Callable[[web.BaseRequest], Awaitable[Principal]] = self._by_bearer
        self.server: TestServer
        self.client: aiohttp.ClientSession

    async def _by_bearer(self, request: web.BaseRequest) -> Principal:
        name = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if name not in self.callers:
            raise Unauthenticated("nobody we know")
        return self.callers[name]

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 22)
        app.router.add_get("/v1/ws", self._ws)
        app.router.add_get("/v1/live", self._live)
        app.router.add_route("*", "/@connections/{id}", self._connections)
        return app

    async def _ws(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            request = with_credentials(request)
            caller = await self.identify(request)
        except Unauthenticated as error:
            return problem(401, "unauthenticated", str(error))
        return await self.sockets.handle(request, "chat", self.api, caller)

    async def _live(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            request = with_credentials(request)
            caller = await self.identify(request)
        except Unauthenticated as error:
            return problem(401, "unauthenticated", str(error))
        return await self.live.handle(request, caller)

    async def _connections(self, request: web.Request) -> web.StreamResponse:
        try:
            caller = await self.identify(request)
        except Unauthenticated as error:
            return self.connections.forbidden(str(error))
        return await self.connections.handle(request, caller)

    async def connect(
        self, name: str = "ana", path: str = "/v1/ws", **more: Any
    ) -> aiohttp.ClientWebSocketResponse:
        headers = {"Authorization": f"Bearer {name}", **more.pop("headers", {})}
        url = self.server.make_url(path)
        client: aiohttp.ClientWebSocketResponse = await self.client.ws_connect(url, headers=headers, **more)
        return client

    def url(self, path: str) -> str:
        return str(self.server.make_url(path))

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def open_rig(*, live: LiveSettings | None = None, **fields: Any) -> AsyncIterator[SocketRig]:
    """Start servers and the gateway's tasks; all of it is gone at the end."""
    service = Service()
    behind = TestServer(service.app())
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        await behind.start_server()
        backend = HttpBackend(str(behind.make_url("")).rstrip("/"), client)
        rig = SocketRig(backend, service, socket_api(**fields), live or LiveSettings())
        rig.client = client
        rig.server = TestServer(rig.app())
        await rig.server.start_server()  # cancels handlers whose client is gone, as the gateway does
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(rig.sockets.run()), tasks.create_task(rig.live.run())]
                try:
                    yield rig
                finally:
                    await rig.sockets.drain(2.0)
                    await rig.live.drain(2.0)
                    for task in running:
                        task.cancel()
        finally:
            await rig.server.close()
            await behind.close()


async def until(what: Callable[[], Any], deadline_s: float = 5.0) -> Any:
    """Return what `what` gives as soon as it is something."""
    async with asyncio.timeout(deadline_s):
        while not (value := what()):
            await asyncio.sleep(0.005)
    return value


def transport_of(client: aiohttp.ClientWebSocketResponse) -> asyncio.Transport:
    """Return the transport of a client, to stop reading from it or to tear it down."""
    connection = client._response.connection
    assert connection is not None
    return cast("asyncio.Transport", connection.transport)
