"""The composition root of the API gateway: makes its parts, runs them, and lets them end in order.

The routes file is taken whole or not at all: what can be wrong with it is found out before anything is
swapped.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import random
from typing import Any, Final

import msgspec
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from routing.gateway import access, access_log, documents, routes_file
from routing.gateway.admin import Admin
from routing.gateway.analytics import Analytics, answered
from routing.gateway.authorizers import Authorizers
from routing.gateway.cache import Cache
from routing.gateway.connections import Connections
from routing.gateway.door import Door, listen
from routing.gateway.exchange import Exchange
from routing.gateway.live import Live
from routing.gateway.metrics import Metrics
from routing.gateway.passport import PassportError, Passports, load_key
from routing.gateway.prepared import Served
from routing.gateway.proxy import Gateway, Handler
from routing.gateway.published import Published
from routing.gateway.relay import Relay
from routing.gateway.reload import Watch
from routing.gateway.routes_file import Deprecation, Routes, SocketApi
from routing.gateway.settings import Log, Settings
from routing.gateway.socket_metrics import SocketMetrics
from routing.gateway.sockets import Sockets
from routing.gateway.table import RoutesRefused
from routing.gateway.upstream_backend import UpstreamBackend
from routing.gateway.usage_report import UsageReports
from routing.gateway.usage_store import Retention, UsageStoreError
from routing.gateway.validation import Validation
from routing.limits.quota import QuotaError
from routing.limits.usage_plans import Shared, UsagePlans
from routing.tenancy.certificate import CertificateNames
from routing.tenancy.identity import Credential
from routing.tenancy.jwt import JwksError
from routing.tenancy.principal import EVERY_TENANT, Principal
from routing.tenancy.registry import Registry, RegistryError, Verdict
from routing.upstream.events import UpstreamEvents
from routing.upstream.upstreams import Upstreams
from runtime import clock
from runtime.garbage import settle
from runtime.logs import Lines, is_console
from runtime.settings_file import SettingsError, split_bind
from runtime.tls.material import TlsFiles, TlsMaterial, TlsMaterialError
from runtime.tls.store import TlsStore

OPERATIONS: Final = frozenset(
    {"usage", "usage-deprecated", "openapi", "docs", "whoami", "connections", "live"}
)
"""What internal routes may be for."""
ROUTES_METERED_MAX: Final = 2000
PASSPORTS_KEPT_MAX: Final = 50_000
WATCH_S: Final = 0.5
"""How soon a WebSocket ends whose caller would no longer be let in."""


class StartError(Exception):
    """The gateway cannot start; the text says what to do."""


class Loaded:
    """Everything that is made of a routes file; raises `SettingsError` or `RoutesRefused`."""

    def __init__(self, path: Path, title: str) -> None:
        self.routes: Routes = routes_file.load(path)
        self.served = Served(self.routes, handlers=OPERATIONS)
        found = documents.load(self.routes, path.parent)
        self.validation = Validation(self.routes, found)
        self.published = Published(self.routes, found, server="/", title=title)
        self.sockets = {api.path: (name, api) for name, api in self.routes.sockets.items()}
        self.files = [path.parent / name for name in self.routes.documents.values()]
        self.deprecations: dict[str, Deprecation] = {
            route.name: route.deprecation for route in self.routes.routes if route.deprecation is not None
        }


class App:
    """One API gateway. Making it opens files and reads the routes: raises `StartError`."""

    def __init__(self, settings: Settings, log: Any) -> None:
        self._settings = settings
        self._log = log
        self._draining = False
        self._path = Path(settings.api.routes)
        data_dir = Path(settings.api.data_dir)
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._loaded = Loaded(self._path, settings.api.title)
            self._tls = _tls_store(settings, self._tls_reloaded)
            self._registry = Registry(
                Path(settings.api.registry) if settings.api.registry else data_dir / "registry.db"
            )
            self._passports = Passports(load_key(data_dir), kept_max=PASSPORTS_KEPT_MAX)
            self._plans = self._make_plans(data_dir)
            self._analytics = Analytics(
                data_dir / "analytics.db",
                keys_max=settings.analytics.keys_max,
                retention=Retention(),
                flush_s=settings.analytics.flush_s,
                log=log,
            )
            self._collectors = CollectorRegistry()
            self._upstreams = Upstreams(events=UpstreamEvents(log=log, registry=self._collectors))
            self._upstreams.replace(self._loaded.routes.upstreams)
            self._authorizers = Authorizers(
                self._loaded.routes.authorizers,
                registry=self._registry,
                names=CertificateNames(settings.api.trust_domain),
                is_revoked=self._is_revoked,
                now_s=clock.unix_s,
                keys_fetched=self._keys_fetched,
            )
        except (
            SettingsError,
            RoutesRefused,
            TlsMaterialError,
            RegistryError,
            PassportError,
            QuotaError,
            UsageStoreError,
            JwksError,
            OSError,
        ) as error:
            raise StartError(str(error)) from error
        socket_metrics = SocketMetrics(self._collectors)
        backend = UpstreamBackend(self._upstreams, self._passports, unix_s=clock.unix_s)
        self._sockets = Sockets(backend=backend, metrics=socket_metrics, log=log, random=random)
        self._connections = Connections(self._sockets, metrics=socket_metrics)
        self._live = Live(settings.live, backend=backend, metrics=socket_metrics, log=log, random=random)
        self._metrics = Metrics(routes_max=ROUTES_METERED_MAX, gauges=self._gauges)
        self._lines = Lines(sys.stderr.buffer)
        self._write_access = self._access_log(settings.log)
        self._gateway = self._make_gateway()
        self._watch = Watch(
            self._path,
            make=lambda path: Loaded(path, settings.api.title),
            use=self._use,
            also=lambda: self._loaded.files,
            reloaded=self._reloaded,
        )

    # Parts.

    def _make_plans(self, data_dir: Path) -> UsagePlans:
        valkey = self._settings.valkey
        shared = (
            Shared(url=valkey.url, node=valkey.node, nodes_expected=valkey.nodes_expected)
            if valkey.url
            else None
        )
        return UsagePlans(
            self._settings.limits,
            plan_of=self._registry.plan_of,
            folder=data_dir,
            shared=shared,
            link_changed=self._link_changed,
        )

    def _make_gateway(self) -> Gateway:
        settings = self._settings.api
        reports = UsageReports(self._analytics, lambda: self._loaded.deprecations, clock.unix_s)
        handlers: Mapping[str, Handler] = {
            "usage": reports.usage,
            "usage-deprecated": reports.deprecated,
            "openapi": self._openapi,
            "docs": self._docs,
            "whoami": whoami,
            "connections": self._push,
            "live": self._watch_live,
        }
        return Gateway(
            self._loaded.served,
            authorizers=self._authorizers,
            access=access.check,
            usage=self._plans,
            documents=self._loaded.validation,
            relay=self._make_relay(),
            handlers=handlers,
            refusals={"connections": self._connections.refused},
            sockets=self._socket_at,
            recorded=self._recorded,
            failed=self._failed,
            header_bytes_max=settings.header_bytes_max,
            body_deadline_s=settings.body_deadline_s,
        )

    def _make_relay(self) -> Relay:
        settings, cache = self._settings.api, self._settings.cache
        return Relay(
            upstreams=self._upstreams,
            passports=self._passports,
            cache=Cache(
                bytes_max=cache.bytes_max,
                entries_max=cache.entries_max,
                entry_bytes_max=cache.entry_bytes_max,
            ),
            trusted_proxies=[ipaddress.ip_network(each) for each in settings.trusted_proxies],
            held_bytes_max=settings.answer_bytes_held_max,
        )

    def _make_door(self) -> Door:
        settings, tls = self._settings.api, self._settings.tls
        store = self._tls
        return Door(
            answer=self._gateway.answer,
            tls=None if store is None else lambda: store.http(settings.tls),
            connections_max=settings.connections_max,
            header_bytes_max=settings.header_bytes_max,
            headers_max=settings.headers_max,
            head_deadline_s=settings.head_deadline_s,
            keep_alive_s=settings.keep_alive_s,
            write_deadline_s=settings.write_deadline_s,
            handshake_deadline_s=tls.handshake_deadline_s,
            handshakes_max=tls.handshakes_max,
            failed=self._failed,
            unparsed=self._metrics.refused,
            turned_away=self._metrics.turned_away,
        )

    # What the gateway itself answers.

    def _socket_at(self, path: str) -> Handler | None:
        found = self._loaded.sockets.get(path)
        if found is None:
            return None
        name, api = found
        return lambda exchange: self._open_socket(exchange, name, api)

    async def _open_socket(self, exchange: Exchange, name: str, api: SocketApi) -> web.StreamResponse:
        principal = await self._gateway.caller(exchange, api.authorizers)
        exchange.principal, exchange.tenant = principal, principal.tenant
        return await self._sockets.handle(exchange.request, name, api, principal)

    async def _openapi(self, exchange: Exchange) -> web.StreamResponse:
        return await self._loaded.published.openapi(exchange)

    async def _docs(self, exchange: Exchange) -> web.StreamResponse:
        return await self._loaded.published.docs(exchange)

    async def _push(self, exchange: Exchange) -> web.StreamResponse:
        assert exchange.principal is not None
        return await self._connections.handle(exchange.request, exchange.principal, exchange.body)

    async def _watch_live(self, exchange: Exchange) -> web.StreamResponse:
        assert exchange.principal is not None
        return await self._live.handle(exchange.request, exchange.principal)

    # What the parts report.

    def _recorded(self, exchange: Exchange) -> None:
        now_s = clock.monotonic_s()
        self._metrics.record(exchange, now_s)
        self._analytics.record(answered(exchange, now_s - exchange.received_s))
        if self._write_access is not None:
            self._write_access(access_log.line_of(exchange, now_s, clock.unix_s()))

    def _access_log(self, settings: Log) -> Callable[[access_log.Line], None] | None:
        """Return what writes a line a request, or None where nobody wants them."""
        if not settings.access or settings.level not in {"debug", "info"}:
            return None
        if is_console(settings.format):
            return access_log.shown(self._log)
        return lambda line: self._lines.add(access_log.encoded(line))

    def _failed(self, error: BaseException) -> None:
        self._metrics.failed()
        self._log.error("unexpected", exc_info=error)

    def _tls_reloaded(self, material: TlsMaterial | None, error: str | None) -> None:
        del material
        if error is None:
            self._log.info("tls_reloaded")
        else:
            self._log.error("tls_reload_failed", error=error, kept="the previous set")

    def _keys_fetched(self, authorizer: str, error: str | None) -> None:
        if error is not None:
            self._log.warning("keys_not_read", authorizer=authorizer, error=error, kept="the previous keys")

    def _link_changed(self, error: str | None) -> None:
        if error is None:
            self._log.info("valkey_connected")
        else:
            self._log.warning("valkey_away", error=error, until_then="each node keeps to its share")

    def _is_revoked(self, fingerprint: str) -> bool:
        return self._tls is not None and fingerprint in self._tls.current.revoked

    def _gauges(self) -> Mapping[tuple[str, str], float]:
        return {
            ("under_way", "Requests under way."): self._gateway.under_way,
            ("draining", "1 while the gateway drains."): float(self._draining),
            (
                "plan_fallbacks",
                "Decisions with this node's share alone, for want of Valkey.",
            ): self._plans.fallbacks,
        }

    def _status(self) -> Mapping[str, object]:
        return {
            "ready": not self._draining,
            "routes": len(self._loaded.routes.routes),
            "routes_error": self._watch.error,
            "under_way": self._gateway.under_way,
            "nodes": self._plans.nodes,
            "upstreams": self._upstreams.status(),
            "sockets": self._sockets.status(),
            "live": self._live.status(),
        }

    # Routes that change.

    def _use(self, loaded: Loaded) -> None:
        """Take what was read; what a part refuses leaves everything as it was: raises `SettingsError`."""
        before = self._loaded.routes
        try:
            self._authorizers.replace(loaded.routes.authorizers)
        except JwksError as error:
            raise SettingsError(str(error)) from error
        try:
            self._upstreams.replace(loaded.routes.upstreams)
        except SettingsError:
            self._authorizers.replace(before.authorizers)
            raise
        self._loaded = loaded
        self._gateway.replace(loaded.served, loaded.validation)

    def _reloaded(self, error: str | None) -> None:
        self._metrics.reloaded(taken=error is None)
        if error is None:
            self._log.info("routes_reloaded", routes=len(self._loaded.routes.routes))
        else:
            self._log.error("routes_refused", error=error, kept="the previous routes")

    # Its life.

    async def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C, then drain; raises `StartError`."""
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ending.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._watch.poll(force=True))
        public = _listening("api", self._settings.api.bind, self._settings.api.backlog)
        operators = _listening("admin", self._settings.admin.bind, 128)
        admin = Admin(
            [self._metrics, self._collectors],
            not_ready=lambda: "draining" if self._draining else "",
            status=self._status,
        )
        door = self._make_door()
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(each)
                for each in (
                    self._upstreams.run(),
                    self._authorizers.run(),
                    self._plans.run(),
                    self._analytics.run(),
                    self._sockets.run(),
                    self._live.run(),
                    self._watch.run(self._settings.api.reload_poll_s),
                    self._look_around(),
                )
            ]
            await admin.open(operators)
            settle()
            door.open(public, tasks)
            self._log.info("started", bind=self._settings.api.bind, routes=len(self._loaded.routes.routes))
            await ending.wait()
            await self._drain(door)
            for task in beside:
                task.cancel()
        await self._analytics.aclose()
        self._plans.close()
        await admin.close()
        self._registry.close()
        self._lines.flush()
        self._log.info("stopped")

    async def _drain(self, door: Door) -> None:
        self._draining = True
        deadline_s = self._settings.api.drain_deadline_s
        self._log.info("draining", under_way=self._gateway.under_way)
        door.close()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sockets.drain(deadline_s))
            tasks.create_task(self._live.drain(deadline_s))
        await door.drain(deadline_s)

    async def _look_around(self) -> None:
        """Look for new certificates, and end the WebSockets of callers who would no longer be let in."""
        with contextlib.closing(Registry(self._registry.path)) as registry:
            revoked = self._tls.current.revoked if self._tls is not None else frozenset()
            while True:
                await asyncio.sleep(WATCH_S)
                if self._tls is not None:
                    self._tls.poll()
                now_revoked = self._tls.current.revoked if self._tls is not None else frozenset()
                with contextlib.suppress(
                    RegistryError
                ):  # looked at again soon; `identify` answers 503 meanwhile
                    if not registry.changed() and now_revoked == revoked:
                        continue
                    revoked = now_revoked
                    refused = lambda caller: self._is_unwanted(registry, caller)  # noqa: E731  # two users
                    self._sockets.end_refused(refused)
                    self._live.end_refused(refused)

    def _is_unwanted(self, registry: Registry, caller: Principal) -> bool:
        if caller.credential is Credential.API_KEY and not registry.key_is_active(caller.fingerprint):
            return True
        if caller.credential is Credential.CERTIFICATE and self._is_revoked(caller.fingerprint):
            return True
        if caller.tenant == EVERY_TENANT:
            return False
        return registry.judge(caller.tenant, caller.device, registered_only=False) is not Verdict.ADMITTED


