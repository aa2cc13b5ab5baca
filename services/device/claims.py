"""Claims: who may ask for a first certificate, and for which device. Pure but for the secret of a token.

- A token is `hwc_<id>_<secret>`; of the secret only a hash is kept, 256 random bits that nobody can guess.
- A pattern of device names has at most `STARS_MAX` stars, so that matching it is quick.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import re
import secrets
from typing import Final

import msgspec

from services.device.store.claims import ClaimRow
from services.web.refusal import Refused

PREFIX: Final = "hwc"
STARS_MAX: Final = 4
PATTERN: Final = r"^(?:[A-Za-z0-9._~:@=?-]*\*){0,4}[A-Za-z0-9._~:@=?-]*$"
TOKEN: Final = re.compile(r"hwc_([0-9a-f]{16})_([0-9a-f]{64})")


class Secret(msgspec.Struct, frozen=True):
    """A new claim's id, its token, and the hash that is kept of that."""

    id: str
    token: str
    hash: bytes


def new_secret() -> Secret:
    """Return a secret that nobody has seen."""
    identifier, secret = secrets.token_hex(8), secrets.token_hex(32)
    return Secret(identifier, f"{PREFIX}_{identifier}_{secret}", _hash(secret))


def identifier_of(token: str) -> str | None:
    """Return the id of the claim that a token says it is of."""
    match = TOKEN.fullmatch(token)
    return match[1] if match else None


def is_token_of(row: ClaimRow | None, token: str) -> bool:
    """Return whether a token is that of a claim, in the time it takes for any other."""
    match = TOKEN.fullmatch(token)
    shown = _hash(match[2]) if match else bytes(32)
    kept = row.hash if row is not None and row.hash is not None else secrets.token_bytes(32)
    return hmac.compare_digest(shown, kept)


def matches(pattern: str, device: str) -> bool:
    """Return whether a device's name is one of a pattern's."""
    return fnmatch.fnmatchcase(device, pattern)


def refuse_unless_usable(row: ClaimRow, device: str, now_s: float) -> None:
    """Refuse a claim that has ended or is for other devices."""
    if row.revoked_s is not None:
        raise Refused(403, "claim-revoked", "the claim is revoked")
    if now_s >= row.expires_s:
        raise Refused(403, "claim-expired", "the claim has ended")
    if row.uses >= row.uses_max:
        raise Refused(403, "claim-used", "the claim has been used as often as it may be")
    if not matches(row.devices, device):
        raise Refused(403, "claim-for-others", "the claim is for devices of other names")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
