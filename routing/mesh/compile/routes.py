"""Routes: what is done with a request that matches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2 import PreviousHostsPredicate
from envoy.extensions.retry.priority.previous_priorities.v3.previous_priorities_config_pb2 import (
    PreviousPrioritiesConfig,
)

from routing.mesh.compile import matches, named
from routing.mesh.compile.messages import Config, extension, milliseconds, number
from routing.mesh.compile.policies import Policies
from routing.mesh.compile.splitting import Clusters, mirrored, towards
from routing.mesh.model.listening import GrpcTimeout, HttpTimeout
from routing.mesh.model.resources import Route
from routing.mesh.model.routes import GrpcRetryPolicy, HttpRetryPolicy, WeightedTarget
from routing.mesh.unsupported import HTTP_RETRY_EVENTS

REQUEST_MS: Final = 15_000
"""How long a request may take where nothing is said."""
STREAM_IDLE_MS: Final = 300_000
"""How long Envoy lets a stream be silent where nothing is said."""
ELSEWHERE: Final[Config] = {
    "retry_host_predicate": [extension("envoy.retry_host_predicates.previous_hosts", PreviousHostsPredicate)],
    "host_selection_retry_max_attempts": 5,
    "retry_priority": extension(
        "envoy.retry_priorities.previous_priorities", PreviousPrioritiesConfig, {"update_frequency": 2}
    ),
}
"""A request is tried again at another endpoint, and after two tries in one place at another place."""
DEFAULT_RETRIES: Final[Config] = {
    **ELSEWHERE,
    "retry_on": "connect-failure,refused-stream,retriable-status-codes,unavailable",
    "retriable_status_codes": [503],
    "num_retries": number(2),
}
"""App Mesh's own, for a route that says nothing and for a node that is a service."""


class _Rule(msgspec.Struct, frozen=True):
    """A route of HTTP or gRPC in the terms that both have."""

    path: str
    name: str
    """With the name of its router."""
    match: matches.Match
    targets: Sequence[WeightedTarget]
    timeout: HttpTimeout | GrpcTimeout | None
    retries: HttpRetryPolicy | GrpcRetryPolicy | None


def of_router(routes: Iterable[Route], port: int, cluster: Clusters, policies: Policies) -> list[Config]:
    """Return the routes of a router for one of its ports, in the order in which they are looked at."""
    rules: list[tuple[matches.Order, str, _Rule]] = []
    for route in routes:
        rule = _rule(route, port)
        if rule is not None:
            rules.append(
                (matches.order(route.spec.priority, rule.match, route.route_name), route.route_name, rule)
            )
    rules.sort(key=lambda each: each[0])
    return [
        {
            "name": name,
            **named.route(rule.name),
            "match": rule.match.config,
            "route": {
                **towards(rule.targets, cluster, policies.of(rule.path).sticky),
                **mirrored(policies.of(rule.path).mirror, cluster),
                **times(rule.timeout),
                "retry_policy": retry_policy(rule.retries),
            },
            **policies.said(rule.path),
        }
        for _, name, rule in rules
    ]


def of_node(cluster: str, name: str) -> list[Config]:
    """Return the routes of a service that is a node."""
    action = {"cluster": cluster, **times(None), "retry_policy": DEFAULT_RETRIES}
    return [{"name": "node", **named.route(name), "match": {"prefix": "/"}, "route": action}]


def _rule(route: Route, port: int) -> _Rule | None:
    """Return a route in common terms, or None if it is of TCP or for another port."""
    spec, name = route.spec, f"{route.virtual_router_name}/{route.route_name}"
    if (of_grpc := spec.grpc_route) is not None:
        if of_grpc.match.port not in {None, port}:
            return None
        match = matches.grpc(of_grpc.match)
        return _Rule(
            route.path, name, match, of_grpc.action.weighted_targets, of_grpc.timeout, of_grpc.retry_policy
        )
    of_http = spec.http_route or spec.http2_route
    if of_http is None or of_http.match.port not in {None, port}:
        return None
    match = matches.http(of_http.match)
    return _Rule(
        route.path, name, match, of_http.action.weighted_targets, of_http.timeout, of_http.retry_policy
    )


def connections_towards(targets: Sequence[WeightedTarget], cluster: Clusters) -> Config:
    """Return where connections go, which have no share of 0."""
    if len(targets) == 1:
        return {"cluster": cluster(targets[0])}
    shares = [{"name": cluster(target), "weight": target.weight} for target in targets if target.weight]
    return {"weighted_clusters": {"clusters": shares}}


def times(timeout: HttpTimeout | GrpcTimeout | None) -> Config:
    """Return how long a request may take, and how long it may be silent; 0 is for ever.

    Who may take longer than a stream may be silent, may be silent as long, unless something else is said.
    """
    request_ms, idle_ms = REQUEST_MS, None
    if timeout is not None and timeout.per_request is not None:
        request_ms = timeout.per_request.milliseconds
    if timeout is not None and timeout.idle is not None:
        idle_ms = timeout.idle.milliseconds
    elif request_ms == 0 or request_ms > STREAM_IDLE_MS:
        idle_ms = 0
    config: Config = {"timeout": milliseconds(request_ms)}
    if idle_ms is not None:
        config["idle_timeout"] = milliseconds(idle_ms)
    return config


def retry_policy(policy: HttpRetryPolicy | GrpcRetryPolicy | None) -> Config:
    """Return when a request is tried again."""
    if policy is None:
        return DEFAULT_RETRIES
    events = [on for event in policy.http_retry_events or () for on in HTTP_RETRY_EVENTS.get(event, ())]
    events += ["connect-failure" for _ in policy.tcp_retry_events or ()]
    if isinstance(policy, GrpcRetryPolicy):
        events += policy.grpc_retry_events or ()
    config: Config = {
        "retry_on": ",".join(dict.fromkeys(events)),
        "num_retries": number(policy.max_retries),
        **ELSEWHERE,
    }
    if policy.per_retry_timeout.milliseconds:
        config["per_try_timeout"] = milliseconds(policy.per_retry_timeout.milliseconds)
    return config
