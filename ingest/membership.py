"""Who may come in, and on which terms: certificates, API keys, the registry, the plans.

Synchronous: a look into the registry is a point query of SQLite, microseconds on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ingest.counters import ConnectRefusal
from ingest.events import Events
from ingest.settings import Settings
from routing.limits.plan import Plan, plan_named
from routing.limits.terms import Policy, Rates, Terms
from routing.tenancy.certificate import CertificateNames
from routing.tenancy.identity import Credential, Identity, Kind, Unauthenticated
from routing.tenancy.registry import Registry, Verdict
from runtime import clock
from runtime.tls.failure import HandshakeFailure

_REFUSALS: Final = {
    Verdict.ADMITTED: None,
    Verdict.NOT_REGISTERED: ConnectRefusal.NOT_REGISTERED,
    Verdict.SUSPENDED: ConnectRefusal.SUSPENDED,
}


class Membership:
    """One worker's view of a node's members. `is_revoked` takes the fingerprint of a certificate."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        is_revoked: Callable[[str], bool],
        events: Events,
    ) -> None:
        self._registered_only = settings.node.registration == "registered"
        self._plans = settings.limits
        self._registry = registry
        self._is_revoked = is_revoked
        self._events = events
        self._names = CertificateNames(settings.node.trust_domain)

    def of_certificate(self, certificate: dict[str, Any]) -> Identity:
        """Return whom a certificate names; raises `Unauthenticated`.

        A resumed session does not check the chain again, so a ticket must not outlive the certificate.
        """
        identity = self._names.identity(certificate)
        if self._is_revoked(identity.fingerprint):
            self._events.handshake_failed(HandshakeFailure.REVOKED, "a resumed session", identity.name)
            raise Unauthenticated("the certificate is revoked")
        if identity.expires_s is not None and identity.expires_s <= clock.unix_s():
            self._events.handshake_failed(HandshakeFailure.EXPIRED, "a resumed session", identity.name)
            raise Unauthenticated("the certificate has expired")
        return identity

    def of_key(self, presented: str) -> Identity:
        """Return whom an API key names; raises `Unauthenticated`."""
        identity = self._registry.identity_of_key(presented, clock.unix_s())
        if identity is None:
            raise Unauthenticated("the API key is not valid")
        if identity.kind is Kind.CALLER:
            raise Unauthenticated("the API key is for the API, not for telemetry")
        return identity

    def refusal_of(self, identity: Identity) -> ConnectRefusal | None:
        """Return why an identity may not connect, or None when it may."""
        if identity.kind is Kind.ANYONE:
            return None
        return _REFUSALS[self._judge(identity.tenant, identity.name)]

    def admits(self, tenant: str, device: str) -> bool:
        """Return whether anybody may publish for a device."""
        return self._judge(tenant, device) is Verdict.ADMITTED

    def is_unwanted(self, identity: Identity) -> bool:
        """Return whether an identity that is connected may be so no more."""
        if identity.credential is Credential.API_KEY and not self._registry.key_is_active(
            identity.fingerprint
        ):
            return True
        return self.refusal_of(identity) is not None

    def _judge(self, tenant: str, device: str) -> Verdict:
        return self._registry.judge(tenant, device, registered_only=self._registered_only)

    def terms(self, tenant: str) -> Terms:
        """Return what a tenant and its devices may send: its plan, else the default, else no limit."""
        return terms_of(plan_named(self._plans, self._registry.plan_of(tenant)))


def terms_of(plan: Plan) -> Terms:
    """Return what a plan of the settings means to the limits."""
    return Terms(
        tenant=Rates(
            messages_per_s=plan.messages_per_s,
            bytes_per_s=plan.bytes_per_s,
            burst_s=plan.burst_s,
            connections_max=plan.connections_max,
        ),
        device=Rates(
            messages_per_s=plan.device_messages_per_s,
            bytes_per_s=plan.device_bytes_per_s,
            burst_s=plan.burst_s,
            connections_max=plan.device_connections_max,
        ),
        policy=Policy(plan.over_limit),
    )
