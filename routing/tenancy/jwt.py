"""JSON Web Tokens as credentials: RS256, ES256 and EdDSA, with the keys of a JWKS file or URL.

A set of keys that cannot be fetched keeps the last good one. A token with a key id that is not known is
refused, and makes the set be fetched again soon, at most every `REFETCH_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import jwt
import msgspec

from routing.tenancy.identity import Credential, Identity, Kind

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
REFETCH_S: Final = 5.0
FETCH_DEADLINE_S: Final = 10.0
JWKS_BYTES_MAX: Final = 1 << 20


class JwtSettings(Protocol):
    """What `ingest.settings.Jwt` has; `routing` does not know `ingest`."""

    @property
    def jwks_file(self) -> str: ...  # noqa: D102
    @property
    def jwks_url(self) -> str: ...  # noqa: D102
    @property
    def issuer(self) -> str: ...  # noqa: D102
    @property
    def audience(self) -> str: ...  # noqa: D102
    @property
    def leeway_s(self) -> float: ...  # noqa: D102
    @property
    def tenant_claim(self) -> str: ...  # noqa: D102
    @property
    def device_claim(self) -> str: ...  # noqa: D102
    @property
    def gateway_claim(self) -> str: ...  # noqa: D102
    @property
    def refresh_s(self) -> float: ...  # noqa: D102


class JwtVerifier:
    """Checks tokens against the current keys; raises what `refused(text)` returns."""

    def __init__(self, settings: JwtSettings, *, refused: Callable[[str], Exception]) -> None:
        self._settings = settings
        self._refused = refused
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._wanted = asyncio.Event()
        if settings.jwks_file:
            self._take(Path(settings.jwks_file).read_bytes())

    def _take(self, content: bytes) -> None:
        keys = jwt.PyJWKSet.from_dict(msgspec.json.decode(content, type=dict[str, Any])).keys
        self._keys = {key.key_id: key for key in keys}

    def identity(self, token: str) -> Identity:
        """Return whom a token names."""
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.get(header.get("kid"))
            if key is None:
                self._wanted.set()
                raise self._refused("the token's key is not known")
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=settings.audience or None,
                issuer=settings.issuer or None,
                leeway=settings.leeway_s,
                options={"require": ["exp"], "verify_aud": bool(settings.audience)},
            )
        except jwt.PyJWTError as error:
            raise self._refused(f"the token is refused: {type(error).__name__}") from error
        tenant = claims.get(settings.tenant_claim)
        device, gateway = claims.get(settings.device_claim), claims.get(settings.gateway_claim)
        name = gateway if device is None else device
        if not isinstance(tenant, str) or not isinstance(name, str) or not tenant or not name:
            raise self._refused("the token names no tenant and device")
        return Identity(
            tenant=tenant,
            name=name,
            kind=Kind.GATEWAY if device is None else Kind.DEVICE,
            credential=Credential.JWT,
            fingerprint=str(claims.get("jti", "")),
            expires_s=float(claims["exp"]) + settings.leeway_s,
        )

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        settings = self._settings
        while True:
            try:
                if settings.jwks_url:
                    self._take(await _fetch(settings.jwks_url))
                else:
                    self._take(await asyncio.to_thread(Path(settings.jwks_file).read_bytes))
            except (OSError, aiohttp.ClientError, TimeoutError, jwt.PyJWTError, msgspec.DecodeError):
                pass  # the last good keys stay
            await asyncio.sleep(REFETCH_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), settings.refresh_s)
            self._wanted.clear()


async def _fetch(url: str) -> bytes:
    timeout = aiohttp.ClientTimeout(total=FETCH_DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as response:
        response.raise_for_status()
        return await response.content.read(JWKS_BYTES_MAX)
