"""Who a connection speaks for, and which topics that lets it publish to."""

from __future__ import annotations

import enum

import msgspec


class Kind(enum.Enum):
    """What an identity is, and so how far it reaches."""

    DEVICE = "device"
    """Publishes for itself only."""
    GATEWAY = "gateway"
    """Publishes for every device of its tenant."""
    CLAIM = "claim"
    """May ask for a device's first certificate, and publishes nothing."""
    CALLER = "caller"
    """A person or a back end, who calls the API and publishes nothing."""
    ANYONE = "anyone"
    """`auth = "topic"`: loopback only, publishes for whomever the topic names."""


class Credential(enum.Enum):
    """How an identity was proved; the values are those of a listener's `auth`."""

    CERTIFICATE = "certificate"
    JWT = "jwt"
    API_KEY = "api_key"
    TOPIC = "topic"
    SIGV4 = "sigv4"
    """The API only: a request signed as AWS has them."""
    CUSTOM = "custom"
    """The API only: a service of the operator's was asked."""


class Unauthenticated(Exception):
    """The peer did not prove who it is; the text says what was wrong, never with what."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A proven identity, immutable for the life of a connection.

    `expires_s` is Unix time in seconds; a live session is closed when it passes.
    `fingerprint` names the credential itself (certificate `issuer-hash:serial` in hex, key id,
    JWT `jti`), so that a revoked one can be found among the live connections.
    """

    tenant: str
    name: str
    kind: Kind
    credential: Credential
    fingerprint: str = ""
    expires_s: float | None = None

    def may_publish_for(self, tenant: str, device: str) -> bool:
        """Return whether telemetry of `tenant`/`device` may come from this identity."""
        if self.kind is Kind.ANYONE:
            return True
        if tenant != self.tenant or self.kind in {Kind.CALLER, Kind.CLAIM}:
            return False
        return self.kind is Kind.GATEWAY or device == self.name
