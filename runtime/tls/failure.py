"""Why TLS handshakes fail, as metrics name it."""

from __future__ import annotations

import enum
import ssl


class HandshakeFailure(enum.Enum):
    """Why a TLS handshake or the identity behind it was refused."""

    EXPIRED = "expired"
    UNKNOWN_CA = "unknown_ca"
    REVOKED = "revoked"
    NO_CERTIFICATE = "no_certificate"
    PROTOCOL_VERSION = "protocol_version"
    TIMEOUT = "timeout"
    BAD_IDENTITY = "bad_identity"
    OTHER = "other"


# OpenSSL's X509_V_ERR_* (x509_vfy.h).
_VERIFY_FAILURES = {
    10: HandshakeFailure.EXPIRED,
    9: HandshakeFailure.EXPIRED,
    18: HandshakeFailure.UNKNOWN_CA,
    19: HandshakeFailure.UNKNOWN_CA,
    20: HandshakeFailure.UNKNOWN_CA,
    21: HandshakeFailure.UNKNOWN_CA,
    23: HandshakeFailure.REVOKED,
}


def failure_of(error: BaseException) -> HandshakeFailure:
    """Return why a handshake failed, as a metric names it."""
    if isinstance(error, TimeoutError | ConnectionAbortedError):
        return HandshakeFailure.TIMEOUT
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_FAILURES.get(error.verify_code, HandshakeFailure.OTHER)
    reason = getattr(error, "reason", "") or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return HandshakeFailure.NO_CERTIFICATE
    if reason in {"UNSUPPORTED_PROTOCOL", "WRONG_VERSION_NUMBER", "NO_PROTOCOLS_AVAILABLE"}:
        return HandshakeFailure.PROTOCOL_VERSION
    return HandshakeFailure.OTHER
