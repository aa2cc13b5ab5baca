"""A development certificate authority: ECDSA P-256, one CA, servers, devices, gateways, claims, revocation.

Not for production: its CA key lies unencrypted in a file. Files are written whole (rename), keys with
mode 0600. Who revokes holds `crl.lock`, so that of several processes none loses what another has revoked.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime import clock

CA_DAYS: Final = 3650
CRL_DAYS: Final = 30
TRUST_DOMAIN: Final = "headworks.local"
HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
NAME: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")
"""What a SPIFFE path may hold, a subject is long enough for, and no path of a file means otherwise."""
NAME_RULE: Final = "1 to 64 of A-Z a-z 0-9 . _ ~ -"
CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
RSA_BITS: Final = range(2048, 8193)
SIGNING_REQUEST_BYTES_MAX: Final = 16_384
DIGESTS: Final = frozenset({"sha256", "sha384", "sha512"})


class PkiError(Exception):
    """What was asked of the CA cannot be done; the text says why."""


class Issued(msgspec.Struct, frozen=True):
    """The files of one certificate."""

    certificate: Path
    key: Path


class DevelopmentCa:
    """The CA in a folder: `ca.crt`, `ca.key`, `crl.pem`, and what it has issued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
            self._certificate = x509.load_pem_x509_certificate(self.ca_path.read_bytes())
        except FileNotFoundError as error:
            raise PkiError(f"there is no CA in {folder}; run: headworks pki init --dir {folder}") from error
        except (OSError, ValueError, TypeError) as error:
            raise PkiError(f"cannot read the CA in {folder}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise PkiError(f"{folder / 'ca.key'} is not an elliptic curve key")
        self._key = key

    @classmethod
    def create(cls, folder: Path) -> DevelopmentCa:
        """Make a CA with an empty revocation list, unless the folder has one."""
        if not (folder / "ca.key").exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Headworks development CA")])
            certificate = (
                _builder(name, name, key.public_key(), CA_DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_ca_usage(), critical=True)
                .sign(key, hashes.SHA256())
            )
            _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
            _write(folder / "ca.key", _pem_key(key), 0o600)  # last: it is what makes it a CA
        ca = cls(folder)
        if not ca.crl_path.exists():
            ca.write_crl([])
        return ca

    @property
    def ca_path(self) -> Path:
        """Where the CA's certificate is."""
        return self.folder / "ca.crt"

    @property
    def crl_path(self) -> Path:
        """Where the revocation list is."""
        return self.folder / "crl.pem"

    def server(self, hosts: list[str], *, days: int = 365) -> Issued:
        """Issue a server certificate for host names and addresses."""
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                if HOST.fullmatch(host) is None:
                    raise PkiError(f"{host!r} is no host name and no address") from None
                names.append(x509.DNSName(host))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        return self._issue("server", subject, names, ExtendedKeyUsageOID.SERVER_AUTH, days)

    def device(self, tenant: str, device: str, *, days: int = 365, kind: str = "device") -> Issued:
        """Issue a client certificate for a device or a gateway of a tenant."""
        subject, names = _client(tenant, device, kind, TRUST_DOMAIN)
        return self._issue(
            f"{kind}s/{tenant}/{device}", subject, names, ExtendedKeyUsageOID.CLIENT_AUTH, days
        )

    def sign_request(
        self,
        request: x509.CertificateSigningRequest,
        *,
        tenant: str,
        name: str,
        kind: str,
        days: int,
        trust_domain: str = TRUST_DOMAIN,
    ) -> x509.Certificate:
        """Issue a client certificate for the key of a request that `signing_request` has checked.

        Of the request only the key is taken: whom it names, and what it asks for, counts for nothing.
        """
        subject, names = _client(tenant, name, kind, trust_domain)
        return self._sign(request.public_key(), subject, names, ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def _issue(
        self,
        path: str,
        subject: x509.Name,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: int,
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key.public_key(), subject, names, usage, days)
        issued = Issued(self.folder / f"{path}.crt", self.folder / f"{path}.key")
        issued.certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(issued.key, _pem_key(key), 0o600)
        _write(issued.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return issued

    def _sign(
        self,
        key: CertificatePublicKeyTypes,
        subject: x509.Name,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: int,
    ) -> x509.Certificate:
        return (
            _builder(subject, self._certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )

    def revoked(self) -> list[int]:
        """Return the serial numbers on the revocation list."""
        if not self.crl_path.exists():
            return []
        crl = x509.load_pem_x509_crl(self.crl_path.read_bytes())
        return [entry.serial_number for entry in crl]

    def revoke(self, certificate: Path) -> int:
        """Put a certificate on the revocation list; return its serial number."""
        try:
            serial = x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number
        except (OSError, ValueError) as error:
            raise PkiError(f"{certificate} is not a certificate: {error}") from error
        self.revoke_serials([serial])
        return serial

    def revoke_serials(self, serials: Iterable[int]) -> None:
        """Put serial numbers on the revocation list; it is written when this returns."""
        with self._revoking():
            self.write_crl(sorted({*self.revoked(), *serials}))

    def renew_crl(self) -> None:
        """Write the revocation list anew, as it is, good for 30 more days."""
        self.revoke_serials([])

    @contextlib.contextmanager
    def _revoking(self) -> Iterator[None]:
        """Wait until nobody else changes the list; the lock ends with the process that holds it."""
        with (self.folder / "crl.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def write_crl(self, serials: list[int]) -> None:
        """Write the revocation list anew, good for 30 days."""
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - dt.timedelta(minutes=5))
            .next_update(now + dt.timedelta(days=CRL_DAYS))
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self._key, hashes.SHA256())
        _write(self.crl_path, crl.public_bytes(serialization.Encoding.PEM), 0o644)


def signing_request(content: bytes) -> x509.CertificateSigningRequest:
    """Return a PEM signing request whose sender holds its key, which is one of those that we take.

    Keys: P-256, P-384, Ed25519, RSA from 2048 bits. Raises `PkiError`.
    """
    if len(content) > SIGNING_REQUEST_BYTES_MAX:
        raise PkiError(f"a signing request has at most {SIGNING_REQUEST_BYTES_MAX} bytes")
    try:
        request = x509.load_pem_x509_csr(content)
        key = request.public_key()
        digest = request.signature_hash_algorithm
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError("not a PEM signing request with a key that we know") from error
    if isinstance(key, rsa.RSAPublicKey):
        good = key.key_size in RSA_BITS
    elif isinstance(key, ec.EllipticCurvePublicKey):
        good = isinstance(key.curve, CURVES)
    else:
        good = isinstance(key, ed25519.Ed25519PublicKey)
    if not good:
        raise PkiError("the key must be P-256, P-384, Ed25519, or RSA with 2048 to 8192 bits")
    if digest is not None and digest.name not in DIGESTS:
        raise PkiError(f"the signing request is signed with {digest.name}; use SHA-256 or better")
    try:
        holds = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        holds = False
    if not holds:
        raise PkiError("the signing request is not signed with its own key")
    return request


def _client(tenant: str, name: str, kind: str, trust_domain: str) -> tuple[x509.Name, list[x509.GeneralName]]:
    """Return the subject and the alternative names of a client; raises `PkiError`."""
    for each in (tenant, name):
        if NAME.fullmatch(each) is None or each in {".", ".."}:
            raise PkiError(f"{each!r} is not a name for a certificate: {NAME_RULE}")
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, tenant),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    uri = f"spiffe://{trust_domain}/tenant/{tenant}/{kind}/{name}"
    return subject, [x509.UniformResourceIdentifier(uri)]


def _now() -> dt.datetime:
    return dt.datetime.fromtimestamp(clock.unix_s(), tz=dt.UTC)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: CertificatePublicKeyTypes, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole: readers see the old one or the new one."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.fchmod(descriptor, mode)  # whatever the umask is, and whatever was left of an earlier try
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    new.rename(path)
