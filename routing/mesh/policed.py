"""Whether what policies are of can have them: whether a proxy sees requests there at all."""

from __future__ import annotations

from collections.abc import Iterator

from routing.mesh.model.policies import Policy
from routing.mesh.model.resources import Resource, Route, VirtualNode

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


def unclear(policy: Policy, known: dict[str, Resource]) -> Iterator[Fault]:
    """Yield what a policy does not say, and must."""
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
