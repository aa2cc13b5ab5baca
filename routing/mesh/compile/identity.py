"""Who a proxy is, whom it calls and who may call it, where a mesh asks for mutual TLS everywhere.

Source: SPIFFE X509-SVID (one URI a certificate, which is the identity); Envoy's role based access control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as of_requests
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as of_connections

from routing.mesh.compile.messages import Config, extension
from routing.mesh.compile.proxy import Proxy
from routing.mesh.compile.uncompilable import uncompilable
from routing.mesh.model.resources import VirtualGateway, VirtualNode
from routing.mesh.model.tls import (
    ClientPolicyTls,
    ClientTlsCertificate,
    ListenerTls,
    ListenerTlsCertificate,
    ListenerTlsSdsCertificate,
    ListenerTlsValidationContext,
    ListenerTlsValidationContextTrust,
    SubjectAlternativeNameMatchers,
    SubjectAlternativeNames,
    TlsValidationContext,
    TlsValidationContextSdsTrust,
    TlsValidationContextTrust,
)
from routing.mesh.snapshot import MeshSnapshot

SPIFFE: Final = "spiffe://"


def spiffe_id(trust_domain: str, path: str) -> str:
    """Return the identity of a node or a gateway."""
    return f"{SPIFFE}{trust_domain}/{path}"


def bundle_name(trust_domain: str) -> str:
    """Return the name under which a proxy asks for the authorities of a trust domain."""
    return f"{SPIFFE}{trust_domain}"


class Secured(msgspec.Struct, frozen=True):
    """The part of one proxy in mutual TLS everywhere."""

    trust_domain: str
    path: str
    callers: frozenset[str]
    """Paths of those who may call it."""
    strict: bool
    """Whether nothing else is taken, and nobody else."""
    calls: bool
    """Whether it uses mutual TLS where it calls."""

    @property
    def own(self) -> str:
        """The SPIFFE id of the proxy."""
        return spiffe_id(self.trust_domain, self.path)

    def listener_tls(self, protocol: str) -> ListenerTls:
        """Return the TLS of a listener.

        Over TCP a server may speak first, before a filter looks who calls: there the handshake refuses.
        """
        trust = TlsValidationContextSdsTrust(secret_name=bundle_name(self.trust_domain))
        names = SubjectAlternativeNameMatchers(exact=tuple(self._expected) or (self.own,))
        alone = SubjectAlternativeNames(match=names) if self.strict and protocol == "tcp" else None
        return ListenerTls(
            certificate=ListenerTlsCertificate(sds=ListenerTlsSdsCertificate(secret_name=self.own)),
            mode="STRICT" if self.strict else "PERMISSIVE",
            validation=ListenerTlsValidationContext(
                trust=ListenerTlsValidationContextTrust(sds=trust), subject_alternative_names=alone
            ),
        )

    def client_tls(self, path: str) -> ClientPolicyTls | None:
        """Return the TLS by which it calls who has the id of a path, and no other of the trust domain."""
        if not self.calls:
            return None
        trust = TlsValidationContextSdsTrust(secret_name=bundle_name(self.trust_domain))
        names = SubjectAlternativeNameMatchers(exact=(spiffe_id(self.trust_domain, path),))
        return ClientPolicyTls(
            certificate=ClientTlsCertificate(sds=ListenerTlsSdsCertificate(secret_name=self.own)),
            validation=TlsValidationContext(
                trust=TlsValidationContextTrust(sds=trust),
                subject_alternative_names=SubjectAlternativeNames(match=names),
            ),
        )

    def http_filter(self) -> Config:
        """Return the filter that answers 403 to a caller that is not expected, or counts it."""
        config: Config = {self._enforced: self._rules()}
        return extension("envoy.filters.http.rbac", of_requests.RBAC, config)

    def network_filter(self, name: str) -> Config:
        """Return the filter that closes the connection of a caller that is not expected, or counts it."""
        config: Config = {"stat_prefix": f"{name}.", self._enforced: self._rules()}
        return extension("envoy.filters.network.rbac", of_connections.RBAC, config)

    @property
    def _enforced(self) -> str:
        return "rules" if self.strict else "shadow_rules"

    @property
    def _expected(self) -> list[str]:
        return [spiffe_id(self.trust_domain, path) for path in sorted(self.callers)]

    def _rules(self) -> Config:
        principals = [{"authenticated": {"principal_name": {"exact": each}}} for each in self._expected]
        expected = {"permissions": [{"any": True}], "principals": principals}
        return {"action": "ALLOW", "policies": {"callers": expected} if principals else {}}


def secured(snapshot: MeshSnapshot, of: VirtualNode | VirtualGateway, proxy: Proxy) -> Secured | None:
    """Return the part of a proxy in mutual TLS, where its mesh asks for it; raises Uncompilable."""
    security = snapshot.policy(snapshot.mesh.path).security
    if security is None:
        return None
    if not proxy.trust_domain:
        raise uncompilable(snapshot.mesh.path, "security", "needs a trust domain: give --trust-domain")
    return Secured(
        trust_domain=proxy.trust_domain,
        path=of.path,
        callers=snapshot.callers.get(of.path, frozenset()),
        strict=security.mutual_tls == "STRICT",
        calls=security.mutual_tls != "OFFERED",
    )


def foreign(names: Sequence[str], of: VirtualNode | VirtualGateway, proxy: Proxy) -> list[str]:
    """Return which secrets are not for this proxy: it gets its own certificate, and its trust domain's."""
    own = {spiffe_id(proxy.trust_domain, of.path), bundle_name(proxy.trust_domain)}
    return [name for name in names if name not in own]
