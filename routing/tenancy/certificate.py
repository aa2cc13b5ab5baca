"""Who a client certificate names: a SPIFFE URI among its alternative names, else its subject."""

from __future__ import annotations

import re
import ssl
from typing import Any, Final

from routing.tenancy.identity import Credential, Identity, Kind, Unauthenticated
from runtime.tls.material import issuer_digest

NAME: Final = r"[A-Za-z0-9._~-]{1,128}"
SPIFFE: Final = re.compile(
    rf"spiffe://([A-Za-z0-9.-]{{1,255}})/tenant/({NAME})/(device|gateway|claim)/({NAME})"
)


class CertificateNames:
    """Reads identities for one trust domain; an empty one takes every domain.

    A certificate of a claim, which is good for provisioning only, is refused unless `claims` says otherwise.
    """

    def __init__(self, trust_domain: str, *, claims: bool = False) -> None:
        self._trust_domain = trust_domain
        self._claims = claims

    def identity(self, certificate: dict[str, Any]) -> Identity:
        """Return the identity of a certificate as `getpeercert` gives it; raises `Unauthenticated`."""
        tenant, kind, name = self._names(certificate)
        not_after = certificate.get("notAfter")
        return Identity(
            tenant=tenant,
            name=name,
            kind=Kind(kind),
            credential=Credential.CERTIFICATE,
            fingerprint=fingerprint(certificate),
            expires_s=ssl.cert_time_to_seconds(str(not_after)) if not_after else None,
        )

    def _names(self, certificate: dict[str, Any]) -> tuple[str, str, str]:
        uris = [
            value
            for kind, value in certificate.get("subjectAltName", ())
            if kind == "URI" and value.startswith("spiffe://")
        ]
        if len(uris) > 1:
            raise Unauthenticated("the certificate names more than one identity")
        if uris:
            match = SPIFFE.fullmatch(uris[0])
            if match is None:
                raise Unauthenticated("the certificate's URI is not spiffe://DOMAIN/tenant/T/device/D")
            if self._trust_domain and match[1] != self._trust_domain:
                raise Unauthenticated("the certificate is of another trust domain")
            if match[3] == Kind.CLAIM.value and not self._claims:
                raise Unauthenticated("the certificate is of a claim, which is good for provisioning only")
            return match[2], match[3], match[4]
        subject = {key: value for part in certificate.get("subject", ()) for key, value in part}
        tenant, device = subject.get("organizationName", ""), subject.get("commonName", "")
        if not (re.fullmatch(NAME, tenant) and re.fullmatch(NAME, device)):
            raise Unauthenticated("the certificate names no tenant (O) and device (CN)")
        return tenant, Kind.DEVICE.value, device


def fingerprint(certificate: dict[str, Any]) -> str:
    """Return `issuer:serial` of a certificate as `getpeercert` gives it, as revocation lists name it."""
    issuer = [value for part in certificate.get("issuer", ()) for _, value in part]
    return f"{issuer_digest(issuer)}:{int(certificate.get('serialNumber', '0'), 16):x}"
