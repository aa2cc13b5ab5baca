"""What is kept of each resource, and what a store of them does.

A store is used by one thread at a time. What happens in a transaction is durable when it has ended, or did
not happen.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import msgspec

TOKENS_S: Final = 86_400
"""How long a `clientToken` is known."""


class StoreError(Exception):
    """The store cannot be read or written."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A resource as it is kept. `path` ends its ARN; `parent` is what all of its collection share."""

    path: str
    parent: str
    name: str
    uid: str
    version: int
    created_s: float
    updated_s: float
    spec: dict[str, Any]
    tags: dict[str, str]


class Answered(msgspec.Struct, frozen=True):
    """What a `clientToken` was used for: the digest of the call, and its answer."""

    digest: str
    answer: dict[str, Any]


class Store(Protocol):
    """Resources by path."""

    def transaction(self) -> AbstractContextManager[None]:
        """All that is done in it, or nothing; raises `StoreError`."""

    def revision(self) -> int:
        """Return what is another number when another process changed something."""

    def get(self, path: str) -> Record | None:
        """Return a resource."""

    def put(self, record: Record, refers_to: frozenset[str]) -> None:
        """Keep a resource, new or changed, and the paths that it refers to."""

    def delete(self, path: str) -> None:
        """Forget a resource."""

    def page(self, parent: str, after: str, limit: int) -> list[Record]:
        """Return resources of a collection by name, from the one after `after` on."""

    def all(self) -> list[Record]:
        """Return all resources."""

    def count(self, parent: str) -> int:
        """Return how many a collection has."""

    def user_of(self, path: str) -> str | None:
        """Return something that is below a resource, or refers to it."""

    def answered(self, token: str, now_s: float) -> Answered | None:
        """Return what a token was used for, within the last `TOKENS_S`."""

    def remember(self, token: str, answered: Answered, now_s: float) -> None:
        """Keep what a token was used for, for some time."""

    def close(self) -> None:
        """Let go of it."""
