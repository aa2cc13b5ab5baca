"""The authority of a mesh: gives each proxy a SPIFFE certificate, and all of them its trust domain's bundle.

Keys are made for each stream, held in memory alone, and sent over that stream. Source: SPIFFE X509-SVID, 3
and 4 (one URI, a key for signatures, no authority).
"""

from __future__ import annotations

import datetime as dt
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from routing.mesh.compile.identity import bundle_name, spiffe_id

BACKDATED_S: Final = 300
"""How far a proxy's clock may be behind."""
RENEWED_AT: Final = 2 / 3
SPREAD: Final = 0.1
READABLE_BY_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class BadAuthority(Exception):
    """These files are no authority; the text says why."""


class IssuerFiles(msgspec.Struct, frozen=True):
    """The certificate of the authority with its chain, its key, and who is trusted: the first, if empty."""

    certificate: Path
    key: Path
    bundle: Path | None = None

    def signature(self) -> str:
        """Return what changes when a file does."""
        paths = [self.certificate, self.key, *([] if self.bundle is None else [self.bundle])]
        try:
            return "|".join(f"{path.stat().st_mtime_ns}:{path.stat().st_ino}" for path in paths)
        except OSError as error:
            return str(error)


class Authority:
    """What the files hold; raises BadAuthority."""

    def __init__(self, files: IssuerFiles) -> None:
        try:
            if files.key.stat().st_mode & READABLE_BY_OTHERS:
                raise BadAuthority(f"{files.key} can be read by others: chmod 600 {files.key}")
            self._chain = x509.load_pem_x509_certificates(files.certificate.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), None)
            bundle = files.certificate if files.bundle is None else files.bundle
            trusted = x509.load_pem_x509_certificates(bundle.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise BadAuthority(f"{files.certificate}, {files.key}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise BadAuthority(f"{files.key} is neither an EC nor an RSA key")
        self._key = key
        if key.public_key() != self._chain[0].public_key():
            raise BadAuthority(f"{files.key} is not the key of {files.certificate}")
        self._check_authority(files.certificate)
        if not any(_signed_by(self._chain[-1], each) for each in trusted):
            raise BadAuthority(f"{bundle} does not have the authority that {files.certificate} leads to")
        self.bundle = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in trusted)

    def _check_authority(self, path: Path) -> None:
        try:
            basic = self._chain[0].extensions.get_extension_for_class(x509.BasicConstraints).value
        except x509.ExtensionNotFound:
            basic = None
        if basic is None or not basic.ca:
            raise BadAuthority(f"{path} is not the certificate of an authority")

    @property
    def ends_s(self) -> float:
        """When it ends, in seconds since 1970."""
        return self._chain[0].not_valid_after_utc.timestamp()

    def issue(self, uri: str, key: ec.EllipticCurvePrivateKey, from_s: float, to_s: float) -> bytes:
        """Return a certificate of a SPIFFE id with its chain, PEM."""
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._chain[0].subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(dt.datetime.fromtimestamp(from_s, dt.UTC))
            .not_valid_after(dt.datetime.fromtimestamp(min(to_s, self.ends_s), dt.UTC))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_KEY_USAGE, critical=True)
            .add_extension(x509.ExtendedKeyUsage(_PURPOSES), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        chain = [made, *[each for each in self._chain if each.issuer != each.subject]]
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain)


class Issuer:
    """Makes the secrets of proxies. `random` is from 0 to 1, `unix_s` the time. Raises BadAuthority."""

    def __init__(
        self,
        files: IssuerFiles,
        *,
        trust_domain: str,
        ttl_s: float,
        unix_s: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._files = files
        self._trust_domain = trust_domain
        self._ttl_s = ttl_s
        self._unix_s = unix_s
        self._random = random
        self._seen = files.signature()
        self._authority = self._loaded()

    def changed(self) -> bool:
        """Read the files again if they changed, and return whether they did; raises BadAuthority."""
        now = self._files.signature()
        if now == self._seen:
            return False
        self._seen = now
        self._authority = self._loaded()
        return True

    def _loaded(self) -> Authority:
        authority = Authority(self._files)
        self._check_time(authority)
        return authority

    def _check_time(self, authority: Authority) -> None:
        if authority.ends_s <= self._unix_s():
            raise BadAuthority(f"{self._files.certificate} has ended: replace it")

    def secrets(self, path: str) -> list[Any]:
        """Return the secrets of the proxy of a node: its certificate with a new key, and the bundle.

        Raises BadAuthority when the authority has ended.
        """
        self._check_time(self._authority)
        uri = spiffe_id(self._trust_domain, path)
        key = ec.generate_private_key(ec.SECP256R1())
        now_s = self._unix_s()
        chain = self._authority.issue(uri, key, now_s - BACKDATED_S, now_s + self._ttl_s)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        own = {"certificate_chain": {"inline_bytes": chain}, "private_key": {"inline_bytes": private}}
        trusted = {"trusted_ca": {"inline_bytes": self._authority.bundle}}
        return [
            Secret(name=uri, tls_certificate=own),
            Secret(name=bundle_name(self._trust_domain), validation_context=trusted),
        ]

    def renewed_after_s(self) -> float:
        """Return how long a certificate that is issued now is kept: two thirds of its time, more or less."""
        left_s = max(0.0, min(self._ttl_s, self._authority.ends_s - self._unix_s()))
        return left_s * (RENEWED_AT + SPREAD * (self._random() - 0.5)) + 0.1


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    if certificate == authority:
        return True
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


_PURPOSES: Final = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
_KEY_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
