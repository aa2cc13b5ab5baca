"""What makes one set of resources into another, in an order in which every reference leads somewhere.

Specs are compared as they are kept: without members that say what is so without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec

from routing.mesh.model.resources import Resource

Specs: TypeAlias = Mapping[str, Any]
"""Specs by the path of their resource."""
RANKS: Final = {
    "mesh": 0,
    "virtualNode": 1,
    "virtualRouter": 1,
    "virtualGateway": 1,
    "virtualService": 2,
    "route": 2,
    "gatewayRoute": 3,
    "policy": 4,
}
"""What is made first: whatever the later ones refer to."""
NOTHING: Final = "nothing"


class Difference(msgspec.Struct, frozen=True):
    """A member that differs; None where it is not there."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        """Return the difference as one line."""
        return f"{self.field} {_shown(self.before)} -> {_shown(self.after)}"


class Change(msgspec.Struct, frozen=True):
    """One change, which is one call of the API."""

    verb: Literal["create", "update", "delete"]
    path: str
    spec: Any = None
    differences: tuple[Difference, ...] = ()


def specs_of(resources: Iterable[Resource]) -> dict[str, Any]:
    """Return the specs of resources."""
    return {each.path: msgspec.to_builtins(getattr(each, "spec")) for each in resources}  # noqa: B009  # of every kind


def planned(wanted: Specs, kept: Specs, *, prune: bool) -> list[Change]:
    """Return what makes `kept` into `wanted`; with `prune`, what is not wanted goes."""
    creates = [Change("create", path, spec) for path, spec in wanted.items() if path not in kept]
    updates = [
        Change("update", path, spec, tuple(differences(kept[path], spec)))
        for path, spec in wanted.items()
        if path in kept and kept[path] != spec
    ]
    deletes = [Change("delete", path) for path in kept if prune and path not in wanted]
    return [
        *sorted(creates, key=_order),
        *sorted(updates, key=_order),
        *sorted(deletes, key=_order, reverse=True),
    ]


def differences(before: Any, after: Any, field: str = "spec") -> Iterator[Difference]:
    """Yield the members in which two specs differ, each as deep as it can be said."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from differences(before.get(key), after.get(key), f"{field}.{key}")
    elif isinstance(before, Sequence) and isinstance(after, Sequence) and not isinstance(before, str):
        for index in range(max(len(before), len(after))):
            old = before[index] if index < len(before) else None
            new = after[index] if index < len(after) else None
            yield from differences(old, new, f"{field}[{index}]")
    elif before != after:
        yield Difference(field, before, after)


def rank(path: str) -> int:
    """Return how early a resource is made."""
    return RANKS[path.split("/")[-2]]


def _order(change: Change) -> tuple[int, str]:
    return rank(change.path), change.path


def _shown(value: Any) -> str:
    return NOTHING if value is None else msgspec.json.encode(value).decode()
