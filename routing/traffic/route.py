"""A route as App Mesh has it: its targets with their weights, and everything else of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

KINDS: Final = ("httpRoute", "http2Route", "grpcRoute", "tcpRoute")
JUDGED: Final = ("httpRoute", "http2Route", "grpcRoute")
"""Whose failures proxies count."""
PATH: Final = re.compile(r"mesh/([^/\s]+)/virtualRouter/([^/\s]+)/route/([^/\s]+)")


class RouteName(msgspec.Struct, frozen=True):
    """The names of a route, from the mesh on."""

    mesh: str
    router: str
    route: str

    @property
    def path(self) -> str:
        """The end of its ARN."""
        return f"mesh/{self.mesh}/virtualRouter/{self.router}/route/{self.route}"


def named(path: str) -> RouteName | None:
    """Return the names in a path, or None if it is not that of a route."""
    found = PATH.fullmatch(path)
    return None if found is None else RouteName(*found.groups())


def kind(spec: dict[str, Any]) -> str:
    """Return the member that the route is in."""
    return next(each for each in KINDS if spec.get(each) is not None)


def nodes(spec: dict[str, Any]) -> tuple[str, ...]:
    """Return the virtual nodes of the targets, in their order."""
    return tuple(str(each["virtualNode"]) for each in _targets(spec))


def weights(spec: dict[str, Any]) -> tuple[int, ...]:
    """Return the weights of the targets, in their order."""
    return tuple(int(each["weight"]) for each in _targets(spec))


def weighted(spec: dict[str, Any], given: Sequence[int]) -> dict[str, Any]:
    """Return the route with other weights, and all else as it is."""
    of = spec[kind(spec)]
    targets = [each | {"weight": weight} for each, weight in zip(_targets(spec), given, strict=True)]
    return spec | {kind(spec): of | {"action": of["action"] | {"weightedTargets": targets}}}


def digest(spec: dict[str, Any]) -> str:
    """Return what is the same as long as nothing but weights changes."""
    plain = weighted(spec, [0] * len(_targets(spec)))
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()[:16]


def _targets(spec: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = spec[kind(spec)]["action"]["weightedTargets"]
    return found
