"""A client of the control plane that is not an Envoy, and the certificates of both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import trustme
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from routing.xds.snapshot import CLUSTERS
from tests.support.secret_service import certificate


class Files:
    """Certificates in files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        server = self.authority.issue_cert("127.0.0.1")
        server.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))

    def server(self) -> list[str]:
        return self._words(self._folder / "server.pem", self._folder / "server.pem")

    def client(self, uri: str) -> list[str]:
        """Write a certificate with a SPIFFE id."""
        made = certificate("client", self.authority, uri).tls_certificate
        paths = self._folder / "client.pem", self._folder / "client.key"
        paths[0].write_bytes(made.certificate_chain.inline_bytes)
        paths[1].write_bytes(made.private_key.inline_bytes)
        return self._words(*paths)

    def named(self, common_name: str) -> list[str]:
        """Write a certificate with a common name alone."""
        made = self.authority.issue_cert(common_name=common_name)
        path = self._folder / "named.pem"
        made.private_key_and_cert_chain_pem.write_to_path(str(path))
        return self._words(path, path)

    def _words(self, chain: Path, key: Path) -> list[str]:
        return ["--certificate", str(chain), "--key", str(key), "--ca", str(self._folder / "ca.pem")]


@contextlib.asynccontextmanager
async def stream(plane_port: int, words: list[str]) -> AsyncIterator[Any]:
    """Open a delta stream with certificates."""
    chain, key, authority = [await asyncio.to_thread(Path(words[at]).read_bytes) for at in (1, 3, 5)]
    credentials = grpc.ssl_channel_credentials(authority, key, chain)
    async with grpc.aio.secure_channel(f"127.0.0.1:{plane_port}", credentials) as channel:
        yield ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(timeout=20)


async def ends_with(plane_port: int, words: list[str], node: dict[str, Any]) -> grpc.StatusCode:
    """Ask for a node, and return how the stream ends."""
    async with stream(plane_port, words) as call:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(DeltaDiscoveryRequest(type_url=CLUSTERS, node=node))
            assert await call.read() is grpc.aio.EOF
        code: grpc.StatusCode = await call.code()
        return code
