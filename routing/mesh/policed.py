"""Whether what policies are of can have them: whether a proxy sees requests there at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from routing.mesh.model.policies import Policy
from routing.mesh.model.resources import Resource, Route, VirtualNode
from routing.mesh.problem import Problem

Fault = tuple[str, str]


def unseen(target: Resource | None) -> str:
    """Return why there are no requests, or not all are seen, where a policy is of them; empty if all are."""
    if isinstance(target, Route) and target.spec.tcp_route is not None:
        return f"is of requests, and {target.path} has connections only"
    if isinstance(target, VirtualNode):
        mappings = [listener.port_mapping for listener in target.spec.listeners or ()]
        for mapping in mappings:
            if mapping.protocol == "tcp":
                return f"is of requests, and port {mapping.port} of {target.path} speaks TCP"
        if not mappings:
            return f"is of requests, and {target.path} has no listener"
    return ""


def uncounted(policies: Sequence[Policy]) -> Iterator[Problem]:
    """Yield limits that are shared, where the mesh has no service that counts."""
    if any(each.spec.rate_limit_service is not None for each in policies):
        return
    for each in policies:
        if each.spec.global_rate_limit is not None:
            text = "needs rateLimitService in a policy of the mesh, which says who counts"
            yield Problem("", each.path, "spec.globalRateLimit", text)


def unclear(policy: Policy, known: dict[str, Resource]) -> Iterator[Fault]:
    """Yield what a policy does not say, and must."""
    service = policy.spec.rate_limit_service
    if service is not None and service.client_policy is not None:
        tls = service.client_policy.tls
        if tls is None:
            yield "spec.rateLimitService.clientPolicy.tls", "is needed"
        elif tls.validation.trust.acm is not None:
            yield (
                "spec.rateLimitService.clientPolicy.tls.validation.trust.acm",
                "is not supported: name a file",
            )
    target = known.get(policy.target_path)
    if policy.spec.jwt is not None and isinstance(target, VirtualNode):
        for listener in target.spec.listeners or ():
            check = listener.health_check
            if check is not None and check.protocol in {"http", "http2"} and check.path in {None, "/"}:
                text = f"would not hold for GET /, the health check of port {listener.port_mapping.port}"
                yield "spec.jwt", f"{text}: give the check a path of its own"
    mirror = policy.spec.mirror
    if mirror is not None:
        node = known.get(f"mesh/{policy.mesh_name}/virtualNode/{mirror.virtual_node}")
        listeners = node.spec.listeners or () if isinstance(node, VirtualNode) else ()
        if mirror.port is None and len(listeners) > 1:
            ports = ", ".join(str(each.port_mapping.port) for each in listeners)
            yield "spec.mirror.port", f"is needed: {mirror.virtual_node} listens on {ports}"
