"""JSON Web Tokens as credentials: RS256, ES256 and EdDSA, with the keys of a JWKS file or URL.

- A set of keys that cannot be read keeps the last good one, and is tried again soon.
- A token with a key id that is not known is refused, and makes the set be read again soon.
- Keys of a set that are for something else, or that make no sense, are passed over (RFC 7517, 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import aiohttp
import jwt
import msgspec

from routing.tenancy.identity import Credential, Identity, Kind

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
JWKS_BYTES_MAX: Final = 1 << 20
NAME: Final = re.compile(r"[A-Za-z0-9._~:@=-]{1,128}")
"""What a topic can name; a token for anybody else would be good for nothing."""


class JwksError(Exception):
    """A set of keys cannot be read or has no key to use; the text says why, never with what is in it."""


class TokenSettings(Protocol):
    """What checking a token takes, wherever it is configured: for devices, or for the API."""

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
    def refresh_s(self) -> float: ...  # noqa: D102


class JwtSettings(TokenSettings, Protocol):
    """What `ingest.settings.Jwt` has; `routing` does not know `ingest`."""

    @property
    def tenant_claim(self) -> str: ...  # noqa: D102
    @property
    def device_claim(self) -> str: ...  # noqa: D102
    @property
    def gateway_claim(self) -> str: ...  # noqa: D102


class Claims(msgspec.Struct, frozen=True):
    """What a token says whose signature, issuer, audience and time are right.

    `expires_s` is Unix time in seconds, leeway included.
    """

    values: dict[str, Any]
    expires_s: float

    def name(self, claim: str) -> str | None:
        """Return a claim that is a name, else None."""
        value = self.values.get(claim)
        return value if isinstance(value, str) and NAME.fullmatch(value) else None

    @property
    def token_id(self) -> str:
        """The `jti`, or nothing."""
        return str(self.values.get("jti", ""))


class TokenVerifier:
    """Checks tokens against the current keys; raises what `refused(text)` returns.

    A file is read at once, so that a wrong one is known at the start: raises `JwksError`.
    """

    def __init__(self, settings: TokenSettings, *, refused: Callable[[str], Exception]) -> None:
        self._settings = settings
        self._refused = refused
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._wanted = asyncio.Event()
        if settings.jwks_file:
            self._keys = keys_of(_read(Path(settings.jwks_file)))

    @property
    def ready(self) -> bool:
        """Whether there are keys at all: before the first answer of a server there are none."""
        return bool(self._keys)

    def claims(self, token: str) -> Claims:
        """Return what a token says, for a reader to make sense of."""
        settings = self._settings
        if not token.isascii():
            raise self._refused("the token is not ASCII")
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
            expires_s = float(claims["exp"]) + settings.leeway_s
        except (jwt.PyJWTError, OverflowError) as error:
            raise self._refused(f"the token is refused: {type(error).__name__}") from error
        return Claims(claims, expires_s)

    async def run(
        self, *, refetch_s: float, deadline_s: float, fetched: Callable[[str | None], None]
    ) -> None:
        """Keep the keys fresh until cancelled.

        They are read again every `refresh_s` of the settings, and sooner for a token with an unknown key or
        after a failure, but never within `refetch_s`. `fetched` hears None, or what was wrong, each time.
        """
        while True:
            try:
                self._keys = keys_of(await self._content(deadline_s))
            except JwksError as error:
                fetched(str(error))
                self._wanted.set()
            else:
                fetched(None)
            await asyncio.sleep(refetch_s)
            with contextlib.suppress(TimeoutError):
                # Not wait_for, which in Python 3.11 loses a cancellation that comes as the event is set.
                async with asyncio.timeout(self._settings.refresh_s):
                    await self._wanted.wait()
            self._wanted.clear()

    async def _content(self, deadline_s: float) -> bytes:
        if self._settings.jwks_url:
            return await _fetch(self._settings.jwks_url, deadline_s)
        return await asyncio.to_thread(_read, Path(self._settings.jwks_file))


class JwtVerifier(TokenVerifier):
    """Reads tokens as the identities of devices and gateways."""

    def __init__(self, settings: JwtSettings, *, refused: Callable[[str], Exception]) -> None:
        super().__init__(settings, refused=refused)
        self._names = settings

    def identity(self, token: str) -> Identity:
        """Return whom a token names."""
        claims = self.claims(token)
        is_gateway = claims.values.get(self._names.device_claim) is None
        tenant = claims.name(self._names.tenant_claim)
        name = claims.name(self._names.gateway_claim if is_gateway else self._names.device_claim)
        if tenant is None:
            raise self._refused("the token names no tenant")
        if name is None:
            raise self._refused("the token names no device")
        return Identity(
            tenant=tenant,
            name=name,
            kind=Kind.GATEWAY if is_gateway else Kind.DEVICE,
            credential=Credential.JWT,
            fingerprint=claims.token_id,
            expires_s=claims.expires_s,
        )


class _Jwk(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The public members of a key that we know; all others are left behind, private ones too."""

    kty: Literal["RSA", "EC", "OKP"]
    kid: str | None = None
    use: str | None = None
    alg: str | None = None
    crv: str | None = None
    x: str | None = None
    y: str | None = None
    n: str | None = None
    e: str | None = None


class _Jwks(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]


def keys_of(content: bytes) -> dict[str | None, jwt.PyJWK]:
    """Return the keys of a set that can check signatures, by id; raises `JwksError`."""
    try:
        members = msgspec.json.decode(content, type=_Jwks).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JwksError(f"not a JWKS: {error}") from error
    keys = {}
    for member in members:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError, jwt.PyJWTError):
            key = jwt.PyJWK(msgspec.to_builtins(msgspec.json.decode(member, type=_Jwk)))
            if key.algorithm_name in ALGORITHMS and key.public_key_use in {None, "sig"}:
                keys[key.key_id] = key
    if not keys:
        raise JwksError(f"a JWKS without a key for {', '.join(ALGORITHMS)}")
    return keys


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(JWKS_BYTES_MAX + 1)
    except OSError as error:
        raise JwksError(f"cannot be read: {error.strerror}") from error
    _refuse_huge(len(content))
    return content


async def _fetch(url: str, deadline_s: float) -> bytes:
    timeout = aiohttp.ClientTimeout(total=deadline_s)
    content = bytearray()
    try:
        async with aiohttp.ClientSession(timeout=timeout) as client, client.get(url) as response:
            response.raise_for_status()
            async for part in response.content.iter_any():
                content += part
                _refuse_huge(len(content))
    except TimeoutError as error:
        raise JwksError(f"no answer within {deadline_s:g} s") from error
    except aiohttp.ClientResponseError as error:
        raise JwksError(f"the answer is {error.status} {error.message}") from error
    except OSError as error:
        raise JwksError(f"cannot be fetched: {error}") from error
    except (aiohttp.ClientError, ValueError) as error:
        # Their text may repeat the URL, which may hold a secret. ValueError: a host that is no name.
        raise JwksError(f"cannot be fetched: {type(error).__name__}") from error
    return bytes(content)


def _refuse_huge(size: int) -> None:
    if size > JWKS_BYTES_MAX:
        raise JwksError(f"more than {JWKS_BYTES_MAX} bytes")
