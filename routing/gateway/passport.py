"""The passport that each proxied request carries: who the gateway found the caller to be, signed (EdDSA).

Services trust it and nothing else. The private key is made at the first start and stays with the gateway,
the public part beside it is for the services. A passport is used again for the same caller and upstream for
`REUSED_S`, since a signature costs more than the rest of a request's headers.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from routing.tenancy.principal import Principal

ISSUER: Final = "headworks-api"
HEADER: Final = "X-Headworks-Identity"
VALID_S: Final = 120
REUSED_S: Final = 60


class PassportError(Exception):
    """The key cannot be read or made; the text names the file."""


class Passports:
    """Issues passports, and keeps the last `kept_max` of them."""

    def __init__(self, key: Ed25519PrivateKey, *, kept_max: int) -> None:
        self._key = key
        self._kept_max = kept_max
        self._kept: OrderedDict[tuple[Principal, str], tuple[str, float]] = OrderedDict()

    def issue(self, principal: Principal, upstream: str, now_s: float) -> str:
        """Return a passport of `principal` for `upstream`."""
        key = (principal, upstream)
        kept = self._kept.get(key)
        if kept is not None and now_s < kept[1]:
            return kept[0]
        expires_s = now_s + VALID_S
        if principal.expires_s is not None:
            expires_s = min(expires_s, principal.expires_s)
        token = jwt.encode(_claims(principal, upstream, expires_s), self._key, algorithm="EdDSA")
        self._kept[key] = (token, min(now_s + REUSED_S, expires_s))
        self._kept.move_to_end(key)
        if len(self._kept) > self._kept_max:
            self._kept.popitem(last=False)
        return token


def _claims(principal: Principal, upstream: str, expires_s: float) -> dict[str, object]:
    return {
        "iss": ISSUER,
        "aud": upstream,
        "sub": principal.name,
        "tenant": principal.tenant,
        "scopes": " ".join(sorted(principal.scopes)),
        "device": principal.device,
        "credential": principal.credential.value,
        "fingerprint": principal.fingerprint,
        "exp": int(expires_s),
    }


def load_key(data_dir: Path) -> Ed25519PrivateKey:
    """Return the key of a data folder, made at the first start, or raise `PassportError`."""
    path = data_dir / "passport.key"
    try:
        if not path.exists():
            made = Ed25519PrivateKey.generate()
            pem = made.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            _write(path, pem, 0o600)
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise PassportError(f"{path} is not an Ed25519 key; remove it, and the next start makes one")
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        beside = data_dir / "passport.pub"
        if not beside.exists() or beside.read_bytes() != public:
            _write(beside, public, 0o644)
    except (OSError, ValueError, TypeError) as error:
        raise PassportError(f"{path}: {error}") from error
    return key


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole, or not at all."""
    beside = path.with_suffix(f"{path.suffix}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
