"""JSON Web Tokens (RFC 7519): who issues them, for whom they are, by which keys they are known (RFC 7517)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from routing.mesh.model.shape import Duration, FieldName, FilePath, OneOf, Shape

Name = Annotated[str, Meta(min_length=1, max_length=2048)]
HTTPS: Final = re.compile(r"https://([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[!-~]*)?")
CACHE_MS_MIN: Final = 1000
CACHE_MS_MAX: Final = 86_400_000
SECRET: Final = frozenset({"d", "k"})
"""Members of a key that nobody but its owner may have."""


class _KeySet(msgspec.Struct, frozen=True):
    keys: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1, max_length=100)]


class RemoteJwks(Shape, frozen=True, kw_only=True):
    """Keys that each proxy fetches, and again after `cache_duration` (5 minutes)."""

    uri: Annotated[str, Meta(max_length=2048)]
    certificate_chain: FilePath
    """The authorities of the server's certificate, PEM, in a file beside the proxy."""
    cache_duration: Duration | None = None

    def __post_init__(self) -> None:
        """Refuse what is no address, and keys that are fetched all the time, or kept for ever."""
        if HTTPS.fullmatch(self.uri) is None:
            raise ValueError("uri must be https://HOST/PATH or https://HOST:PORT/PATH")
        _ = self.port  # raises ValueError
        if self.cache_duration is not None:
            cached_ms = self.cache_duration.milliseconds
            if not CACHE_MS_MIN <= cached_ms <= CACHE_MS_MAX:
                raise ValueError("cacheDuration must be a second at least and a day at most")

    @property
    def host(self) -> str:
        """The name or IP address of the server."""
        return urlsplit(self.uri).hostname or ""

    @property
    def port(self) -> int:
        """The port of the server."""
        return urlsplit(self.uri).port or 443


class Jwks(OneOf, frozen=True, kw_only=True):
    """A JSON Web Key Set: in a file beside the proxy, in the policy itself, or behind an address."""

    file: FilePath | None = None
    inline: Annotated[str, Meta(max_length=65_536)] | None = None
    remote: RemoteJwks | None = None

    def __post_init__(self) -> None:
        """Refuse what is no key set, and secrets: what a policy says is shown to many."""
        super().__post_init__()
        if self.inline is None:
            return
        try:
            found = msgspec.json.decode(self.inline, type=_KeySet)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"inline is no JSON Web Key Set: {error}") from error
        for index, key in enumerate(found.keys):
            if SECRET & set(key):
                raise ValueError(f"inline has a secret, in key {index}: give the public part alone")


class ClaimHeader(Shape, frozen=True, kw_only=True):
    """A claim of the token (`a.b` within another), and the header in which who is called hears it."""

    claim: Annotated[str, Meta(min_length=1, max_length=255)]
    header: FieldName


class Jwt(Shape, frozen=True, kw_only=True):
    """Whose tokens requests must have, as `Authorization: Bearer`, and one audience that they name."""

    issuer: Name
    audiences: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=50)]
    jwks: Jwks
    forward: bool = False
    """Whether the token goes on to who is called."""
    claim_headers: Annotated[tuple[ClaimHeader, ...], Meta(max_length=20)] | None = None
    allow_missing: bool = False
    """Whether a request without a token is let through; one with a bad token never is."""
