"""Certificates of devices, signed with the key of a development CA; and such as no gateway may take."""

from __future__ import annotations

import datetime as dt
import ssl
import tempfile
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from loadtests.plan import Credential

TRUST_DOMAIN: Final = "headworks.local"
DAYS: Final = 30


class Signer:
    """Signs certificates; all devices of a process have one key, and each a certificate of its own."""

    def __init__(self, pki: Path, *, now: dt.datetime) -> None:
        self._now = now
        self._ca = x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._ca_key = key
        self._foreign_key = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._ca_file = pki / "ca.crt"
        self._revoked = pki / "revoked.pem"

    def _pem(self, tenant: str, name: str, credential: Credential) -> bytes:
        expired = credential == "expired"
        ends = self._now - dt.timedelta(days=1) if expired else self._now + dt.timedelta(days=DAYS)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, tenant),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        uri = x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/tenant/{tenant}/device/{name}")
        signing_key = self._foreign_key if credential == "foreign" else self._ca_key
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._ca.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - dt.timedelta(days=2))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False
            )
            .sign(signing_key, hashes.SHA256())
        )
        return self._key_pem() + certificate.public_bytes(serialization.Encoding.PEM)

    def _key_pem(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def context(self, tenant: str, name: str, credential: Credential) -> ssl.SSLContext:
        """Return what a device of that name shows, or a device with a bad credential."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self._ca_file)
        context.check_hostname = False
        if credential == "revoked":
            context.load_cert_chain(self._revoked)
        elif credential != "none":
            with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # the ssl module reads files only
                file.write(self._pem(tenant, name, credential))
                file.flush()
                context.load_cert_chain(file.name)
        return context

    def write(self, path: Path, tenant: str, name: str) -> None:
        """Write a good certificate, with its key before it."""
        path.write_bytes(self._pem(tenant, name, "good"))
        path.chmod(0o600)
