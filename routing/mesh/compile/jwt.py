"""Requests that must have a token, as Envoy's filter checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import JwtAuthentication, PerRouteConfig
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext

from routing.mesh.compile.messages import Config, Message, address, extension, milliseconds, packed
from routing.mesh.compile.tls import SOCKET, server_context
from routing.mesh.model.jwt import Jwks, Jwt, RemoteJwks

NAME: Final = "envoy.filters.http.jwt_authn"
FETCH_MS: Final = 5000
CACHE_MS: Final = 300_000
BEARER: Final = {"name": "Authorization", "value_prefix": "Bearer "}
"""The one place that is looked at: what is in an address ends in logs."""


def filter_(policies: Mapping[str, Jwt]) -> Config:
    """Return a filter that knows the policies of paths, and checks what its routes say of them."""
    config: Config = {
        "providers": {path: _provider(path, jwt) for path, jwt in policies.items()},
        "requirement_map": {path: _requirement(path, jwt) for path, jwt in policies.items()},
    }
    return extension(NAME, JwtAuthentication, config)


def said(path: str) -> Message:
    """Return what is said to the filter: that the policy of a path holds."""
    return packed(PerRouteConfig, {"requirement_name": path})


def path_in(said: Message) -> str:
    """Return the path whose policy holds."""
    return str(PerRouteConfig.FromString(said.value).requirement_name)


def keys_cluster(path: str, remote: RemoteJwks) -> Config:
    """Return the cluster of the server that has the keys of a path's policy."""
    name, host = _cluster_name(path), remote.host
    context = server_context(host, remote.certificate_chain)
    endpoint = {"endpoint": {"address": address(host, remote.port)}}
    return {
        "name": name,
        "type": "LOGICAL_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": milliseconds(FETCH_MS),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": extension(SOCKET, UpstreamTlsContext, context),
    }


def _provider(path: str, jwt: Jwt) -> Config:
    return {
        "issuer": jwt.issuer,
        "audiences": jwt.audiences,
        "require_expiration": True,
        "forward": jwt.forward,
        "from_headers": [BEARER],
        "claim_to_headers": [
            {"header_name": each.header, "claim_name": each.claim} for each in jwt.claim_headers or ()
        ],
        **_keys(path, jwt.jwks),
    }


def _requirement(path: str, jwt: Jwt) -> Config:
    required: Config = {"provider_name": path}
    if not jwt.allow_missing:
        return required
    return {"requires_any": {"requirements": [required, {"allow_missing": {}}]}}


def _keys(path: str, jwks: Jwks) -> Config:
    if jwks.remote is None:
        source = {"inline_string": jwks.inline} if jwks.file is None else {"filename": jwks.file}
        return {"local_jwks": source}
    cached = jwks.remote.cache_duration
    return {
        "remote_jwks": {
            "http_uri": {
                "uri": jwks.remote.uri,
                "cluster": _cluster_name(path),
                "timeout": milliseconds(FETCH_MS),
            },
            "cache_duration": milliseconds(CACHE_MS if cached is None else cached.milliseconds),
            "async_fetch": {},
        }
    }


def _cluster_name(path: str) -> str:
    return f"jwks_{path}"