async def whoami(exchange: Exchange) -> web.Response:
    """Answer `GET /v1/whoami`."""
    principal = exchange.principal
    assert principal is not None
    body = {
        "tenant": principal.tenant,
        "name": principal.name,
        "scopes": sorted(principal.scopes),
        "credential": principal.credential.value,
        "fingerprint": principal.fingerprint,
        "plan": principal.plan,
        "device": principal.device,
    }
    return web.Response(
        body=msgspec.json.encode(body), content_type="application/json", headers={"Cache-Control": "no-store"}
    )


def _listening(name: str, bind: str, backlog: int) -> socket.socket:
    host, port = split_bind(bind)
    try:
        return listen(host, port, backlog=backlog)
    except OSError as error:
        raise StartError(
            f"{name}.bind {bind}: {error.strerror}; stop what has it, or choose another"
        ) from error


def _tls_store(
    settings: Settings, reloaded: Callable[[TlsMaterial | None, str | None], None]
) -> TlsStore | None:
    if settings.api.tls == "off":
        return None
    tls = settings.tls
    files = TlsFiles(
        certificate=Path(tls.certificate),
        key=Path(tls.key),
        client_ca=Path(tls.client_ca) if tls.client_ca and settings.api.tls != "server" else None,
        crl=Path(tls.crl) if tls.crl and settings.api.tls != "server" else None,
    )
    return TlsStore(files, node_secret=secrets.token_bytes(32), reloaded=reloaded)


def serve(settings: Settings, log: Any) -> None:
    """Run the gateway until it is told to stop; raises `StartError`."""

    async def run() -> None:
        await App(settings, log).run()

    uvloop.run(run())
