"""What policies make of a proxy: HTTP filters, and what a route says to each of them.

A filter by itself does nothing: what it does is said where a policy's target is, to all routes of a table
or to one, and a filter is only where something is said to it. Of what is said at both places the more
specific holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from routing.mesh.compile import faults, global_limits, jwt, local_limits
from routing.mesh.compile.identity import Secured
from routing.mesh.compile.messages import Config
from routing.mesh.compile.observing import Observed
from routing.mesh.compile.proxy import Proxy
from routing.mesh.compile.tls import secret_source
from routing.mesh.model.policies import PolicySpec
from routing.mesh.model.tls import ClientPolicyTls
from routing.mesh.snapshot import MeshSnapshot

SAID: Final = "typed_per_filter_config"
"""Where tables, hosts and routes say something to filters, by the filter's name."""

SERVICE: Final = "rateLimitService"
"""The end of the path, in the SPIFFE id, of the service that counts for a mesh with identities."""


class Policies:
    """The policies of a mesh, as one proxy in it keeps them."""

    def __init__(
        self, snapshot: MeshSnapshot, proxy: Proxy, security: Secured | None, observed: Observed
    ) -> None:
        self._snapshot = snapshot
        self._security = security
        self._secrets = secret_source(proxy)
        self.observed = observed
        self._clusters: dict[str, Config] = {}
        self.tls: list[ClientPolicyTls] = []
        """How those clusters are called."""

    @property
    def clusters(self) -> list[Config]:
        """The clusters of all that the filters which have been asked for need."""
        return list(self._clusters.values())

    def of(self, path: str) -> PolicySpec:
        """Return what policies say of a resource."""
        return self._snapshot.policy(path)

    def said(self, path: str) -> Config:
        """Return what is said to filters of a resource, as a part of a table or of a route."""
        policy = self.of(path)
        said: Config = {}
        if policy.jwt is not None:
            said[jwt.NAME] = jwt.said(path)
        if policy.local_rate_limit is not None:
            said[local_limits.NAME] = local_limits.said(policy.local_rate_limit)
        if policy.global_rate_limit is not None:
            said |= global_limits.said(path, policy.global_rate_limit)
        if policy.faults is not None:
            said[faults.NAME] = faults.said(policy.faults)
        return {SAID: said} if said else {}

    def filters(self, table: Config) -> list[Config]:
        """Return the filters to which a table of routes says something, the first to act first."""
        said = [one for place in _places(table) for one in place.get(SAID, {}).items()]
        names = {name for name, message in said if message.value}
        made = []
        if jwt.NAME in names:
            made.append(self._tokens({jwt.path_in(message) for name, message in said if name == jwt.NAME}))
        if local_limits.NAME in names:
            made.append(local_limits.filter_())
        made += [
            self._shared(on_failure) for on_failure, name in global_limits.NAMES.items() if name in names
        ]
        if faults.NAME in names:
            made.append(faults.filter_())
        return made

    def _shared(self, on_failure: str) -> Config:
        """Return the filter that asks the service of the mesh, which there is where a policy needs it."""
        mesh = self._snapshot.mesh
        service = self.of(mesh.path).rate_limit_service
        assert service is not None
        tls = None if self._security is None else self._security.client_tls(f"{mesh.path}/{SERVICE}")
        if service.client_policy is not None:
            tls = service.client_policy.tls
        self._clusters[global_limits.CLUSTER] = global_limits.cluster(service, tls, self._secrets)
        if tls is not None:
            self.tls.append(tls)
        return global_limits.filter_(mesh.mesh_name, on_failure, service)

    def _tokens(self, paths: set[str]) -> Config:
        """Return the filter of tokens that the policies of paths ask for."""
        of_paths = {path: found for path in sorted(paths) if (found := self.of(path).jwt) is not None}
        for path, each in of_paths.items():
            if each.jwks.remote is not None:
                cluster = jwt.keys_cluster(path, each.jwks.remote)
                self._clusters[cluster["name"]] = cluster
        return jwt.filter_(of_paths)


def _places(table: Config) -> Iterator[Config]:
    yield table
    for host in table["virtual_hosts"]:
        yield host
        yield from host["routes"]
