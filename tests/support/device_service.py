"""The device service over HTTP, in the process of a test, with a CA and passports of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
from aiohttp.test_utils import TestClient, TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ingest.pki import DevelopmentCa
from routing.tenancy.registry import Registry
from runtime.logs import make_log
from services import settings
from services.device.app import made, operations
from services.web.passport import PassportVerifier
from tests.support.passports import Passports

SCOPES = " ".join(sorted({"telemetry:write", *(each.scope for each in operations() if each.scope)}))


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: Any
    headers: Any

    @property
    def slug(self) -> str:
        return str(self.body["type"]).removeprefix("urn:headworks:problem:")


class Service:
    """One service that runs; `acme` is a tenant."""

    def __init__(
        self, folder: Path, client: TestClient[Any, Any], passports: Passports, ca: DevelopmentCa
    ) -> None:
        self.folder = folder
        self.client = client
        self.passports = passports
        self.ca = ca
        self.registry = Registry(folder / "registry.db")
        self.draining = asyncio.Event()

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        tenant: str = "acme",
        scopes: str = SCOPES,
        device: str = "",
        sub: str = "tester",
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        signed = self.passports.headers("device", tenant=tenant, scopes=scopes, device=device, sub=sub)
        response = await self.client.request(
            method, path, json=json, data=data, headers={**signed, **(headers or {})}
        )
        content = await response.read()
        body = (
            msgspec.json.decode(content)
            if response.content_type in {"application/json", "application/problem+json"} and content
            else content
        )
        return Answer(response.status, body, response.headers)

    async def of_acme(self, method: str, path: str, json: Any = None, **options: Any) -> Answer:
        return await self.call(method, f"/v1/tenants/acme{path}", json, **options)


@contextlib.asynccontextmanager
async def device_service(
    folder: Path, *overrides: str, ca: DevelopmentCa | None = None
) -> AsyncIterator[Service]:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240  # once, before anything runs
    passports = Passports(folder / "passport.pub")
    ca = ca or DevelopmentCa.create(folder / "pki")
    config = folder / "services.toml"
    config.write_text(f'[service]\ndata_dir = "{folder}"\n[device]\nca_dir = "{ca.folder}"\n')
    found = settings.load(config, overrides)
    verifier = PassportVerifier(passports.path, audience="device")
    verifier.poll()
    draining = asyncio.Event()
    async with made(found, verifier, draining, make_log("error", "json")) as app:
        async with TestClient(TestServer(app)) as client:
            service = Service(folder, client, passports, ca)
            service.draining = draining
            service.registry.add_tenant("acme", "default", 1.0)
            try:
                yield service
            finally:
                draining.set()
        service.registry.close()


def signing_request(key: Any = None, *, name: str = "whoever", digest: Any = None, uri: str = "") -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    if uri:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(names, critical=False)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), digest or hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def uris_of(pem: str) -> list[str]:
    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)
