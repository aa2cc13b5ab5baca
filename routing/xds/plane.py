"""The control plane: who may ask where, what is served, and what changes of it.

Whoever knows meshes or endpoints, such as a folder or an API, tells it; it tells the proxies.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.status.v3 import csds_pb2_grpc

from routing.mesh.snapshot import MeshSnapshot
from routing.xds.cloud_map import CloudMapNodes, CloudMapTerms
from routing.xds.configurations import Configurations, Endpoints, Trust
from routing.xds.issuer import BadAuthority, Issuer, IssuerFiles
from routing.xds.server import OPTIONS, Discovery
from routing.xds.status import ClientStatus
from runtime import clock

AUTHORITY_POLL_S: Final = 1.0
DRAIN_S: Final = 5.0
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


class StartError(Exception):
    """The control plane cannot start; the text says why."""


class ServerTls(msgspec.Struct, frozen=True):
    """The files of the control plane: its own, and the authority of proxies' certificates."""

    certificate: Path
    key: Path
    authority: Path


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is served, and to whom."""

    bind: str
    tls: ServerTls | None
    trust_domain: str
    streams_max: int
    status_socket: Path
    issuer: IssuerFiles | None = None
    certificate_ttl_s: float = 3600.0
    cloud_map: CloudMapTerms | None = None


class ControlPlane:
    """Serves meshes to proxies. Changes are made one after another, each while proxies are served."""

    def __init__(self, terms: Terms, log: Any) -> None:
        self._terms = terms
        self._log = log
        self._changing = asyncio.Lock()
        self._given: Endpoints = {}
        cloud_map = terms.cloud_map
        self._nodes = None if cloud_map is None else CloudMapNodes(cloud_map, self._found, log=log)
        self._trust = Trust(terms.trust_domain, terms.issuer is not None)
        self._configurations = Configurations({}, {}, self._trust)
        self._issuer = _issuer(terms)
        self._discovery = Discovery(
            self._configurations,
            trust_domain=terms.trust_domain,
            mutual=terms.tls is not None,
            streams_max=terms.streams_max,
            issuer=self._issuer,
            log=log,
        )
        self._status = _status_server(terms.status_socket, self._discovery)
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=terms.streams_max + 1)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self._discovery, self._server)
        listen(self._server, terms.bind, terms.tls)

    @property
    def meshes(self) -> Mapping[str, MeshSnapshot]:
        """What is served."""
        return self._configurations.meshes

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints that were given."""
        return self._given

    async def start(self) -> None:
        """Take streams of proxies."""
        await self._status.start()
        await self._server.start()
        self._log.info("mesh_control_plane_started", bind=self._terms.bind)

    async def replace(self, meshes: Mapping[str, MeshSnapshot], given: Endpoints) -> None:
        """Serve other meshes, with the endpoints that somebody gives, by the path of their node."""
        if self._nodes is not None:
            self._nodes.watch(meshes)
        async with self._changing:
            self._given = given
            self._configurations = Configurations(meshes, self._known(), self._trust)
            await self._discovery.replace(self._configurations)

    async def replace_endpoints(self, given: Endpoints) -> None:
        """Serve other endpoints of the same meshes: all that are given."""
        self._given = given
        await self._refresh_endpoints()

    async def _found(self, _: Endpoints) -> None:
        """Hear that Cloud Map has other endpoints."""
        await self._refresh_endpoints()

    def _known(self) -> Endpoints:
        """Return the endpoints that are found, and those that are given, which count first."""
        return {**({} if self._nodes is None else self._nodes.endpoints), **self._given}

    async def _refresh_endpoints(self) -> None:
        async with self._changing:
            endpoints = self._known()
            before = self._configurations.endpoints
            if endpoints.keys() != before.keys():
                self._configurations = Configurations(self.meshes, endpoints, self._trust)
                await self._discovery.replace(self._configurations)
                return
            changed = frozenset(node for node, found in endpoints.items() if found != before[node])
            if changed:
                self._configurations = Configurations(self.meshes, endpoints, self._trust)
                await self._discovery.replace_endpoints(self._configurations, changed)

    async def run(self) -> None:
        """Follow Cloud Map and the authority, for as long as it is not cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_authority())
            if self._nodes is not None:
                tasks.create_task(self._nodes.run())

    async def _follow_authority(self) -> None:
        """Give proxies new secrets when the authority changes."""
        while self._issuer is not None:
            await asyncio.sleep(AUTHORITY_POLL_S)
            try:
                if await asyncio.to_thread(self._issuer.changed):
                    await self._discovery.renew()
                    self._log.info("mesh_authority_loaded")
            except BadAuthority as error:
                self._log.warning("mesh_authority_bad", why=str(error))

    async def stop(self) -> None:
        """End all streams: proxies run on."""
        self._discovery.drain()
        await self._server.stop(DRAIN_S)
        await self._status.stop(None)
        self._terms.status_socket.unlink(missing_ok=True)
        self._log.info("mesh_control_plane_stopped")


def _issuer(terms: Terms) -> Issuer | None:
    if terms.issuer is None:
        return None
    if not terms.trust_domain:
        raise StartError("an authority needs a trust domain")
    try:
        return Issuer(
            terms.issuer,
            trust_domain=terms.trust_domain,
            ttl_s=terms.certificate_ttl_s,
            unix_s=clock.unix_s,
            random=secrets.SystemRandom().random,
        )
    except BadAuthority as error:
        raise StartError(str(error)) from error


def listen(server: grpc.aio.Server, bind: str, tls: ServerTls | None) -> None:
    """Let proxies connect; without TLS only on loopback. Raises StartError."""
    host = bind.rpartition(":")[0]
    if tls is None and host not in LOOPBACK:
        raise StartError(
            f"{bind} is not on loopback: it needs a certificate, its key and the proxies' authority"
        )
    try:
        if tls is None:
            server.add_insecure_port(bind)
        else:
            server.add_secure_port(bind, _credentials(tls))
    except (RuntimeError, OSError) as error:
        raise StartError(f"cannot listen on {bind}: {error}") from error


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Return credentials that ask for a client's certificate, and are read again when a file changes."""
    files = (tls.certificate, tls.key, tls.authority)
    seen = ""

    def configuration() -> Any:
        nonlocal seen
        now = "|".join(str(path.stat().st_mtime_ns) for path in files)
        if now == seen:
            return None
        certificate, key, authority = (path.read_bytes() for path in files)
        seen = now
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    first = configuration()
    return grpc.dynamic_ssl_server_credentials(first, configuration, require_client_authentication=True)


def _status_server(socket: Path, discovery: Discovery) -> grpc.aio.Server:
    """Return a server on a Unix socket that only its owner may connect to."""
    server = grpc.aio.server()
    csds_pb2_grpc.add_ClientStatusDiscoveryServiceServicer_to_server(ClientStatus(discovery), server)
    socket.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise StartError(f"cannot listen on {socket}: {error}") from error
    finally:
        os.umask(before)
    return server
