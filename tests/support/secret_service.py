"""A Secret Discovery Service on a Unix socket, as SPIRE's agent is one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from envoy.service.secret.v3 import sds_pb2_grpc
from google.protobuf import any_pb2

KIND = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


class SecretService(sds_pb2_grpc.SecretDiscoveryServiceServicer):  # type: ignore[misc]  # grpcio has no types
    """Hands out secrets by name, and new ones when they are replaced."""

    def __init__(self) -> None:
        self._secrets: dict[str, Any] = {}
        self._changed = asyncio.Condition()
        self._version = 0

    async def put(self, *secrets: Any) -> None:
        """Replace secrets, and tell whoever has them."""
        async with self._changed:
            self._version += 1
            self._secrets.update({secret.name: secret for secret in secrets})
            self._changed.notify_all()

    async def StreamSecrets(  # noqa: N802  # Envoy's own
        self, requests: AsyncIterator[Any], _: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        """Answer the first request of a stream, and then every change; later requests only acknowledge."""
        first = await anext(requests)
        assert isinstance(first, DiscoveryRequest)
        acknowledging = asyncio.ensure_future(_drained(requests))
        sent = 0
        try:
            while True:
                sent = await self._newer(sent)
                version, found = str(sent), [self._secrets.get(name) for name in first.resource_names]
                packed = [_packed(secret) for secret in found if secret is not None]
                yield DiscoveryResponse(version_info=version, nonce=version, type_url=KIND, resources=packed)
        finally:
            acknowledging.cancel()

    async def _newer(self, than: int) -> int:
        """Return the version once it is newer than one that was sent."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._version > than)
            return self._version


def _packed(secret: Any) -> Any:
    made = any_pb2.Any()
    made.Pack(secret)
    return made


async def _drained(requests: AsyncIterator[Any]) -> None:
    async for _ in requests:
        pass


def certificate(name: str, authority: trustme.CA, uri: str) -> Any:
    """Return a secret with a new certificate of a SPIFFE name."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    signer = serialization.load_pem_private_key(authority.private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
        .sign(signer, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = made.public_bytes(serialization.Encoding.PEM)
    config = {"certificate_chain": {"inline_bytes": chain}, "private_key": {"inline_bytes": private}}
    return Secret(name=name, tls_certificate=config)


def trust(name: str, *authorities: trustme.CA) -> Any:
    """Return a secret with authorities."""
    pem = b"".join(authority.cert_pem.bytes() for authority in authorities)
    return Secret(name=name, validation_context={"trusted_ca": {"inline_bytes": pem}})


@contextlib.asynccontextmanager
async def secret_service(socket: Path) -> AsyncIterator[SecretService]:
    """Run a service."""
    made = SecretService()
    server = grpc.aio.server()
    sds_pb2_grpc.add_SecretDiscoveryServiceServicer_to_server(made, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield made
    finally:
        await server.stop(0)
