"""What a proxy writes of requests and connections, and the traces that it takes part in.

A route says its own name in its metadata, and a cluster the node that it leads to: both are in the lines of
the access log and on the spans. No header that a secret may be in is, and no query of an address.
"""

from __future__ import annotations

from typing import Final

import msgspec
from envoy.config.trace.v3.opentelemetry_pb2 import OpenTelemetryConfig
from envoy.extensions.access_loggers.file.v3.file_pb2 import FileAccessLog
from envoy.extensions.http.early_header_mutation.header_mutation.v3.header_mutation_pb2 import HeaderMutation
from envoy.extensions.tracers.opentelemetry.samplers.v3.parent_based_sampler_pb2 import (
    ParentBasedSamplerConfig,
)
from envoy.extensions.tracers.opentelemetry.samplers.v3.trace_id_ratio_based_sampler_pb2 import (
    TraceIdRatioBasedSamplerConfig as RatioSampler,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions

from routing.mesh.compile.clusters import CONNECT_TIMEOUT_MS, HTTP_OPTIONS
from routing.mesh.compile.messages import Config, address, extension, milliseconds, number, packed, share
from routing.mesh.compile.named import CALLEE, NAMED, ROUTE
from routing.mesh.compile.tls import SOCKET, server_context
from routing.mesh.model.listening import Logging
from routing.mesh.model.observing import JsonAccessLog, Tracing
from routing.mesh.model.resources import VirtualGateway, VirtualNode
from routing.mesh.snapshot import MeshSnapshot

COLLECTOR: Final = "otlp_collector"
EXPORT_MS: Final = 5000
TRACE_HEADERS: Final = ("traceparent", "tracestate", "x-envoy-force-trace", "x-client-trace-id")
"""By which a caller says what is traced."""
BOTH: Final[Config] = {
    "time": "%START_TIME%",
    "caller": "%DOWNSTREAM_PEER_URI_SAN%",
    "caller_address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "callee": f"%METADATA(CLUSTER:{NAMED}:{CALLEE})%",
    "upstream": "%UPSTREAM_HOST%",
    "listener": "%FILTER_CHAIN_NAME%",
    "flags": "%RESPONSE_FLAGS%",
    "duration_ms": "%DURATION%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
}
OF_REQUESTS: Final[Config] = {
    **BOTH,
    "trace_id": "%TRACE_ID%",
    "span_id": "%SPAN_ID%",
    "traceparent": "%REQ(TRACEPARENT):55%",
    "request_id": "%REQ(X-REQUEST-ID):64%",
    "route": f"%METADATA(ROUTE:{NAMED}:{ROUTE})%",
    "method": "%REQ(:METHOD):32%",
    "authority": "%REQ(:AUTHORITY):255%",
    "path": "%PATH(NQ):1024%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
}
OF_CONNECTIONS: Final[Config] = {**BOTH, "details": "%CONNECTION_TERMINATION_DETAILS%"}


class Observed(msgspec.Struct, frozen=True):
    """What a proxy says of its requests and connections; nothing, unless something is asked for."""

    requests: tuple[Config, ...] = ()
    connections: tuple[Config, ...] = ()
    tracing: Config = {}
    trust_callers: bool = False
    clusters: tuple[Config, ...] = ()
    """That of the collector of traces."""

    def manager(self, *, edge: bool) -> Config:
        """Return its part of an HTTP connection manager; at the `edge` callers may not say what is traced."""
        made: Config = {"access_log": list(self.requests)}
        if self.tracing:
            made["tracing"] = self.tracing
            if edge and not self.trust_callers:
                made["early_header_mutation_extensions"] = [_without(TRACE_HEADERS)]
        return made


UNOBSERVED: Final = Observed()


def observed(snapshot: MeshSnapshot, of: VirtualNode | VirtualGateway) -> Observed:
    """Return what is said of a proxy: by itself, or else by its mesh."""
    own, general = snapshot.policy(of.path), snapshot.policy(snapshot.mesh.path)
    log = own.access_log or general.access_log
    tracing = own.tracing or general.tracing
    name = of.virtual_gateway_name if isinstance(of, VirtualGateway) else of.virtual_node_name
    requests, connections = _logs(of.spec.logging, log, snapshot.mesh.mesh_name, of.path)
    if tracing is None:
        return Observed(requests, connections)
    return Observed(
        requests, connections, _tracing(tracing, name), tracing.trust_callers, (_collector(tracing),)
    )


def _logs(
    logging: Logging | None, policy: JsonAccessLog | None, mesh: str, path: str
) -> tuple[tuple[Config, ...], tuple[Config, ...]]:
    """Return the access logs of requests and of connections: App Mesh's own, or else those of a policy."""
    if logging is not None and logging.access_log is not None and logging.access_log.file is not None:
        file = logging.access_log.file
        config: Config = {"path": file.path}
        if file.format is not None and file.format.json is not None:
            config["log_format"] = {"json_format": {pair.key: pair.value for pair in file.format.json}}
        elif file.format is not None and file.format.text is not None:
            text = file.format.text if file.format.text.endswith("\n") else f"{file.format.text}\n"
            config["log_format"] = {"text_format_source": {"inline_string": text}}
        return (_file(config),), (_file(config),)
    if policy is None:
        return (), ()
    proxy = {"mesh": _literal(mesh), "proxy": _literal(path.removeprefix(f"mesh/{mesh}/"))}
    requests, connections = (
        _file({"path": policy.path, "log_format": {"json_format": {**proxy, **of}}})
        for of in (OF_REQUESTS, OF_CONNECTIONS)
    )
    return (requests,), (connections,)


def _file(config: Config) -> Config:
    return extension("envoy.access_loggers.file", FileAccessLog, config)


def _literal(text: str) -> str:
    """Return a text in which Envoy puts nothing."""
    return text.replace("%", "%%")


def _tracing(tracing: Tracing, name: str) -> Config:
    """Return the tracing of a manager: its span has the name of the route, and no query in its address."""
    config = {
        "grpc_service": {
            "envoy_grpc": {"cluster_name": COLLECTOR},
            "timeout": milliseconds(EXPORT_MS),
        },
        "service_name": tracing.service_name or name,
        "sampler": _sampler(tracing.percent),
    }
    return {
        "provider": extension("envoy.tracers.opentelemetry", OpenTelemetryConfig, config),
        "random_sampling": {"value": 100},
        "client_sampling": {"value": 0},
        "operation": OF_REQUESTS["route"],
        "max_path_tag_length": number(0),
        "custom_tags": [
            {"tag": "url.path", "value": OF_REQUESTS["path"]},
            {"tag": "mesh.route", "value": OF_REQUESTS["route"]},
            {"tag": "mesh.callee", "value": BOTH["callee"]},
        ],
    }


def _sampler(percent: float) -> Config:
    """Return who is traced: as the caller says, and a share of those whose caller says nothing."""
    ratio = {"sampling_percentage": share(percent)}
    root = extension("envoy.tracers.opentelemetry.samplers.trace_id_ratio_based", RatioSampler, ratio)
    parent = {"wrapped_sampler": root}
    return extension("envoy.tracers.opentelemetry.samplers.parent_based", ParentBasedSamplerConfig, parent)


def _collector(tracing: Tracing) -> Config:
    http2: Config = {"explicit_http_config": {"http2_protocol_options": {}}}
    endpoint = {"endpoint": {"address": address(tracing.host, tracing.port)}}
    config: Config = {
        "name": COLLECTOR,
        "type": "STRICT_DNS",
        "connect_timeout": milliseconds(CONNECT_TIMEOUT_MS),
        "typed_extension_protocol_options": {HTTP_OPTIONS: packed(HttpProtocolOptions, http2)},
        "load_assignment": {"cluster_name": COLLECTOR, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if tracing.certificate_chain is not None:
        context = server_context(tracing.host, tracing.certificate_chain)
        context["common_tls_context"]["alpn_protocols"] = ["h2"]
        config["transport_socket"] = extension(SOCKET, UpstreamTlsContext, context)
    return config


def _without(headers: tuple[str, ...]) -> Config:
    mutations = [{"remove": name} for name in headers]
    return extension(
        "envoy.http.early_header_mutation.header_mutation", HeaderMutation, {"mutations": mutations}
    )
