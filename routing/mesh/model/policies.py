"""Policies: what App Mesh never had, said beside its resources, which stay as they are.

A policy is of the mesh, or of one resource in it. Several may have one target, but no two of them set the
same member there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec

from routing.mesh.model.faults import Faults
from routing.mesh.model.jwt import Jwt
from routing.mesh.model.locality import Locality
from routing.mesh.model.observing import JsonAccessLog, Tracing
from routing.mesh.model.rate_limits import GlobalRateLimit, LocalRateLimit, RateLimitService
from routing.mesh.model.resources import KINDS, Resource
from routing.mesh.model.security import Security
from routing.mesh.model.shape import ResourceName, Shape
from routing.mesh.model.splitting import Mirror, Sticky

PREFIX: Final = "Headworks::Mesh::"
"""Of the type of a policy in a CloudFormation template."""
Target = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(|virtualNode/[^/]+|virtualGateway/[^/]+(/gatewayRoute/[^/]+)?|virtualRouter/[^/]+/route/[^/]+)$"
    ),
]


class RetryBudget(Shape, frozen=True, kw_only=True):
    """How many of the requests to a node may be retries at a time, at each of its callers."""

    percent: Annotated[float, msgspec.Meta(gt=0, le=100)] = 20.0
    min_retries: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 3
    """What is always allowed, however few requests there are."""


class PolicySpec(Shape, frozen=True, kw_only=True):
    """What a policy says, and of what: the end of a path, `virtualNode/cart`; of the mesh if empty."""

    target: Target = ""
    retry_budget: RetryBudget | None = None
    faults: Faults | None = None
    mirror: Mirror | None = None
    sticky: Sticky | None = None
    local_rate_limit: LocalRateLimit | None = None
    jwt: Jwt | None = None
    security: Security | None = None
    locality: Locality | None = None
    global_rate_limit: GlobalRateLimit | None = None
    rate_limit_service: RateLimitService | None = None
    access_log: JsonAccessLog | None = None
    tracing: Tracing | None = None


WHERE_REQUESTS_ARE: Final = ("virtualNode", "virtualGateway", "route", "gatewayRoute")
WHERE_PROXIES_ARE: Final = ("mesh", "virtualNode", "virtualGateway")
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "retry_budget": ("virtualNode",),
    "faults": ("route", "virtualNode"),
    "mirror": ("route",),
    "sticky": ("route",),
    "local_rate_limit": WHERE_REQUESTS_ARE,
    "jwt": WHERE_REQUESTS_ARE,
    "security": ("mesh",),
    "locality": ("mesh", "virtualNode"),
    "global_rate_limit": WHERE_REQUESTS_ARE,
    "rate_limit_service": ("mesh",),
    "access_log": WHERE_PROXIES_ARE,
    "tracing": WHERE_PROXIES_ARE,
}
"""Which kinds of target may have a member."""
OF_REQUESTS: Final = frozenset({"faults", "mirror", "sticky", "local_rate_limit", "jwt", "global_rate_limit"})
"""What is done to requests, of which there are none where TCP is spoken."""


class Policy(Resource, frozen=True, kw_only=True):
    """A policy."""

    policy_name: ResourceName
    spec: PolicySpec

    @property
    def path(self) -> str:
        """The end of an ARN, as the resources of App Mesh have it."""
        return f"mesh/{self.mesh_name}/policy/{self.policy_name}"

    @property
    def target_path(self) -> str:
        """The path of what it is of."""
        return f"mesh/{self.mesh_name}/{self.spec.target}".rstrip("/")

    @property
    def target_kind(self) -> str:
        """The kind of what it is of."""
        return self.spec.target.split("/")[-2] if self.spec.target else "mesh"

    def members(self) -> Iterator[str]:
        """Yield what it sets."""
        return (name for name in TARGETS if getattr(self.spec, name) is not None)


READ: Final[dict[str, type[Resource]]] = {**KINDS, "policy": Policy}
"""All resources that documents may have, by the member that wraps each."""
