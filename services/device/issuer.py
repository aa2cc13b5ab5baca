"""Who signs the certificates of devices: an interface, and the development CA behind it.

Whatever signs takes of a signing request the key alone; subject and alternative names are ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ingest.pki import DevelopmentCa, PkiError
from routing.tenancy.identity import Kind


class IssuerError(Exception):
    """The issuer did not do it; `retriable` says whether it may later."""

    def __init__(self, text: str, *, retriable: bool) -> None:
        super().__init__(text)
        self.retriable = retriable


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a certificate names."""

    tenant: str
    kind: Kind
    name: str

    def uri(self, trust_domain: str) -> str:
        """Return the SPIFFE URI that names it."""
        return f"spiffe://{trust_domain}/tenant/{self.tenant}/{self.kind.value}/{self.name}"


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A new certificate, and what leads from it to the root, as PEM."""

    certificate: str
    chain: str
    serial: str
    fingerprint: str
    not_after_s: float


class Issuer(Protocol):
    """Signs and revokes; raises `IssuerError`."""

    async def sign(self, request: x509.CertificateSigningRequest, holder: Holder, days: int) -> Issued:
        """Issue a certificate for the key of a request that was checked."""

    async def revoke(self, serials: Sequence[str]) -> None:
        """Revoke certificates by the hex of their serial numbers; done, and to be seen, when it returns."""

    async def refresh(self) -> None:
        """Do what has to be done once a day, so that what is revoked stays so."""


class DevelopmentIssuer:
    """The development CA; its revocation list is written off the event loop, one change at a time."""

    def __init__(self, ca: DevelopmentCa, *, trust_domain: str) -> None:
        self._ca = ca
        self._trust_domain = trust_domain
        self._chain = ca.ca_path.read_text()
        self._revoking = asyncio.Lock()

    async def sign(self, request: x509.CertificateSigningRequest, holder: Holder, days: int) -> Issued:
        """Sign at once."""
        try:
            certificate = self._ca.sign_request(
                request,
                tenant=holder.tenant,
                name=holder.name,
                kind=holder.kind.value,
                days=days,
                trust_domain=self._trust_domain,
            )
        except PkiError as error:
            raise IssuerError(str(error), retriable=False) from error
        return issued(certificate, self._chain)

    async def revoke(self, serials: Sequence[str]) -> None:
        """Write the revocation list, which the ingestion gateway reads within `tls.reload_poll_s`."""
        await self._changed([int(serial, 16) for serial in serials])

    async def refresh(self) -> None:
        """Write the revocation list anew, since a gateway refuses everybody when it has ended."""
        await self._changed([])

    async def _changed(self, serials: Sequence[int]) -> None:
        async with self._revoking:
            try:
                await asyncio.to_thread(self._ca.revoke_serials, serials)
            except (OSError, PkiError, ValueError) as error:
                raise IssuerError(f"the revocation list is not written: {error}", retriable=True) from error


def issued(certificate: x509.Certificate, chain: str) -> Issued:
    """Return what is kept and told of a certificate."""
    return Issued(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        chain=chain,
        serial=f"{certificate.serial_number:x}",
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        not_after_s=certificate.not_valid_after_utc.timestamp(),
    )
