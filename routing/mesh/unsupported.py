"""What App Mesh did and an exported proxy does not: named, never dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from routing.mesh.model.listening import Listener, VirtualGatewayListener
from routing.mesh.model.resources import GatewayRoute, Resource, Route, VirtualGateway, VirtualNode
from routing.mesh.model.tls import BackendDefaults, ClientPolicy, ListenerTls
from routing.mesh.problem import Problem, Severity

HTTP_RETRY_EVENTS: Final = {
    "server-error": ("5xx",),
    "gateway-error": ("gateway-error", "reset"),
    "client-error": ("retriable-4xx",),
    "stream-error": ("refused-stream",),
}
"""App Mesh's events as Envoy's; its documentation says that the first two include Envoy's `reset`."""
ACM: Final = "AWS gives its certificates to App Mesh alone: export the certificate, and name its files"
Fault = tuple[str, str]


def unsupported(resource: Resource) -> Iterator[Problem]:
    """Yield what of a resource is not done, and what has no effect."""
    match resource:
        case VirtualNode():
            faults = [*_listeners(resource.spec.listeners or ()), *_node(resource)]
        case VirtualGateway():
            faults = [*_listeners(resource.spec.listeners), *_defaults(resource.spec.backend_defaults)]
            for index, listener in enumerate(resource.spec.listeners):
                if listener.health_check is not None:
                    field = f"spec.listeners[{index}].healthCheck"
                    text = (
                        "has no effect: no proxy calls a gateway, and a load balancer has checks of its own"
                    )
                    yield Problem("", resource.path, field, text, Severity.WARNING)
        case Route():
            faults = list(_route(resource))
        case GatewayRoute():
            faults = list(_gateway_route(resource))
        case _:
            faults = []
    for field, text in faults:
        yield Problem("", resource.path, field, text, Severity.UNSUPPORTED)


def _listeners(listeners: Sequence[Listener | VirtualGatewayListener]) -> Iterator[Fault]:
    offered: list[ListenerTls | None] = [listener.tls for listener in listeners]
    for index, tls in enumerate(offered):
        if tls is not None and tls.mode != "DISABLED" and tls.certificate.acm is not None:
            yield f"spec.listeners[{index}].tls.certificate.acm", ACM


def _node(node: VirtualNode) -> Iterator[Fault]:
    yield from _defaults(node.spec.backend_defaults)
    for index, backend in enumerate(node.spec.backends or ()):
        assert backend.virtual_service is not None
        yield from _policy(
            f"spec.backends[{index}].virtualService.clientPolicy", backend.virtual_service.client_policy
        )


def _defaults(defaults: BackendDefaults | None) -> Iterator[Fault]:
    if defaults is not None:
        yield from _policy("spec.backendDefaults.clientPolicy", defaults.client_policy)


def _policy(field: str, policy: ClientPolicy | None) -> Iterator[Fault]:
    if policy is not None and policy.tls is not None and policy.tls.validation.trust.acm is not None:
        yield f"{field}.tls.validation.trust.acm", ACM


def _route(route: Route) -> Iterator[Fault]:
    spec = route.spec
    for name, http in (("httpRoute", spec.http_route), ("http2Route", spec.http2_route)):
        if http is not None:
            if http.match.method == "CONNECT":
                yield f"spec.{name}.match.method", "CONNECT is not routed"
            if http.retry_policy is not None:
                yield from _events(f"spec.{name}.retryPolicy", http.retry_policy.http_retry_events)
    if spec.grpc_route is not None and spec.grpc_route.retry_policy is not None:
        yield from _events("spec.grpcRoute.retryPolicy", spec.grpc_route.retry_policy.http_retry_events)


def _events(field: str, events: tuple[str, ...] | None) -> Iterator[Fault]:
    for index, event in enumerate(events or ()):
        if event not in HTTP_RETRY_EVENTS:
            known = ", ".join(HTTP_RETRY_EVENTS)
            yield f"{field}.httpRetryEvents[{index}]", f"{event} is none of {known}"


def _gateway_route(route: GatewayRoute) -> Iterator[Fault]:
    for name, http in (("httpRoute", route.spec.http_route), ("http2Route", route.spec.http2_route)):
        if http is not None and http.match.method == "CONNECT":
            yield f"spec.{name}.match.method", "CONNECT is not routed"
