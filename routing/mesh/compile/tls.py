"""TLS contexts of listeners and of clusters."""

from __future__ import annotations

import ipaddress
from typing import Final

from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext, UpstreamTlsContext

from routing.mesh.compile.messages import Config, extension, milliseconds, yes
from routing.mesh.compile.proxy import Proxy
from routing.mesh.model.listening import Listener
from routing.mesh.model.tls import (
    ClientPolicyTls,
    ClientTlsCertificate,
    ListenerTls,
    ListenerTlsCertificate,
    ListenerTlsValidationContext,
    TlsValidationContext,
)

SDS_CLUSTER: Final = "sds"
SOCKET: Final = "envoy.transport_sockets.tls"
SECRET_DEADLINE_MS: Final = 15_000


def secret_source(proxy: Proxy) -> Config:
    """Return where a proxy asks for secrets: a service beside it, or the control plane."""
    config: Config = {
        "resource_api_version": "V3",
        "initial_fetch_timeout": milliseconds(SECRET_DEADLINE_MS),
    }
    if not proxy.sds_socket:
        return {**config, "ads": {}}
    service = {"envoy_grpc": {"cluster_name": SDS_CLUSTER}}
    source = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
    return {**config, "api_config_source": source}


def listener_socket(tls: ListenerTls, alpn: list[str], secrets: Config) -> Config:
    """Return the transport socket of a listener; its mode is not DISABLED, its certificate not from ACM."""
    common: Config = {"alpn_protocols": alpn, "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}}
    _certificate(common, tls.certificate, secrets)
    if tls.validation is not None:
        _validation(common, tls.validation, secrets)
    config: Config = {"common_tls_context": common}
    if tls.validation is not None:
        config["require_client_certificate"] = yes()
    return extension(SOCKET, DownstreamTlsContext, config)


def client_tls(policy: ClientPolicyTls | None, callee: Listener) -> ClientPolicyTls | None:
    """Return the policy by which a listener is called, or None for plaintext.

    A policy that is not enforced asks for TLS only where the listener offers it.
    """
    if policy is None or (policy.ports and callee.port_mapping.port not in policy.ports):
        return None
    offered = callee.tls is not None and callee.tls.mode != "DISABLED"
    return policy if offered or policy.enforce is not False else None


def cluster_socket(policy: ClientPolicyTls, protocol: str, secrets: Config) -> Config:
    """Return the transport socket by which a cluster is called."""
    common: Config = {"tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}}
    if protocol in {"http2", "grpc"}:
        common["alpn_protocols"] = ["h2"]
    if policy.certificate is not None:
        _certificate(common, policy.certificate, secrets)
    _validation(common, policy.validation, secrets)
    return extension(SOCKET, UpstreamTlsContext, {"common_tls_context": common})


def secret_names(tls: ListenerTls | ClientPolicyTls) -> list[str]:
    """Return the secrets that come from a Secret Discovery Service."""
    certificate, validation = tls.certificate, tls.validation
    found = []
    if certificate is not None and certificate.sds is not None:
        found.append(certificate.sds.secret_name)
    if validation is not None and validation.trust.sds is not None:
        found.append(validation.trust.sds.secret_name)
    return found


def _certificate(
    common: Config, certificate: ListenerTlsCertificate | ClientTlsCertificate, secrets: Config
) -> None:
    if certificate.file is not None:
        chain, key = certificate.file.certificate_chain, certificate.file.private_key
        common["tls_certificates"] = [
            {"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}
        ]
    elif certificate.sds is not None:
        secret = {"name": certificate.sds.secret_name, "sds_config": secrets}
        common["tls_certificate_sds_secret_configs"] = [secret]


def _validation(
    common: Config, validation: ListenerTlsValidationContext | TlsValidationContext, secrets: Config
) -> None:
    context: Config = {}
    if validation.subject_alternative_names is not None:
        names = validation.subject_alternative_names.match.exact
        kinds = ["URI"] if all(":" in name for name in names) else ["DNS", "URI"]
        context["match_typed_subject_alt_names"] = [
            {"san_type": kind, "matcher": {"exact": name}} for name in names for kind in kinds
        ]
    if validation.trust.file is not None:
        context["trusted_ca"] = {"filename": validation.trust.file.certificate_chain}
        common["validation_context"] = context
    elif validation.trust.sds is not None:
        secret = {"name": validation.trust.sds.secret_name, "sds_config": secrets}
        common["combined_validation_context"] = {
            "default_validation_context": context,
            "validation_context_sds_secret_config": secret,
        }


def server_context(host: str, authorities: str) -> Config:
    """Return how a server outside of the mesh is known: by a file of authorities, and its name or address."""
    try:
        ipaddress.ip_address(host)
        kind, sni = "IP_ADDRESS", ""
    except ValueError:
        kind, sni = "DNS", host
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "validation_context": {
            "trusted_ca": {"filename": authorities},
            "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": host}}],
        },
    }
    return {"common_tls_context": common, **({"sni": sni} if sni else {})}
