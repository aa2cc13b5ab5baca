"""Who calls a service: the passport that the API gateway signs for each request it passes on.

A service never trusts its network: what comes without a passport is refused, whatever address it is from.

- A passport is an EdDSA JWT of at most `PASSPORT_BYTES_MAX` bytes, for one service (`aud`), good for minutes.
- The last `REMEMBERED_MAX` good ones are remembered until they end, so that a signature is checked once.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Final

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from routing.tenancy.identity import Unauthenticated
from routing.tenancy.principal import EVERY_TENANT

HEADER: Final = "X-Headworks-Identity"
ISSUER: Final = "headworks-api"
PASSPORT_BYTES_MAX: Final = 8192
REMEMBERED_MAX: Final = 4096
LEEWAY_S: Final = 5.0


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, as the API gateway has found. `device` is the device that the caller is, or empty."""

    tenant: str
    name: str
    scopes: frozenset[str]
    device: str = ""
    credential: str = ""
    fingerprint: str = ""

    def may_act_for(self, tenant: str) -> bool:
        """Return whether this caller may touch what belongs to `tenant`."""
        return self.tenant in {tenant, EVERY_TENANT}


class _Claims(msgspec.Struct, frozen=True):
    sub: str
    exp: float
    tenant: str = ""
    scopes: str = ""
    device: str | None = ""
    credential: str | None = ""
    fingerprint: str | None = ""


class PassportError(Exception):
    """The key of passports cannot be read; the text says why."""


class PassportVerifier:
    """Checks passports for one service, with the public key of the gateway."""

    def __init__(self, key_path: Path, *, audience: str) -> None:
        self._path = key_path
        self._audience = audience
        self._seen: tuple[int, int] | None = None
        self._key: Ed25519PublicKey | None = None
        self._remembered: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def poll(self) -> None:
        """Read the key if its file is new; a gateway that starts for the first time makes it.

        Raises `PassportError`, and the last good key stays.
        """
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
            if seen == self._seen:
                return
            key = load_pem_public_key(self._path.read_bytes())
        except FileNotFoundError as error:
            raise PassportError(f"there is no {self._path} yet; the API gateway makes it") from error
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise PassportError(f"cannot read {self._path}: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise PassportError(f"{self._path} is not an Ed25519 public key")
        self._key, self._seen = key, seen
        self._remembered.clear()

    def caller(self, passport: str | None, now_s: float) -> Caller:
        """Return whom a passport names; raises `Unauthenticated`."""
        if not passport:
            raise Unauthenticated("the request has no passport of the API gateway")
        remembered = self._remembered.get(passport)
        if remembered is not None and now_s < remembered[1]:
            return remembered[0]
        if len(passport) > PASSPORT_BYTES_MAX or not passport.isascii():
            raise Unauthenticated("the passport makes no sense")
        if self._key is None:
            raise Unauthenticated("the key of passports is not known yet")
        caller, expires_s = self._check(passport, self._key)
        self._remembered[passport] = (caller, expires_s)
        self._remembered.move_to_end(passport)
        while len(self._remembered) > REMEMBERED_MAX:
            self._remembered.popitem(last=False)
        return caller

    def _check(self, passport: str, key: Ed25519PublicKey) -> tuple[Caller, float]:
        try:
            found = jwt.decode(
                passport,
                key,
                algorithms=["EdDSA"],
                audience=self._audience,
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
            claims = msgspec.convert(found, _Claims)
        except (jwt.PyJWTError, msgspec.ValidationError, OverflowError) as error:
            raise Unauthenticated(f"the passport is refused: {type(error).__name__}") from error
        caller = Caller(
            tenant=claims.tenant,
            name=claims.sub,
            scopes=frozenset(claims.scopes.split()),
            device=claims.device or "",
            credential=claims.credential or "",
            fingerprint=claims.fingerprint or "",
        )
        return caller, claims.exp + LEEWAY_S
