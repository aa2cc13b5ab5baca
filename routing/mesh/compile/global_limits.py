"""Rate limits that all proxies of a mesh share: each request is asked for at the service that counts.

A filter for those policies by which requests go on while nobody counts, and one for those by which they do
not: Envoy lets a filter say this, and not a route.
"""

from __future__ import annotations

from typing import Final

from envoy.extensions.filters.http.ratelimit.v3.rate_limit_pb2 import RateLimit, RateLimitPerRoute
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from routing.mesh.compile.messages import Config, Message, address, extension, milliseconds, packed
from routing.mesh.compile.tls import cluster_socket
from routing.mesh.limits.descriptor import BURST, OF, PER_MS, REQUESTS
from routing.mesh.model.rate_limits import GlobalRateLimit, RateLimitKey, RateLimitService
from routing.mesh.model.tls import ClientPolicyTls

NAMES: Final = {"ALLOW": "headworks.global_limit_or_allow", "DENY": "headworks.global_limit_or_deny"}
"""The filters by what they do while nobody counts."""
CLUSTER: Final = "rate_limits"
ANSWER_MS: Final = 250
CONNECT_MS: Final = 5000
HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def filter_(mesh: str, on_failure: str, service: RateLimitService) -> Config:
    """Return a filter that asks for nothing by itself."""
    answer_ms = ANSWER_MS if service.timeout is None else service.timeout.milliseconds
    config: Config = {
        "domain": mesh,
        "timeout": milliseconds(answer_ms),
        "failure_mode_deny": on_failure == "DENY",
        "status_on_error": {"code": 503},
        "rate_limited_as_resource_exhausted": True,
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "rate_limit_service": {
            "transport_api_version": "V3",
            "grpc_service": {
                "envoy_grpc": {"cluster_name": CLUSTER},
                "timeout": milliseconds(answer_ms),
            },
        },
    }
    return extension(NAMES[on_failure], RateLimit, config)


def said(path: str, limit: GlobalRateLimit) -> dict[str, Message]:
    """Return what is said to both filters: what one asks the service, and that the other does not."""
    return {
        name: packed(RateLimitPerRoute, _asked(path, limit) if on_failure == limit.on_failure else None)
        for on_failure, name in NAMES.items()
    }


def _asked(path: str, limit: GlobalRateLimit) -> Config:
    constant = limit.key.constant if limit.key is not None else None
    entries = {
        OF: path if constant is None else f"constant/{constant}",
        REQUESTS: str(limit.requests),
        PER_MS: str(limit.per.milliseconds),
        BURST: str(limit.burst or limit.requests),
    }
    actions = [
        {"generic_key": {"descriptor_key": key, "descriptor_value": value}} for key, value in entries.items()
    ]
    return {"rate_limits": [{"actions": [*actions, *_apart(limit.key)]}]}


def cluster(service: RateLimitService, tls: ClientPolicyTls | None, secrets: Config) -> Config:
    """Return the cluster of the service that counts; `secrets` is where those of its TLS come from."""
    options = packed(HttpProtocolOptions, {"explicit_http_config": {"http2_protocol_options": {}}})
    endpoint = {"endpoint": {"address": address(service.host, service.port)}}
    config: Config = {
        "name": CLUSTER,
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": milliseconds(CONNECT_MS),
        "typed_extension_protocol_options": {HTTP_OPTIONS: options},
        "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if tls is not None:
        config["transport_socket"] = cluster_socket(tls, "grpc", secrets)
    return config


def _apart(key: RateLimitKey | None) -> list[Config]:
    """Return what is counted apart; without the header nothing is, so that leaving it out helps nobody."""
    if key is not None and key.header is not None:
        asked = {"header_name": key.header, "descriptor_key": "header", "skip_if_absent": True}
        return [{"request_headers": asked}]
    if key is not None and key.remote_address is not None:
        return [{"remote_address": {}}]
    return []
