"""The control plane as a process: reads a folder, serves it, reads it again when it changes, and ends.

A folder that is wrong is not served: the last good one is, and the log says once what is wrong.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.status.v3 import csds_pb2_grpc

from routing.xds.configurations import Configurations, Unusable, loaded, signature
from routing.xds.server import OPTIONS, Discovery
from routing.xds.status import ClientStatus

POLL_S: Final = 0.25
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
    """What is served, where, and to whom."""

    place: Path
    parameters: Mapping[str, str]
    endpoints: Path | None
    bind: str
    tls: ServerTls | None
    trust_domain: str
    streams_max: int
    status_socket: Path


async def serve(terms: Terms, log: Any) -> None:
    """Serve until SIGTERM or SIGINT; raises StartError."""
    seen = _signature(terms)
    try:
        discovery = Discovery(
            _loaded(terms),
            trust_domain=terms.trust_domain,
            mutual=terms.tls is not None,
            streams_max=terms.streams_max,
            log=log,
        )
    except Unusable as error:
        raise StartError(str(error)) from error
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    status = _status_server(terms.status_socket, discovery)
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=terms.streams_max + 1)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(discovery, server)
    _listen(server, terms)
    try:
        await status.start()
        await server.start()
        log.info("mesh_control_plane_started", bind=terms.bind)
        async with asyncio.TaskGroup() as tasks:
            reloads = tasks.create_task(_reload(terms, discovery, seen, log))
            await ending.wait()
            reloads.cancel()
        discovery.drain()
    finally:
        await server.stop(DRAIN_S)
        await status.stop(None)
        terms.status_socket.unlink(missing_ok=True)
    log.info("mesh_control_plane_stopped")


def _listen(server: grpc.aio.Server, terms: Terms) -> None:
    host = terms.bind.rpartition(":")[0]
    if terms.tls is None and host not in LOOPBACK:
        raise StartError(f"{terms.bind} is not on loopback: give --certificate, --key and --ca")
    try:
        if terms.tls is None:
            server.add_insecure_port(terms.bind)
        else:
            server.add_secure_port(terms.bind, _credentials(terms.tls))
    except (RuntimeError, OSError) as error:
        raise StartError(f"cannot listen on {terms.bind}: {error}") from error


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


async def _reload(terms: Terms, discovery: Discovery, seen: str, log: Any) -> None:
    """Serve what the folder has, once it stays the same for a moment: files are written one after another."""
    before = seen
    while True:
        await asyncio.sleep(POLL_S)
        now = await asyncio.to_thread(_signature, terms)
        if now == before and now != seen:
            seen = now
            try:
                discovery.replace(await asyncio.to_thread(_loaded, terms))
                log.info("mesh_reloaded")
            except Unusable as error:
                log.warning("mesh_not_reloaded", why=str(error))
        before = now


def _signature(terms: Terms) -> str:
    return signature(terms.place, *([] if terms.endpoints is None else [terms.endpoints]))


def _loaded(terms: Terms) -> Configurations:
    return loaded(terms.place, terms.parameters, terms.endpoints)
