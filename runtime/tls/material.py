"""Certificates, keys, client CAs and revocation lists, loaded together into one value.

A set is whole or it is not used: what cannot be loaded raises `TlsMaterialError`, and who has an older
set keeps it.
"""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509

from runtime.tls import tickets

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


class TlsMaterialError(Exception):
    """A file of the set is wrong; the text names it and says what to do."""


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Where the set is; `client_ca` and `crl` may be None."""

    certificate: Path
    key: Path
    client_ca: Path | None
    crl: Path | None


class TlsMaterial(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded set. `contexts` are by (mutual, protocol); times are Unix seconds.

    `optional` is for HTTP: it asks for a certificate and does without one.
    """

    contexts: dict[tuple[bool, str], ssl.SSLContext]
    optional: ssl.SSLContext | None
    revoked: frozenset[str]
    not_after_s: float
    crl_next_update_s: float | None
    tickets_shared: bool
    signature: str


def issuer_digest(values: list[str]) -> str:
    """Return a short name for an issuer, from the values of its name in order."""
    return hashlib.sha256("\0".join(values).encode()).hexdigest()[:16]


def signature(files: TlsFiles) -> str:
    """Return what changes when one of the files does, without reading them."""
    parts = []
    for path in (files.certificate, files.key, files.client_ca, files.crl):
        if path is None:
            continue
        try:
            stat = path.stat()
            parts.append(f"{path}:{stat.st_mtime_ns}:{stat.st_size}:{stat.st_ino}")
        except OSError:
            parts.append(f"{path}:missing")
    return "|".join(parts)


def load(files: TlsFiles, *, node_secret: bytes, now_s: float) -> TlsMaterial:
    """Load the set; raises `TlsMaterialError`."""
    signed = signature(files)
    certificate = _certificate(files.certificate)
    not_after_s = certificate.not_valid_after_utc.timestamp()
    if not_after_s <= now_s:
        raise TlsMaterialError(f"{files.certificate}: the certificate has expired; issue a new one")
    trust = _read(files.client_ca) if files.client_ca else b""
    lists = _revocation_lists(files.crl) if files.crl else []
    revoked = frozenset(
        f"{issuer_digest([str(part.value) for part in crl.issuer])}:{entry.serial_number:x}"
        for crl in lists
        for entry in crl
    )
    updates = [crl.next_update_utc.timestamp() for crl in lists if crl.next_update_utc is not None]
    trust += hashlib.sha256("".join(sorted(revoked)).encode()).digest()
    contexts = {
        (mutual, protocol): _context(files, mutual=mutual, protocol=protocol)
        for mutual in ((False, True) if files.client_ca else (False,))
        for protocol in ("mqtt", "http")
    }
    # A session that began without a certificate must not be resumed where one is asked for.
    keys = {mutual: tickets.derive_keys(node_secret, trust + bytes((mutual,))) for mutual in (False, True)}
    optional = _context(files, mutual=True, protocol="http", optional=True) if files.client_ca else None
    if optional is not None:
        tickets.share(optional, tickets.derive_keys(node_secret, trust + b"optional"))
    shared = False not in {tickets.share(context, keys[mutual]) for (mutual, _), context in contexts.items()}
    return TlsMaterial(
        contexts=contexts,
        optional=optional,
        revoked=revoked,
        not_after_s=not_after_s,
        crl_next_update_s=min(updates) if updates else None,
        tickets_shared=shared,
        signature=signed,
    )


def _context(files: TlsFiles, *, mutual: bool, protocol: str, optional: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_ciphers(CIPHERS)
    context.num_tickets = 1  # a device comes back once, and each takes as long to make as a signature
    context.set_alpn_protocols(["http/1.1"] if protocol == "http" else ["mqtt"])
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise TlsMaterialError(
            f"{files.certificate} and {files.key} do not go together: {error.args[-1]}"
        ) from error
    if mutual:
        assert files.client_ca is not None
        context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(files.client_ca)
            if files.crl is not None:
                context.load_verify_locations(files.crl)
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        except (OSError, ssl.SSLError) as error:
            raise TlsMaterialError(f"{files.client_ca} or {files.crl}: {error.args[-1]}") from error
    tickets.release_buffers(context)
    return context


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsMaterialError(f"cannot read {path}: {error.strerror}") from error


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise TlsMaterialError(f"{path}: not a PEM certificate") from error


def _revocation_lists(path: Path) -> list[x509.CertificateRevocationList]:
    end = b"-----END X509 CRL-----"
    try:
        return [x509.load_pem_x509_crl(part + end) for part in _read(path).split(end) if part.strip()]
    except ValueError as error:
        raise TlsMaterialError(f"{path}: not a PEM revocation list") from error
